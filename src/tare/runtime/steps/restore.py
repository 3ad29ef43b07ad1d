"""Steps of a restore: what criu is to bind into the container is laid out, then it makes the processes (``runtime.criu``)."""

from __future__ import annotations

import os
from typing import NamedTuple

from tare.linux import mount, namespaces, process
from tare.linux.constants import (
    AT_FDCWD,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    O_PATH,
    RESOLVE_NO_SYMLINKS,
)
from tare.runtime import criu, messages
from tare.runtime.context import Context, SetupFailed, why
from tare.runtime.plan import step

ROOT = "root"
"""Below the stage, where the root is attached."""


@step
class MakeStage(NamedTuple):
    """A tmpfs of our own, seen by nobody else, in which sources of mounts get names that no container has a hand in."""

    directory: str

    def describe(self) -> str:
        return "make a place for the sources of mounts"

    def run(self, context: Context) -> None:
        context.root_fd = mount.new_filesystem("tmpfs", ("mode=700", "size=4m"), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, "stage")
        target = os.open(self.directory, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount.move_mount(context.root_fd, target)
        finally:
            os.close(target)
        os.mkdir(ROOT, 0o700, dir_fd=context.root_fd)


@step
class CheckMountPoints(NamedTuple):
    """criu mounts by path. Whatever became of the files since the checkpoint: no link may lead a mount somewhere else, and what is missing
    (in another container than the one that the checkpoint was made of) is made."""

    stage: str
    points: tuple[tuple[str, str, str], ...]
    """Where it is looked for ("" is the root, else an entry of the stage), the path there, and the entry that is bound there, if one is."""

    def describe(self) -> str:
        return "check the mount points: " + " ".join(path for _, path, _ in self.points)

    def run(self, context: Context) -> None:
        for base, path, entry in self.points:
            try:
                fd = os.dup(context.root_fd) if not base else self._staged(base)
                try:
                    self._check(fd, path, entry)
                finally:
                    os.close(fd)
            except OSError as error:
                raise SetupFailed(f'error restoring the mount on "{path}": {why(error)}') from None

    def _staged(self, entry: str) -> int:
        return mount.openat2(AT_FDCWD, f"{self.stage}/{entry}", O_PATH, RESOLVE_NO_SYMLINKS)

    def _check(self, base: int, path: str, entry: str) -> None:
        try:
            os.close(mount.open_in_root(base, path, O_PATH | os.O_NOFOLLOW, RESOLVE_NO_SYMLINKS))
            return
        except FileNotFoundError:
            pass
        directory = True
        if entry:
            source = self._staged(entry)
            directory = mount.is_directory(source)
            os.close(source)
        os.close(mount.make_in_root(base, path, directory=directory))
        os.close(mount.open_in_root(base, path, O_PATH | os.O_NOFOLLOW, RESOLVE_NO_SYMLINKS))


@step
class RestoreProcesses(NamedTuple):
    """Have criu make the processes, and end: the first of them goes on as the container's init."""

    criu: str
    images: str
    work: str
    stage: str
    external: dict[str, str]
    """Mount point → entry of the stage."""
    streams: tuple[str, ...]
    """Names of standard input, output and error in the images; empty where the container had none of ours."""
    null: tuple[str, ...]
    network: bool
    readonly: bool

    def describe(self) -> str:
        return f"restore the processes from {self.images}"

    def run(self, context: Context) -> None:
        process.die_with_parent()
        if self.readonly:
            mount.set_attributes(context.root_fd, add=MOUNT_ATTR_RDONLY)
        inherited = [(fd, name) for fd, name in zip(context.streams, self.streams, strict=True) if name]
        for name in self.null:
            inherited.append((os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), name))
        if self.network:
            inherited.append((namespaces.open_namespace("/proc/self/ns/net"), criu.NETWORK))
            # criu looks at what the kernel can do in a network namespace that works as the host's does.
            namespaces.join(context.namespaces.pop("host"), "net")
        external = {path: f"{self.stage}/{entry}" for path, entry in self.external.items()}
        os.makedirs(self.work, 0o700, exist_ok=True)
        pid_file, log = f"{self.work}/pid", f"{self.work}/restore.log"
        _forget(pid_file)
        command = criu.restore_command(self.criu, self.images, self.work, f"{self.stage}/{ROOT}", external, inherited)
        code = criu.execute(command, [fd for fd, _ in inherited])
        if code:
            raise SetupFailed(criu.explain(log, code), plain=True)
        with open(pid_file) as file:
            pid = int(file.read())
        _forget(pid_file)
        messages.send(context.line, {"at": "restored", "pid": pid})
        context.wait("restored")
        messages.send(context.line, {"at": "forked", "pid": pid})
        context.tell("ready")
        os._exit(0)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
