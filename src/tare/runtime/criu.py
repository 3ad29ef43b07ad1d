"""Checkpoints: a container's processes on disk, made and brought back by criu (https://criu.org), as the keeper drives it.

What criu can make again it writes into its images: processes, memory, files, the container's own pid, IPC, UTS and mount namespaces, its
proc, sysfs, devpts and tmpfs with their content. What comes from outside it is only told the name of, and the restore hands in another of
that name:

    mounts                 every mount whose file system the host has mounted too (binds, volumes, cgroup files, masks): ``mnt[PATH]``
    network namespace      ``net[INODE]``: links, addresses, ports and the name server are set up as at any start
    standard streams       pipes of which the keeper holds the other end: ``pipe:[INODE]``; the host's /dev/null: ``file[MOUNT:INODE]``
    control groups         not criu's business (``--manage-cgroups=ignore``): it is run inside the container's own when it restores

Established TCP connections are not kept: they are left alone at the dump, and closed in what is restored. Listening sockets are.

A dump is a transaction. A fork of the worker (``Dump``) runs criu into a hidden folder, has everything on the disk, adds ``tare.json``
(what came from outside) and renames the folder to its name. Until then the processes stand still (``--leave-stopped``); only a checkpoint
that is there lets them be killed, and after any failure they go on.

The restore is a start whose init is not the container's: it goes through the steps of ``runtime.restoring``, has criu make the processes in
what it has set up, tells their first one's pid and ends; the keeper, a subreaper, has become their parent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from tare.linux import mountinfo, namespaces, process
from tare.linux.mountinfo import MountEntry
from tare.runtime import messages
from tare.runtime.reactor import READ, Reactor

if TYPE_CHECKING:
    from tare.linux.cgroup.group import Cgroup
    from tare.runtime.children import Child

RECORD = "tare.json"
NETWORK = "network"
"""By which images name the network namespace."""
VERSION = 1
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where criu is looked for, and what it looks for: the daemon's PATH does not decide what runs."""
_ENVIRONMENT = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
"""criu runs tar for the content of tmpfs mounts."""
_HARMLESS = ("Can't setup RLIMIT_NOFILE", "exited, status=", "FAILED")
_STOPPED = "\0"
"""Before a failure that came when criu had done its work: the processes may be left stopped."""
_LOG_TAIL = 256 * 1024


def partial_name(name: str, container_id: str) -> str:
    """The hidden folder in which a checkpoint is made. No checkpoint's name begins with a dot."""
    return f".{name}-{container_id[:12]}.partial"


def execute(argv: list[str], keep: Iterable[int] = ()) -> int:
    """Run a program and wait for it; the descriptors of ``keep`` stay open in it. Returns its exit code, 127 when it cannot be executed.

    Only for processes with one thread: it forks.
    """
    kept = set(keep)
    pid = os.fork()
    if pid == 0:
        try:
            process.reset_signals()
            process.die_with_parent()
            process.close_all_but(kept)
            for fd in kept:
                os.set_inheritable(fd, True)
            os.execve(argv[0], argv, _ENVIRONMENT)
        finally:
            os._exit(127)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def explain(log: str, code: int) -> str:
    """Why criu failed: the first error that it logged, and where the rest is."""
    if code == 127:
        return "criu cannot be executed"
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _LOG_TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        found = re.search(r"Error \([^)]*\): (.+)", line)
        if found and not any(part in line for part in _HARMLESS):
            hint = " without CAP_SYS_RESOURCE, which it needs for processes of other users" if "get rlimit" in line else ""
            return f"criu failed{hint}: {found[1]} (log file: {log})"
    return f"criu failed with exit status {code} (log file: {log})"


def external_mounts(host: Iterable[MountEntry], container: Iterable[MountEntry]) -> list[str]:
    """Where a container has something of the host: mounts of file systems that the host has mounted itself."""
    devices = {mount.device for mount in host}
    return sorted({mount.path for mount in container if mount.path != "/" and mount.device in devices})


def null_names(pid: int, mounts: Iterable[MountEntry]) -> list[str]:
    """Names of the host's /dev/null as the container's processes have it open: its own one criu finds by itself."""
    own = {mount.number for mount in mounts}
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    try:
        places = [f"self/fdinfo/{null}", *(f"{pid}/fdinfo/{number}" for number in (0, 1, 2) if _is_null(f"/proc/{pid}/fd/{number}"))]
        found = set()
        for place in places:
            with open(f"/proc/{place}") as file:
                fields = dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)
            if int(fields["mnt_id"]) not in own and "ino" in fields:
                found.add(f"file[{int(fields['mnt_id']):x}:{int(fields['ino']):x}]")
        return sorted(found)
    finally:
        os.close(null)


