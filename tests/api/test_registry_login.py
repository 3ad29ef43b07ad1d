"""Logins, looks into registries and interrupted pulls, with the real docker command, a real registry and docker-py."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian_registry import docker_registry
from engine_world import Daemon
from fake_registry import Background
from image_builder import build_image

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path / "closed", closed=True) as address:
        yield address


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path / "opened") as address:
        yield address


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """An environment with a configuration directory of its own."""
    return {**os.environ, "DOCKER_CONFIG": str(tmp_path / "config")}


@pytest.mark.parametrize("command", ["docker", "tare"])
def test_login_push_pull_logout(engine: Daemon, closed: str, settings: dict[str, str], tmp_path: Path, command: str) -> None:
    call = engine.docker if command == "docker" else engine.tare
    name = f"{closed}/secret"
    engine.docker("tag", "busybox", name)
    try:
        refused = call("login", "-u", "alice", "--password-stdin", closed, input="wrong", check=False, env=settings)
        assert refused.returncode == 1
        assert refused.stderr.strip() == (
            f"Error response from daemon: login attempt to http://{closed}/v2/ failed with status: 401 Unauthorized"
        )
        done = call("login", "-u", "alice", "--password-stdin", closed, input="x\n", env=settings)
        assert done.stdout == "Login Succeeded\n" and "stored unencrypted" in done.stderr
        file = tmp_path / "config" / "config.json"
        assert file.read_text() == f'{{\n\t"auths": {{\n\t\t"{closed}": {{\n\t\t\t"auth": "YWxpY2U6eA=="\n\t\t}}\n\t}}\n}}'
        assert file.stat().st_mode & 0o777 == 0o600
        again = call("login", closed, env=settings)
        assert again.stdout == "Login Succeeded\n" and "[Username: alice]" in again.stderr
        call("push", "-q", name, env=settings)
        engine.docker("rmi", name)
        call("pull", "-q", name, env=settings)
        engine.docker("rmi", name)
        assert call("run", "--rm", name, "echo", "pulled", env=settings).stdout == "pulled\n"
        assert call("logout", closed, env=settings).stdout == f"Removing login credentials for {closed}\n"
        assert json.loads(file.read_text()) == {"auths": {}}
        denied = call("pull", f"{name}:other", check=False, env=settings)
        assert denied.returncode == 1 and "no basic auth credentials" in denied.stderr
    finally:
        engine.docker("rmi", name, check=False)


@pytest.mark.parametrize("kind", ["credsStore", "credHelpers"])
def test_credential_helpers(engine: Daemon, closed: str, settings: dict[str, str], tmp_path: Path, kind: str) -> None:
    """A store of secrets outside the file: get, store and erase as docker calls them."""
    vault, helper = tmp_path / "vault", tmp_path / "docker-credential-vault"
    helper.write_text(f"""#!/bin/sh
