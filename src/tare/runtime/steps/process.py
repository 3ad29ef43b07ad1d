"""Steps that turn the init into the container's program: who it is, what it may do, where it starts, and exec.

The order is that of ``runtime.lowering``. Nothing here imports or loads anything: we are inside the container's root,
and what Python or the C library would load from now on is the container's file.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat
from typing import NamedTuple

from tare.linux import capabilities, mount, process, pty, seccomp
from tare.linux.constants import AT_FDCWD, MAX_ID, RESOLVE_NO_MAGICLINKS
from tare.runtime import reaper, users
from tare.runtime.context import Context, SetupFailed, reason, why
from tare.runtime.plan import step

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@step
class NewSession(NamedTuple):
    """Leave the keeper's session."""

    def describe(self) -> str:
        return "start a new session"

    def run(self, context: Context) -> None:
        os.setsid()
        os.umask(0)


@step
class ConnectStreams(NamedTuple):
    """Standard input, output and error: the terminal, else the keeper's pipes."""

    def describe(self) -> str:
        return "connect standard input, output and error"

    def run(self, context: Context) -> None:
        if context.console >= 0:
            pty.make_controlling(context.console)
            for fd in (0, 1, 2):
                os.dup2(context.console, fd, inheritable=True)
            os.close(context.console)
            context.console = -1
            return
        for fd, stream in enumerate(context.streams):
            os.dup2(stream, fd, inheritable=True)
        for stream in context.streams:
            if stream > 2:
                os.close(stream)
        context.streams = []


@step
class LookUpUser(NamedTuple):
    """Find user, groups and home in the root's own files."""

    user: str
    additional_groups: tuple[str, ...]

    def describe(self) -> str:
        return f"look up user {self.user or '0'!r}" + (f" with groups {' '.join(self.additional_groups)}" if self.additional_groups else "")

    def run(self, context: Context) -> None:
        try:
            context.identity = users.look_up(self.user, self.additional_groups)
        except users.UnknownUser as error:
            raise SetupFailed(str(error), plain=True) from None


@step
class NumericUser(NamedTuple):
    """User and groups given as numbers by the OCI configuration; only the home is looked up."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]

    def describe(self) -> str:
        return f"user {self.uid}, group {self.gid}" + (f", groups {self.additional_gids}" if self.additional_gids else "")

    def run(self, context: Context) -> None:
        if any(not 0 <= number <= MAX_ID for number in (self.uid, self.gid, *self.additional_gids)):
            raise SetupFailed(f"uids and gids must be in range 0-{MAX_ID}", plain=True)
        home = users.look_up(str(self.uid), ()).home
        context.identity = users.Identity(self.uid, self.gid, self.additional_gids, home)


@step
class MakeWorkingDirectory(NamedTuple):
    """Make the working directory when the image lacks it, owned by root, as Docker does."""

    path: str

    def describe(self) -> str:
        return f"make working directory {self.path}"

    def run(self, context: Context) -> None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = mount.make_in_root(root, self.path, directory=True)
            directory = mount.is_directory(fd)
            os.close(fd)
            if not directory:
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self.path)
        except OSError as error:
            if error.errno == errno.EROFS:
                return
            raise SetupFailed(f"mkdir {self.path}: {why(error)}") from None
        finally:
            os.close(root)


@step
class CloseDescriptors(NamedTuple):
    """Nothing but 0, 1 and 2 survives exec (CVE-2024-21626)."""

    def describe(self) -> str:
        return "close every descriptor above 2 on exec"

    def run(self, context: Context) -> None:
        process.close_range(3, on_exec=True)


@step
class LoadSeccomp(NamedTuple):
    """Install the system call filter."""

    filter: str
    """sock_filter array, base64."""
    flags: int

    def describe(self) -> str:
        return f"install seccomp filter ({len(self.filter) * 3 // 4 // 8} instructions)"

    def run(self, context: Context) -> None:
        try:
            seccomp.install(binascii.a2b_base64(self.filter), self.flags)
        except OSError as error:
            raise SetupFailed(f"error loading seccomp filter: {reason(error)}") from None


@step
class DropPrivileges(NamedTuple):
    """Become the user with the given capabilities; the inheritable set is always empty."""

    bounding: int
    effective: int
    permitted: int
    umask: int

    def describe(self) -> str:
        return f"become the user; capabilities bounding {self.bounding:#x}, effective {self.effective:#x}, inheritable 0"

    def run(self, context: Context) -> None:
        identity = context.identity
        _own_streams(identity.uid)
        permitted = self.permitted & capabilities.held_permitted()
        if permitted != self.permitted:
            missing = [name for name, number in capabilities.NUMBERS.items() if (self.permitted & ~permitted) >> number & 1]
            context.warnings.append(f"this host does not grant {', '.join(missing)}")
        try:
            capabilities.limit_bounding(self.bounding)
            capabilities.keep_over_setuid(True)
            try:
                os.setgroups(identity.groups)
            except PermissionError:
                if identity.groups:
                    raise
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
            capabilities.keep_over_setuid(False)
            capabilities.clear_ambient()
            capabilities.apply(self.effective & permitted, permitted)
        except OSError as error:
            raise SetupFailed(f"unable to apply caps: {reason(error)}") from None
        os.umask(self.umask)
        process.set_dumpable(False)
        process.die_with_parent()


def _own_streams(uid: int) -> None:
    """Give pipes and terminal to the user, so that it can open /dev/stdout and /dev/tty. Not what we do not own (/dev/null, files)."""
    for fd in (0, 1, 2):
        status = os.fstat(fd)
        if status.st_uid == uid or not (stat.S_ISFIFO(status.st_mode) or os.isatty(fd)):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError:
            pass


@step
class NoNewPrivileges(NamedTuple):
    """Exec grants nothing from here on."""

    def describe(self) -> str:
        return "set no_new_privs"

    def run(self, context: Context) -> None:
        process.no_new_privileges()


@step
class ChangeDirectory(NamedTuple):
    """Go to the working directory, as the user, and make sure that it lies inside the root (CVE-2024-21626)."""

    path: str

    def describe(self) -> str:
        return f"change to {self.path}"

    def run(self, context: Context) -> None:
        try:
            fd = _open_directory(self.path)
            try:
                os.fchdir(fd)
            finally:
                os.close(fd)
            if not os.getcwd().startswith("/"):
                raise OSError(errno.ENOENT, "current working directory is outside of container mount namespace root")
        except OSError as error:
            text = (error.strerror or "").lower()
            raise SetupFailed(f'chdir to cwd ("{self.path}") set in config.json failed: {text}') from None


def _open_directory(path: str) -> int:
    """Without magic links. A filter of the user's may be in force and know no openat2(2): then the look at the cwd must do."""
    try:
        return mount.openat2(AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS):
            raise
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


