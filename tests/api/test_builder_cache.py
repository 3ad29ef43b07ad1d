"""The build cache: what is kept, what others get of it, what is pruned; named contexts and the history of builds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import new_daemon
from debian_registry import docker_registry
from engine_world import Daemon

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
pytestmark = [pytest.mark.root, pytest.mark.peer]

DOCKERFILE = """FROM busybox AS tools
RUN --mount=type=cache,target=/store if [ -e /store/n ]; then cp /store/n /n; else date +%N > /store/n; cp /store/n /n; fi
FROM busybox
LABEL a=b
COPY f /f
WORKDIR /w
RUN date +%N > /made
COPY --from=tools /n /n
"""


def write(path: Path, dockerfile: str, **files: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.fixture(scope="module")
def far() -> Iterator[Daemon]:
    """A daemon on another machine, as it were: nothing is shared but what is sent."""
    daemon = new_daemon()
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture
def base(engine: Daemon, far: Daemon) -> Iterator[None]:
    """Both daemons without cache, with the very same base image."""
    for daemon in (engine, far):
        daemon.tare("builder", "prune", "-af")
    archive = subprocess.run(["docker", "-H", engine.host, "save", "busybox:latest"], capture_output=True, check=True).stdout
    far.docker("load", input=archive, text=False)
    yield
    for daemon in (engine, far):
        ids = daemon.docker("images", "-q", "cached").stdout.split()
        if ids:
            daemon.docker("rmi", "-f", *ids)


def steps(text: str) -> tuple[int, int]:
    """Steps that were found, and steps that were made."""
    blocks = re.findall(r"^#(\d+) \[[^\n]*\] (?!FROM)[A-Z]", text, re.M)
    numbers = set(blocks)
    cached = {number for number in numbers if re.search(rf"^#{number} CACHED", text, re.M)}
    return len(cached), len(numbers - cached)


def made(daemon: Daemon, *arguments: str) -> tuple[tuple[int, int], str]:
    done = daemon.tare("build", "--progress", "plain", "-t", "cached", *arguments)
    identity = daemon.docker("inspect", "-f", "{{.Id}}", "cached").stdout.strip()
    return steps(done.stderr), identity


def test_caches_travel(engine: Daemon, far: Daemon, base: None, tmp_path: Path) -> None:
    """registry, local and inline, there and back; the image is the same, and of the cache only what is asked for is sent."""
    context = str(write(tmp_path / "c", DOCKERFILE, f="1\n"))
    with docker_registry(tmp_path / "r") as registry:
        remote, local = f"type=registry,ref={registry}/cache:1,mode=max", f"type=local,dest={tmp_path}/cache,mode=max,mounts=true"
        first, identity = made(engine, "--cache-to", remote, "--cache-to", local, context)
        assert first == (0, 5)

        there, same = made(far, "--cache-from", f"type=registry,ref={registry}/cache:1", context)
        assert (there, same) == ((5, 0), identity)
        assert made(far, context) == ((5, 0), identity)  # from now on it is its own

        far.tare("builder", "prune", "-af")
        far.docker("rmi", "-f", identity)
        there, same = made(far, "--cache-from", f"type=local,src={tmp_path}/cache", context)
        assert (there, same) == ((5, 0), identity)

        # The cache mount's content came along: the stage that used it makes the same file again.
        far.docker("rmi", "-f", identity)
        far.tare("builder", "prune", "-af")
        number = engine.docker("run", "--rm", "cached", "cat", "/n").stdout
        flags = ["--cache-from", f"type=local,src={tmp_path}/cache", "--no-cache-filter", "tools"]
        there, _ = made(far, *flags, context)
        assert there == (4, 1)
        assert far.docker("run", "--rm", "cached", "cat", "/n").stdout == number

        # mode=min has only the target's own steps.
        made(engine, "--cache-to", f"{registry}/cache:min", context)
        far.docker("rmi", "-f", "cached")
        far.tare("builder", "prune", "-af")
        there, _ = made(far, "--cache-from", f"{registry}/cache:min", context)
        assert there[1] >= 1 and there[0] >= 3

        # inline: the image itself is the cache; also for the docker command, once it is pulled.
        name = f"{registry}/app:1"
        engine.tare("build", "-q", "-t", name, "--push", "--cache-to", "type=inline", context)
        far.docker("rmi", "-f", "cached")
        far.tare("builder", "prune", "-af")
        there, _ = made(far, "--cache-from", name, context)
        assert there[0] >= 3
        far.docker("rmi", "-f", "cached")
        far.tare("builder", "prune", "-af")
        far.docker("pull", "-q", name)
        done = classic(far, context, "--cache-from", name, "-t", "cached")
        assert done.count("Using cache") == 4
        assert "Using cache" not in classic(far, context, "--no-cache", "--cache-from", name, "-t", "cached")
        far.docker("rmi", "-f", name, "cached")
        engine.docker("rmi", "-f", "cached")


def classic(daemon: Daemon, context: str, *flags: str) -> str:
    environment = os.environ | {"DOCKER_BUILDKIT": "0"}
    done = subprocess.run(["docker", "-H", daemon.host, "build", *flags, context], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_history_of_an_image_is_a_cache(engine: Daemon, far: Daemon, base: None, tmp_path: Path) -> None:
    """As with docker's classic builder: an image without anything special, named by --cache-from."""
    context = str(write(tmp_path / "c", 'FROM busybox\nENV A=b\nRUN date +%N > /n\nCMD ["cat", "/n"]\n'))
    engine.tare("build", "-q", "-t", "cached:plain", context)
    archive = subprocess.run(["docker", "-H", engine.host, "save", "cached:plain"], capture_output=True, check=True).stdout
    far.docker("load", input=archive, text=False)
    assert classic(far, context, "-t", "cached:new", "--cache-from", "cached:plain").count("Using cache") == 3
    same = [daemon.docker("run", "--rm", name).stdout for daemon, name in ((engine, "cached:plain"), (far, "cached:new"))]
    assert same[0] == same[1]
    assert engine.docker("inspect", "-f", "{{.Id}}", "cached:plain").stdout == far.docker("inspect", "-f", "{{.Id}}", "cached:new").stdout
    for daemon in (engine, far):
        daemon.docker("rmi", "-f", "cached:plain", "cached:new", check=False)


