"""Checkpoints of containers: their names and places, and the criu that makes them.

On disk, beside the container's other files (``data_root/containers/ID``), so that they go with it:

    checkpoints/NAME/   criu's images and ``tare.json`` (``runtime.criu``); there only when it is whole
    criu/               logs of the last dump and the last restore

A client may name another folder for its checkpoints, as with dockerd; there they stay when the container goes.

Whether checkpoints are offered is the machine's doing: a criu has to be there and to say itself that it works with this kernel.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tare.containers.names import NAME
from tare.containers.task import Checkpoint
from tare.errors import Conflict, InvalidArgument, NotFound, TareError, Unsupported
from tare.runtime.criu import PATH, RECORD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tare.config import EngineConfig
    from tare.containers.container import Container
    from tare.containers.lifecycle import Lifecycle
    from tare.containers.record import Record

_CHECK_SECONDS = 30.0
REMEDY = "install criu 3.18 or later where the daemon finds it, or name it with the daemon's option --criu"


class Criu:
    """The machine's criu. Whether it works is asked once, and again when it was not found or did not work."""

    def __init__(self, program: Path | None) -> None:
        self._program = program
        self._lock = asyncio.Lock()
        self._works = ""

    def find(self) -> str:
        """Its path, or nothing."""
        if self._program is not None:
            return str(self._program)
        return shutil.which("criu", path=PATH) or ""

    async def require(self) -> str:
        """The path of a criu that works. ``Unsupported`` with the reason and the remedy."""
        async with self._lock:
            found = self.find()
            if not found:
                raise Unsupported(f"checkpoints need criu, which is not on this machine: {REMEDY}")
            if self._works != found:
                await asyncio.to_thread(_check, found)
                self._works = found
            return found

    @property
    def offered(self) -> bool:
        """Whether one was found that works, as far as is known."""
        return bool(self._works)

    async def works(self) -> bool:
        """Whether checkpoints can be made."""
        try:
            await self.require()
        except TareError:
            return False
        return True


def _check(program: str) -> None:
    try:
        done = subprocess.run(
            [program, "check"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_SECONDS, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"checkpoints need criu, and {program} cannot be run: {error}; {REMEDY}") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unsupported(f"checkpoints need criu, and {program} does not work with this kernel: {lines[-1]}; {REMEDY}")


class Checkpoints:
    """The checkpoints of all containers."""

    def __init__(self, config: EngineConfig, lifecycle: Lifecycle, refusal: Callable[[Record], str]) -> None:
        self._config = config
        self._refusal = refusal
        self._lifecycle = lifecycle
        self.criu = Criu(config.criu)

    def directory(self, container: Container, asked: str) -> Path:
        """Where a container's checkpoints are: its own folder, or the one that the client names."""
        if not asked:
            return self._config.container_dir(container.id) / "checkpoints"
        if not asked.startswith("/") or "\0" in asked:
            raise InvalidArgument(f"invalid checkpoint directory {asked!r}: it must be an absolute path")
        return Path(asked)

    async def create(self, container: Container, name: str, directory: str = "", *, leave_running: bool = True) -> None:
        """Make a checkpoint; without ``leave_running`` the container has ended then."""
        shown = container.name
        if not container.has_task:
            raise Conflict(f"Container {shown} not running")
        place = self.directory(container, directory)
        path = place / _checked(name)
        criu = await self.criu.require()
        if reason := self._refusal(container.record):
            raise InvalidArgument(f"cannot checkpoint container {shown}: {reason}")
        if path.is_dir():
            raise Conflict(f"cannot checkpoint container {shown}: checkpoint with name {name} already exists for container {shown}")
        if os.path.lexists(path):
            raise Conflict(f"cannot checkpoint container {shown}: {path} exists and is not a directory")
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgument(f"cannot checkpoint container {shown}: {place}: {error.strerror}") from None
        wanted = Checkpoint(place, name, criu, self._work(container))
        try:
            await self._lifecycle.checkpoint(container, wanted, leave_running=leave_running)
        except TareError as error:
            raise type(error)(f"Cannot checkpoint container {shown}: {error}") from error

    def names(self, container: Container, directory: str = "") -> list[str]:
        """The names of a container's checkpoints."""
        try:
            with os.scandir(self.directory(container, directory)) as entries:
                return sorted(entry.name for entry in entries if NAME.match(entry.name) and os.path.isfile(f"{entry.path}/{RECORD}"))
        except FileNotFoundError:
            if directory:
                raise NotFound(f"checkpoint directory {directory} of container {container.name} does not exist") from None
            return []
        except OSError as error:
            raise InvalidArgument(f"cannot list checkpoints: {error.filename}: {error.strerror}") from None

    async def remove(self, container: Container, name: str, directory: str = "") -> None:
        path = self._existing(container, name, directory)
        await asyncio.to_thread(shutil.rmtree, path)

    async def find(self, container: Container, name: str, directory: str = "") -> Checkpoint:
        """What ``start`` is to restore."""
        path = self._existing(container, name, directory)
        return Checkpoint(path.parent, name, await self.criu.require(), self._work(container))

    def _existing(self, container: Container, name: str, directory: str) -> Path:
        path = self.directory(container, directory) / _checked(name)
        if not (path / RECORD).is_file():
            if os.path.lexists(path):
                raise Conflict(f"{path} exists and is not a checkpoint")
            raise NotFound(f"checkpoint {name} does not exist for container {container.name}")
        return path

    def _work(self, container: Container) -> Path:
        return self._config.container_dir(container.id) / "criu"


def _checked(name: str) -> str:
    if not NAME.match(name):
        raise InvalidArgument(f"Invalid checkpoint ID ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return name
