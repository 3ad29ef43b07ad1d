"""The C library through ctypes: every symbol that this package calls, resolved once, with errno turned into ``OSError``.

Why resolve at import: the init calls these after it entered a container's root, where loading anything (a library, a Python module, a
name-service plug-in) would load the *container's* file. A symbol missing from the C library therefore has to show at import as well.

Only this module touches ctypes for plain calls; the others state what a call means.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

c_int = ctypes.c_int
c_uint = ctypes.c_uint
c_long = ctypes.c_long
c_ulong = ctypes.c_ulong
c_char_p = ctypes.c_char_p
c_void_p = ctypes.c_void_p


# For results. One for all, made once: a ctypes array type is made anew for every new buffer, which costs more than any of these calls.
_buffer = ctypes.create_string_buffer(256)


def _symbol(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.restype = c_int
    function.argtypes = list(argtypes)
    return function


_unshare = _symbol("unshare", c_int)
_setns = _symbol("setns", c_int, c_int)
_mount = _symbol("mount", c_char_p, c_char_p, c_char_p, c_ulong, c_char_p)
_umount2 = _symbol("umount2", c_char_p, c_int)
_pivot_root = _symbol("pivot_root", c_char_p, c_char_p)
_prctl = _symbol("prctl", c_int, c_ulong, c_ulong, c_ulong, c_ulong)
_prctl_text = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, use_errno=True)(("prctl", _libc))
_sethostname = _symbol("sethostname", c_char_p, ctypes.c_size_t)
_setdomainname = _symbol("setdomainname", c_char_p, ctypes.c_size_t)
_capset = _symbol("capset", c_void_p, c_void_p)
_capget = _symbol("capget", c_void_p, c_void_p)
_malloc_trim = _symbol("malloc_trim", ctypes.c_size_t) if hasattr(_libc, "malloc_trim") else None
_fstatfs = _symbol("fstatfs", c_int, c_void_p)
_syscall = _libc.syscall
_syscall.restype = c_long
# All our raw calls pass at most five arguments; each is a register wide.
_syscall.argtypes = [c_long, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]
# Through PyDLL: the child must not have to take back an interpreter lock that its parent gave away.
_clone = ctypes.PyDLL(None, use_errno=True).syscall
_clone.restype = c_long
_clone.argtypes = [c_long] * 6
_NR_CLONE = 220 if os.uname().machine == "aarch64" else 56
_CLONE_FILES_SIGCHLD = 0x400 | 17


def failure(what: str | bytes | None = None) -> OSError:
    """The present errno as an OSError; ``what`` becomes its file name."""
    number = ctypes.get_errno()
    if what is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), what)


def syscall(number: int, a: Any = None, b: Any = None, c: Any = None, d: Any = None, e: Any = None, what: str | None = None) -> int:
    """A raw system call. Arguments are ints, bytes (passed as pointers, kept alive during the call) or ctypes pointers."""
    result: int = _syscall(number, a, b, c, d, e)
    if result < 0:
        raise failure(what)
    return result


def unshare(flags: int) -> None:
    """unshare(2)."""
    if _unshare(flags) < 0:
        raise failure()


def setns(fd: int, flags: int) -> None:
    """setns(2): a namespace fd (one flag or 0), or a pidfd (several flags)."""
    if _setns(fd, flags) < 0:
        raise failure()


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None = None) -> None:
    """mount(2)."""
    if _mount(source, target, fstype, flags, data) < 0:
        raise failure(os.fsdecode(target))


def umount2(target: bytes, flags: int) -> None:
    """umount2(2)."""
    if _umount2(target, flags) < 0:
        raise failure(os.fsdecode(target))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """pivot_root(2)."""
    if _pivot_root(new_root, put_old) < 0:
        raise failure(os.fsdecode(new_root))


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    result: int = _prctl(option, a, b, c, d)
    if result < 0:
        raise failure(f"prctl {option}")
    return result


def prctl_text(option: int, text: bytes) -> None:
    """prctl(2) with a string."""
    if _prctl_text(option, text) < 0:
        raise failure(f"prctl {option}")


def clone_sharing_files() -> int:
    """clone(2) with CLONE_FILES: a fork whose descriptor table stays one with ours. 0 in the child.

    Python's fork hooks do not run: only for processes of one thread, and the child must end with ``os._exit``.
    """
    result: int = _clone(_NR_CLONE, _CLONE_FILES_SIGCHLD, 0, 0, 0, 0)
    if result < 0:
        raise failure("clone")
    return result


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _sethostname(name, len(name)) < 0:
        raise failure()


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    if _setdomainname(name, len(name)) < 0:
        raise failure()


def capset(header: bytes, data: bytes) -> None:
    """capset(2) with packed structures (the kernel writes into the header only when it does not know its version)."""
    if _capset(header, data) < 0:
        raise failure()


def capget(header: bytes) -> bytes:
    """capget(2): the packed data structures."""
    if _capget(header, _buffer) < 0:
        raise failure()
    return _buffer.raw


def malloc_trim() -> None:
    """Give free memory back to the kernel, where the C library can (glibc)."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def filesystem_magic(fd: int) -> int:
    """``f_type`` of fstatfs(2): which kind of file system a descriptor lies on. Has a buffer of its own, as worker threads ask too."""
    buffer = ctypes.create_string_buffer(256)
    if _fstatfs(fd, buffer) < 0:
        raise failure()
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF
