"""What goes into a build and what becomes of it: flags, contexts, outputs, attestations, other platforms, other clients."""

from __future__ import annotations

import base64
import gc
import gzip
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import new_daemon
from debian_registry import docker_registry
from engine_world import BIN, Daemon
from tare.oci import media_types
from web_world import Site, git, publish, repository, serving

pytestmark = [pytest.mark.root, pytest.mark.peer]

STATUS = "Package: thing\\nStatus: install ok installed\\nVersion: 1.2\\nArchitecture: all\\nMaintainer: m\\n\\n"
DOCKERFILE = f"""FROM busybox
RUN echo one > /one && mkdir -p /var/lib/dpkg && printf '{STATUS}' > /var/lib/dpkg/status
COPY f /f
RUN rm /one && echo two > /two
ARG V=1
LABEL v=$V
CMD ["cat", "/f"]
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def context(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    path.mkdir()
    (path / "Dockerfile").write_text(DOCKERFILE)
    (path / "f").write_text("content\n")
    return path


def classic(engine: Daemon, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return engine.docker("build", *arguments, check=check, env={**os.environ, "DOCKER_BUILDKIT": "0"})


def raw(registry: str, path: str) -> Any:
    kinds = ", ".join((*media_types.MANIFESTS, *media_types.INDEXES))
    with urllib.request.urlopen(urllib.request.Request(f"http://{registry}/v2/{path}", headers={"Accept": kinds})) as answer:
        return json.loads(answer.read())


LIMITS = """FROM busybox
ARG A=none
RUN echo $A; grep -c 1.2.3.4 /etc/hosts; ulimit -n; ulimit -Hn; df -k /dev/shm | tail -1 | awk '{print $2}'; ls /sys/class/net
RUN cat /proc/self/cgroup; cd /sys/fs/cgroup; exec 2>/dev/null; cat memory/memory.limit_in_bytes memory.max; \
    cat cpu/cpu.shares cpu.weight cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.max cpuset/cpuset.cpus cpuset.cpus; true
