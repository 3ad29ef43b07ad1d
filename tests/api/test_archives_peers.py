"""Image archives and layouts in both directions with docker, podman, skopeo and umoci; compressed ones; what comes back is the same."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from dockerd_world import DOCKERD, dockerd
from engine_world import DOCKER, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]
NAMES = ("arch.example/app:1", "arch.example/app:two", "arch.example/other:1")


def run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def need(program: str) -> str:
    return shutil.which(program) or pytest.skip(f"needs {program}: apt-get install {program}")


@pytest.fixture
def world(engine: Daemon) -> Iterator[Daemon]:
    """Two images under three names: two layers with odd files, and one with none."""
    script = "mkdir /odd; cd /odd; echo x >a; ln a b; ln -s a c; mknod d c 1 3; mkfifo p; chmod 4711 a; rm /etc/group; mkdir -m 1777 't t'"
    engine.docker("run", "--name", "made", "--network", "none", "busybox", "sh", "-c", script)
    engine.docker("commit", "-c", 'CMD ["ls","/odd"]', "-c", "ENV A=b", "made", NAMES[0])
    engine.docker("tag", NAMES[0], NAMES[1])
    engine.docker("commit", "-c", "LABEL only=config", "made", NAMES[2])
    engine.docker("rm", "made")
    yield engine
    engine.docker("rmi", "-f", *NAMES, check=False)


def ids(engine: Daemon) -> dict[str, str]:
    listing = engine.docker("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout.split("\n")
    return {name: image for name, _, image in (line.partition(" ") for line in listing) if name in NAMES}


def forget(engine: Daemon) -> None:
    engine.docker("rmi", "-f", *NAMES)
    assert not ids(engine)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lambda data: lzma.compress(data, preset=0),
    "bzip2": lambda data: bz2.compress(data, 1),
}


@pytest.mark.parametrize("how", COMPRESSORS)
def test_saved_and_loaded_again_it_is_the_same(world: Daemon, how: str) -> None:
    before = ids(world)
    archive = world.docker("save", *NAMES, text=False).stdout
    forget(world)
    told = world.docker("load", input=COMPRESSORS[how](archive), text=False).stdout.decode()
    assert sorted(told.splitlines()) == sorted(f"Loaded image: {name}" for name in NAMES)
    assert ids(world) == before
    assert world.docker("save", *NAMES, text=False).stdout == archive
    assert world.docker("run", "--rm", "--network", "none", NAMES[0]).stdout.split() == ["a", "b", "c", "d", "p", "t", "t"]


def test_by_id_it_has_no_name(world: Daemon, tmp_path: Path) -> None:
    image = ids(world)[NAMES[2]]
    world.tare("save", "-o", str(tmp_path / "a.tar"), image)
    forget(world)
    assert world.tare("load", "-i", str(tmp_path / "a.tar")).stdout == f"Loaded image ID: {image}\n"
    assert world.tare("load", "-q", "-i", str(tmp_path / "a.tar")).stdout == f"Loaded image ID: {image}\n"
    world.docker("rmi", image)


def test_a_taken_name_moves_and_that_is_said(world: Daemon) -> None:
    old = ids(world)[NAMES[0]]
    archive = world.docker("save", NAMES[0], text=False).stdout
    world.docker("tag", NAMES[2], NAMES[0])
    told = world.docker("load", input=archive, text=False).stdout.decode()
    assert f"The image {NAMES[0]} already exists, renaming the old one with ID {ids(world)[NAMES[2]]} to empty string" in told
    assert ids(world)[NAMES[0]] == old


def test_layout_is_one_that_umoci_and_skopeo_take(world: Daemon, tmp_path: Path) -> None:
    archive, layout = tmp_path / "saved.tar", tmp_path / "layout"
    world.docker("save", "-o", str(archive), NAMES[0])
    layout.mkdir()
    run("tar", "xf", archive, "-C", layout)
    for blob in (layout / "blobs/sha256").iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    config = json.loads(world.docker("image", "inspect", NAMES[0]).stdout)[0]
    skopeo = need("skopeo")
    for source in (f"docker-archive:{archive}:{NAMES[0]}", f"oci-archive:{archive}:1", f"oci:{layout}:1"):
        assert json.loads(run(skopeo, "inspect", source).stdout)["Env"] == config["Config"]["Env"], source
    run(need("umoci"), "unpack", "--image", f"{layout}:1", tmp_path / "bundle")
    odd = tmp_path / "bundle/rootfs/odd"
    assert os.stat(odd / "a").st_nlink == 2 and not (odd.parent / "etc/group").exists()
    assert os.readlink(odd / "c") == "a" and os.lstat(odd / "d").st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_skopeos_copy_loads(world: Daemon, tmp_path: Path, transport: str) -> None:
    before = ids(world)[NAMES[0]]
    world.docker("save", "-o", str(tmp_path / "saved.tar"), NAMES[0])
    source = f"docker-archive:{tmp_path}/saved.tar"
    if transport == "docker-archive":
        run(need("skopeo"), "copy", source, f"docker-archive:{tmp_path}/copy.tar:{NAMES[0]}")
    else:
        run(need("skopeo"), "copy", source, f"oci-archive:{tmp_path}/copy.tar:{NAMES[0]}")
    forget(world)
    assert world.docker("load", "-i", str(tmp_path / "copy.tar")).stdout == f"Loaded image: {NAMES[0]}\n"
    if transport == "docker-archive":
        assert ids(world)[NAMES[0]] == before
    assert world.docker("run", "--rm", "--network", "none", NAMES[0], "cat", "/odd/b").stdout == "x\n"


def test_podman_runs_ours_and_we_run_podmans(world: Daemon, tmp_path: Path) -> None:
    world.docker("save", "-o", str(tmp_path / "saved.tar"), *NAMES)
    with tempfile.TemporaryDirectory(prefix="pod-", ignore_cleanup_errors=True) as root:  # its paths must be short
        podman = [need("podman"), "--root", f"{root}/p", "--runroot", f"{root}/r", "--storage-driver", "vfs"]
        run(*podman, "load", "-i", tmp_path / "saved.tar")
        listed = run(*podman, "images", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
        assert set(NAMES) <= set(listed)
        image = json.loads(run(*podman, "image", "inspect", NAMES[0]).stdout)[0]
        assert "sha256:" + image["Id"] == ids(world)[NAMES[0]]
        run(*podman, "save", "-m", "-o", tmp_path / "docker.tar", NAMES[0], NAMES[2])
        run(*podman, "save", "--format", "oci-archive", "-o", tmp_path / "oci.tar", NAMES[0])
    forget(world)
    world.docker("load", "-i", str(tmp_path / "docker.tar"))
    assert {NAMES[0], NAMES[2]} <= set(ids(world))
    world.docker("rmi", "-f", *ids(world))
    world.docker("load", "-i", str(tmp_path / "oci.tar"))
    assert world.docker("run", "--rm", "--network", "none", NAMES[0], "cat", "/odd/b").stdout == "x\n"


def test_docker_runs_ours_and_we_run_dockers(world: Daemon, tmp_path: Path) -> None:
    if DOCKER is None or not DOCKERD.exists():
        pytest.skip("needs dockerd: apt-get install docker.io")
    before = ids(world)
    world.docker("save", "-o", str(tmp_path / "ours.tar"), *NAMES)
    forget(world)
    with dockerd() as socket:
        docker = [DOCKER, "-H", f"unix://{socket}"]
        run(*docker, "load", "-i", tmp_path / "ours.tar")
        assert run(*docker, "run", "--rm", "--network", "none", NAMES[0], "sh", "-c", "cat /odd/b; ls /etc").stdout.startswith("x\n")
        run(*docker, "create", "--name", "theirs", "--network", "none", NAMES[0])
        run(*docker, "commit", "-c", "LABEL by=dockerd", "theirs", "theirs:1")
        run(*docker, "save", "-o", tmp_path / "theirs.tar", *NAMES, "theirs:1")
    world.docker("load", "-i", str(tmp_path / "theirs.tar"))
    assert ids(world) == before, "an image's id survives the way through dockerd"
    assert world.docker("image", "inspect", "-f", "{{.Config.Labels.by}}", "theirs:1").stdout == "dockerd\n"
    assert world.docker("run", "--rm", "--network", "none", "theirs:1").stdout.split()[0] == "a"
    world.docker("rmi", "theirs:1")


def test_what_is_no_archive_is_refused(engine: Daemon) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("nothing"))
    for data in (buffer.getvalue(), b"no tar at all" * 100, b""):
        result = engine.docker("load", input=data, text=False, check=False)
        assert result.returncode == 1 and result.stderr


def test_import_export_and_changes(engine: Daemon, tmp_path: Path) -> None:
    engine.docker("run", "--name", "flat", "--network", "none", "busybox", "sh", "-c", "echo kept >/kept; rm /etc/group")
    engine.tare("export", "-o", str(tmp_path / "flat.tar"), "flat")
    compressed = tmp_path / "flat.tar.zst"
    compressed.write_bytes(COMPRESSORS["zstd"]((tmp_path / "flat.tar").read_bytes()))
    for client, source in ((engine.docker, tmp_path / "flat.tar"), (engine.tare, compressed)):
        changes = ["-c", 'ENTRYPOINT ["cat"]', "-c", 'CMD ["/kept"]', "-c", "LABEL a=b", "-m", "from a file"]
        client("import", *changes, str(source), "flat.example/x:1")
        assert engine.docker("run", "--rm", "--network", "none", "flat.example/x:1").stdout == "kept\n"
        assert engine.docker("history", "--format", "{{.Comment}}", "flat.example/x:1").stdout == "from a file\n"
        engine.docker("rmi", "flat.example/x:1")


def test_skopeo_speaks_to_us_as_to_a_docker_daemon(world: Daemon, tmp_path: Path) -> None:
    """Its ``docker-daemon`` transport, which asks as API version 1.22, in both directions."""
    skopeo, before, folders = need("skopeo"), ids(world), dict(zip(NAMES[:2], ("one", "two"), strict=True))
    for name, folder in folders.items():
        run(skopeo, "copy", "-q", "--src-daemon-host", world.host, f"docker-daemon:{name}", f"dir:{tmp_path / folder}")
    forget(world)
    for name, folder in folders.items():
        run(skopeo, "copy", "-q", "--dest-daemon-host", world.host, f"dir:{tmp_path / folder}", f"docker-daemon:{name}")
    assert ids(world) == {name: before[name] for name in NAMES[:2]}
    assert world.docker("run", "--rm", "--network", "none", NAMES[0]).stdout.split()[0] == "a"
