"""Engines against the registry server: log in, push, pull, our cache as their mirror. dockerd, tared and podman, by their own commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import bcrypt
import pytest

from conftest import new_daemon
from dockerd_world import DOCKERD, dockerd
from engine_world import DOCKER, Daemon, busybox_tar
from registry_world import Registry, content

pytestmark = [pytest.mark.root, pytest.mark.peer]

HUB, MIRROR, TOKENS, PASSWORDS = 5001, 5002, 5003, 5004


class World(NamedTuple):
    """Three registries of ours: one that stands for Docker Hub, a cache of it, two that want a password."""

    hub: Registry
    mirror: Registry
    registries: dict[str, Registry]
    ports: dict[str, str]


def start(folder: Path, before: tuple[str, ...] = (), *, fixed: bool) -> World:
    """``fixed``: at the ports above, in a network namespace of their own."""

    def begin(name: str, port: int, *options: str) -> Registry:
        listen = ("--listen", f"127.0.0.1:{port}") if fixed else ()
        return Registry(folder / name, *options, *listen, prefix=before)

    users = folder / "users"
    users.write_text(f"ann:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    hub = begin("hub", HUB)
    upstream = f"127.0.0.1:{HUB}" if fixed else hub.address
    log = ("--access-log", str(folder / "mirror.log"))
    mirror = begin("mirror", MIRROR, "--cache", f"docker.io={upstream}", "--mirror", "docker.io", "--read-only", *log)
    registries = {
        "tokens": begin("tokens", TOKENS, "--htpasswd", str(users), "--anonymous-pull"),
        "passwords": begin("passwords", PASSWORDS, "--htpasswd", str(users)),
    }
    ports = {"hub": upstream, "mirror": f"127.0.0.1:{MIRROR}" if fixed else mirror.address}
    for name, port in (("tokens", TOKENS), ("passwords", PASSWORDS)):
        ports[name] = f"127.0.0.1:{port}" if fixed else registries[name].address
    return World(hub, mirror, registries, ports)


def end(world: World) -> None:
    for registry in (world.hub, world.mirror, *world.registries.values()):
        registry.stop()


class Engine:
    """``docker`` or ``tare`` with a configuration directory of its own."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._command = command
        self._environment = {**os.environ, "DOCKER_CONFIG": str(folder)}

    def __call__(self, *arguments: str, fails: bool = False, stdin: str = "") -> str:
        done = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, check=False, input=stdin, env=self._environment, timeout=120
        )
        assert (done.returncode != 0) is fails, (arguments, done.stdout, done.stderr)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def with_dockerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    if not DOCKERD.exists() or DOCKER is None:
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd(f"--registry-mirror http://127.0.0.1:{MIRROR}") as socket:
        pid = (Path(socket).parent / "pid").read_text()
        world = start(tmp_path_factory.mktemp("dockerd"), ("nsenter", "-t", pid, "-n"), fixed=True)
        yield world, socket
        end(world)


@pytest.fixture(scope="module")
def with_tared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Daemon]]:
    world = start(tmp_path_factory.mktemp("tared"), fixed=False)
    daemon = new_daemon("--registry-mirror", f"http://{world.ports['mirror']}")
    daemon.start()
    daemon.load_busybox()
    yield world, daemon
    daemon.stop()
    shutil.rmtree(daemon.root, ignore_errors=True)
    end(world)


@pytest.fixture(params=["docker-dockerd", "docker-tared", "tare-tared"])
def engine_and_world(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Engine, World]:
    if request.param == "docker-dockerd":
        world, socket = request.getfixturevalue("with_dockerd")
        return Engine([str(DOCKER), "-H", f"unix://{socket}"], tmp_path), world
    world, daemon = request.getfixturevalue("with_tared")
    program = str(DOCKER) if request.param == "docker-tared" else str(Path(daemon.tare("version").args[0]))
    return Engine([program, "-H", daemon.host], tmp_path), world


@pytest.mark.parametrize("mode", ["tokens", "passwords"])
def test_login_push_pull(engine_and_world: tuple[Engine, World], mode: str) -> None:
    engine, world = engine_and_world
    address = world.ports[mode]
    name = f"{address}/team/app"
    engine("tag", "busybox", name)
    assert "denied" in (said := engine("push", name, fails=True)) or "no basic auth credentials" in said or "unauthorized" in said
    assert "401" in (said := engine("login", "-u", "ann", "-p", "wrong", address, fails=True)) or "incorrect username or password" in said
    assert "Login Succeeded" in engine("login", "-u", "ann", "--password-stdin", address, stdin="secret")
    assert "digest: sha256:" in engine("push", name)
    engine("rmi", name)
    engine("pull", "-q", name)
    engine("tag", name, f"{address}/other/app")
    engine("push", "-q", f"{address}/other/app")  # its layers are mounted from the first
    engine("rmi", name, f"{address}/other/app")
    engine("logout", address)
    if mode == "tokens":
        engine("pull", "-q", name)  # everybody may read
        engine("tag", name, f"{address}/nobody/app")
        assert "denied" in (said := engine("push", f"{address}/nobody/app", fails=True)) or "unauthorized" in said
        engine("rmi", name, f"{address}/nobody/app")
    else:
        assert "no basic auth credentials" in engine("pull", name, fails=True)