FROM busybox
RUN false
"""


def test_flags(engine: Daemon, tmp_path: Path) -> None:
    """Every flag of ``docker build`` does what it says, by the docker command and by ours."""
    (tmp_path / "Other").write_text(LIMITS.replace("FROM busybox", "FROM busybox AS one", 1))
    file, group = str(tmp_path / "Other"), f"{engine.group}/build"
    ours = engine.tare(
        "build", "--ulimit", "nofile=99:100", "--shm-size", "3m", "--memory", "100m", "--memory-swap", "200m", "--cpu-shares", "300",
        "--cpu-period", "50000", "--cpu-quota", "20000", "--cpuset-cpus", "0", "--cpuset-mems", "0", "--cgroup-parent", group,
        "--add-host", "x:1.2.3.4", "--network", "none", "--no-cache", "--rm", "--force-rm", "--compress", "--pull=false",
        "--isolation", "default", "--disable-content-trust", "--label", "a=b", "--build-arg", "A=given", "--target", "one",
        "--file", file, "--tag", "flags:1", str(tmp_path), env={**os.environ, "BUILDKIT_PROGRESS": "plain"},
    )  # fmt: skip
    theirs = engine.docker(*ours.args[3:], env={**os.environ, "DOCKER_BUILDKIT": "0"})
    for shown in (ours.stderr, theirs.stdout):
        words = [line.split()[-1] for line in shown.splitlines() if line.strip()]
        at = words.index("given")
        assert words[at : at + 6] == ["given", "1", "99", "100", "3072", "lo"]
        assert f"{engine.group}/build/" in shown
        assert "104857600" in words and "20000" in shown and "50000" in shown and "0" in words[at + 6 :]
        assert "300" in words or "11" in words or "12" in words  # version 1 of control groups, or 2
    assert engine.docker("inspect", "-f", "{{.Config.Labels.a}}", "flags:1").stdout == "b\n"
    assert engine.docker("ps", "-aq").stdout == ""
    engine.docker("rmi", "flags:1")
    for word in ("image", "builder"):
        assert engine.tare(word, "build", "-q", "--rm=false", "-", input="FROM busybox\nRUN true\n").stdout.startswith("sha256:")


def test_refused_flags(engine: Daemon, context: Path) -> None:
    for flags, message in {
        ("--security-opt", "seccomp=unconfined"): "does not support setting security options on build",
        ("--isolation", "hyperv"): 'Unsupported isolation: "hyperv"',
        ("--platform", "bad/"): "invalid component",
        ("--ulimit", "nofile"): "invalid ulimit argument: nofile",
        ("--tag", "UPPER"): "must be lowercase",
        ("--target", "none"): "none",
        ("--cache-from", "busybox:nowhere", "--network", "no-such-net", "--no-cache"): "no-such-net",
    }.items():
        for done in (engine.tare("build", *flags, str(context), check=False), classic(engine, *flags, str(context), check=False)):
            assert done.returncode != 0 and message in done.stdout + done.stderr, (flags, done.stdout, done.stderr)
    done = engine.tare("build", "--security-opt", "no-new-privileges", str(context), check=False)
    assert done.returncode == 1 and "does not support setting security options on build" in done.stderr
    done = engine.tare("build", "--disable-content-trust=false", str(context), check=False)
    assert done.returncode == 1 and "name base images by digest" in done.stderr
    for flags, message in {
        ("-o", "type=what"): "unsupported output type",
        ("-o", "type=oci,dest=x,colour=red"): "unknown attribute 'colour'",
        ("-o", "type=registry"): "tag is needed",
        ("--attest", "type=signature"): "not offered",
        ("--provenance", "mode=most"): "mode 'most' is not offered",
        ("--annotation", "novalue"): "invalid annotation",
        ("-t", "x:1", "-o", "type=image,compression=lzma,push=true"): "compression 'lzma' is not offered",
    }.items():
        done = engine.tare("build", *flags, str(context), check=False)
        assert done.returncode == 1 and message in done.stderr, (flags, done.stderr)


def test_pull_and_platform(engine: Daemon, registry: str, tmp_path: Path) -> None:
    """--pull asks the registry for a base that is here; --platform takes the base for another machine, and names itself so."""
    name = f"{registry}/base:1"
    engine.tare("build", "-q", "-t", name, "--push", "-", input="FROM scratch\nLABEL n=1\nENV N=1\n")
    engine.docker("pull", "-q", name)
    other = engine.tare("build", "-q", "-o", f"type=registry,name={name}", "-", input="FROM scratch\nLABEL n=2\nENV N=2\n")
    assert other.stdout.startswith("sha256:")
    for flags, wanted in (((), "1"), (("--pull",), "2")):
        engine.tare("build", "-q", "-t", "pulled", *flags, "-", input=f"FROM {name}\nLABEL x=y\n")
        assert engine.docker("inspect", "-f", "{{.Config.Labels.n}}", "pulled").stdout == f"{wanted}\n"
    classic(engine, "--pull", "-t", "pulled", "-q", str(_written(tmp_path / "p", f"FROM {name}\nLABEL z=z\n")))
    assert engine.docker("inspect", "-f", "{{.Config.Labels.n}}", "pulled").stdout == "2\n"

    both = "FROM scratch\nARG TARGETARCH\nCOPY --chmod=640 Dockerfile /for-$TARGETARCH\nLABEL a=$TARGETARCH\n"
    path = str(_written(tmp_path / "m", both))
    engine.tare("build", "-q", "--platform", "linux/amd64,linux/arm64", "-t", f"{registry}/multi:1", "--push", path)
    found = raw(registry, "multi/manifests/1")
    assert [entry["platform"]["architecture"] for entry in found["manifests"]] == ["amd64", "arm64"]
    for architecture in ("amd64", "arm64"):
        shown = skopeo("inspect", "--config", "--override-arch", architecture, f"docker://{registry}/multi:1")
        assert shown["architecture"] == architecture and shown["config"]["Labels"] == {"a": architecture}
    _one_family(engine, registry, path, tmp_path)
    classic(engine, "-q", "--platform", "linux/arm64", "-t", "arm", path)
    assert engine.docker("inspect", "-f", "{{.Architecture}} {{.Config.Labels.a}}", "arm").stdout == "arm64 arm64\n"
    failed = engine.tare("build", "--platform", "linux/s390x", "-", input="FROM scratch\nCOPY --from=busybox / /\nRUN true\n", check=False)
    assert failed.returncode == 1
    engine.tare("build", "-q", "--platform", "linux/arm64", "-t", f"{registry}/arm:1", "--push", path)
    for number in range(2):  # from the registry, where there is no other; then from here
        told = engine.tare("build", "--progress=plain", "-", input=f"FROM {registry}/arm:1\nLABEL n={number}\n").stderr
        rule = 'was pulled with platform "linux/arm64", expected "linux/amd64" for current build (line 1)'
        assert f"InvalidBaseImagePlatform: Base image {registry}/arm:1 {rule}" in told
    text = f"# check=error=true\nFROM {registry}/arm:1\nLABEL n=2\n"
    refused = engine.tare("build", "-", input=text, check=False)
    assert "lint violation found for rules: InvalidBaseImagePlatform" in refused.stderr
    engine.tare("build", "-q", "-", input=text.replace("error=true", "skip=InvalidBaseImagePlatform;error=true"))
    engine.docker("rmi", "-f", "pulled", "arm", name, f"{registry}/arm:1")


def _one_family(engine: Daemon, registry: str, path: str, scratch: Path) -> None:
    """Several platforms in the store: one name, an index that ties them together, which a push and an archive keep."""
    name, told, id_file = f"{registry}/family:1", scratch / "told", scratch / "id"
    flags = ["--platform", "linux/amd64,linux/arm64", "--provenance=true", "--annotation", "index:c=d", "--annotation", "a=b"]
    dangling = ["images", "-f", "dangling=true", "-q"]
    before = engine.docker(*dangling).stdout
    engine.tare("build", "-q", *flags, "-t", name, "--metadata-file", str(told), "--iidfile", str(id_file), path)
    assert f"{registry}/family" in (listed := engine.docker("images", "-a", "--format", "{{.Repository}}:{{.Tag}}").stdout)
    assert "arm64" not in listed and engine.docker(*dangling).stdout == before
    tree = engine.tare("image", "ls", "--tree", name).stdout
    assert tree.count("linux/amd64") == tree.count("linux/arm64") == 1
    assert id_file.read_text() == engine.docker("inspect", "-f", "{{.Id}}", name).stdout.strip()
    for architecture in ("amd64", "arm64"):
        found = engine.docker("image", "inspect", "--platform", f"linux/{architecture}", "-f", "{{.Config.Labels.a}}", name).stdout
        assert found == f"{architecture}\n"
    engine.docker("push", "-q", name)
    index = raw(registry, "family/manifests/1")
    platforms = [entry["platform"]["architecture"] for entry in index["manifests"]]
    assert platforms == ["amd64", "arm64", "unknown", "unknown"] and index["annotations"] == {"c": "d"}
    digest = json.loads(told.read_text())["containerimage.digest"]
    assert f"family@{digest}" in engine.docker("inspect", "-f", "{{.RepoDigests}}", name).stdout
    engine.docker("save", "-o", str(scratch / "family.tar"), name)
    engine.docker("rmi", name)
    assert "family" not in engine.docker("images", "-a").stdout and engine.docker(*dangling).stdout == before
    engine.docker("load", "-q", "-i", str(scratch / "family.tar"))
    assert engine.tare("image", "ls", "--tree", name).stdout.count("linux/arm64") == 1
    engine.docker("rmi", name)


_ARM = (
    # openat("/out", O_CREAT | O_WRONLY, 0644); write to it and to standard output; exit(0)
    "600c8092 21020010 220880d2 833480d2 080780d2 010000d4 c1010010 620080d2 080880d2 010000d4 200080d2 21010010 620080d2 080880d2 "
    "010000d4 000080d2 a80b80d2 010000d4 2f6f757400000000 61726d00"
)


def arm_program() -> bytes:
    """A static program for arm64."""
    code = bytes.fromhex(_ARM.replace(" ", ""))
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(code)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, size, size, 0x1000) + code


def test_programs_for_another_machine_run_by_an_emulator(engine: Daemon, tmp_path: Path) -> None:
    """Where binfmt_misc has qemu; elsewhere the build says what is missing. The registration is ours alone, and gone afterwards."""
    emulator = shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("needs qemu-user-static: apt-get install qemu-user-static")
    context = _written(tmp_path / "c", 'FROM scratch\nCOPY prog /prog\nRUN ["/prog"]\n')
    (context / "prog").write_bytes(arm_program())
    (context / "prog").chmod(0o755)
    command = [str(BIN / "tare"), "-H", engine.host, "build", "--platform", "linux/arm64", "-o", str(tmp_path / "out"), str(context)]
    before = subprocess.run(command, capture_output=True, text=True, check=False)
    if before.returncode:
        assert "register an emulator with binfmt_misc" in before.stderr
        magic = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
        mask = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
        place, name = "/proc/sys/fs/binfmt_misc", f"tare-test-{os.getpid()}"
        register = f"printf '%s' ':{name}:M::{magic}:{mask}:{emulator}:F' > {place}/register"
        script = f'mount -t binfmt_misc none {place} && {register} && "$@"; code=$?; echo -1 > {place}/{name}; exit $code'
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/out").read_bytes() == b"arm"


def _written(path: Path, dockerfile: str) -> Path:
    path.mkdir()
    (path / "Dockerfile").write_text(dockerfile)
    return path


def skopeo(*arguments: str) -> Any:
    flags = ["--tls-verify=false"] if any(word.startswith("docker://") for word in arguments) else []
    done = subprocess.run(["skopeo", arguments[0], *flags, *arguments[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout


def test_archives_and_trees(engine: Daemon, context: Path, tmp_path: Path) -> None:
    """--output local, tar, oci and docker, some at once, and an image beside them; skopeo and docker read what was written."""
    where = str(context)
    image = engine.tare(
        "build", "-q", "-t", "out:1", "-o", f"{tmp_path}/tree", "-o", f"type=tar,dest={tmp_path}/t.tar", where
    ).stdout.strip()
    assert (tmp_path / "tree/two").read_text() == "two\n" and not (tmp_path / "tree/one").exists()
    assert engine.docker("images", "-q", "out").stdout == ""  # nobody asked for an image
    with tarfile.open(tmp_path / "t.tar") as tar:
        assert tar.extractfile("f").read() == b"content\n" and tar.getmember("bin/sh").issym()  # type: ignore[union-attr]
    streamed = subprocess.run([BIN / "tare", "-H", engine.host, "build", "-o", "-", where], capture_output=True, check=True).stdout
    assert streamed == (tmp_path / "t.tar").read_bytes()

    flags = ["-o", f"type=oci,dest={tmp_path}/o.tar", "-o", f"type=docker,dest={tmp_path}/d.tar", "-o", "type=image"]
    engine.tare("build", "-q", "-t", "out:1", *flags, "-o", f"type=oci,tar=false,dest={tmp_path}/layout", where)
    for place in (f"oci-archive:{tmp_path}/o.tar", f"docker-archive:{tmp_path}/d.tar", f"oci:{tmp_path}/layout"):
        shown = skopeo("inspect", "--config", place)
        assert shown["config"]["Cmd"] == ["cat", "/f"] and len(shown["rootfs"]["diff_ids"]) == 4
    assert engine.docker("inspect", "-f", "{{.Id}}", "out:1").stdout.strip() == image
    engine.docker("rmi", "out:1")
    assert "out:1" in engine.docker("load", "-i", str(tmp_path / "d.tar")).stdout
    assert engine.docker("run", "--rm", "out:1").stdout == "content\n"
    assert engine.docker("inspect", "-f", "{{.Id}}", "out:1").stdout.strip() == image
    nothing = engine.tare("build", "-q", "-t", "out:2", "-o", "type=cacheonly", where)
    assert nothing.stdout.strip() == image and "out:2" not in engine.docker("images").stdout
    squashed = engine.tare("build", "-q", "--squash", "-t", "out:3", where).stdout.strip()
    layers = json.loads(engine.docker("inspect", "-f", "{{json .RootFS.Layers}}", squashed).stdout)
    assert len(layers) == 2 and engine.docker("run", "--rm", "out:3", "sh", "-c", "cat /two; ls /one 2>&1; true").stdout.startswith(
        "two\nls:"
    )
    history = engine.docker("history", "--format", "{{.Comment}}", "out:3").stdout
    assert history.startswith("merge sha256:")
    engine.docker("rmi", "out:1", "out:3")


def test_pushed_with_attestations(engine: Daemon, registry: str, context: Path, tmp_path: Path) -> None:
    """One build to two tags of a registry, with annotations, provenance and a bill of materials: readable for skopeo and podman."""
    names = [f"{registry}/app:1", f"{registry}/app:two"]
    flags = ["-t", names[0], "-t", names[1], "--push", "--annotation", "a=b", "--annotation", "index:c=d", "--label", "l=m"]
    flags += [
        "--sbom=true",
        "--provenance=mode=max",
        "--build-arg",
        "V=9",
        "--metadata-file",
        str(tmp_path / "m"),
        "--iidfile",
        str(tmp_path / "i"),
    ]
    engine.tare("build", "-q", *flags, str(context))
    metadata = json.loads((tmp_path / "m").read_text())
    index = raw(registry, "app/manifests/two")
    assert index["annotations"] == {"c": "d"} and metadata["image.name"] == ",".join(names)
    assert skopeo("inspect", "--format", "{{.Digest}}", f"docker://{names[0]}").strip() == metadata["containerimage.digest"]
    image, attached = index["manifests"]
    manifest = raw(registry, f"app/manifests/{image['digest']}")
    assert manifest["annotations"] == {"a": "b"} and manifest["config"]["digest"] == (tmp_path / "i").read_text()
    assert attached["annotations"] == {"vnd.docker.reference.digest": image["digest"], "vnd.docker.reference.type": "attestation-manifest"}
    statements = {}
    for layer in raw(registry, f"app/manifests/{attached['digest']}")["layers"]:
        statement = raw(registry, f"app/blobs/{layer['digest']}")
        assert statement["subject"][0]["digest"]["sha256"] == image["digest"].partition(":")[2]
        assert layer["annotations"]["in-toto.io/predicate-type"] == statement["predicateType"]
        statements[statement["predicateType"]] = statement["predicate"]
    packages = {(package["name"], package.get("versionInfo")) for package in statements["https://spdx.dev/Document"]["packages"]}
    assert ("thing", "1.2") in packages
    provenance = statements["https://slsa.dev/provenance/v0.2"]
    assert provenance["invocation"]["parameters"]["args"] == {"build-arg:V": "9", "label:l": "m"}
    source = provenance["metadata"]["https://mobyproject.org/buildkit@v1#metadata"]["source"]["infos"][0]["data"]
    assert base64.b64decode(source).decode() == DOCKERFILE
    assert provenance["materials"][0]["uri"].startswith("pkg:docker/busybox@latest")
    if shutil.which("podman"):
        with tempfile.TemporaryDirectory(prefix="tare-pm-") as short:
            podman = ["podman", "--root", f"{short}/r", "--runroot", f"{short}/rr", "--storage-driver", "vfs"]
            subprocess.run([*podman, "pull", "-q", "--tls-verify=false", names[1]], check=True, capture_output=True)
            shown = subprocess.run([*podman, "inspect", "-f", "{{.Labels.l}}{{.Labels.v}}", names[1]], capture_output=True, text=True)
            assert shown.stdout == "m9\n", shown.stderr
            subprocess.run([*podman, "rmi", "-af"], check=True, capture_output=True)

    # Without the values of arguments, in the newer format; in other forms.
    engine.tare("build", "-q", "--provenance", "version=v1,mode=min", "-o", f"{tmp_path}/tree", "--build-arg", "V=9", str(context))
    predicate = (tmp_path / "tree/provenance.json").read_text()
    assert json.loads(predicate)["buildDefinition"]["externalParameters"] and '"9"' not in predicate
    engine.tare("build", "-q", "-o", f"type=registry,name={registry}/z:1,compression=zstd", str(context))
    assert all(layer["mediaType"].endswith("+zstd") for layer in raw(registry, "z/manifests/1")["layers"])
    done = engine.tare(
        "build",
        "-q",
        "--metadata-file",
        str(tmp_path / "m2"),
        "-o",
        f"type=image,name={registry}/d,push=true,push-by-digest=true",
        str(context),
    )
    digest = json.loads((tmp_path / "m2").read_text())["containerimage.digest"]
    assert done.stdout.startswith("sha256:") and raw(registry, f"d/manifests/{digest}")["schemaVersion"] == 2
    engine.docker("rmi", "-f", (tmp_path / "i").read_text())


def test_the_same_input_gives_the_same_image(engine: Daemon, registry: str, context: Path, tmp_path: Path) -> None:
    """Two daemons without a common cache, at different times, files with different times: one digest, down to the compressed layers."""
    far = new_daemon()
    found = []
    try:
        far.start()
        base = subprocess.run(["docker", "-H", engine.host, "save", "busybox:latest"], capture_output=True, check=True).stdout
        far.docker("load", input=base, text=False)
        for number, daemon in enumerate((engine, far)):
            os.utime(context / "f", (1_700_000_000 + number, 1_700_000_000 + number))
            flags = ["--no-cache", "--sbom=true", "--metadata-file", str(tmp_path / "m"), "-t", f"{registry}/same:{number}", "--push"]
            environment = {**os.environ, "SOURCE_DATE_EPOCH": "1600000000"}
            daemon.tare("build", "-q", *flags, str(context), env=environment)
            found.append(json.loads((tmp_path / "m").read_text())["containerimage.digest"])
            time.sleep(1.1 if number == 0 else 0)
        assert found[0] == found[1]
        shown = skopeo("inspect", f"docker://{registry}/same:0")
        assert shown["Created"] == "2020-09-13T12:26:40Z"
        classic(far, "-q", "-t", "epoch", "--build-arg", "SOURCE_DATE_EPOCH=1600000000", str(context))
        times = far.docker("run", "--rm", "epoch", "stat", "-c", "%Y", "/two", "/f", "/var/lib/dpkg").stdout.split()
        assert times == ["1600000000"] * 3
        assert shown["Labels"] == {"v": "1"}
    finally:
        if far.process is not None and far.process.poll() is None:
            far.docker("rmi", "-f", "epoch", check=False)
        far.stop()
    engine.docker("rmi", "-f", f"{registry}/same:0")


def test_contexts(engine: Daemon, tmp_path: Path) -> None:
    """A tar in each compression, a Dockerfile from elsewhere, a repository's branch and folder, a tar and a Dockerfile by HTTP."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, text in (("Dockerfile", "FROM busybox\nCOPY f /f\nRUN cat /f\n"), ("f", "from a tar\n")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    packed = [plain.getvalue(), gzip.compress(plain.getvalue())]
    packed += [
        subprocess.run([program, "-c"], input=plain.getvalue(), capture_output=True, check=True).stdout for program in ("bzip2", "xz")
    ]
    ids = {engine.tare("build", "-q", "-", input=data, text=False).stdout for data in packed}
    ids |= {engine.docker("build", "-q", "-", input=data, text=False, env={**os.environ, "DOCKER_BUILDKIT": "0"}).stdout for data in packed}
    assert len(ids) == 1

    context = _written(tmp_path / "c", "FROM busybox\nRUN false\n")
    (context / "f").write_text("from a directory\n")
    other = tmp_path / "elsewhere"
    other.write_text("FROM busybox\nCOPY f /f\nCMD cat /f\n")
    for flags in (("-f", str(other)), ("-f", "-")):
        given = {"input": other.read_text()} if flags[1] == "-" else {}
        engine.tare("build", "-q", "-t", "ctx", *flags, str(context), **given)
        assert engine.docker("run", "--rm", "ctx").stdout == "from a directory\n"
        engine.docker("rmi", "ctx")

    site_directory = tmp_path / "site"
    site_directory.mkdir()
    with serving(site_directory) as site:
        _remote_contexts(engine, site, tmp_path, packed[1])


