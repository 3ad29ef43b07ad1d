"""A registry's settings: a TOML file, ``TARE_REGISTRY_…`` in the environment, flags. The later of these wins.

    /etc/tare/registry.toml         [access]
                                    htpasswd = "/etc/tare/users"
    the environment                 TARE_REGISTRY_ACCESS_HTPASSWD=/etc/tare/users
    a flag                          --htpasswd /etc/tare/users

The three become one tree of plain values, which is checked as a whole; what is wrong with a value names the place that it came from. Every
key is known or refused. The environment can set single values and lists of words (separated by commas); tables in a row
(``[[access.rule]]``, ``[[cache]]``, ``[[webhook]]``) come from the file only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from tare.errors import InvalidArgument

PREFIX = "TARE_REGISTRY_"
DEFAULT_ROOT = "/var/lib/tare-registry"
FLAGS: dict[str, tuple[str, ...]] = {
    "root": ("root",),
    "listen": ("listen",),
    "url": ("url",),
    "state": ("state",),
    "tls-cert": ("tls", "cert"),
    "tls-key": ("tls", "key"),
    "htpasswd": ("access", "htpasswd"),
    "anonymous-pull": ("access", "anonymous-pull"),
    "anonymous-push": ("access", "anonymous-push"),
    "read-only": ("access", "read-only"),
    "no-delete": ("access", "no-delete"),
    "tokens": ("token", "enabled"),
    "mirror": ("mirror",),
    "log-level": ("log", "level"),
    "log-format": ("log", "format"),
    "access-log": ("log", "access"),
    "audit-log": ("log", "audit"),
    "metrics-listen": ("metrics", "listen"),
    "no-page": ("page", "disabled"),
}
"""Flags of ``serve`` and where in the tree they go."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)?")
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, None: 1.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


class Duration(float):
    """Seconds; written as a number of them or as ``90s``, ``15m``, ``6h``, ``30d``, ``2w``."""

    @classmethod
    def parse(cls, value: object) -> Duration:
        """``ValueError`` for anything else."""
        match = _DURATION.fullmatch(str(value).strip()) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        if match is None:
            raise ValueError(f"{value!r} is no duration: write 90s, 15m, 6h, 30d or a number of seconds")
        return cls(float(match[1]) * _DURATIONS[match[2]])


class Size(int):
    """Bytes; written as a number of them or as ``500MB``, ``20GB``, ``1.5TB`` (``GiB`` counts in 1024s)."""

    @classmethod
    def parse(cls, value: object) -> Size:
        """``ValueError`` for anything else."""
        match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str | int) and not isinstance(value, bool) else None
        if match is None:
            raise ValueError(f"{value!r} is no size: write 500MB, 20GB or a number of bytes")
        return cls(float(match[1]) * (1024 if match[3] else 1000) ** "_kmgt".index(match[2].lower() or "_"))


Patterns = tuple[str, ...]
"""Of repositories: ``team/*`` (one part), ``team/**`` (any number of them), ``**`` (all)."""
Right = Literal["pull", "push", "delete"]


