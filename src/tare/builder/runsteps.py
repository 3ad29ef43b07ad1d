"""RUN as a step of a stage: its argument vector, mounts and cache key."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from tare.builder import configure, copying, emulation, rundevices, runmounts
from tare.builder import instructions as ins
from tare.builder.cache import key_of
from tare.builder.flags import parse_mount
from tare.builder.request import NETWORK_HOST, SECURITY_INSECURE, RunFailed
from tare.builder.running import Job
from tare.containers.cdi import edits_of
from tare.containers.record import MountPoint
from tare.errors import InvalidArgument, NotFound, TareError
from tare.images.committing import store_layer
from tare.oci.digest import Digest
from tare.wire.container import Config, DeviceRequest, HostConfig
from tare.wire.decode import convert

if TYPE_CHECKING:
    from tare.builder.stagebuild import Made, StageBuild
    from tare.containers.task import Exit
    from tare.store.layers.driver import Layer

_ONLY_DOCUMENT = re.compile(r"<<-?(['\"]?)[A-Za-z0-9_.-]+\1")
_SECRETS = "/run/secrets"


class _Mounts:
    """The ``--mount`` flags of one RUN, expanded; ``key`` is what the cache is asked."""

    def __init__(self, stage: StageBuild, mounts: Sequence[ins.RunMount]) -> None:
        self._stage = stage
        self.mounts = [self._expanded(mount) for mount in mounts]

    def _expanded(self, mount: ins.RunMount) -> ins.RunMount:
        one = self._stage.words.one
        if mount.text:
            mount = parse_mount(mount.text, one)
            fields: dict[str, Any] = {"target": mount.target}
        else:
            fields = {name: one(getattr(mount, name)) for name in ("target", "source", "from_", "id", "uid", "gid")}
        if fields["target"]:
            target = os.path.normpath(os.path.join("/", self._stage.container.working_dir, fields["target"])).replace("//", "/")
            if target == "/":
                raise InvalidArgument(f'invalid mount target "{fields["target"]}": the root is the image\'s own')
            fields["target"] = target
        return replace(mount, **fields)

    async def key(self) -> list[Any]:
        """What of the mounts can change the command's result: their kinds and, for files of the build, the content."""
        found: list[Any] = []
        for mount in self.mounts:
            source: list[str] = []
            if mount.type == "bind" and mount.from_:
                source = [str(diff_id) for diff_id in await self._layers(mount)]
            elif mount.type == "bind":
                source = await self._stage.build.in_thread(partial(self._digests, mount))
            found.append([
                mount.type, mount.target, mount.source, mount.from_, mount.readonly, mount.id, mount.sharing, mount.mode, mount.env, source,
            ])  # fmt: skip
        return found

    async def _layers(self, mount: ins.RunMount) -> tuple[Digest, ...]:
        return await self._stage.build.layers_of(mount.from_, self._stage.stage, self._stage.voice)

    def _digests(self, mount: ins.RunMount) -> list[str]:
        items = copying.gather(self._stage.build.context, [mount.source or "."], keep_owner=False, what="RUN")
        return [item.fingerprint() for item in items]

    async def prepare(self, id: str, opened: ExitStack) -> tuple[list[MountPoint], list[str]]:
        """Mount points for the run ``id``, and variables for its environment."""
        points: list[MountPoint] = []
        env: list[str] = []
        for number, mount in enumerate(self.mounts):
            if mount.type == "secret":
                self._secret(id, number, mount, points, env)
            elif mount.type == "ssh":
                self._agent(number, mount, points, env)
            elif mount.type == "tmpfs":
                points.append(runmounts.tmpfs(_target(mount), mount.size))
            elif mount.type == "cache":
                points.append(await self._cache(id, number, mount, opened))
            elif mount.type == "bind":
                points.append(await self._bind(id, number, mount))
            else:
                raise InvalidArgument(f'unsupported mount type "{mount.type}"')
        return points, env

    def _secret(self, id: str, number: int, mount: ins.RunMount, points: list[MountPoint], env: list[str]) -> None:
        name = mount.source or mount.id or os.path.basename(mount.target)
        data = self._stage.build.request.secrets.get(name)
        if data is None:
            if mount.required:
                raise NotFound(f"secret {name}: not found")
            return
        if mount.env:
            env.append(f"{mount.env}={data.decode('utf-8', 'surrogateescape')}")
            if not mount.target:
                return
        mode = 0o400 if mount.mode < 0 else mount.mode
        path = self._stage.build.runner.places.file(id, number, data, mode, int(mount.uid or 0), int(mount.gid or 0))
        points.append(runmounts.point(path, mount.target or f"{_SECRETS}/{name}", writable=False))

    def _agent(self, number: int, mount: ins.RunMount, points: list[MountPoint], env: list[str]) -> None:
        name = mount.id or "default"
        path = self._stage.build.request.agents.get(name)
        if path is None:
            if mount.required:
                raise NotFound(f"ssh agent {name}: not found: pass --ssh {name}")
            return
        target = mount.target or f"/run/buildkit/ssh_agent.{number}"
        points.append(runmounts.agent(path, target))
        if not any(each.startswith("SSH_AUTH_SOCK=") for each in (*env, *(self._stage.container.env or ()))):
            env.append(f"SSH_AUTH_SOCK={target}")

    async def _cache(self, id: str, number: int, mount: ins.RunMount, opened: ExitStack) -> MountPoint:
        build = self._stage.build
        places = build.runner.places
        name = mount.id or _target(mount)
        mode = 0o755 if mount.mode < 0 else mount.mode
        key, path = await places.cache(name, mount.sharing)
        opened.callback(places.release_cache, key, mount.sharing)
        if not path.is_dir():
            imported = await build.imports.mount(key)
            layers: Sequence[Digest] = () if imported is None else (imported,)
            if imported is None and mount.from_:
                layers = await self._layers(mount)
            source = "" if imported is not None else mount.source
            owner = int(mount.uid or 0), int(mount.gid or 0)
            await build.in_thread(lambda: places.make_cache(path, mode, owner, layers, source))
        description = f"mount {_target(mount)} (id {name})"
        build.cache.mount_used(key, description)
        build.mounts[key] = description
        return runmounts.point(path, _target(mount), writable=not mount.readonly)

    async def _bind(self, id: str, number: int, mount: ins.RunMount) -> MountPoint:
        build = self._stage.build
        writable = mount.readonly is False
        if mount.from_:
            layers, path = await self._layers(mount), mount.source
        else:
            layers, path = await build.context_layers(), mount.source
        shown = await build.in_thread(lambda: build.runner.places.bind(id, number, layers, path, writable=writable))
        return runmounts.point(shown, _target(mount), writable=writable)


def _target(mount: ins.RunMount) -> str:
    if not mount.target:
        raise InvalidArgument(f"invalid mount target for type {mount.type}: it is empty")
    return mount.target


def _host(stage: StageBuild, instruction: ins.Run) -> HostConfig:
    """The host side: the request's limits, and what the instruction asks for."""
    request = stage.build.request
    host = msgspec.structs.replace(request.host)
    if instruction.network == "none":
        host.network_mode = "none"
    elif instruction.network == "host":
        if NETWORK_HOST not in request.allow and host.network_mode != "host":
            raise InvalidArgument(f"granting entitlement {NETWORK_HOST} is not allowed by build configuration: pass --allow {NETWORK_HOST}")
        host.network_mode = "host"
    elif instruction.network not in ("", "default"):
        raise InvalidArgument(f'invalid network mode "{instruction.network}"')
    if instruction.security == "insecure":
        if SECURITY_INSECURE not in request.allow:
            raise InvalidArgument(
                f"granting entitlement {SECURITY_INSECURE} is not allowed by build configuration: pass --allow {SECURITY_INSECURE}"
            )
        host.privileged = True
    return host


async def _devices(stage: StageBuild, instruction: ins.Run, host: HostConfig) -> list[str]:
    """Where the devices of ``--device`` mount something; ``host`` asks for them from now on."""
    if not instruction.devices:
        return []
    known = await stage.build.in_thread(stage.build.runner.devices)
    names = rundevices.chosen(instruction.devices, known, stage.build.request.allow)
    if names:
        host.device_requests = [DeviceRequest(driver="cdi", device_ids=names)]
    return [mount.container_path for edits in edits_of(names, known) for mount in edits.mounts or ()]