def _is_null(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def begin(
    reactor: Reactor, container_id: str, child: Child, cgroup: Cgroup | None, order: dict[str, Any], answer: Callable[[str], None]
) -> Dump:
    """Begin what a keeper's ``checkpoint`` request orders. ``answer`` gets the failure, "" for none; by then the container has been killed,
    or runs on."""

    def done(failure: str, stopped: bool) -> None:
        if not order["leave_running"]:
            if failure and stopped and cgroup is not None:
                resume(cgroup.pids())
            elif not failure and child.running:
                child.kill(signal.SIGKILL)
        answer(failure)

    return Dump(reactor, container_id, child.pid, child.stdio.pipes(), order, done)


class Dump:
    """A checkpoint in the making: a process of its own that ends when all is on the disk, or says why not.

    ``order``: criu, directory, name, work, leave_running. ``pipes``: stream → the keeper's end of its pipe. ``on_done`` hears of the
    failure, "" for none, and whether the processes may be left stopped.
    """

    def __init__(
        self,
        reactor: Reactor,
        container_id: str,
        pid: int,
        pipes: dict[str, int],
        order: dict[str, Any],
        on_done: Callable[[str, bool], None],
    ) -> None:
        self._reactor = reactor
        self._on_done = on_done
        # The first worker's children are born into the container's pid namespace; an exec joins it anew.
        own = namespaces.open_namespace("/proc/self/ns/pid")
        namespaces.join(own, "pid")
        os.close(own)
        self._report, theirs = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if self._pid == 0:
            _be_dump(theirs, container_id, pid, pipes, order)
        os.close(theirs)
        reactor.watch(self._report, READ, self._on_report)

    def _on_report(self, events: int) -> None:
        """The process has ended (nothing else closes the pipe); what it wrote is its failure, and nothing means success."""
        text = os.read(self._report, messages.PACKET_LIMIT).decode("utf-8", "replace")
        self._reactor.forget(self._report)
        os.close(self._report)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        failure = text or ("" if code == 0 else f"the process that made the checkpoint ended with {code}")
        self._on_done(failure.removeprefix(_STOPPED), not text or text.startswith(_STOPPED))


def _be_dump(report: int, container_id: str, pid: int, pipes: dict[str, int], order: dict[str, Any]) -> None:
    """The whole life of a ``Dump``'s process."""
    text = "cannot make the checkpoint"
    try:
        process.die_with_parent()
        text = _dump(container_id, pid, pipes, order)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        if text:
            os.write(report, text.encode("utf-8", "surrogateescape")[: messages.PACKET_LIMIT])
        os._exit(1 if text else 0)


def _dump(container_id: str, pid: int, pipes: dict[str, int], order: dict[str, Any]) -> str:
    directory, name, work = str(order["directory"]), str(order["name"]), str(order["work"])
    partial = f"{directory}/{partial_name(name, container_id)}"
    for left in os.listdir(directory):
        if left.startswith(".") and left.endswith(partial_name("", container_id).removeprefix(".")):
            remove_images(f"{directory}/{left}")  # of a keeper that was killed
    os.makedirs(work, 0o700, exist_ok=True)
    os.mkdir(partial, 0o700)
    try:
        mounts = mountinfo.read(f"/proc/{pid}/mountinfo")
        record = {
            "version": VERSION,
            "container": container_id,
            "mounts": sorted({mount.path for mount in mounts if mount.path != "/"}),
            "external": external_mounts(mountinfo.read(), mounts),
            "streams": {stream: f"pipe:[{os.fstat(fd).st_ino}]" for stream, fd in pipes.items()},
            "null": null_names(pid, mounts),
            "network": not namespaces.same_namespace("net", pid),
        }
        log = f"{work}/dump.log"
        code = execute(dump_command(str(order["criu"]), pid, partial, work, record, bool(order["leave_running"])))
        if code:
            return explain(log, code)
        try:
            _write(f"{partial}/{RECORD}", json.dumps(record).encode())
            _sync_folder(partial)
            os.rename(partial, f"{directory}/{name}")
            _sync(directory)
        except OSError as error:
            return f"{_STOPPED}{error.filename or directory}: {error.strerror}"
        return ""
    finally:
        remove_images(partial)


def dump_command(criu: str, pid: int, images: str, work: str, record: dict[str, Any], leave_running: bool) -> list[str]:
    """criu's command line for a checkpoint. Without ``leave_running`` the processes stay stopped."""
    command = [criu, "dump", "-t", str(pid), "-D", images, "-W", work, "-o", "dump.log", "-v3", *_COMMON, "--skip-in-flight"]
    command += ["--ghost-limit", "64M", "--leave-running" if leave_running else "--leave-stopped"]
    if record["network"]:
        inode = os.stat(f"/proc/{pid}/ns/net").st_ino
        command += ["--external", f"net[{inode}]:{NETWORK}"]
    for path in record["external"]:
        command += ["--external", f"mnt[{path}]:{path}"]
    for null in record["null"]:
        command += ["--external", null]
    return command


def restore_command(criu: str, images: str, work: str, root: str, external: dict[str, str], inherited: list[tuple[int, str]]) -> list[str]:
    """criu's command line for a restore. ``external``: mount point → what to bind there; ``inherited``: descriptors and their names."""
    command = [criu, "restore", "-D", images, "-W", work, "-o", "restore.log", "-v3", *_COMMON]
    command += ["--restore-detached", "--pidfile", "pid", "--root", root]
    for path, source in external.items():
        command += ["--external", f"mnt[{path}]:{source}"]
    for fd, name in inherited:
        command += ["--inherit-fd", f"fd[{fd}]:{name}"]
    return command


_COMMON = ("--manage-cgroups=ignore", "--tcp-close", "--file-locks", "--ext-unix-sk")


def resume(pids: Iterable[int]) -> None:
    """Let processes go on that a dump left stopped."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue


def remove_images(path: str) -> None:
    """Remove a folder of images: files only, no folder in it."""
    try:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    except FileNotFoundError:
        return


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folder(path: str) -> None:
    for name in os.listdir(path):
        _sync(f"{path}/{name}")
    _sync(path)