case $1 in
get) cat > /dev/null; [ -s {vault} ] && cat {vault} || {{ echo "credentials not found in native keychain"; exit 1; }};;
store) cat > {vault};;
erase) cat > /dev/null; rm -f {vault};;
esac
""")
    helper.chmod(0o755)
    settings["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    (tmp_path / "config").mkdir()
    config = {"credsStore": "vault"} if kind == "credsStore" else {"credHelpers": {closed: "vault"}}
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    engine.tare("login", "-u", "alice", "--password-stdin", closed, input="x", env=settings)
    assert json.loads(vault.read_text()) == {"ServerURL": closed, "Username": "alice", "Secret": "x"}
    assert json.loads((tmp_path / "config" / "config.json").read_text()) == {**config, "auths": {closed: {}}}
    name = f"{closed}/kept"
    engine.docker("tag", "busybox", name)
    try:
        engine.tare("push", "-q", name, env=settings)
        engine.tare("logout", closed, env=settings)
        assert not vault.exists()
        assert engine.tare("push", "-q", name, env=settings, check=False).returncode == 1
    finally:
        engine.docker("rmi", name)


def test_all_tags_and_a_look_into_the_registry(engine: Daemon, opened: str) -> None:
    docker = pytest.importorskip("docker")
    names = [f"{opened}/many:{tag}" for tag in ("one", "two")]
    for name in names:
        engine.docker("tag", "busybox", name)
    try:
        pushed = engine.docker("push", "-a", f"{opened}/many").stdout
        assert pushed.count("digest: sha256:") == 2
        engine.docker("rmi", *names)
        pulled = engine.docker("pull", "-a", f"{opened}/many").stdout.splitlines()
        assert pulled[-2:] == [f"Status: Downloaded newer image for {opened}/many", f"{opened}/many"]
        assert engine.tare("pull", "-a", f"{opened}/many").stdout.splitlines()[-2].startswith("Status: Image is up to date")
        client = docker.DockerClient(base_url=engine.host)
        try:
            found = client.images.get_registry_data(names[0])
            assert found.id in pushed and found.has_platform("linux/amd64")
            with pytest.raises(docker.errors.NotFound, match="manifest unknown"):
                client.images.get_registry_data(f"{opened}/many:three")
        finally:
            client.close()
    finally:
        engine.docker("rmi", *names, check=False)


@pytest.mark.parametrize("asked", ["zstd", "gzip:9"])
def test_another_compression_for_a_push(engine: Daemon, opened: str, tmp_path: Path, asked: str) -> None:
    """skopeo unpacks what was packed anew to the very layer, and the next plain push sends what it always did."""
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo: apt-get install skopeo")
    name = f"{opened}/packed"
    engine.docker("tag", "busybox", name)
    try:
        plain = engine.tare("push", name).stdout.splitlines()[-1]
        assert engine.tare("push", "--compression", asked, name).stdout.splitlines()[-1] != plain
        copy = ["skopeo", "copy", "-q", "--insecure-policy", "--src-tls-verify=false", "--dest-decompress"]
        subprocess.run([*copy, f"docker://{name}", f"dir:{tmp_path}/copy"], check=True, capture_output=True)
        (layer,) = json.loads((tmp_path / "copy" / "manifest.json").read_bytes())["layers"]
        assert [layer["digest"]] == json.loads(engine.docker("image", "inspect", "-f", "{{json .RootFS.Layers}}", name).stdout)
        assert engine.docker("push", name).stdout.splitlines()[-1] == plain
        refused = engine.tare("push", "--compression", "lz4", name, check=False)
        assert refused.returncode == 1 and 'unknown compression "lz4"' in refused.stderr
    finally:
        engine.docker("rmi", name)


def test_manifest_list_is_the_one_that_docker_makes(engine: Daemon, opened: str, closed: str, settings: dict[str, str]) -> None:
    """Made, annotated and pushed with both tools, also to another repository; then into a registry that wants a password."""
    images = [f"{opened}/part:{architecture}" for architecture in ("one", "two")]
    for name in images:
        engine.docker("tag", "busybox", name)
    try:
        for name in images:
            engine.docker("push", "-q", name)
        digests = []
        for call, target in ((engine.docker, f"{opened}/theirs:1"), (engine.tare, f"{opened}/ours:1")):
            assert call("manifest", "create", "--insecure", target, *images, env=settings).stdout == f"Created manifest list {target}\n"
            call("manifest", "annotate", target, images[1], "--arch", "arm64", "--variant", "v8", env=settings)
            *_, digest = call("manifest", "push", "--insecure", "-p", target, env=settings).stdout.split()
            digests.append(digest)
        assert digests[0] == digests[1]
        shown = engine.tare("manifest", "inspect", f"{opened}/theirs:1", env=settings).stdout
        assert shown.strip() == engine.docker("manifest", "inspect", "--insecure", f"{opened}/ours:1", env=settings).stdout.strip()
        assert (
            engine.tare("manifest", "push", f"{opened}/ours:1", check=False, env=settings).stderr == f"No such manifest: {opened}/ours:1\n"
        )
        engine.tare("login", "-u", "alice", "--password-stdin", closed, input="x", env=settings)
        engine.tare("manifest", "create", f"{closed}/elsewhere", *images, env=settings)
        engine.tare("manifest", "push", f"{closed}/elsewhere", env=settings)
        engine.docker("rmi", *images)
        engine.tare("pull", "-q", f"{closed}/elsewhere", env=settings)
        engine.docker("rmi", f"{closed}/elsewhere")
    finally:
        engine.docker("rmi", *images, check=False)


def test_a_pull_that_the_daemons_death_cut_off_goes_on(own_daemon: Daemon) -> None:
    """kill -9 in the middle of a layer: nothing half-visible, and the next pull fetches only what is missing."""
    noise = random.Random(5).randbytes(6 << 20)
    with Background() as registry:
        built = registry.add(build_image({"noise": noise}, compression="none"))
        registry.delay = 0.02  # 64 kB each: two seconds for the layer
        name = f"{registry.address}/app"
        pull = threading.Thread(target=lambda: own_daemon.docker("pull", name, check=False))
        pull.start()
        partial = own_daemon.root / "data" / "ingest" / built.layers[0].replace(":", "-")
        for _ in range(400):
            if partial.exists() and partial.stat().st_size > 1 << 20:
                break
            time.sleep(0.01)
        own_daemon.kill()
        pull.join()
        kept = partial.stat().st_size
        registry.delay = 0.0
        registry.requests.clear()
        own_daemon.start()
        assert own_daemon.docker("images", "-q", name).stdout == ""
        own_daemon.docker("pull", name)
        (asked,) = [request[3] for request in registry.asked(f"/blobs/{built.layers[0]}")]
        assert asked.startswith("bytes=") and 0 < int(asked[6:].partition("-")[0]) <= kept
        assert own_daemon.docker("image", "inspect", "-f", "{{.Id}}", name).stdout.strip() == built.image_id
        assert not list((own_daemon.root / "data" / "ingest").iterdir())
        own_daemon.docker("rmi", name)