def _remote_contexts(engine: Daemon, site: Site, tmp_path: Path, packed: bytes) -> None:
    work = repository(tmp_path / "work", {"Dockerfile": "FROM busybox\nCOPY w /w\nCMD cat /w\n", "w": "main\n"})
    git(work, "checkout", "-q", "-b", "other")
    (work / "sub").mkdir()
    (work / "sub/Dockerfile").write_text("FROM busybox\nCOPY w /w\nCMD cat /w\n")
    (work / "sub/w").write_text("folder\n")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "two")
    url = publish(site, work, "work.git").replace("work.git", "smart/work.git")
    site.files["ctx.tgz"] = packed, ""
    site.files["Dockerfile"] = b"FROM busybox\nCMD echo alone\n", ""
    default = git(work, "rev-parse", "--abbrev-ref", "HEAD")
    for address, wanted in {
        f"{url}#main": "main\n",
        f"{url}#{default}:sub": "folder\n",
        site.url("Dockerfile"): "alone\n",
    }.items():
        for builder in (engine.tare, lambda *words: engine.docker(*words, env={**os.environ, "DOCKER_BUILDKIT": "0"})):
            builder("build", "-q", "-t", "ctx", address)
            assert engine.docker("run", "--rm", "ctx").stdout == wanted
    engine.tare("build", "-q", "-t", "ctx", site.url("ctx.tgz"))
    assert engine.docker("run", "--rm", "ctx", "cat", "/f").stdout == "from a tar\n"
    named = "FROM busybox\nCOPY --from=web f /f\nCOPY --from=repo w /w\n"
    engine.tare(
        "build", "-q", "-t", "ctx", "--build-context", f"web={site.url('ctx.tgz')}", "--build-context", f"repo={url}#main", "-", input=named
    )
    assert engine.docker("run", "--rm", "ctx", "cat", "/f", "/w").stdout == "from a tar\nmain\n"
    engine.docker("rmi", "ctx")
    for address, message in {site.url("none.tgz"): "404", f"{url}#nobranch": "git fetch", f"{url}#main:nodir": "nodir"}.items():
        done = engine.tare("build", address, check=False)
        assert done.returncode == 1 and message in done.stderr