class _Table(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    pass


class Tls(_Table, frozen=True, kw_only=True):
    """``[tls]``"""

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    """Clients must show a certificate that this authority signed."""


class Log(_Table, frozen=True, kw_only=True):
    """``[log]``. Files are opened again on SIGHUP; ``-`` is standard output."""

    level: Literal["debug", "info", "warning", "error"] = "warning"
    format: Literal["text", "json"] = "text"
    access: str = ""
    audit: str = ""
    audit_pulls: bool = False


class Rule(_Table, frozen=True, kw_only=True):
    """``[[access.rule]]``: what some may do with some repositories. Rules only ever add."""

    repositories: Annotated[Patterns, msgspec.Meta(min_length=1)]
    rights: tuple[Right, ...]
    users: tuple[str, ...] = ()
    """Names; ``*`` is everybody who proved a name. ``{user}`` in a pattern of this rule stands for the name."""
    groups: tuple[str, ...] = ()
    anonymous: bool = False
    """Also those without a name."""


class AccessSettings(_Table, frozen=True, kw_only=True):
    """``[access]``"""

    htpasswd: Path | None = None
    anonymous_pull: bool = False
    anonymous_push: bool = False
    read_only: bool = False
    no_delete: bool = False
    groups: dict[str, tuple[str, ...]] = {}
    rule: tuple[Rule, ...] = ()


class Foreign(_Table, frozen=True, kw_only=True):
    """``[token.foreign]``: a token service of somebody else."""

    realm: str
    """Where clients get their tokens."""
    issuer: str
    keys: Path
    """Public keys: JWKS, or PEM keys and certificates."""
    service: str = ""
    """What tokens must be made for (``aud``); by default the registry's host name, as clients see it, is not enough: it must be given."""
    algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")


class Token(_Table, frozen=True, kw_only=True):
    """``[token]``"""

    enabled: bool | None = None
    """None: where passwords and anonymous reading come together, which only tokens can tell apart for docker."""
    keys: Path | None = None
    service: str = "tare-registry"
    issuer: str = "tare-registry"
    lifetime: Duration = Duration(300)
    refresh_lifetime: Duration = Duration(90 * 86400)
    rotate: Duration = Duration(30 * 86400)
    foreign: Foreign | None = None


class Cache(_Table, frozen=True, kw_only=True):
    """``[[cache]]``: repositories below ``prefix`` are those of another registry."""

    prefix: str
    upstream: str = ""
    """``docker.io``, ``quay.io/team``, ``10.0.0.1:5000``; by default what ``prefix`` says."""
    username: str = ""
    password: str = ""
    password_file: Path | None = None
    insecure: bool = False
    """No TLS, or a certificate that nobody vouches for."""
    certificates: Path | None = None
    """A directory laid out as docker's certs.d."""
    ttl: Duration = Duration(600)
    """How long a tag is believed before the upstream is asked again."""
    timeout: Duration = Duration(10)
    """How long the upstream may take to say what a tag names when an older answer is at hand."""
    keep: Duration = Duration(0)
    """Content that nobody asked for so long is removed; 0: never."""
    size: Size = Size(0)
    """Above so many bytes what was not asked for the longest time is removed; 0: no limit."""
    downloads: int = 8
    """Blobs fetched at the same time."""


class Retention(_Table, frozen=True, kw_only=True):
    """``[[retention]]``: which tags stay; applied by the schedule."""

    repositories: Annotated[Patterns, msgspec.Meta(min_length=1)]
    newest: int = 0
    age: Duration = Duration(0)
    untagged: Duration = Duration(0)


class Schedule(_Table, frozen=True, kw_only=True):
    """``[schedule]``: how often; 0 is never."""

    gc: Duration = Duration(6 * 3600)
    grace: Duration = Duration(24 * 3600)
    retention: Duration = Duration(6 * 3600)
    scrub: Duration = Duration(0)


class Webhook(_Table, frozen=True, kw_only=True):
    """``[[webhook]]``: events in the envelope of docker-registry's notifications."""

    url: str
    name: str = ""
    headers: dict[str, str] = {}
    actions: tuple[Literal["push", "pull", "delete", "mount"], ...] = ("push", "delete", "mount")
    repositories: Patterns = ("**",)
    timeout: Duration = Duration(10)
    backoff: Duration = Duration(1)
    """Before the first repetition; it doubles each time."""
    queue: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    """Events that wait at most; the oldest go first."""
    keep: Duration = Duration(86400)
    """An event that could not be delivered for so long is dropped."""


class MetricsSettings(_Table, frozen=True, kw_only=True):
    """``[metrics]``: an address for ``/metrics`` and ``/healthz``, away from the clients'."""

    listen: tuple[str, ...] = ()


class Page(_Table, frozen=True, kw_only=True):
    """``[page]``: the web page."""

    disabled: bool = False


class Settings(_Table, frozen=True, kw_only=True):
    """Everything. As a library: ``Settings(root="/srv/registry", listen=("127.0.0.1:0",))``."""

    root: str = DEFAULT_ROOT
    listen: tuple[str, ...] = ("127.0.0.1:5000",)
    url: str = ""
    """How clients reach the registry, when that is not what they say in ``Host``: ``https://registry.example``."""
    state: Path | None = None
    """A directory for what belongs to this process: keys of the token service, undelivered events. In ``root`` when that is a directory."""
    mirror: str = ""
    """Prefix of the cache that also serves names without a prefix (docker's ``registry-mirrors``)."""
    shutdown_timeout: Duration = Duration(15)
    tls: Tls = Tls()
    log: Log = Log()
    access: AccessSettings = AccessSettings()
    token: Token = Token()
    cache: tuple[Cache, ...] = ()
    quota: dict[str, Size] = {}
    retention: tuple[Retention, ...] = ()
    schedule: Schedule = Schedule()
    webhook: tuple[Webhook, ...] = ()
    metrics: MetricsSettings = MetricsSettings()
    page: Page = Page()

    @property
    def is_bucket(self) -> bool:
        """The content lies in object storage."""
        return self.root.startswith("s3://")

    @property
    def state_directory(self) -> Path | None:
        """See ``state``."""
        return self.state or (None if self.is_bucket else Path(self.root).absolute() / "state")


def load(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, object], caches: Sequence[Mapping[str, object]] = ()
) -> Settings:
    """Merge and check. ``flags``: values by the names of ``FLAGS``; ``caches`` are added to the file's. ``InvalidArgument`` names file,
    variable or flag, and key."""
    origins: dict[tuple[str, ...], str] = {}
    tree: dict[str, Any] = {}
    path = file or (Path(environment[f"{PREFIX}CONFIG"]) if environment.get(f"{PREFIX}CONFIG") else None)
    if path is not None:
        tree = _read(path)
    for key, value, name in _from_environment(environment):
        _place(tree, key, value)
        origins[key] = name
    for flag, value in flags.items():
        _place(tree, FLAGS[flag], value)
        origins[FLAGS[flag]] = f"--{flag}"
    if caches:
        known = tree.get("cache", [])
        tree["cache"] = [*(known if isinstance(known, list) else [known]), *caches]
    try:
        found = msgspec.convert(tree, Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidArgument(_explain(str(error), path, origins)) from None
    try:
        _check(found)
    except _Wrong as error:
        where = next((name for key, name in origins.items() if error.key[: len(key)] == key), str(path) if path else "settings")
        raise InvalidArgument(f"{where}: {'.'.join(error.key)}: {error}") from None
    return found


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from None


def _decode(kind: type, value: object) -> object:
    if kind is Duration:
        return Duration.parse(value)
    if kind is Size:
        return Size.parse(value)
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError(f"{value!r} is no path")


def _place(tree: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    for part in key[:-1]:
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):
            return  # the file has something else there: the check will say so
        tree = inner
    tree[key[-1]] = value


def _explain(text: str, path: Path | None, origins: Mapping[tuple[str, ...], str]) -> str:
    """msgspec's ``Expected `int`, got `str` - at `$.tls.cert``` as ``FILE: tls.cert: expected int, got str``."""
    reason, _, place = text.partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `([^`]*)`", reason)
    if unknown:
        return f"{path}: {f'{key}.' if key else ''}{unknown[1]}: there is no such key"
    origin = origins.get(tuple(key.split(".")), str(path) if path else "settings")
    reason = (
        reason.replace("`", "")
        .replace("Expected array", "expected a list")
        .replace("Expected", "expected")
        .replace("Object missing", "missing")
    )
    return f"{origin}: {f'{key}: ' if key else ''}{reason}"


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], object, str]]:
    if not any(name.startswith(PREFIX) for name in environment):
        return  # looking at all types takes some milliseconds
    known = {PREFIX + "_".join(key).replace("-", "_").upper(): (key, kind) for key, kind in _leaves(Settings, ())}
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name == f"{PREFIX}CONFIG":
            continue
        if name not in known:
            raise InvalidArgument(f"{name}: there is no such setting")
        key, kind = known[name]
        yield key, _from_text(name, environment[name], kind), name


