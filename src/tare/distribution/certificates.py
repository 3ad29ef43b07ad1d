"""TLS towards registries: whom to believe, and what to show them.

For a host there may be a directory ``HOST[:PORT]`` below one of the certificate directories, laid out as docker's ``certs.d``:

    /etc/docker/certs.d/registry.example:5000/ca.crt         *.crt: authorities to believe besides the system's
    /etc/docker/certs.d/registry.example:5000/client.cert    *.cert with *.key of the same name: what to show when asked
    /etc/docker/certs.d/registry.example:5000/client.key

The first certificate directory that knows the host counts. Files are read again when the directory has changed.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from pathlib import Path

from tare.errors import InvalidArgument

DIRECTORIES = (Path("/etc/tare/certs.d"), Path("/etc/docker/certs.d"))


class Certificates:
    """TLS contexts by host. Use from one thread."""

    def __init__(self, directories: Sequence[Path] = DIRECTORIES) -> None:
        self._directories = tuple(directories)
        self._plain: dict[bool, ssl.SSLContext] = {}
        self._special: dict[tuple[Path, bool], tuple[int, ssl.SSLContext]] = {}

    def context(self, host: str, verify: bool) -> ssl.SSLContext:
        """The context for ``host[:port]``. Raises ``InvalidArgument`` for a certificate that cannot be used."""
        found = self._directory(host)
        if found is None:
            if verify not in self._plain:
                self._plain[verify] = _fresh(verify)
            return self._plain[verify]
        directory, changed = found
        known = self._special.get((directory, verify))
        if known is None or known[0] != changed:
            known = self._special[directory, verify] = (changed, _load(directory, verify))
        return known[1]

    def _directory(self, host: str) -> tuple[Path, int] | None:
        if not host or "/" in host or host.startswith("."):
            return None
        for parent in self._directories:
            try:
                return parent / host, (parent / host).stat().st_mtime_ns
            except OSError:
                continue
        return None


def _fresh(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load(directory: Path, verify: bool) -> ssl.SSLContext:
    context = _fresh(verify)
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise InvalidArgument(f"cannot read the certificates in {directory}: {error.strerror}") from None
    for name in names:
        path, stem = directory / name, name.rpartition(".")[0]
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(path)
            elif name.endswith(".cert"):
                if f"{stem}.key" not in names:
                    raise InvalidArgument(
                        f"missing key {stem}.key for client certificate {name} in {directory}. CA certificates must use the extension .crt"
                    )
                context.load_cert_chain(path, directory / f"{stem}.key")
            elif name.endswith(".key") and f"{stem}.cert" not in names:
                raise InvalidArgument(f"missing client certificate {stem}.cert for key {name} in {directory}")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise InvalidArgument(f"cannot use the certificate {path}: {error}") from None
    return context
