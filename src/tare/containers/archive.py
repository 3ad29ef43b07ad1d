"""``cp`` and ``export``: a container's files as tars, and tars into a container.

Where the files are seen (``view.py`` says how):

- A running container: in its own root, so through every mount that it has, and with its mounts' own read-only flags.
- Any other: a mount of its snapshot that only this process knows, with a table of its volumes and binds. Reading does not disturb a start.
  Writing needs the container to stay as it is: it happens under the container's lock, and a client that stalls is broken off (decision
  31). Mount points that do not exist yet are made first, and fresh volumes filled from the image, as the first start would have.
- ``export`` reads the snapshot alone, without mounts.

dockerd's refusals, with its texts: a read-only root file system or volume is not written, a path that is missing is named.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tare.containers.copy_up import copy_up
from tare.containers.untar import Rules, unpack
from tare.containers.view import Place, View
from tare.distribution.decompress import decompress
from tare.errors import Conflict, Forbidden, InvalidArgument, NotFound, ResourceExhausted
from tare.images.intake import intake
from tare.linux.constants import AT_FDCWD, MOUNT_ATTR_RDONLY, O_PATH, RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS
from tare.linux.mount import make_in_root, open_tree, openat2, set_attributes
from tare.runtime import users
from tare.store.tartree import tar_object

if TYPE_CHECKING:
    from tare.containers.container import Container
    from tare.containers.lifecycle import Lifecycle
    from tare.containers.record import Record
    from tare.store.snapshots import Snapshots
    from tare.volumes.service import Volumes

_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_STALL = 30
"""Seconds that a client may send nothing while a container waits for it."""


@dataclass(frozen=True)
class PathStat:
    """What ``cp`` asks about a path."""

    name: str
    status: os.stat_result
    link_target: str
    """For a symbolic link: where it ends, as the container sees it."""


@dataclass(frozen=True)
class _Mounted:
    destination: str
    source: Path
    writable: bool
    subpath: str = ""
    """Inside of ``source``; may lead through links there, but not out of it."""
    copy_up: bool = False
    keep_owner: bool = False


Sources = list[_Mounted] | None
"""What the engine itself has to show in a container that does not run; None for one that runs."""


class Archives:
    """Copies from and to one engine's containers."""

    def __init__(self, snapshots: Snapshots, volumes: Volumes, lifecycle: Lifecycle, directory_of: Callable[[str], Path]) -> None:
        self._snapshots = snapshots
        self._volumes = volumes
        self._lifecycle = lifecycle
        self._directory_of = directory_of

    # -- reading ----------------------------------------------------------------------------------------------------------------------

    async def stat(self, container: Container, path: str) -> PathStat:
        """What is at ``path``; a link is not followed. Raises ``NotFound``."""
        async with self._sources(container) as sources:
            return await asyncio.to_thread(self._stat, container, path, sources)

    def _stat(self, container: Container, path: str, sources: Sources) -> PathStat:
        with self._view(container, sources, writable=False) as view, _found(view, path, container, follow=False) as place:
            return _path_stat(view, place, path)

    @asynccontextmanager
    async def read(self, container: Container, path: str) -> AsyncIterator[tuple[PathStat, Generator[bytes, None, None]]]:
        """What is at ``path``, and a tar of it, to be read in worker threads while the context lasts."""
        async with self._sources(container) as sources:
            with ExitStack() as stack:

                def begin() -> tuple[PathStat, Generator[bytes, None, None]]:
                    view = stack.enter_context(self._view(container, sources, writable=False))
                    place = stack.enter_context(_found(view, path, container, follow=False))
                    shown = _shown(path, place)
                    return _path_stat(view, place, path), tar_object(place.parent, place.name, shown, view.mounts)

                yield await asyncio.to_thread(begin)
                self._lifecycle.publish(container, "archive-path")

    def export(self, container: Container) -> Generator[bytes, None, None]:
        """The root file system as a tar, without what is mounted in it. For a worker thread."""
        return self._snapshots.export(container.id)

    def exported(self, container: Container) -> None:
        """The export is complete."""
        self._lifecycle.publish(container, "export")

    # -- writing ----------------------------------------------------------------------------------------------------------------------

    async def write(
        self, container: Container, path: str, source: AsyncIterator[bytes], *, keep_kinds: bool = False, own: bool = False
    ) -> None:
        """Unpack a tar (plain or compressed) into the directory at ``path``.

        ``keep_kinds``: a directory and another kind of file do not replace each other. ``own``: everything belongs to the container's user.
        """

        def extract(archive: Iterable[bytes], sources: Sources) -> None:
            self._extract(container, path, decompress(archive, "archive"), sources, keep_kinds, own)

        async with self._sources(container) as sources:
            # What can be refused is refused before the client has sent everything.
            await asyncio.to_thread(self._check_target, container, path, sources)
            if container.has_task:
                await intake(source, lambda channel: extract(channel, sources))
            else:
                async with container.lock:
                    _check_alive(container)
                    await intake(_flowing(source), lambda channel: extract(channel, sources))
        self._lifecycle.publish(container, "extract-to-dir")

    def _check_target(self, container: Container, path: str, sources: Sources) -> None:
        with self._view(container, sources, writable=False) as view, _found(view, path, container, follow=True) as place:
            _check_writable(container, place)

    def _extract(self, container: Container, path: str, archive: Iterable[bytes], sources: Sources, keep_kinds: bool, own: bool) -> None:
        with self._view(container, sources, writable=True) as view, _found(view, path, container, follow=True) as place:
            _check_writable(container, place)
            owner = _owner(view, container.record.config.user) if own and container.record.config.user else None
            try:
                unpack(archive, view, place, Rules(keep_kinds, owner))
            except OSError as error:
                raise _reported(error) from error

    # -- the view ---------------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _view(self, container: Container, sources: Sources, *, writable: bool) -> Generator[View, None, None]:
        task = container.task
        if container.has_task and task is not None:
            with View(_root_of(task.pid, container)) as view:
                yield view
            return
        if sources is None:
            raise _ended(container)
        try:
            mounted = self._snapshots.mounted(container.id, writable=writable)
            with mounted as root, View(os.open(root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as view:
                for source in sources:
                    with _gap():
                        view.attach(source.destination, _detached(source, writable=writable))
                yield view
        except NotFound:
            _check_alive(container)
            raise

    @asynccontextmanager
    async def _sources(self, container: Container) -> AsyncIterator[Sources]:
        """What is to be shown in a container that does not run; its volumes are held meanwhile."""
        _check_alive(container)
        if container.has_task:
            yield None
            return
        record = container.record
        holder = f"copy-{os.urandom(8).hex()}"
        names = [point.name for point in record.mounts if point.type == "volume"]
        try:
            sources = await self._mounted_in(record, holder)
            if await asyncio.to_thread(self._incomplete, container, sources):
                async with container.lock:
                    _check_alive(container)
                    if not container.has_task:
                        await asyncio.to_thread(self._complete, record, sources)
            yield sources
        finally:
            await self._volumes.release(names, holder)

    async def _mounted_in(self, record: Record, holder: str) -> list[_Mounted]:
        directory = self._directory_of(record.id)
        taken = {point.destination for point in record.mounts}
        found = [_Mounted(f"/etc/{name}", directory / name, True) for name in ("resolv.conf", "hostname", "hosts")]
        found = [mounted for mounted in found if mounted.destination not in taken and mounted.source.exists()]
        for point in sorted(record.mounts, key=lambda point: point.destination.count("/")):
            if point.type == "bind" and os.path.lexists(point.source):
                found.append(_Mounted(point.destination, Path(point.source), point.writable))
            elif point.type == "volume":
                source = await self._volumes.hold(point.name, holder)
                fill, keep = point.copy_up and not point.subpath, self._volumes.get(point.name).keeps_owner
                found.append(_Mounted(point.destination, source, point.writable, point.subpath, fill, keep))
        return found

    def _incomplete(self, container: Container, sources: list[_Mounted]) -> bool:
        """Whether a mount point is missing, or a volume is still to be filled."""
        if any(source.copy_up and not any(os.scandir(source.source)) for source in sources):
            return True
        with self._view(container, [], writable=False) as view:
            for source in sources:
                try:
                    view.attach(source.destination, _detached(source, writable=False))
                except OSError:
                    return True
        return False

    def _complete(self, record: Record, sources: list[_Mounted]) -> None:
        """Make mount points and fill fresh volumes: what the first start does."""
        with self._snapshots.mounted(record.id, writable=True) as root:
            for source in sources:
                if source.copy_up:
                    copy_up(root, source.destination, source.source, keep_owner=source.keep_owner)
            with View(os.open(root, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as view:
                for source in sources:
                    _make_mount_point(view, source)
                    with _gap():
                        view.attach(source.destination, _detached(source, writable=True))


def _root_of(pid: int, container: Container) -> int:
    """The root directory of a container's process."""
    try:
        root = os.open(f"/proc/{pid}/root", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _ended(container) from None
    # The process may have ended and its number be another's: never the machine's own root.
    if not container.has_task or os.path.samestat(os.fstat(root), os.stat("/")):
        os.close(root)
        raise _ended(container)
    return root


def _ended(container: Container) -> Conflict:
    return Conflict(f"container {container.id} has just ended: try again")


def _detached(source: _Mounted, *, writable: bool) -> int:
    """A mount of ``source`` that is attached nowhere."""
    if source.subpath:
        whole = os.open(source.source, O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            part = openat2(whole, source.subpath, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(whole)
        try:
            mount = open_tree(part, "", recursive=True)
        finally:
            os.close(part)
    else:
        mount = open_tree(AT_FDCWD, str(source.source), recursive=True)
    if not (writable and source.writable):
        set_attributes(mount, add=MOUNT_ATTR_RDONLY, recursive=True)
    return mount


@contextmanager
def _gap() -> Iterator[None]:
    """A mount that cannot be shown is left out: the container could not be started with it either."""
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING:
            raise


def _make_mount_point(view: View, source: _Mounted) -> None:
    if source.subpath or source.source.is_dir():
        view.resolve(os.fsencode(source.destination), create=True).close()
        return
    head, name = posixpath.split(source.destination)
    with view.resolve(os.fsencode(head), create=True) as parent:
        os.close(make_in_root(parent.fd, name, directory=False))


def _check_alive(container: Container) -> None:
    if container.removing:
        raise Conflict(f"container {container.id} is marked for removal and cannot be copied from or to")


@contextmanager
def _found(view: View, path: str, container: Container, *, follow: bool) -> Iterator[Place]:
    """The place of a path, or dockerd's refusal."""
    try:
        place = view.resolve(os.fsencode(path), follow=follow)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            raise NotFound(f"Could not find the file {path} in container {container.name}") from None
        raise InvalidArgument(f"lstat {path}: {os.strerror(error.errno or 0).lower()}") from None
    with place:
        yield place


def _path_stat(view: View, place: Place, path: str) -> PathStat:
    target = ""
    if stat.S_ISLNK(place.status.st_mode):
        target = os.fsdecode(os.readlink(b"", dir_fd=place.fd))
        base = os.fsdecode(place.path.rpartition(b"/")[0])
        lexical = posixpath.normpath(posixpath.join("/", base, target))
        try:
            with view.resolve(place.path) as end:
                target = os.fsdecode(end.path)
        except OSError:
            target = lexical
    return PathStat(_base(path), place.status, target)


def _base(path: str) -> str:
    """Go's ``filepath.Base``."""
    return posixpath.basename(path.rstrip("/")) or "/"


def _shown(path: str, place: Place) -> bytes:
    """What the object is called in its tar: as it was asked for."""
    base = _base(path)
    return b"/" if base == "/" else os.fsencode(base)


def _check_writable(container: Container, place: Place) -> None:
    if not stat.S_ISDIR(place.status.st_mode):
        raise InvalidArgument("extraction point is not a directory")
    path = os.fsdecode(place.path)
    inside = [
        point for point in container.record.mounts if path == point.destination or path.startswith(point.destination.rstrip("/") + "/")
    ]
    if inside:
        if not max(inside, key=lambda point: len(point.destination)).writable:
            raise Forbidden("mounted volume is marked read-only")
    elif container.record.host_config.readonly_rootfs:
        raise Forbidden("container rootfs is marked read-only")


def _owner(view: View, user: str) -> tuple[int, int]:
    """The container's user by the files in its own root."""

    def lines(path: str) -> list[str]:
        try:
            with view.resolve(os.fsencode(path)) as place:
                return users.read_lines(os.fsdecode(place.name), place.parent)
        except OSError:
            return []

    try:
        identity = users.resolve(user, (), lines("/etc/passwd"), lines("/etc/group"))
    except users.UnknownUser as error:
        raise InvalidArgument(str(error)) from None
    return identity.uid, identity.gid


async def _flowing(source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The client's bytes; one that sends nothing for too long must not keep a container from its start."""
    try:
        while True:
            async with asyncio.timeout(_STALL):
                try:
                    chunk = await anext(source)
                except StopAsyncIteration:
                    return
            yield chunk
    except TimeoutError:
        raise InvalidArgument(f"nothing of the archive came for {_STALL} seconds") from None


def _reported(error: OSError) -> Exception:
    text = os.strerror(error.errno or 0).lower()
    if error.filename:
        text = f"{os.fsdecode(error.filename)}: {text}"
    return ResourceExhausted(text) if error.errno in (errno.ENOSPC, errno.EDQUOT) else InvalidArgument(text)