def _vector(stage: StageBuild, command: ins.Command) -> tuple[list[str], str, tuple[str, bytes] | None]:
    """The argument vector, the text for the history, and a script file (name, content) that it needs."""
    shell = configure.shell_of(stage.container)
    if not command.shell:
        return list(command.words), " ".join(command.words), None
    text = command.words[0] if command.words else ""
    documents = command.heredocs
    if len(documents) == 1 and _ONLY_DOCUMENT.fullmatch(text.strip()):
        script = documents[0].content
        if script.startswith("#!"):
            return [f"/dev/pipes/{documents[0].name}"], script, (documents[0].name, script.encode("utf-8", "surrogateescape"))
        vector = [*shell, script]
    else:
        vector = [*shell, text + "".join(f"\n{document.content}{document.name}" for document in documents)]
    return vector, " ".join(vector), None


async def run_step(stage: StageBuild, instruction: ins.Run) -> None:
    """One RUN."""
    build = stage.build
    vector, shown, script = _vector(stage, instruction.command)
    host = _host(stage, instruction)
    stubs = await _devices(stage, instruction, host)
    declared, silent = stage.run_environment()
    mounts = _Mounts(stage, instruction.mounts)
    asked = [instruction.network, instruction.security, *(f"device {device.name}" for device in instruction.devices)]
    keys = [key_of("run", stage.state_key(), vector, declared, await mounts.key(), *asked, shown)]
    prefix = " ".join([f"|{len(declared)}", *declared, ""]) if declared or silent else ""

    async def made() -> Made:
        id = build.runner.begin()
        with ExitStack() as opened:
            try:
                stage.fake_id = id[:12]
                await stage.voice.text(f" ---> Running in {stage.fake_id}\n")
                points, further = await mounts.prepare(id, opened)
                if script is not None:
                    path = build.runner.places.file(id, len(mounts.mounts), script[1], 0o755)
                    points.append(runmounts.point(path, vector[0], writable=False))
                config = convert(Config, msgspec.to_builtins(stage.container))
                config.entrypoint, config.cmd, config.healthcheck, config.volumes = None, vector, None, None
                config.exposed_ports = None
                config.env = [*silent, *declared, *stage.own_environment(), *further]
                job = Job(id, config, host, tuple(stage.state.diff_ids), tuple(points), (*_parents(points), *stubs))
                async with build.running:
                    exit = await _native(stage, build.runner.run(job, stage.output))
                if exit.code:
                    raise RunFailed(vector, exit.code)
                layer: Layer = await build.in_thread(
                    lambda: store_layer(
                        build.layers, build.stop.watched(build.runner.changes(job, build.request.epoch_ns)), build.pins.hold
                    )
                )
                return layer, ""
            finally:
                await build.finally_(build.runner.end(id))

    plain = not (instruction.mounts or script or instruction.devices) and (instruction.network, instruction.security) == (
        "default",
        "sandbox",
    )
    await stage.layer_step(keys, lambda _: prefix + shown, made, ran=True, line=prefix + shown if plain else "")


async def _native(stage: StageBuild, run: Awaitable[Exit]) -> Exit:
    """Await a run. If it fails and is for another kind of machine, without an emulator here, that is why."""
    try:
        exit = await run
    except TareError as error:
        if reason := emulation.missing(stage.state.platform()):
            raise InvalidArgument(f"{error}: {reason}") from None
        raise
    if exit.code and (reason := emulation.missing(stage.state.platform())):
        raise InvalidArgument(f"exit code {exit.code}: {reason}")
    return exit


def _parents(points: Sequence[MountPoint]) -> list[str]:
    return [_SECRETS, "/run/buildkit"] if any(point.destination.startswith("/run/") for point in points) else []
