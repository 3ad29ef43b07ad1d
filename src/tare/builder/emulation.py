"""Programs of other machines: whether the kernel can run them here (binfmt_misc with an emulator such as qemu-user).

A handler must have the flag F (its program is opened when it is registered): only then is it found from inside a container. See
Documentation/admin-guide/binfmt-misc.rst.
"""

from __future__ import annotations

from pathlib import Path

from tare.oci.platform import Platform, host

_HANDLERS = Path("/proc/sys/fs/binfmt_misc")
_MACHINES = {"386": 3, "amd64": 62, "arm": 40, "arm64": 183, "mips64le": 8, "ppc64le": 21, "riscv64": 243, "s390x": 22, "loong64": 258}
_NARROW = ("386", "arm")
_BIG_ENDIAN = ("s390x",)


def missing(platform: Platform) -> str:
    """Why programs for ``platform`` cannot run here, and what helps; "" when they can."""
    if host().runs(platform) or any(_serves(handler, _header(platform)) for handler in _registered()):
        return ""
    return (
        f"this machine ({host()}) cannot run {platform} programs: register an emulator with binfmt_misc "
        "(on Debian: apt-get install qemu-user-static binfmt-support)"
    )


def _registered() -> list[str]:
    """The texts of all enabled handlers with the flag F."""
    found = []
    try:
        for path in _HANDLERS.iterdir():
            if path.name not in ("register", "status"):
                found.append(path.read_text())
    except OSError:
        return []
    return [text for text in found if text.startswith("enabled") and "F" in _field(text, "flags:")]


def _field(text: str, name: str) -> str:
    return next((line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(name)), "")


def _serves(handler: str, header: bytes) -> bool:
    magic = bytes.fromhex(_field(handler, "magic"))
    mask = bytes.fromhex(_field(handler, "mask")) or b"\xff" * len(magic)
    offset = int(_field(handler, "offset") or 0)
    part = header[offset : offset + len(magic)]
    return bool(magic) and len(part) == len(magic) and all(a & m == b & m for a, b, m in zip(part, magic, mask, strict=False))


def _header(platform: Platform) -> bytes:
    """The beginning of an ELF program for the platform."""
    order = "big" if platform.architecture in _BIG_ENDIAN else "little"
    machine = _MACHINES.get(platform.architecture, 0)
    identity = bytes((0x7F, 0x45, 0x4C, 0x46, 1 if platform.architecture in _NARROW else 2, 2 if order == "big" else 1, 1)) + bytes(9)
    return identity + (2).to_bytes(2, order) + machine.to_bytes(2, order)  # type: ignore[arg-type]