def test_our_cache_as_the_engines_mirror(engine_and_world: tuple[Engine, World]) -> None:
    """A name of Docker Hub comes through the cache; the second time without the hub."""
    engine, world = engine_and_world
    name = f"{world.ports['hub']}/library/cached"
    engine("tag", "busybox", name)
    pushed = engine("push", name).rpartition("digest: ")[2].split()[0]
    engine("rmi", name)
    assert f"Digest: {pushed}" in engine("pull", "cached")
    engine("rmi", "cached")
    assert (Path(world.mirror.root) / "repositories/docker.io/library/cached/_tags/latest").read_text() == pushed
    world.hub.stop()
    try:
        assert f"Digest: {pushed}" in engine("pull", "cached:latest")
    finally:
        world.hub.start()
    engine("rmi", "cached")


def test_containerd_names_the_registry_it_means(with_dockerd: tuple[World, str], tmp_path: Path) -> None:
    """hosts.toml sends it to the cache, which several registries share: ``?ns=docker.io``. (dockerd's own containerd.)"""
    if shutil.which("ctr") is None:
        pytest.skip("needs ctr: apt-get install containerd")
    world, socket = with_dockerd
    engine = Engine([str(DOCKER), "-H", f"unix://{socket}"], tmp_path)
    name = f"{world.ports['hub']}/library/forcontainerd"
    engine("tag", "busybox", name)
    engine("push", "-q", name)
    engine("rmi", name)
    folder = tmp_path / "hosts" / "docker.io"
    folder.mkdir(parents=True)
    host = f'[host."http://{world.ports["mirror"]}"]\ncapabilities = ["pull", "resolve"]\n'
    (folder / "hosts.toml").write_text(f'server = "https://127.0.0.1:9"\n{host}')
    pid = (Path(socket).parent / "pid").read_text()
    inside = ["nsenter", "-t", pid, "-n", "ctr", "-a", f"{Path(socket).parent}/run/containerd/containerd.sock"]
    command = [*inside, "content", "fetch", "--hosts-dir", str(tmp_path / "hosts"), "docker.io/library/forcontainerd:latest"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    asked = [json.loads(line) for line in (Path(world.mirror.root).parent / "mirror.log").read_text().splitlines()]
    assert any(record.get("query") == "ns=docker.io" and record["status"] == 200 for record in asked)
    assert (Path(world.mirror.root) / "repositories/docker.io/library/forcontainerd/_tags/latest").exists()


def test_podman_with_a_mirror(tmp_path: Path, with_tared: tuple[World, Daemon]) -> None:
    """registries.conf names the cache with its prefix; podman also logs in and pushes."""
    if shutil.which("podman") is None:
        pytest.skip("needs podman: apt-get install podman")
    world, daemon = with_tared
    daemon.docker("tag", "busybox", f"{world.ports['hub']}/library/forpodman")
    daemon.docker("push", "-q", f"{world.ports['hub']}/library/forpodman")
    daemon.docker("rmi", f"{world.ports['hub']}/library/forpodman")
    (tmp_path / "registries.conf").write_text(
        f'[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "{world.ports["mirror"]}/docker.io"\ninsecure = true\n'
    )
    (tmp_path / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (tmp_path / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    environment = {
        **os.environ,
        "CONTAINERS_REGISTRIES_CONF": str(tmp_path / "registries.conf"),
        "CONTAINERS_STORAGE_CONF": str(tmp_path / "storage.conf"),
        "REGISTRY_AUTH_FILE": str(tmp_path / "auth.json"),
    }

    def podman(*arguments: str, fails: bool = False) -> str:
        done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, env=environment, timeout=120)
        assert (done.returncode != 0) is fails, (arguments, done.stderr)
        return done.stdout + done.stderr

    (tmp_path / "auth.json").write_text("{}")
    policy = ("--signature-policy", str(tmp_path / "policy.json"))
    podman("pull", *policy, "docker.io/library/forpodman:latest")
    catalog = json.loads(content(world.mirror.call("GET", "/v2/_catalog")))["repositories"]
    assert "docker.io/library/forpodman" in catalog
    place = f"{world.ports['tokens']}/podman/app"
    podman("tag", "docker.io/library/forpodman:latest", place)
    podman("push", "--tls-verify=false", place, fails=True)
    podman("login", "--tls-verify=false", "-u", "ann", "-p", "secret", world.ports["tokens"])
    podman("push", "--tls-verify=false", place)
    podman("rmi", "-a", "-f")
    podman("pull", *policy, "--tls-verify=false", place)
    podman("rmi", "-a", "-f")
    assert len(busybox_tar()) > 0