def test_damaged_caches(engine: Daemon, base: None, tmp_path: Path) -> None:
    """What cannot be read, or is not what it says, is no cache and no failure."""
    context = str(write(tmp_path / "c", "FROM busybox\nRUN date +%N > /n\n"))
    place = tmp_path / "cache"
    _, identity = made(engine, "--cache-to", f"type=local,dest={place}", context)
    blobs = sorted((place / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    assert made(engine, "--cache-from", "type=registry,ref=127.0.0.1:1/none", context)[0] == (1, 0)
    for damage in range(3):
        engine.docker("rmi", "-f", "cached")
        engine.tare("builder", "prune", "-af")
        broken = tmp_path / f"broken{damage}"
        shutil.copytree(place, broken)
        for blob in blobs:
            data = (broken / "blobs/sha256" / blob.name).read_bytes()
            if damage == 0 and data[:1] != b"{":
                (broken / "blobs/sha256" / blob.name).write_bytes(data[:-12] + bytes(12))
            elif damage == 1 and b'"steps"' in data:
                (broken / "blobs/sha256" / blob.name).write_bytes(data.replace(b'"layer":0', b'"layer":7'))
            elif damage == 2:
                (broken / "blobs/sha256" / blob.name).unlink()
        counted, other = made(engine, "--cache-from", f"type=local,src={broken}", context)
        assert counted == (0, 1) and other != identity
    refused = engine.tare("build", "--cache-to", "type=local,dest=/x,mode=some", context, check=False)
    assert refused.returncode == 1 and "cache mode 'some' is not offered" in refused.stderr
    refused = engine.tare("build", "--cache-from", "type=inline", context, check=False)
    assert refused.returncode == 1 and "an inline cache is read from its image" in refused.stderr


def freed(text: str) -> int:
    """Whole megabytes."""
    found = re.search(r"^Total reclaimed space: (\d+)(\.\d+)?MB$", text, re.M)
    return int(found[1]) if found else -1


def test_prune_and_df(engine: Daemon, base: None, tmp_path: Path) -> None:
    dockerfile = """FROM busybox
RUN --mount=type=cache,target=/c head -c 3000000 /dev/urandom > /c/big
RUN head -c 2000000 /dev/urandom > /one
RUN head -c 1000000 /dev/urandom > /two
"""
    context = write(tmp_path / "c", dockerfile)
    engine.tare("build", "-q", "-t", "cached", str(context))
    usage = json.loads(engine.docker("system", "df", "-v", "--format", "json").stdout)["BuildCache"]
    assert {entry["CacheType"] for entry in usage} == {"regular", "exec.cachemount"}
    listed = engine.tare("builder", "df", "-v").stdout
    assert "mount /c" in listed and re.search(r"^Private: +3MB$", listed, re.M) and re.search(r"^Shared: +3MB$", listed, re.M)
    assert engine.tare("builder", "df", "--filter", "type=exec.cachemount", "--format", "{{.Size}} {{.Shared}}").stdout == "3MB false\n"
    assert "3MB" in engine.docker("system", "df", "--format", "{{.Type}} {{.Size}}").stdout.splitlines()[-1]
    # Rules that spare everything; what an image uses is not dangling.
    assert "Total reclaimed space: 0B" in engine.docker("builder", "prune", "-af", "--filter", "until=24h").stdout
    assert "Total reclaimed space: 0B" in engine.tare("builder", "prune", "-f", "--keep-storage", "4m").stdout
    assert "Total reclaimed space: 0B" in engine.tare("builder", "prune", "-f", "--min-free-space", "1k").stdout
    assert "Total reclaimed space: 0B" in engine.tare("builder", "prune", "-f", "--filter", "type=regular").stdout
    # Nobody uses the layers any more: the older one goes when 5 MB may stay, then what is left.
    engine.docker("rmi", "-f", "cached")
    assert re.search(r"^Private: +6MB$", engine.tare("builder", "df").stdout, re.M)
    assert freed(engine.tare("builder", "prune", "-f", "--reserved-space", "3500000").stdout) == 3
    assert re.search(r"^Total: +3MB$", engine.tare("builder", "df").stdout, re.M)
    gone = engine.tare("builder", "prune", "-f", "--max-used-space", "1500000").stdout
    assert freed(gone) == 2 and "Deleted build cache objects:\n" in gone
    assert freed(engine.docker("builder", "prune", "--all", "--force", "--filter", "until=0s").stdout) == 1
    assert re.search(r"^Total: +0B$", engine.tare("builder", "df").stdout, re.M)
    asked = engine.tare("builder", "prune", input="n\n", check=False)
    assert "This will remove all dangling build cache" in asked.stdout
    unknown = engine.tare("builder", "prune", "-f", "--filter", "colour=red", check=False)
    assert unknown.returncode == 1 and "colour" in unknown.stderr


def test_the_cache_keeps_itself_small(far: Daemon, tmp_path: Path) -> None:
    """dockerd's ``builder`` settings: the rules hold from the daemon's start on, and take nothing that an image needs."""
    far.tare("builder", "prune", "-af")
    made = "head -c 2000000 /dev/urandom >"
    far.tare("build", "-q", "-t", "kept", "-", input=f"FROM busybox\nRUN {made} /kept\n")
    first = "FROM busybox\nRUN --mount=type=cache,target=/c head -c 1000000 /dev/urandom > /c/big\nRUN "
    far.tare("build", "-q", "-t", "gone", "-", input=f"{first}{made} /first\nRUN {made} /second\n")
    far.docker("rmi", "gone")
    total = re.compile(r"^Private: +(\w+)$", re.M)
    assert total.findall(far.tare("builder", "df").stdout) == ["5MB"]
    rules = [{"filter": ["type=exec.cachemount", "unused-for=48h"]}, {"keepStorage": "3.4MB", "filter": ["type=regular"]}]
    builder = {"gc": {"policy": rules}, "entitlements": {"network-host": False}, "history": {"maxEntries": 1}}
    far.terminate()
    far.flags = ("--builder", json.dumps(builder))
    far.start()
    for _ in range(100):
        if (found := total.findall(far.tare("builder", "df").stdout)) != ["5MB"]:
            break
        time.sleep(0.05)
    assert found == ["3MB"] and "collected" in far.log  # the older layer; not the mount, which is not old enough
    refused = far.tare("build", "--allow", "network.host", "-", input="FROM busybox\nRUN --network=host true\n", check=False)
    assert "granting entitlement network.host is not allowed by the daemon's configuration" in refused.stderr
    assert "CACHED" in far.tare("build", "--progress=plain", "-", input=f"FROM busybox\nRUN {made} /kept\n").stderr
    assert far.docker("run", "--rm", "kept", "wc", "-c", "/kept").stdout.split()[0] == "2000000"
    assert len(far.tare("builder", "history", "ls", "-q").stdout.split()) == 1
    far.terminate()
    far.flags = ()
    far.start()


def test_named_contexts(engine: Daemon, tmp_path: Path) -> None:
    """A directory, an image and another directory in a stage's place; as base, for COPY and for a bind."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "x").write_text("from data\n")
    (data / "left-out").write_text("no")
    (data / ".dockerignore").write_text("left-out\n")
    dockerfile = """FROM busybox AS s
RUN echo stage > /x
FROM nowhere/at/all:1
COPY --from=data x /y
COPY --from=s x /s
RUN --mount=from=data,target=/m ls -A /m > /listed; stat -c %u:%g /y >> /listed
FROM data
COPY --from=1 /y /s /listed /got/
"""
    context = write(tmp_path / "c", dockerfile)
    flags = ["--build-context", f"data={data}", "--build-context", "nowhere/at/all:1=docker-image://busybox"]
    engine.tare("build", *flags, "-o", str(tmp_path / "out"), str(context))
    got = {path.name: path.read_text() for path in (tmp_path / "out/got").iterdir()}
    assert got == {"y": "from data\n", "s": "stage\n", "listed": ".dockerignore\nx\n0:0\n"}
    assert (tmp_path / "out/x").read_text() == "from data\n"
    engine.tare("build", *flags, "--build-context", f"s={data}", "-o", str(tmp_path / "other"), str(context))
    assert (tmp_path / "other/got/s").read_text() == "from data\n"
    missing = engine.tare("build", *flags, "--build-context", f"s={tmp_path}/none", str(context), check=False)
    assert missing.returncode == 1 and "failed to get build context s" in missing.stderr


def test_an_oci_layout_as_context(engine: Daemon, tmp_path: Path) -> None:
    """As base, for COPY and for a bind; by tag, by digest, for another machine; hostile ones."""
    layout = tmp_path / "layout"
    made = "FROM busybox\nENV A=1\nRUN echo base > /base\n"
    engine.tare("build", "-q", "-o", f"type=oci,tar=false,dest={layout},name=base:7", "-", input=made)
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    (layout / "blobs/sha256" / ("0" * 64)).write_bytes(bytes(1000))  # no part of the image: not sent
    (layout / "unreadable").symlink_to("/etc")
    dockerfile = """FROM base AS first
RUN cp /base /copy && echo $A >> /copy
FROM busybox
COPY --from=base /base /other
COPY --from=first /copy /
RUN --mount=from=base,target=/m cat /m/base /copy /other > /all
"""
    before = engine.docker("images", "-aq").stdout.split()
    for number, address in enumerate((f"{layout}:7", f"{layout}@{digest}", str(layout))):
        engine.tare("build", "-q", "-t", f"laid:{number}", "--build-context", f"base=oci-layout://{address}", "-", input=dockerfile)
        assert engine.docker("run", "--rm", f"laid:{number}", "cat", "/all").stdout == "base\nbase\n1\nbase\n"
    assert len(engine.docker("images", "-aq").stdout.split()) - len(before) == 3  # names of the one image that was built

    def failed(address: str, *flags: str) -> str:
        done = engine.tare("build", *flags, "--build-context", f"base=oci-layout://{address}", "-", input="FROM base\n", check=False)
        assert done.returncode != 0
        return done.stderr

    assert "has no image 8 (it has 7)" in failed(f"{layout}:8")
    assert f"is for linux/{MACHINE}, not for linux/riscv64" in failed(str(layout), "--platform", "linux/riscv64")
    assert "is no OCI layout: cannot read index.json" in failed(str(tmp_path))
    blob = layout / "blobs" / digest.replace(":", "/")
    config = json.loads(blob.read_bytes())["config"]["digest"]
    blob.write_bytes(blob.read_bytes() + b" ")
    assert "does not match its digest" in failed(f"{layout}:7")
    blob.write_bytes(blob.read_bytes()[:-1])
    (layout / "blobs" / config.replace(":", "/")).unlink()
    assert f"does not contain a blobs/{config.replace(':', '/')}" in failed(f"{layout}:7")
    engine.docker("rmi", "laid:0", "laid:1", "laid:2")


def test_history(engine: Daemon, tmp_path: Path) -> None:
    engine.tare("builder", "history", "rm", "--all")
    context = write(tmp_path / "c", "FROM busybox\nARG SECRET\nRUN echo said-$((6*7))\n")
    engine.tare("build", "-q", "-t", "cached", "--no-cache", "--build-arg", "SECRET=hush", str(context))
    engine.tare("build", "-", input="FROM busybox\nRUN echo before; exit 5\n", check=False)
    classic(engine, str(context), "-t", "cached:classic", "--build-arg", "SECRET=hush")
    listed = engine.tare("builder", "history", "ls", "--format", "{{.Tags}} {{.Status}} {{.CachedSteps}}/{{.Steps}}").stdout.splitlines()
    assert listed == ["cached:classic Completed 2/3", " Error 0/2", "cached:latest Completed 0/3"]
    ids = engine.tare("builder", "history", "-q").stdout.split()
    assert "said-42" in engine.tare("builder", "history", "logs", ids[2]).stderr
    assert "before" in engine.tare("builder", "history", "logs", ids[1]).stderr
    assert "Step 1/3 : FROM busybox" in engine.tare("builder", "history", "logs").stdout
    (record,) = json.loads(engine.tare("builder", "history", "inspect", ids[1]).stdout)
    assert record["Error"].endswith("returned a non-zero code: 5") and record["CompletedAt"] > record["StartedAt"]
    for path in (engine.root / "data/builder/history").iterdir():
        assert b"hush" not in path.read_bytes()
    assert engine.tare("builder", "history", "rm", "none", check=False).returncode == 1
    engine.tare("builder", "history", "rm", *ids)
    assert engine.tare("builder", "history", "-q").stdout == ""
    assert not list((engine.root / "data/builder/history").iterdir())
    engine.docker("rmi", "cached", "cached:classic")