def test_a_big_context_is_sent_once(engine: Daemon, tmp_path: Path) -> None:
    """Unchanged files are neither read nor sent again; what changes, appears and goes is noticed; both ways of sending give one layer."""
    context = _written(tmp_path / "c", "FROM busybox\nCOPY . /all/\n")
    for number in range(600):
        (context / f"f{number}").write_text(f"{number}\n" * 100)
    for each in [*context.iterdir(), context]:
        os.utime(each, (1_600_000_000, 1_600_000_000))
    time.sleep(1.1)

    def built(*flags: str) -> str:
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
        return engine.tare("build", "-q", "-t", "big", *flags, str(context), env=environment).stdout.strip()

    def sizes() -> list[str]:
        return engine.tare("builder", "df", "--filter", "type=source.local", "--format", "{{.Size}} {{.UsageCount}}").stdout.splitlines()

    first = built()
    (line,) = [line for line in sizes() if line.endswith(" 1")]
    size = line.split()[0]
    assert built() == first and f"{size} 2" in sizes()
    assert built("--compress", "--no-cache-filter", "none") == first
    layers = engine.docker("inspect", "-f", "{{json .RootFS.Layers}}", "big").stdout
    built("--no-cache", "--compress")
    assert engine.docker("inspect", "-f", "{{json .RootFS.Layers}}", "big").stdout == layers
    (context / "f7").write_text("seven\n")
    (context / "new").write_text("new\n")
    (context / "f8").unlink()
    assert built() != first and len(sizes()) == 1
    shown = engine.docker("run", "--rm", "big", "sh", "-c", "cd /all; cat f7 new f9 | head -3; ls | wc -l; ls f8 2>&1;:").stdout.split("\n")
    assert shown[:4] == ["seven", "new", "9", "601"]
    engine.tare("builder", "prune", "-af", "--filter", "type=source.local")
    assert sizes() == [] and built()
    engine.docker("rmi", "-f", "big")