@step
class FindProgram(NamedTuple):
    """Look the program up in the container's PATH."""

    args: tuple[str, ...]
    env: tuple[str, ...]

    def describe(self) -> str:
        return f"find {self.args[0]!r}"

    def run(self, context: Context) -> None:
        environment: dict[str, str] = {}
        for entry in self.env:
            key, separator, value = entry.partition("=")
            if separator and key:
                environment[key] = value
        environment.setdefault("HOME", context.identity.home)
        context.environment = environment
        context.argv = list(self.args)
        context.executable = find_program(self.args[0], environment.get("PATH", ""))


def find_program(name: str, path: str) -> str:
    """The file to execute, or ``SetupFailed`` with runc's text and Docker's exit code."""
    if "/" in name:
        error = _check(name)
        if error is None:
            return name
        text, code = error
        raise SetupFailed(f'exec: "{name}": {text}', code)
    for directory in path.split(":"):
        candidate = f"{directory or '.'}/{name}"
        if name and _check(candidate) is None:
            return candidate
    raise SetupFailed(f'exec: "{name}": executable file not found in $PATH', 127)


def _check(path: str) -> tuple[str, int] | None:
    try:
        status = os.stat(path)
    except OSError as error:
        code = 126 if error.errno == errno.EACCES else 127
        return f"stat {path}: {why(error)}", code
    if stat.S_ISDIR(status.st_mode):
        return "is a directory", 126
    if not status.st_mode & 0o111:
        return "permission denied", 126
    return None


@step
class Hold(NamedTuple):
    """Wait for the order to start (an OCI runtime's ``create`` and ``start``)."""

    def describe(self) -> str:
        return "wait for the order to start"

    def run(self, context: Context) -> None:
        context.tell("held")
        context.wait("exec")


@step
class Execute(NamedTuple):
    """Become the program, or its init."""

    supervised: bool = False
    """Stay process 1 and have the program as a child (``runtime.reaper``)."""

    def describe(self) -> str:
        return "be init, and execute the program as a child" if self.supervised else "execute the program"

    def run(self, context: Context) -> None:
        program, argv, environment = context.executable, context.argv, context.environment
        process.reset_signals()
        if context.pidfd < 0:
            # A container outlives the worker of its keeper (``runtime.holder``).
            process.die_with_parent(0)
        if self.supervised:
            reaper.hold_signals()
        context.tell("ready")
        if self.supervised:
            reaper.supervise(argv)
        try:
            os.execve(program, argv, environment)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise SetupFailed(f'exec: "{argv[0]}": permission denied', 126) from None
            # As runc: by now the container counts as started, so its own stderr hears why it ends.
            os.write(2, f"exec {program}: {why(error)}\n".encode("utf-8", "surrogateescape"))
            os._exit(255)
