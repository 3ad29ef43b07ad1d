"""The file tree that a container's processes see, for copying from and to it: paths are resolved by descriptor, one component at a time.

Two ways to get one. A running container's is the root of its process (``/proc/PID/root``): the kernel shows every mount in it. For one
that does not run, the engine mounts the snapshot for itself; its volumes and binds are then *not* attached anywhere (that would need a
mount namespace of our own, and so a process), but kept in a table: mount point → a detached mount. Looking a name up asks the table first.

Why by component and not one ``openat2``: the table, and because the place where a path ends has to be known (parent, name, canonical
path). Each component is opened with ``O_PATH | O_NOFOLLOW`` relative to a descriptor; a symbolic link is read and its target walked from
the root that we hold; ``..`` pops the trail. So nothing outside of the root can be named, whatever the container swaps meanwhile. Pseudo
file systems (proc, sysfs, …) look empty.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from tare.linux.constants import O_PATH
from tare.linux.mount import MAX_SYMLINKS, is_pseudo
from tare.store.tartree import DIRECTORY, MountKey

_COMPONENT = O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_LIMIT = 4095


def failure(number: int, path: bytes) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))


@dataclass
class Place:
    """Where a path leads. Close it."""

    fd: int
    """The object, ``O_PATH``."""
    parent: int
    """Its directory; for the root and for what ends in ``.`` or ``..`` the object itself."""
    name: bytes
    """Its name there; ``.`` when ``parent`` is the object itself."""
    path: bytes
    """Canonical: absolute, without links."""

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.parent)

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> os.stat_result:
        return os.fstat(self.fd)


@dataclass
class _Trail:
    """The directories from the root to where a walk has come."""

    fds: list[int]
    names: list[bytes] = field(default_factory=list)

    def climb(self, steps: int) -> None:
        for _ in range(min(steps, len(self.names))):
            os.close(self.fds.pop())
            self.names.pop()

    def path(self) -> bytes:
        return b"/" + b"/".join(self.names)


class View:
    """One container's tree. Owns its descriptors: close it."""

    def __init__(self, root: int) -> None:
        self._root = root
        self.mounts: dict[MountKey, int] = {}
        """Detached mounts by the place where they belong."""

    def close(self) -> None:
        for fd in (self._root, *self.mounts.values()):
            os.close(fd)
        self._root, self.mounts = -1, {}

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def attach(self, path: str, mount: int) -> None:
        """Let ``mount`` (taken over) be seen at ``path``; raises ``FileNotFoundError`` when there is nothing to cover."""
        try:
            with self.resolve(os.fsencode(path)) as place:
                if place.name == b".":
                    raise failure(errno.EBUSY, place.path)
                status = os.fstat(place.parent)
                key = (status.st_dev, status.st_ino, place.name)
        except BaseException:
            os.close(mount)
            raise
        covered = self.mounts.pop(key, None)
        if covered is not None:
            os.close(covered)
        self.mounts[key] = mount

    def mounted(self, directory: int, name: bytes) -> int | None:
        """The table's mount on ``name`` of an open directory; still the view's own."""
        if not self.mounts:
            return None
        status = os.fstat(directory)
        return self.mounts.get((status.st_dev, status.st_ino, name))

    def resolve(self, path: bytes, *, follow: bool = True, create: bool = False) -> Place:
        """Walk to ``path`` as a process in the container would; ``follow`` a link at its end too.

        A path that ends in ``/`` or ``/.`` means a directory and is followed. ``create`` makes directories that are missing (root's,
        0755). Raises ``OSError`` with the container's path.
        """
        if b"\0" in path or len(path) > _PATH_LIMIT:
            raise failure(errno.ENAMETOOLONG if len(path) > _PATH_LIMIT else errno.EINVAL, path)
        todo = path.split(b"/")[::-1]
        trail = _Trail([os.dup(self._root)])
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name in (b"", b"."):
                    continue
                if name == b"..":
                    trail.climb(1)
                    continue
                fd = self._open(trail, name, path, create=create)
                kind = os.fstat(fd).st_mode
                if stat.S_ISLNK(kind) and (todo or follow):
                    target = os.readlink(b"", dir_fd=fd)
                    os.close(fd)
                    links += 1
                    if links > MAX_SYMLINKS or not target:
                        raise failure(errno.ELOOP if target else errno.ENOENT, path)
                    if target.startswith(b"/"):
                        trail.climb(len(trail.names))
                    todo.extend(target.split(b"/")[::-1])
                    continue
                if not stat.S_ISDIR(kind):
                    if todo:
                        os.close(fd)
                        raise failure(errno.ENOTDIR, path)
                    whole = trail.path().rstrip(b"/") + b"/" + name
                    return Place(fd, os.dup(trail.fds[-1]), name, whole)
                trail.fds.append(fd)
                trail.names.append(name)
            return self._end(trail)
        finally:
            for fd in trail.fds:
                os.close(fd)

    @staticmethod
    def _end(trail: _Trail) -> Place:
        if not trail.names:
            return Place(os.dup(trail.fds[0]), os.dup(trail.fds[0]), b".", b"/")
        return Place(os.dup(trail.fds[-1]), os.dup(trail.fds[-2]), trail.names[-1], trail.path())

    def _open(self, trail: _Trail, name: bytes, path: bytes, *, create: bool) -> int:
        directory = trail.fds[-1]
        mount = self.mounted(directory, name)
        if mount is not None:
            return os.dup(mount)
        if len(trail.fds) > 1 and os.fstat(directory).st_dev != os.fstat(trail.fds[-2]).st_dev and is_pseudo(directory):
            raise failure(errno.ENOENT, path)
        try:
            return os.open(name, _COMPONENT, dir_fd=directory)
        except FileNotFoundError:
            if not create:
                raise failure(errno.ENOENT, path) from None
        except OSError as error:
            raise failure(error.errno or errno.EIO, path) from None
        try:
            os.mkdir(name, 0o755, dir_fd=directory)
        except FileExistsError:
            return os.open(name, _COMPONENT, dir_fd=directory)
        made = os.open(name, DIRECTORY, dir_fd=directory)
        os.fchmod(made, 0o755)  # the umask is ours, not the container's
        return made


def components(path: bytes) -> list[bytes]:
    """The names in a path, ``.`` left out and ``..`` resolved lexically. ValueError when it leads out of where it begins."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            if not parts:
                raise ValueError("path leads out")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return parts