def _runs(text: str) -> None:
    """Wait for a process with this command line."""
    for _ in range(600):
        if text in subprocess.run(["ps", "axo", "args"], capture_output=True, text=True).stdout:
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody runs {text!r}")


def test_a_daemon_that_is_killed_in_a_build(own_daemon: Daemon, tmp_path: Path) -> None:
    """No mount and no process of it is left, what was finished is in the cache, and the history tells; so after an interrupt."""
    sleep = f"sleep 10{os.getpid()}"
    context = _written(tmp_path / "c", f"FROM busybox\nRUN echo done > /first\nRUN --mount=type=bind,target=/c {sleep}\n")
    command = [BIN / "tare", "-H", own_daemon.host, "build", "--progress", "plain", str(context)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    _runs(sleep)
    own_daemon.kill()
    output = process.stdout.read()
    assert process.wait(20) == 1 and "the daemon closed the connection" in output
    process.stdout.close()
    own_daemon.start()
    assert own_daemon.tare("builder", "history", "--format", "{{.Status}}").stdout == "Lost\n"
    assert not list((own_daemon.root / "data/builder/tmp").iterdir())
    assert not list((own_daemon.root / "run/builds").glob("*"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    _runs(sleep)
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    assert process.wait(20) != 0 and "CACHED" in output
    process.stdout.close()
    for _ in range(100):
        statuses = own_daemon.tare("builder", "history", "--format", "{{.Status}}").stdout.split()
        if statuses[0] != "Running":
            break
        time.sleep(0.05)
    assert statuses == ["Canceled", "Lost"]
    assert not list((own_daemon.root / "run/builds").glob("*"))


def _docker_py(engine: Daemon, context: Path) -> None:
    docker = pytest.importorskip("docker")
    client = docker.DockerClient(base_url=engine.host, version="auto")
    try:
        image, log = client.images.build(path=str(context), tag="py:1", buildargs={"V": "7"}, labels={"x": "y"}, rm=True, nocache=True)
        lines = list(log)
        assert lines[0]["stream"].startswith("Step 1/") and any("aux" in line and line["aux"]["ID"] == image.id for line in lines)
        assert image.labels == {"v": "7", "x": "y"} and client.containers.run("py:1", remove=True) == b"content\n"
        image, _ = client.images.build(
            fileobj=io.BytesIO(b"FROM busybox\nRUN echo x\n"), cache_from=["py:1"], network_mode="none", shmsize=1 << 20
        )
        with pytest.raises(docker.errors.BuildError, match="returned a non-zero code: 4") as caught:
            client.images.build(fileobj=io.BytesIO(b"FROM busybox\nRUN echo why; exit 4\n"))
        assert any(line.get("stream") == "why\n" for line in caught.value.build_log)
        with pytest.raises(docker.errors.APIError, match="unknown instruction"):
            client.images.build(fileobj=io.BytesIO(b"FROM busybox\nNO\n"))
        assert client.api.prune_builds()["SpaceReclaimed"] >= 0
        client.images.remove(image.id, force=True)
    finally:
        client.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker-py leaves sockets of streams to the collector
def test_other_clients(engine: Daemon, context: Path, tmp_path: Path) -> None:
    """docker-py and docker-compose 1.29 build as with dockerd."""
    _docker_py(engine, context)
    gc.collect()
    program = shutil.which("docker-compose")
    if program is not None:
        project = tmp_path / "docker-compose.yml"
        service = {"image": "composed:1", "build": {"context": "context", "args": {"V": "5"}, "labels": ["k=v"], "cache_from": ["py:1"]}}
        service["build"] |= {"network": "host", "shm_size": "8m"}  # type: ignore[operator]
        project.write_text(json.dumps({"version": "3.5", "services": {"app": service}}))
        environment = {**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "0", "COMPOSE_DOCKER_CLI_BUILD": "0"}
        done = subprocess.run([program, "-f", project, "build"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Successfully tagged composed:1" in done.stdout, done.stdout + done.stderr
        assert engine.docker("inspect", "-f", "{{.Config.Labels.v}}{{.Config.Labels.k}}", "composed:1").stdout == "5v\n"
        engine.docker("rmi", "composed:1")
    engine.docker("rmi", "py:1")
