"""``HostConfig.SecurityOpt``, ``CapAdd`` and ``CapDrop``: words of the Docker API become what a process may do (pure).

Capabilities start from Docker's fourteen. ``CapAdd: ["ALL"]`` starts from all that the engine itself holds, ``CapDrop: ["ALL"]`` from
none; single names count last. A privileged container gets all that the engine holds, whatever else is said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tare.containers.machine import Machine
from tare.errors import InvalidArgument
from tare.linux.capabilities import NUMBERS
from tare.runtime import seccomp_profile
from tare.wire.container import HostConfig

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

UNCONFINED = "unconfined"
_BUILTIN = ("", "default", "builtin")
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


@dataclass(frozen=True)
class SecurityOptions:
    """``SecurityOpt``, understood. ``seccomp`` is empty (the default profile), ``unconfined`` or a profile's JSON text."""

    no_new_privileges: bool = False
    seccomp: str = ""
    apparmor: str = ""
    writable_cgroups: bool = False


def parse_security_options(options: Sequence[str] | None) -> SecurityOptions:
    """Raises ``InvalidArgument`` with dockerd's text for a word that it does not know."""
    no_new_privileges = writable_cgroups = False
    seccomp = apparmor = ""
    for option in options or ():
        if option == "no-new-privileges":
            no_new_privileges = True
            continue
        if option == "disable":
            continue
        separator = "=" if "=" in option else ":"
        key, found, value = option.partition(separator)
        if not found:
            raise InvalidArgument(f'invalid --security-opt 1: "{option}"')
        if key == "no-new-privileges":
            no_new_privileges = _boolean(value, option)
        elif key == "writable-cgroups":
            writable_cgroups = _boolean(value, option)
        elif key == "seccomp":
            seccomp = "" if value in _BUILTIN else value
        elif key == "apparmor":
            apparmor = value
        elif key != "label":
            raise InvalidArgument(f'invalid --security-opt 2: "{option}"')
    return SecurityOptions(no_new_privileges, seccomp, apparmor, writable_cgroups)


def _boolean(text: str, option: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise InvalidArgument(f'invalid --security-opt 2: "{option}"')
    return text in _TRUE


def normalise_capabilities(names: Sequence[str] | None, option: str) -> list[str] | None:
    """Upper case with prefix, each once; ``ALL`` stays. ``option`` (``CapAdd``) is named in the error."""
    if not names:
        return None if names is None else []
    found: list[str] = []
    for name in names:
        upper = name.strip().upper()
        full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
        if full != "ALL" and full not in NUMBERS:
            raise InvalidArgument(f'invalid {option}: unknown capability: "{full}"')
        if full not in found:
            found.append(full)
    return sorted(found)


def effective_capabilities(host: HostConfig, machine: Machine) -> list[str]:
    """The capabilities of the container's processes (of root; another user has none after its first exec)."""
    if host.privileged:
        return list(machine.capabilities)
    added = normalise_capabilities(host.cap_add, "CapAdd") or []
    dropped = normalise_capabilities(host.cap_drop, "CapDrop") or []
    base = machine.capabilities if "ALL" in added else () if "ALL" in dropped else DEFAULT_CAPABILITIES
    kept = [name for name in base if name not in dropped]
    return kept + [name for name in added if name != "ALL" and name not in kept]


def seccomp_profile_of(host: HostConfig, options: SecurityOptions, bounding: Sequence[str], machine: Machine) -> dict[str, Any] | None:
    """The OCI ``linux.seccomp`` object, or None for none. A privileged container gets only a profile that is asked for by name.

    The same question gives the same object, so that a program compiled for it can be found again by identity. Do not change it.
    """
    if options.seccomp == UNCONFINED or (host.privileged and not options.seccomp):
        return None
    if not options.seccomp:
        return _default_profile(frozenset(bounding), machine.kernel, machine.arch)
    return _profile_from_text(options.seccomp, frozenset(bounding), machine.kernel, machine.arch)


@lru_cache(maxsize=32)
def _default_profile(bounding: frozenset[str], kernel: tuple[int, int], arch: str) -> dict[str, Any]:
    return seccomp_profile.default_profile(bounding, kernel, arch)


@lru_cache(maxsize=16)
def _profile_from_text(text: str, bounding: frozenset[str], kernel: tuple[int, int], arch: str) -> dict[str, Any]:
    try:
        return seccomp_profile.from_docker_json(json.loads(text), bounding, kernel, arch)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"Decoding seccomp profile failed: {error}") from None
