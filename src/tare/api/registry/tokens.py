"""Signed tokens: those that this registry makes for itself, and those of a foreign token service (Docker's token protocol, RFC 7519).

    KEYS/KID.pem        private keys of the own service, mode 0600; the youngest signs, all are believed

A key is followed by another after ``rotate`` seconds and removed when nothing that it signed can still be valid. Removing a file by hand
ends all tokens that it signed. Several processes may share the directory.

A token is an *access token* (what may be done, minutes) or a *refresh token* (who it is, months; ends with the user's password); their
audiences differ, so that one never passes for the other. Only asymmetric
algorithms are taken, chosen by configuration and never by the token; keys that a token brings along are not looked at.

The cryptography is PyJWT's. What was verified is remembered until it expires: a push shows the same token hundreds of times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tare.errors import InvalidArgument
from tare.registry.errors import RegistryError
from tare.store.durability import make_directory, write_all

if TYPE_CHECKING:
    from tare.api.registry.settings import Foreign, Token

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
OWN_ALGORITHM = "ES256"
TOKEN_LIMIT = 16 << 10
LEEWAY = 30.0
_REMEMBER = 1024
_SCOPE_LIMIT = 256
Scopes = Mapping[str, frozenset[str]]
"""Actions by ``type:name``."""


class Claims(NamedTuple):
    """What an access token says."""

    subject: str
    scopes: Scopes
    expires: float


def _library() -> Any:
    try:
        import jwt
        import jwt.algorithms

        if jwt.algorithms.has_crypto:
            return jwt
    except ImportError:
        pass
    raise InvalidArgument("tokens need the packages PyJWT and cryptography: pip install 'tare-engine[registry]'")


class _Verifier:
    """Checks access tokens against public keys by key id."""

    def __init__(self, issuer: str, audience: str, algorithms: Sequence[str]) -> None:
        self._jwt = _library()
        self._issuer, self._audience, self._algorithms = issuer, audience, list(algorithms)
        self._known: OrderedDict[bytes, Claims] = OrderedDict()
        self._looked = 0.0

    def keys(self, kid: str) -> Sequence[Any]:
        """Public keys that may have signed."""
        raise NotImplementedError

    def refresh_keys(self) -> None:
        """Once a second: has somebody added or removed keys?"""
        now = time.monotonic()
        if now - self._looked >= 1:
            self._looked = now
            try:
                self.reload()
            except (InvalidArgument, OSError):
                return  # files that are being written: what is known goes on

    def reload(self) -> None:
        """Read the keys if they have changed. ``InvalidArgument``, ``OSError``."""
        raise NotImplementedError

    def verify(self, token: str) -> Claims:
        """``UNAUTHORIZED`` for a token that is not good."""
        self.refresh_keys()
        name = hashlib.sha256(token.encode()).digest()
        found = self._known.get(name)
        if found is not None:
            if found.expires + LEEWAY > time.time():
                return found
            del self._known[name]
        document = self.decode(token, self._audience)
        found = Claims(str(document.get("sub") or ""), _scopes(document.get("access")), float(document["exp"]))
        self._known[name] = found
        if len(self._known) > _REMEMBER:
            self._known.popitem(last=False)
        return found

    def forget(self) -> None:
        """Keys have changed."""
        self._known.clear()

    def decode(self, token: str, audience: str) -> dict[str, Any]:
        """All claims of a token whose signature, issuer, audience and times are right. ``UNAUTHORIZED``."""
        reason = "invalid token"
        try:
            if len(token) > TOKEN_LIMIT:
                raise ValueError
            self.refresh_keys()
            kid = str(self._jwt.get_unverified_header(token).get("kid") or "")
            for key in self.keys(kid):
                try:
                    found: dict[str, Any] = self._jwt.decode(
                        token,
                        key,
                        algorithms=self._algorithms,
                        audience=audience,
                        issuer=self._issuer,
                        leeway=LEEWAY,
                        options={"require": ["exp", "iss", "aud"]},
                    )
                    return found
                except self._jwt.ExpiredSignatureError:
                    reason = "the token has expired"
                except (self._jwt.InvalidTokenError, TypeError):
                    continue
        except (self._jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            pass
        raise RegistryError("UNAUTHORIZED", reason)


class OwnTokens(_Verifier):
    """The registry's own token service."""

    def __init__(self, settings: Token, directory: Path) -> None:
        super().__init__(settings.issuer, settings.service, (OWN_ALGORITHM,))
        self._settings = settings
        self._directory = directory
        self._keys: dict[str, Any] = {}
        self._signing = ("", 0.0)
        """Id of the youngest key, and since when there is one."""
        self._stamp = 0
        try:
            make_directory(directory, 0o700)
            self._read()
            self.rotate()
        except OSError as error:
            raise InvalidArgument(f"cannot keep the token service's keys in {directory}: {error.strerror}") from None

    @property
    def service(self) -> str:
        return self._settings.service

    @property
    def lifetime(self) -> int:
        return int(self._settings.lifetime)

    def keys(self, kid: str) -> Sequence[Any]:
        key = self._keys.get(kid)
        return (key.public_key(),) if key is not None else ()

    def public(self) -> dict[str, Any]:
        """All public keys as JWKS (RFC 7517), for whoever believes this service's tokens."""
        self.refresh_keys()
        algorithm = self._jwt.algorithms.ECAlgorithm
        found = []
        for kid, key in sorted(self._keys.items()):
            found.append({**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": OWN_ALGORITHM, "use": "sig"})
        return {"keys": found}

    def access(self, subject: str, scopes: Scopes) -> tuple[str, int]:
        """An access token and when it was issued."""
        granted = []
        for scope, actions in scopes.items():
            kind, _, name = scope.partition(":")
            granted.append({"type": kind, "name": name, "actions": sorted(actions)})
        now = int(time.time())
        return self._sign(subject, self._settings.service, now, self._settings.lifetime, {"access": granted}), now

    def refresh(self, subject: str, fingerprint: str) -> str:
        """A refresh token; good while the user's ``fingerprint`` is the same."""
        return self._sign(subject, self._refreshing, int(time.time()), self._settings.refresh_lifetime, {"fpr": fingerprint})

    def refreshed(self, token: str) -> tuple[str, str]:
        """Subject and fingerprint of a refresh token. ``UNAUTHORIZED``."""
        document = self.decode(token, self._refreshing)
        return str(document.get("sub") or ""), str(document.get("fpr") or "")

    @property
    def _refreshing(self) -> str:
        return f"{self._settings.service}#refresh"

    def _sign(self, subject: str, audience: str, now: int, lifetime: float, more: Mapping[str, object]) -> str:
        self.rotate()
        kid = self._signing[0]
        claims = {
            "iss": self._settings.issuer,
            "sub": subject,
            "aud": audience,
            "iat": now,
            "nbf": now,
            "exp": now + int(lifetime),
            "jti": str(uuid.uuid4()),
            **more,
        }
        signed: str = self._jwt.encode(claims, self._keys[kid], algorithm=OWN_ALGORITHM, headers={"kid": kid})
        return signed

    def rotate(self) -> None:
        """Make a new key if the youngest has served its time; remove those that nothing valid can be signed with."""
        self.refresh_keys()
        now = time.time()
        if self._signing[0] in self._keys and now - self._signing[1] < self._settings.rotate:
            return
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        kid = uuid.uuid4().hex[:16]
        self._write(self._directory / f"{kid}.pem", text)
        self._keys[kid], self._signing = key, (kid, now)
        longest = max(self._settings.lifetime, self._settings.refresh_lifetime) + self._settings.rotate + 2 * LEEWAY
        for path in self._directory.glob("*.pem"):
            if path.stem != kid and now - path.stat().st_mtime > longest:
                path.unlink(missing_ok=True)
                self._keys.pop(path.stem, None)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        temporary = path.with_suffix(".new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        temporary.rename(path)

    def reload(self) -> None:
        if self._directory.stat().st_mtime_ns != self._stamp:
            self._read()

    def _read(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self._stamp = self._directory.stat().st_mtime_ns
        found, youngest = {}, ("", 0.0)
        for path in self._directory.glob("*.pem"):
            try:
                key, made = load_pem_private_key(path.read_bytes(), None), path.stat().st_mtime
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):
                raise InvalidArgument(f"{path} is no private key of the token service") from None
            if not isinstance(key, EllipticCurvePrivateKey):
                raise InvalidArgument(f"{path} is no elliptic curve key")
            found[path.stem] = key
            youngest = max(youngest, (path.stem, made), key=lambda each: each[1])
        if set(found) != set(self._keys):
            self.forget()
        self._keys, self._signing = found, youngest


class ForeignTokens(_Verifier):
    """Tokens of somebody else's service."""

    def __init__(self, settings: Foreign) -> None:
        super().__init__(settings.issuer, settings.service, settings.algorithms)
        self.realm, self.service = settings.realm, settings.service
        self._file = settings.keys
        self._found: list[tuple[str, Any]] = []
        self._stamp = 0
        self.reload()

    def reload(self) -> None:
        """Read the file of keys if it has changed. ``InvalidArgument``."""
        try:
            stamp = self._file.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            data = self._file.read_bytes()
        except OSError as error:
            raise InvalidArgument(f"cannot read the token service's keys {self._file}: {error.strerror}") from None
        self._found, self._stamp = _public_keys(self._jwt, self._file, data), stamp
        self.forget()

    def keys(self, kid: str) -> Sequence[Any]:
        named = [key for name, key in self._found if name and name == kid]
        return named or [key for name, key in self._found if not name or not kid]


def _public_keys(jwt: Any, file: Path, data: bytes) -> list[tuple[str, Any]]:
    """Keys with their ids. ``InvalidArgument``."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    found: list[tuple[str, Any]] = []
    try:
        if data.lstrip().startswith(b"{"):
            for entry in json.loads(data)["keys"]:
                if entry.get("kty") == "oct" or "d" in entry:
                    raise InvalidArgument(f"{file}: public keys are wanted, not secrets")
                if entry.get("use", "sig") == "sig":
                    found.append((str(entry.get("kid") or ""), jwt.PyJWK(entry).key))
        else:
            for block in data.split(b"-----BEGIN ")[1:]:
                pem = b"-----BEGIN " + block
                is_certificate = block.startswith(b"CERTIFICATE")
                found.append(("", x509.load_pem_x509_certificate(pem).public_key() if is_certificate else load_pem_public_key(pem)))
    except (ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError, RecursionError) as error:
        raise InvalidArgument(f"{file}: neither JWKS nor PEM public keys: {error}") from None
    if not found:
        raise InvalidArgument(f"{file}: there is no key in it")
    return found


def _scopes(access: object) -> Scopes:
    """The claim ``access`` (distribution's token specification). What cannot be understood gives nothing."""
    found: dict[str, frozenset[str]] = {}
    for entry in access[:_SCOPE_LIMIT] if isinstance(access, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("actions"), list):
            scope = f"{entry.get('type')}:{entry.get('name')}"
            found[scope] = found.get(scope, frozenset()) | {str(action) for action in entry["actions"]}
    return found


def parse_scopes(texts: Sequence[str]) -> dict[str, frozenset[str]]:
    """``repository:team/app:pull,push`` as it is asked for; several in one text are separated by spaces."""
    found: dict[str, frozenset[str]] = {}
    for text in (part for each in texts for part in each.split()):
        kind, _, rest = text.partition(":")
        name, _, actions = rest.rpartition(":")
        if kind and name and actions and len(found) < _SCOPE_LIMIT:
            scope = f"{kind.partition('(')[0]}:{name}"
            found[scope] = found.get(scope, frozenset()) | frozenset(actions.split(","))
    return found
