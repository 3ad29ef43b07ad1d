"""``RuntimeDriver``: tasks as processes of our own runtime. It talks to the launcher (to start) and to keepers (for everything else).

The daemon holds nothing that a running task needs: ``start`` sends a plan and the clients' sockets to the launcher
and from then on hears from the keeper over a connection of its own; ``recover`` opens a new one through the socket in
the run directory. What a task has left there:

    keeper.sock answers         running (or its exit not yet fully told)
    exit.json                   exited
    task.json alone             its keeper was killed: what it left is killed too, and an exit with code 137 is put on record
    nothing                     never started
"""

from __future__ import annotations

import asyncio
import binascii
import json
import os
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tare.containers.keeper_client import Event, KeeperClient
from tare.containers.task import (
    Attachment,
    Checkpoint,
    DirectoryRoot,
    ExecLaunch,
    ExecTask,
    Exit,
    Launch,
    LogPosition,
    OverlayRoot,
    Stdio,
    Task,
)
from tare.errors import Conflict, InvalidArgument, StartFailed, TareError, Unavailable
from tare.linux.cgroup.detect import Layout, detect
from tare.linux.cgroup.group import Cgroup
from tare.runtime import control, criu, lowering, messages
from tare.runtime.plan import LogPlan, Plan, StdioPlan
from tare.runtime.restoring import Restore, restore_plan
from tare.runtime.spawn import Spawned, spawn

KEEPER_KILLED = "the keeper of this container was killed"
REMOVAL_SECONDS = 10.0
EXECS_REMEMBERED = 64


def _describe(attachment: Attachment) -> dict[str, Any]:
    return {
        "stdin": attachment.stdin,
        "stdout": attachment.stdout,
        "stderr": attachment.stderr,
        "multiplexed": attachment.multiplexed,
        "prefix": binascii.b2a_base64(attachment.prefix, newline=False).decode(),
        "detach_keys": binascii.b2a_base64(attachment.detach_keys, newline=False).decode(),
        "corked": attachment.corked,
    }


def _stdio(stdio: Stdio) -> StdioPlan:
    rows, columns = stdio.console_size
    return StdioPlan(stdio.tty, stdio.open_stdin, stdio.stdin_once, rows, columns)


