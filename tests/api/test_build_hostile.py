"""Hostile Dockerfiles, contexts and stages: the rows "Build" of the security notes. Whatever they try, the machine stays as it was."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine_world import Daemon

pytestmark = pytest.mark.root


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A directory of the machine with something to steal and something to destroy; it must not change."""
    directory = tmp_path / "host"
    directory.mkdir()
    (directory / "secret").write_text("of the host")
    (directory / "stub").touch()
    (directory / "empty").mkdir()
    before = sorted(os.listdir(directory))
    yield directory
    assert sorted(os.listdir(directory)) == before
    assert (directory / "secret").read_text() == "of the host"


def build(engine: Daemon, context: Path, dockerfile: str, *flags: str, check: bool = True) -> tuple[int, str, str]:
    context.mkdir(exist_ok=True)
    done = engine.tare("build", "-q", "-f", "-", *flags, str(context), input=dockerfile, check=check)
    return done.returncode, done.stdout.strip(), done.stderr


def show(engine: Daemon, image: str, command: str) -> str:
    return engine.docker("run", "--rm", image, "sh", "-c", command).stdout


def test_mounts_do_not_follow_links_out_of_a_stage(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """CVE-2024-1753, CVE-2024-23651: the source of a bind, and of a cache's beginning, is resolved inside its own tree."""
    evil = f"FROM busybox AS evil\nRUN ln -s / /root-link && ln -s {host} /host-link && ln -s ../../../../../..{host} /climb\n"
    for source in ("/host-link", "/root-link" + str(host), "/climb", "/../../../.." + str(host)):
        for kind, words in (("bind", "no such file or directory"), ("cache,id=x", "cache mount source")):
            mount = f"--mount=type={kind},from=evil,source={source},target=/m"
            code, _, told = build(engine, tmp_path / "c", f"{evil}FROM busybox\nRUN {mount} cat /m/secret\n", check=False)
            assert code == 1 and "of the host" not in told, source
            assert words in told, told
    # A link inside the tree is followed inside it.
    dockerfile = f"{evil}RUN mkdir -p {host} && echo inside > {host}/secret\nFROM busybox\n"
    _, image, _ = build(engine, tmp_path / "c", dockerfile + "RUN --mount=from=evil,source=/host-link,target=/m cat /m/secret > /x\n")
    assert show(engine, image, "cat /x") == "inside\n"


def test_mounts_of_the_context_stay_in_it(engine: Daemon, tmp_path: Path, host: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    (context / "link").symlink_to(host)
    for source in ("link", "link/secret", f"../../..{host}", f"link/../../../../../../../..{host}/secret"):
        code, _, told = build(engine, context, f"FROM busybox\nRUN --mount=source={source},target=/m cat /m /m/secret\n", check=False)
        assert code == 1 and "of the host" not in told, source
        code, _, told = build(engine, context, f"FROM busybox\nCOPY {source} /x\n", check=False)
        assert code == 1, source


def test_targets_behind_links_stay_in_the_image(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """A mount's target and a copy's destination are resolved inside the image's root."""
    context = tmp_path / "c"
    context.mkdir()
    (context / "f").write_text("copied")
    secret = tmp_path / "s"
    secret.write_text("x")
    dockerfile = (
        f"FROM busybox\nRUN ln -s {host} /h && ln -s ../../../../../../../..{host} /climb\n"
        "COPY f /h/copied\nCOPY f /climb/\nCOPY f /h\nWORKDIR /h/made\nWORKDIR /climb/made-too\nWORKDIR /\n"
        "RUN --mount=type=tmpfs,target=/h/tmpfs --mount=type=cache,target=/climb/cache --mount=type=secret,id=s,target=/h/secret2 "
        "--mount=type=bind,source=f,target=/climb/bound true\nADD f /climb/added\n"
    )
    _, image, _ = build(engine, context, dockerfile, "--secret", f"id=s,src={secret}")
    assert set(show(engine, image, f"ls {host}").split()) >= {"copied", "f", "made", "made-too", "added"}


def test_the_clean_up_of_mount_points_spares_the_host(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """CVE-2024-23652: while it runs, a command puts links to the host where the mount points were made."""
    run = (
        f"FROM busybox\nRUN --mount=type=tmpfs,target=/a/stub --mount=type=tmpfs,target=/b/c/empty --mount=type=tmpfs,target=/k/keep "
        f"mv /a /old && ln -s {host} /a && mkdir -p /n && mv /b /n/b && ln -s ../../../../../../../..{host} /b && mkdir -p {host}/c\n"
    )
    code, image, told = build(engine, tmp_path / "c", run, check=False)
    assert code == 0, told
    assert show(engine, image, "readlink /a").strip() == str(host)
    run = f"FROM busybox\nRUN --mount=type=secret,id=none,target=/s/stub true; rm -rf /run && ln -s {host} /run && ln -s {host} /s\n"
    code, image, told = build(engine, tmp_path / "c", run, check=False)
    assert code == 0, told


def test_options_and_ids_cannot_name_places_of_the_machine(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """CVE-2024-9407, CVE-2024-9675: options are a closed list, ids are no paths."""
    for option in ("bind-propagation=rshared", "z", "U", "relabel=shared", "idmap", "suid", "upperdir=/tmp"):
        code, _, told = build(engine, tmp_path / "c", f"FROM busybox\nRUN --mount=type=bind,target=/m,{option} true\n", check=False)
        assert code == 1 and ("unexpected key" in told or "must be a key=value pair" in told), option
    for id in (f"../../../../../../..{host}/x", str(host), "..", ".", "a/../../b"):
        dockerfile = f"FROM busybox\nRUN --mount=type=cache,id={id},target=/m touch /m/was-here && ls /m > /x\n"
        _, image, _ = build(engine, tmp_path / "c", dockerfile)
        assert show(engine, image, "cat /x") == "was-here\n"
    caches = engine.root / "data" / "builder" / "cache"
    assert all(len(path.name) == 32 for path in caches.iterdir()), "each lies where its hashed id says"
    for reference in ("#--upload-pack=touch", "#-x"):
        code, _, told = build(engine, tmp_path / "c", f"FROM busybox\nADD https://host.invalid/x.git{reference} /x\n", check=False)
        assert code == 1 and "invalid git reference" in told
    for address in ("ext::sh.git", "file:///etc/x.git"):
        code, _, told = build(engine, tmp_path / "c", f"FROM busybox\nADD {address} /x\n", check=False)
        assert code == 1 and "file not found in build context" in told


def test_a_cache_mount_does_not_lead_out(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """What an earlier RUN left in a cache mount is only ever seen from inside a container."""
    dockerfile = (
        f"FROM busybox\nRUN --mount=type=cache,target=/c,id=links rm -rf /c/* && ln -s {host} /c/l && ln -s / /c/r && mknod /c/d b 7 0\n"
        "RUN --mount=type=cache,target=/c,id=links cat /c/l/secret /c/r/etc/not-there; head -c 1 /c/d > /dev/null; ls /c > /x; true\n"
    )
    _, image, _ = build(engine, tmp_path / "c", dockerfile, "--no-cache")
    assert show(engine, image, "cat /x").split() == ["d", "l", "r"]


def hostile_archive(host: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            entry.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(entry, io.BytesIO(b"evil"))

        add("link", tarfile.SYMTYPE, str(host))
        add("link/through-link")
        add(f"../../../../../../..{host}/climbed")
        add(f"{host}/absolute")
        add("hard", tarfile.LNKTYPE, f"{host}/secret")
        add("device", tarfile.BLKTYPE)
    return buffer.getvalue()


def test_archives_unpack_inside_the_image(engine: Daemon, tmp_path: Path, host: Path) -> None:
    context = tmp_path / "c"
    context.mkdir()
    (context / "a.tar").write_bytes(hostile_archive(host))
    code, image, told = build(engine, context, f"FROM busybox\nRUN ln -s {host} /d\nADD a.tar /d/\nADD a.tar /e/\n", check=False)
    if code == 0:
        assert show(engine, image, "cat /e/hard /d/hard 2>/dev/null; true") == ""
    else:
        assert "a.tar" in told or "link" in told
    # As the context itself, with a Dockerfile that is a link to a file of the machine.
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("Dockerfile")
        entry.type, entry.linkname = tarfile.SYMTYPE, f"{host}/secret"
        tar.addfile(entry)
    for data in (buffer.getvalue(), hostile_archive(host)):
        done = engine.tare("build", "-", input=data, text=False, check=False)
        assert done.returncode == 1 and b"of the host" not in done.stderr


def test_equal_histories_do_not_share_results(engine: Daemon, tmp_path: Path) -> None:
    """The classic builder's cache went by history lines: a local image with the right ones was taken for the real result."""
    run = "FROM base:poison\nRUN cat /etc/origin > /x\n"
    images = []
    for origin in ("good", "evil"):
        build(engine, tmp_path / "c", f"FROM busybox\nRUN echo {origin} > /etc/origin\n", "-t", "base:poison")
        _, image, _ = build(engine, tmp_path / "c", run)
        assert show(engine, image, "cat /x") == f"{origin}\n"
        images.append(image)
    assert len(set(images)) == 2
    # The same layers under another config: another environment may make another result.
    for value in ("one", "two"):
        build(engine, tmp_path / "c", f"FROM busybox\nENV WHO={value}\n", "-t", "base:poison")
        _, image, _ = build(engine, tmp_path / "c", "FROM base:poison\nRUN echo $WHO > /x\n")
        assert show(engine, image, "cat /x") == f"{value}\n"
    engine.docker("rmi", "base:poison")


def test_a_run_sees_no_more_than_a_container(engine: Daemon, tmp_path: Path) -> None:
    """No capability to mount, no devices, no engine's files, no further descriptors."""
    look = (
        "umount /proc 2>/dev/null && exit 9",
        "dd if=/dev/mem of=/y 2>/dev/null && exit 9",
        "ls -d /proc/self/fd/* | wc -l",
        "tr '\\0' ' ' < /proc/1/cmdline",
        "ls /dev",
        "grep Cap /proc/self/status",
    )
    dockerfile = f"FROM busybox\nRUN exec > /x; {'; '.join(look)}\n"
    _, image, _ = build(engine, tmp_path / "c", dockerfile)
    shown = show(engine, image, "cat /x")
    assert "tare" not in shown
    assert "mem" not in shown.split()
    capabilities = {line.split()[0]: line.split()[1] for line in shown.splitlines() if line.startswith("Cap")}
    assert int(capabilities["CapInh:"], 16) == 0
    assert not int(capabilities["CapEff:"], 16) & 1 << 21, "no CAP_SYS_ADMIN"


def test_downloads_are_not_led_elsewhere(engine: Daemon, tmp_path: Path, host: Path) -> None:
    """A server may send on to another, but not to files of the machine or other protocols; and not for ever."""
    targets = {"/file": f"file://{host}/secret", "/ftp": "ftp://127.0.0.1:1/x", "/circle": "/circle", "/ok": "/content"}

    class Leading(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = targets.get(self.path)
            self.send_response(302 if found else 200)
            self.send_header("Location", found) if found else self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"" if found else b"ok")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Leading)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        for path in targets:
            add = f"FROM busybox\nADD http://127.0.0.1:{server.server_address[1]}{path} /x\n"
            code, image, told = build(engine, tmp_path / "c", add, check=False)
            assert (code == 0) is (path == "/ok"), told
            assert "of the host" not in told
        assert show(engine, image, "cat /x") == "ok"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
