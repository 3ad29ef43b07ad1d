"""``RUN --device=vendor.com/class=name[,required]``: which devices a command gets, and whether the build may have them.

As BuildKit has it: a kind alone means its first device, ``kind=*`` all of them, and a name that no device has may be a class that devices
give themselves by an annotation. A device must be granted, by ``--allow device`` (any) or ``--allow device=NAME``, unless its
specification says that builds may have it.
"""

from __future__ import annotations

from collections.abc import Iterable

from tare.builder.instructions import RunDevice
from tare.containers.cdi import Known
from tare.errors import InvalidArgument

ENTITLEMENT = "device"
_CLASS = "org.mobyproject.buildkit.device.class"
_GRANTED = "org.mobyproject.buildkit.device.autoallow"
_TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))


def chosen(devices: Iterable[RunDevice], known: Known, allow: Iterable[str]) -> list[str]:
    """Full names. ``InvalidArgument`` for a required device that there is not, and for one that was not granted."""
    found: list[str] = []
    for device in devices:
        names = _matching(device.name, known)
        if not names and device.required:
            told = "".join(f"; {what}: {why}" for what, why in list(known.problems.items())[:4])
            raise InvalidArgument(f'required device "{device.name}" is not registered{told}')
        found += names
    refused = [name for name in dict.fromkeys(found) if not _granted(name, known, set(allow))]
    if refused:
        one = len(refused) == 1
        raise InvalidArgument(
            f"device{'' if one else 's'} {', '.join(refused)} {'is' if one else 'are'} requested by the build but not allowed: "
            f"pass --allow {ENTITLEMENT}={refused[0]}, or --allow {ENTITLEMENT} for any"
        )
    return list(dict.fromkeys(found))


def _matching(name: str, known: Known) -> list[str]:
    kind, _, short = name.partition("=")
    of_kind = sorted(each for each in known.devices if each.startswith(f"{kind}="))
    if short == "":
        return of_kind[:1]
    if short == "*":
        return of_kind
    return [name] if name in known.devices else [each for each in of_kind if _annotations(each, known).get(_CLASS) == short]


def _annotations(name: str, known: Known) -> dict[str, str]:
    spec, device = known.devices[name]
    return {**(spec.annotations or {}), **(device.annotations or {})}


def _granted(name: str, known: Known, allow: set[str]) -> bool:
    wanted = {ENTITLEMENT, f"{ENTITLEMENT}={name}", f"{ENTITLEMENT}={name.partition('=')[0]}", f"{ENTITLEMENT}={name.partition('=')[0]}=*"}
    return bool(wanted & allow) or _annotations(name, known).get(_GRANTED, "") in _TRUE