def _from_text(name: str, text: str, kind: Any) -> object:
    if "bool" in str(kind):
        if text.lower() not in ("true", "yes", "1", "on", "false", "no", "0", "off"):
            raise InvalidArgument(f"{name}: {text!r} is neither true nor false")
        return text.lower() in ("true", "yes", "1", "on")
    if "tuple" in str(kind):
        return [word.strip() for word in text.split(",") if word.strip()]
    return text


def _leaves(table: type[msgspec.Struct], above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys that hold single values or lists of words, with their types."""
    hints = get_type_hints(table)
    for field in msgspec.structs.fields(table):
        kind = hints[field.name]
        key = (*above, field.encode_name)
        inner = next((part for part in (kind, *getattr(kind, "__args__", ())) if isinstance(part, type) and issubclass(part, _Table)), None)
        if inner is not None and "tuple" not in str(kind):
            yield from _leaves(inner, key)
        elif inner is None and "dict" not in str(kind):
            yield key, kind


class _Wrong(Exception):
    def __init__(self, message: str, *key: str) -> None:
        super().__init__(message)
        self.key = key


def _check(settings: Settings) -> None:
    """What no type says."""
    tls, access, token = settings.tls, settings.access, settings.token
    if not settings.listen:
        raise _Wrong("at least one address is needed", "listen")
    if not settings.root:
        raise _Wrong("it is empty", "root")
    if (tls.cert is None) != (tls.key is None):
        raise _Wrong("a certificate needs its key, and a key its certificate", "tls", "key" if tls.key is None else "cert")
    if tls.client_ca and tls.cert is None:
        raise _Wrong("it needs a certificate (tls.cert) as well", "tls", "client-ca")
    _check_url(settings.url, "url")
    for position, rule in enumerate(access.rule):
        for group in rule.groups:
            if group not in access.groups:
                raise _Wrong(f"there is no group {group!r} in access.groups", "access", f"rule[{position}]", "groups")
        if not rule.users and not rule.groups and not rule.anonymous:
            raise _Wrong("it is for nobody: give users, groups, or anonymous = true", "access", f"rule[{position}]")
    if token.foreign is not None:
        _check_foreign(token)
    if token.lifetime < 60:
        raise _Wrong("clients count on at least 60 seconds", "token", "lifetime")
    prefixes = [cache.prefix for cache in settings.cache]
    for position, cache in enumerate(settings.cache):
        _check_cache(cache, position, prefixes)
    if settings.mirror and settings.mirror not in prefixes:
        raise _Wrong(f"there is no [[cache]] with the prefix {settings.mirror!r}", "mirror")
    for position, hook in enumerate(settings.webhook):
        _check_url(hook.url or "-", f"webhook[{position}]", "url")
        for name, value in hook.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]+", name) or "\n" in value or "\r" in value:
                raise _Wrong(f"{name!r} cannot be a header", f"webhook[{position}]", "headers")


def _check_foreign(token: Token) -> None:
    from tare.api.registry.tokens import ALGORITHMS

    assert token.foreign is not None
    _check_url(token.foreign.realm or "-", "token", "foreign", "realm")
    if token.enabled:
        raise _Wrong("tokens come either from here or from somebody else (token.foreign)", "token", "enabled")
    if not token.foreign.service:
        raise _Wrong("it is needed: the audience that tokens are made for", "token", "foreign", "service")
    for name in token.foreign.algorithms:
        if name not in ALGORITHMS:
            raise _Wrong(f"{name!r} is not taken: use some of {', '.join(ALGORITHMS)}", "token", "foreign", "algorithms")


def _check_cache(cache: Cache, position: int, prefixes: Sequence[str]) -> None:
    from tare.api.registry.names import REPOSITORY

    where = f"cache[{position}]"
    if not REPOSITORY.fullmatch(f"{cache.prefix}/x"):
        raise _Wrong(f"{cache.prefix!r} cannot begin a repository's name", where, "prefix")
    for other in (*prefixes[:position], *prefixes[position + 1 :]):
        if f"{cache.prefix}/".startswith(f"{other}/"):
            raise _Wrong(f"{cache.prefix!r} lies below another cache's prefix, {other!r}", where, "prefix")
    if cache.password and cache.password_file:
        raise _Wrong("give password or password-file, not both", where, "password-file")
    if (cache.password or cache.password_file) and not cache.username:
        raise _Wrong("a password needs a username", where, "username")
    if cache.downloads < 1:
        raise _Wrong("at least 1", where, "downloads")


def _check_url(text: str, *key: str) -> None:
    if text and not re.fullmatch(r"https?://[^\s/?#\"@]+(?:/[^\s?#\"]*)?(?:\?[^\s#\"]*)?", text):
        raise _Wrong(f"{text!r} is no address: write https://HOST[/PATH]", *key)


def cache_from_flag(text: str) -> dict[str, object]:
    """``--cache docker.io``, or ``--cache hub=docker.io`` for another prefix than the registry's name."""
    prefix, _, upstream = text.rpartition("=")
    return {"prefix": prefix or upstream, "upstream": upstream}


_SECRET = ("password", "headers")


def shown(settings: Settings) -> str:
    """All settings as JSON, without secrets."""
    tree = msgspec.to_builtins(settings, enc_hook=str)

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: "***" if name in _SECRET and inner else hide(inner) for name, inner in value.items()}
        return [hide(inner) for inner in value] if isinstance(value, list | tuple) else value

    return msgspec.json.format(msgspec.json.encode(hide(tree)), indent=2).decode()


def environment() -> Mapping[str, str]:
    """The process's."""
    return os.environ