def _restore(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """The plan that restores instead of starting."""
    record = _read_json(checkpoint.path / criu.RECORD)
    return restore_plan(plan, Restore(checkpoint.criu, str(checkpoint.path), str(checkpoint.work), record or {}))


def _exit(record: Mapping[str, Any]) -> Exit:
    return Exit(int(record["code"]), int(record["finished_at"]), bool(record.get("oom_killed", False)), str(record.get("error", "")))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


class RuntimeExec:
    """A further process in a running task (``ExecTask``)."""

    def __init__(self, task: RuntimeTask, exec_id: str, pid: int) -> None:
        self._task = task
        self.id = exec_id
        self._pid = pid

    @property
    def pid(self) -> int:
        return self._pid

    async def wait(self) -> Exit:
        return await asyncio.shield(self._task.exec_future(self.id))

    async def kill(self, signal: int) -> None:
        await self._task.request("signal", signal=int(signal), exec=self.id)

    async def resize(self, rows: int, columns: int) -> None:
        await self._task.request("resize", rows=rows, columns=columns, exec=self.id)


class RuntimeTask:
    """A running or ended task (``Task``)."""

    def __init__(self, driver: RuntimeDriver, container_id: str, run_dir: Path, cgroup: str) -> None:
        self._driver = driver
        self._id = container_id
        self._run_dir = run_dir
        self._cgroup = cgroup
        self._pid = 0
        self._started_at = 0
        self._warnings: tuple[str, ...] = ()
        self._paused = False
        self._client: KeeperClient | None = None
        self._exec_defaults: dict[str, Any] | None = None
        self._execs: dict[str, asyncio.Future[Exit]] = {}
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[Exit] = loop.create_future()
        self._removed = asyncio.Event()
        self.lost = False
        """Whether the start ended without a word of the keeper."""

    # What it is

    @property
    def id(self) -> str:
        return self._id

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def started_at(self) -> int:
        return self._started_at

    @property
    def warnings(self) -> Sequence[str]:
        return self._warnings

    @property
    def exit(self) -> Exit | None:
        return self._ended.result() if self._ended.done() else None

    @property
    def paused(self) -> bool:
        return self._paused

    # The connection with the keeper

    def connect(self, sock: socket.socket) -> KeeperClient:
        """Use this connection from now on."""
        self._client = KeeperClient(sock, self._on_event, self._on_closed)
        return self._client

    def learn(self, fields: Mapping[str, Any]) -> None:
        """Take over what a message or record says about the task."""
        self._pid = int(fields.get("pid") or self._pid)
        self._started_at = int(fields.get("started_at") or self._started_at)
        self._warnings = tuple(fields.get("warnings") or self._warnings)
        self._paused = bool(fields.get("paused"))

    def set_exit(self, exit: Exit) -> None:
        """The task has ended."""
        if not self._ended.done():
            self._ended.set_result(exit)
        for future in self._execs.values():
            if not future.done():
                future.set_result(Exit(137, exit.finished_at))

    def mark_removed(self) -> None:
        """The keeper has removed the cgroup."""
        self._removed.set()

    def _on_event(self, event: Event) -> None:
        kind = event["event"]
        if kind == "started":
            self.learn(event)
            if not self.started.done():
                self.started.set_result(None)
        elif kind == "failed":
            self._fail_start(StartFailed(str(event["message"]), int(event["code"])))
        elif kind == "exec-exit":
            future = self.exec_future(str(event["exec"]))
            if not future.done():
                future.set_result(_exit(event))
            self._forget_old_execs()
        elif kind == "exit":
            self.set_exit(_exit(event))
        elif kind == "removed":
            self._removed.set()

    def _forget_old_execs(self) -> None:
        """Health checks run for years: only the newest ended execs are remembered, as by the keeper."""
        if len(self._execs) > 2 * EXECS_REMEMBERED:
            ended = [exec_id for exec_id, future in self._execs.items() if future.done()]
            for exec_id in ended[:-EXECS_REMEMBERED]:
                del self._execs[exec_id]

    def _fail_start(self, error: StartFailed) -> None:
        if not self.started.done():
            self.started.set_exception(error)
            self.started.exception()  # a take-over does not await the start: its failure is no forgotten error

    def _on_closed(self) -> None:
        if not self.started.done():
            self.lost = True
            self._fail_start(StartFailed("the launcher or the keeper of this container ended unexpectedly"))
        elif not self.started.exception() and not self._ended.done():
            self.set_exit(self._driver.exit_on_disk(self._id, self._run_dir) or self._driver.bury(self._id, self._run_dir, self._cgroup))
        self._removed.set()

    async def request(self, op: str, fds: list[int] | None = None, /, **fields: Any) -> dict[str, Any]:
        """Ask the keeper; ``Conflict`` when the task has ended."""
        if self._ended.done() or self._client is None:
            raise Conflict(f"container {self._id} is not running")
        try:
            return await self._client.request(op, fds, **fields)
        except Unavailable:
            raise Conflict(f"container {self._id} is not running") from None

    # What can be done with it

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def kill(self, signal: int) -> None:
        await self.request("signal", signal=int(signal))

    async def resize(self, rows: int, columns: int) -> None:
        await self.request("resize", rows=rows, columns=columns)

    async def attach(self, attachment: Attachment) -> tuple[int, LogPosition]:
        try:
            answer = await self.request("attach", [attachment.sock.fileno()], attachment=_describe(attachment))
        finally:
            attachment.sock.close()
        return int(answer["number"]), LogPosition(int(answer["inode"]), int(answer["size"]))

    async def uncork(self, number: int) -> None:
        await self.request("uncork", number=number)

    async def exec(self, launch: ExecLaunch) -> ExecTask:
        try:
            try:
                plan = lowering.lower_exec(
                    launch.id,
                    launch.process,
                    _stdio(launch.stdio),
                    self._defaults(),
                    user=launch.user,
                    additional_groups=tuple(launch.additional_groups),
                    privileged=launch.privileged,
                )
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidArgument(f"invalid exec configuration: {error}") from None
            self.exec_future(launch.id)
            document = plan.to_json()
            document["steps"] = messages.encode_value(document["steps"])
            descriptions = [_describe(attachment) for attachment in launch.attachments]
            fds = [attachment.sock.fileno() for attachment in launch.attachments]
            answer = await self.request("exec", fds, plan=document, attachments=descriptions)
        except BaseException:
            self._execs.pop(launch.id, None)
            raise
        finally:
            for attachment in launch.attachments:
                attachment.sock.close()
        return RuntimeExec(self, launch.id, int(answer["pid"]))

    def _defaults(self) -> dict[str, Any]:
        if self._exec_defaults is None:
            record = _read_json(self._run_dir / "task.json")
            if record is None:
                raise Conflict(f"container {self._id} is not running")
            self._exec_defaults = dict(record["exec_defaults"])
        return self._exec_defaults

    def exec_future(self, exec_id: str) -> asyncio.Future[Exit]:
        """The future exit of an exec."""
        future = self._execs.get(exec_id)
        if future is None:
            future = self._execs[exec_id] = asyncio.get_running_loop().create_future()
        return future

    async def find_exec(self, exec_id: str) -> ExecTask | Exit | None:
        if self._ended.done():
            record = _read_json(self._run_dir / "exit.json") or {}
            found = (record.get("execs") or {}).get(exec_id)
            return _exit(found) if found else None
        known = self._execs.get(exec_id)
        if known is not None and known.done():
            return known.result()
        answer = await self.request("find_exec", exec=exec_id)
        if "exit" in answer:
            return _exit(answer["exit"])
        if "pid" in answer:
            self.exec_future(exec_id)
            return RuntimeExec(self, exec_id, int(answer["pid"]))
        return None

    async def update(self, resources: Mapping[str, Any]) -> None:
        await self.request("update", resources=dict(resources))

    async def pause(self) -> None:
        await self.request("pause")

    async def resume(self) -> None:
        await self.request("resume")

    async def checkpoint(self, checkpoint: Checkpoint, *, leave_running: bool) -> None:
        await self.request(
            "checkpoint",
            criu=checkpoint.criu,
            directory=str(checkpoint.directory),
            name=checkpoint.name,
            work=str(checkpoint.work),
            leave_running=leave_running,
        )

    async def release(self) -> None:
        """Forget the task; see ``Task.release``. Waits until the keeper has removed the cgroup, so that the name is free again."""
        if self._client is not None:
            try:
                await asyncio.wait_for(self._removed.wait(), REMOVAL_SECONDS)
            except TimeoutError:
                pass
            self._client.close()
        else:
            await asyncio.to_thread(self._driver.remove_cgroup, self._cgroup)
        _remove_files(self._run_dir)


def _remove_files(run_dir: Path) -> None:
    for name in ("keeper.sock", "task.json", "exit.json", "keeper.err"):
        try:
            os.unlink(f"{run_dir}/{name}")
        except FileNotFoundError:
            continue


def _write_bundle(launch: Launch) -> None:
    """What hooks look for in the bundle that they are told of: the configuration, and in it where the root is."""
    root = launch.rootfs.path if isinstance(launch.rootfs, DirectoryRoot) else launch.run_dir / "rootfs"
    root.mkdir(mode=0o700, exist_ok=True)
    document = {**launch.config, "root": {**(launch.config.get("root") or {}), "path": str(root)}}
    path = launch.run_dir / "config.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(document))


class RuntimeDriver:
    """Starts tasks with our own runtime (``TaskDriver``). ``start_launcher`` must be called before the process has threads."""

    def __init__(self, exec_root: Path, cgroup_parent: str, *, spares: int = 2) -> None:
        self.exec_root = exec_root
        self.cgroup_parent = "/" + cgroup_parent.strip("/")
        self._spares = spares
        self._launcher: Spawned | None = None
        self._file_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        """That of the first launcher, for every other: the daemon raises its own, which containers are not to inherit."""
        self._layout: Layout | None
        try:
            self._layout = detect()
        except OSError:
            self._layout = None

    def start_launcher(self) -> None:
        """Start the fork server. Synchronous and quick: it does not wait until the launcher is ready."""
        if self._launcher is None or not self._launcher.alive:
            if self._launcher is not None:
                self._launcher.sock.close()
            self._launcher = spawn(str(self.exec_root), self.cgroup_parent, self._spares)
            self._launcher.sock.setblocking(False)
            resource.prlimit(self._launcher.process.pid, resource.RLIMIT_NOFILE, self._file_limit)

    @property
    def launcher_pid(self) -> int:
        return self._launcher.process.pid if self._launcher is not None else 0

    def plan(self, launch: Launch) -> Plan:
        """What ``start`` would do, as data. InvalidArgument when the configuration asks for what cannot be done."""
        root: lowering.OverlayRootPlan | lowering.DirectoryRootPlan
        if isinstance(launch.rootfs, OverlayRoot):
            lower = tuple(str(path) for path in launch.rootfs.lower)
            root = lowering.OverlayRootPlan(lower, str(launch.rootfs.upper), str(launch.rootfs.work))
        else:
            root = lowering.DirectoryRootPlan(str(launch.rootfs.path))
        log = launch.log
        around = lowering.Surroundings(
            run_dir=str(launch.run_dir),
            root=root,
            stdio=_stdio(launch.stdio),
            log=LogPlan(log.driver, str(log.path or ""), log.max_size, log.max_file, dict(log.attributes), log.compress, dict(log.options)),
            cgroup=self.cgroup_path(launch) if self._layout is not None else "",
            v1_hierarchies=v1_hierarchies(self._layout),
            links=tuple(
                lowering.Link(
                    link.host_name,
                    link.bridge,
                    link.name,
                    link.mac,
                    link.mtu,
                    tuple(link.addresses),
                    tuple(link.gateways),
                    link.kind,
                    link.mode,
                )
                for link in launch.links
            ),
            name_server=str(launch.name_server) if launch.name_server else "",
            user=launch.user,
            additional_groups=tuple(launch.additional_groups),
            init=launch.init,
        )
        try:
            plan = lowering.lower(launch.id, launch.config, around)
            return plan if launch.restore is None else _restore(plan, launch.restore)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"invalid container configuration: {error}") from None

    def cgroup_path(self, launch: Launch) -> str:
        """The container's cgroup: ``linux.cgroupsPath`` if that is a path, else below our parent."""
        asked = str((launch.config.get("linux") or {}).get("cgroupsPath") or "")
        if not asked or ":" in asked:
            return f"{self.cgroup_parent}/{launch.id}"
        return asked if asked.startswith("/") else f"{self.cgroup_parent}/{asked}"

    async def start(self, launch: Launch) -> Task:
        """Start a task; see ``TaskDriver.start``."""
        try:
            plan = self.plan(launch)
            if launch.config.get("hooks"):
                await asyncio.to_thread(_write_bundle, launch)
            task = RuntimeTask(self, launch.id, launch.run_dir, plan.keeper.cgroup)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                task.connect(ours)
                fds = [theirs.fileno(), *(attachment.sock.fileno() for attachment in launch.attachments)]
                await self._launch(self._request(plan, launch), fds)
            finally:
                theirs.close()
        finally:
            for attachment in launch.attachments:
                attachment.sock.close()
        try:
            await task.started
        except StartFailed:
            if task.lost:  # what was killed with the keeper is gone; what it had set free already (by a restore) is not
                await asyncio.to_thread(self.remove_cgroup, plan.keeper.cgroup)
            raise
        return task

    def _request(self, plan: Plan, launch: Launch) -> bytes:
        document = plan.to_json()
        request = {
            "id": document["id"],
            "keeper": document["keeper"],
            "steps": messages.encode_value(document["steps"]),
            "exec_defaults": messages.encode_value(document["exec_defaults"]),
            "attachments": [_describe(attachment) for attachment in launch.attachments],
        }
        fits = lowering.fits_spare(plan) and os.path.dirname(plan.keeper.cgroup) == self.cgroup_parent
        return (b"S" if fits else b"C") + messages.encode(request)

    async def _launch(self, data: bytes, fds: list[int]) -> None:
        """Hand a request to the launcher, restarting it once if it has died."""
        for attempt in range(2):
            self.start_launcher() if attempt or self._launcher is None else None
            assert self._launcher is not None
            try:
                while True:
                    try:
                        messages.send_bytes(self._launcher.sock, data, fds)
                        return
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
            except OSError:
                await asyncio.to_thread(self._launcher.close)
                self._launcher = None
        raise Unavailable("the launcher does not answer; see the daemon's log")

    async def recover(self, container_id: str, run_dir: Path) -> Task | None:
        """Find a task again; see ``TaskDriver.recover``."""
        record = _read_json(run_dir / "task.json")
        cgroup = str((record or {}).get("cgroup") or f"{self.cgroup_parent}/{container_id}")
        task = RuntimeTask(self, container_id, run_dir, cgroup)
        try:
            sock = control.connect(str(run_dir))
        except OSError:
            return await self._recover_ended(task, run_dir, record, cgroup)
        client = task.connect(sock)
        try:
            status = await client.request("status")
            if status["state"] == "creating":
                await task.started
        except (TareError, StartFailed):
            client.close()
            return await self._recover_ended(task, run_dir, _read_json(run_dir / "task.json"), cgroup)
        task.learn(status)
        if not task.started.done():
            task.started.set_result(None)
        if status["removed"]:
            task.mark_removed()
        if status["exit"] is not None:
            task.set_exit(_exit(status["exit"]))
        return task

    async def _recover_ended(self, task: RuntimeTask, run_dir: Path, record: dict[str, Any] | None, cgroup: str) -> Task | None:
        if task.started.done():
            task = RuntimeTask(self, task.id, run_dir, cgroup)
        exit = self.exit_on_disk(task.id, run_dir)
        if exit is None and record is not None and record.get("started_at"):
            exit = await asyncio.to_thread(self.bury, task.id, run_dir, cgroup)
        if exit is None:
            await asyncio.to_thread(self.remove_cgroup, cgroup)
            _remove_files(run_dir)
            return None
        task.learn(_read_json(run_dir / "exit.json") or record or {})
        task.started.set_result(None)
        task.set_exit(exit)
        return task

    def exit_on_disk(self, container_id: str, run_dir: Path) -> Exit | None:
        """The exit that the keeper recorded, if it did."""
        record = _read_json(run_dir / "exit.json")
        try:
            return _exit(record) if record is not None else None
        except (KeyError, ValueError, TypeError):
            return None

    def bury(self, container_id: str, run_dir: Path, cgroup: str) -> Exit:
        """A keeper was killed: kill what it left and put an exit on record."""
        self.remove_cgroup(cgroup)
        exit = Exit(137, time.time_ns(), False, KEEPER_KILLED)
        record = _read_json(run_dir / "task.json") or {}
        document = {
            "code": exit.code,
            "finished_at": exit.finished_at,
            "oom_killed": False,
            "error": exit.error,
            "pid": record.get("pid", 0),
            "started_at": record.get("started_at", 0),
            "execs": {},
        }
        temporary = run_dir / "exit.json.new"
        try:
            temporary.write_text(json.dumps(document))
            temporary.rename(run_dir / "exit.json")
        except OSError:
            pass
        return exit

    def remove_cgroup(self, path: str) -> None:
        """Kill and remove what is left of a task's cgroup; idempotent."""
        if self._layout is None or not path:
            return
        group = Cgroup(self._layout, path)
        if group.exists():
            try:
                group.kill()
                group.remove()
            except OSError:
                pass

    async def close(self) -> None:
        """Stop the launcher. Running tasks go on."""
        if self._launcher is not None:
            launcher, self._launcher = self._launcher, None
            await asyncio.to_thread(launcher.close)


def v1_hierarchies(layout: Layout | None) -> tuple[tuple[str, str], ...]:
    """(mount point on the host, directory name in the container) of every v1 hierarchy."""
    if layout is None:
        return ()
    return tuple((hierarchy.mount, os.path.basename(hierarchy.mount)) for hierarchy in layout.v1)
