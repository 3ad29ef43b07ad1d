"""Steps that reach out of the Dockerfile: downloads, repositories, secrets, agents, entitlements; and how a failure is told."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_world import Daemon
from web_world import Site, git, publish, repository, serving

pytestmark = pytest.mark.root


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    directory = tmp_path / "site"
    directory.mkdir()
    with serving(directory) as found:
        yield found


def built(engine: Daemon, dockerfile: str, *flags: str) -> str:
    """The id of an image."""
    return engine.tare("build", "-q", *flags, "-", input=dockerfile).stdout.strip()


def failed(engine: Daemon, dockerfile: str, *flags: str) -> str:
    done = engine.tare("build", "--progress=plain", *flags, "-", input=dockerfile, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr


def show(engine: Daemon, image: str, command: str) -> str:
    return engine.docker("run", "--rm", image, "sh", "-c", command).stdout


# -- ADD from the web ------------------------------------------------------------------------------------------------------------------


def test_a_download_is_not_repeated(engine: Daemon, site: Site) -> None:
    site.files["a/f.txt"] = (b"one\n", '"1"')
    dockerfile = f"FROM busybox\nADD {site.url('a/f.txt?x=1')} /d/\nRUN cat /d/f.txt > /copy\n"
    first = built(engine, dockerfile)
    assert show(engine, first, "stat -c '%n %a %u %Y' /d/*; cat /copy").split() == ["/d/f.txt", "600", "0", "1577836800", "one"]
    assert built(engine, dockerfile) == first
    assert site.asked == [("a/f.txt", 200), ("a/f.txt", 304)]
    site.files["a/f.txt"] = (b"two\n", '"2"')
    second = built(engine, dockerfile)
    assert show(engine, second, "cat /copy") == "two\n"
    site.asked.clear()
    # Known content at another place: the server says that it is the same, but the step must be made, so it is fetched after all.
    third = built(engine, dockerfile.replace("/d/", "/e/", 1).replace("/d/", "/e/"))
    assert show(engine, third, "cat /e/f.txt") == "two\n"
    assert site.asked == [("a/f.txt", 304), ("a/f.txt", 200)]
    built(engine, dockerfile, "--no-cache")
    assert site.asked[2:] == [("a/f.txt", 200)]


def test_a_checksum_is_demanded(engine: Daemon, site: Site) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("inner"))
    archive = buffer.getvalue()
    site.files["a.tgz"] = (archive, "")
    digest = hashlib.sha256(archive).hexdigest()
    add = f"FROM busybox\nARG SUM=sha256:{digest}\nADD --checksum=$SUM {site.url('a.tgz')} /d/\n"
    image = built(engine, add)
    assert show(engine, image, "ls /d") == "a.tgz\n"
    assert built(engine, add) == image
    assert len(site.asked) == 1, "the checksum is proof enough"
    unpacked = built(engine, add.replace("ADD ", "ADD --unpack "))
    assert show(engine, unpacked, "ls /d") == "inner\n"
    other = "f" * 64
    assert f"digest mismatch sha256:{digest}: sha256:{other}" in failed(engine, add, "--build-arg", f"SUM=sha256:{other}")
    assert "invalid checksum" in failed(engine, add, "--build-arg", "SUM=md5:1")
    assert "checksum requires HTTP(S) or Git sources" in failed(engine, "FROM busybox\nADD --checksum=sha256:1 local /d/\n")
    assert "404" in failed(engine, f"FROM busybox\nADD {site.url('none')} /d/\n")
    assert "source can't be a URL for COPY" in failed(engine, f"FROM busybox\nCOPY {site.url('a.tgz')} /d/\n")


def test_a_repository_with_submodules(engine: Daemon, site: Site, tmp_path: Path) -> None:
    """Served in the dumb form, which knows no shallow clones, and by the program that real servers run."""
    inner = publish(site, repository(tmp_path / "inner", {"lib/code": "inner\n"}), "inner.git")
    work = repository(tmp_path / "work", {"README": "one\n", "sub/file": "file\n"})
    git(work, "submodule", "add", "-q", inner, "third")
    (work / "link").symlink_to("/etc/passwd")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "two")
    first = git(work, "rev-parse", "HEAD~1")
    last = git(work, "rev-parse", "HEAD")
    url = publish(site, work, "work.git").replace("work.git", "smart/work.git")
    image = built(engine, f"FROM busybox\nADD --checksum={last[:12]} {url} /all/\nADD {url}#main:sub /part/\nADD {url}#{first} /old\n")
    listed = show(engine, image, "cd /; find all part old | sort; readlink all/link; cat all/third/lib/code").split()
    assert "all/.git" not in listed and "all/third/.git" not in listed
    assert {"all/README", "all/third/lib/code", "part/file", "old/README", "/etc/passwd", "inner"} <= set(listed)
    assert "old/third" not in listed
    kept = built(engine, f"FROM busybox\nADD --keep-git-dir {url} /all/\n")
    assert show(engine, kept, "ls -d /all/.git") == "/all/.git\n"
    assert f"expected checksum to match {first}, got {last}" in failed(engine, f"FROM busybox\nADD --checksum={first} {url} /x/\n")
    dumb = url.replace("smart/", "")
    assert show(engine, built(engine, f"FROM busybox\nADD {dumb} /all/\n"), "cat /all/third/lib/code") == "inner\n"
    assert "error fetching: git fetch" in failed(engine, f"FROM busybox\nADD {url}#none /x/\n")


# -- RUN -------------------------------------------------------------------------------------------------------------------------------


def test_what_a_run_is_not_given(engine: Daemon) -> None:
    base = "FROM busybox\nRUN "
    assert "secret s: not found" in failed(engine, base + "--mount=type=secret,id=s,required=true true\n")
    assert "ssh agent default: not found" in failed(engine, base + "--mount=type=ssh,required true\n")
    assert "network.host is not allowed" in failed(engine, base + "--network=host true\n")
    assert "security.insecure is not allowed" in failed(engine, base + "--security=insecure true\n")
    device = "--device=tare.test/none=x"
    assert 'required device "tare.test/none=x" is not registered' in failed(engine, base + device + ",required true\n")
    assert "not even" not in built(engine, base + device + " true # not even a warning\n")
    assert 'invalid mount target "/"' in failed(engine, base + "--mount=type=tmpfs,target=/ true\n")
    seen = "mkdir /m && mount -t tmpfs x /m && readlink /proc/self/ns/net > /n"
    allowed = built(engine, f"{base}--network=host --security=insecure {seen}\n", "--allow", "network.host", "--allow", "security.insecure")
    assert show(engine, allowed, "cat /n").strip() == os.readlink("/proc/self/ns/net")


def test_the_environment_of_a_run(engine: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the daemon's or the client's machine (CVE-2021-3602), but the proxies that were asked for."""
    monkeypatch.setenv("LEAKED", "by the client")
    args = ["--build-arg", "https_proxy=http://proxy:1", "--build-arg", "UNDECLARED=x", "--no-cache"]
    image = built(engine, "FROM busybox\nARG A=1\nENV B=2\nRUN env | cut -d= -f1 | sort > /env\n", *args)
    names = show(engine, image, "cat /env").split()
    assert set(names) - {"SHLVL", "PWD", "OLDPWD"} == {"A", "B", "HOME", "HOSTNAME", "HTTPS_PROXY", "PATH", "https_proxy"}
    assert "proxy" not in engine.docker("history", "--no-trunc", image).stdout
    assert "proxy" not in engine.docker("inspect", image).stdout


def test_secrets_leave_no_trace(engine: Daemon, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("very-hidden-value")
    run = "RUN --mount=type=secret,id=s,env=TOKEN --mount=type=secret,source=s,target=/f wc -c < /f > /n; echo $TOKEN | wc -c >> /n\n"
    image = built(engine, f"FROM busybox\n{run}", "--secret", f"id=s,src={secret}")
    assert show(engine, image, "cat /n").split() == ["17", "18"]
    archive = tmp_path / "image.tar"
    engine.docker("save", "-o", str(archive), image)
    assert b"very-hidden-value" not in archive.read_bytes()
    assert "very-hidden-value" not in engine.log
    for path in (engine.root / "data").rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20:
            assert b"very-hidden-value" not in path.read_bytes(), path


# -- failures --------------------------------------------------------------------------------------------------------------------------


def test_a_failing_command_shows_code_lines_and_place(engine: Daemon) -> None:
    told = failed(engine, "FROM busybox\n# why\nRUN for i in 1 2 3; do echo line $i; done; \\\n    echo wrong >&2; exit 42\nRUN true\n")
    assert "exit code: 42" in told or "non-zero code: 42" in told
    assert "line 3" in told and "wrong" in told
    assert "Dockerfile:3" in told
    assert ">>> RUN for i in 1 2 3" in told


@pytest.mark.parametrize(
    ("dockerfile", "parts"),
    [
        ("FROM busybox\nRNU x\n", ["unknown instruction: RNU (did you mean RUN?)", "Dockerfile:2", ">>> RNU x"]),
        ("FROM busybox\nCOPY a\n", ["COPY requires at least two arguments", ">>> COPY a"]),
        ("FROM busybox\nENV A=${B\n", ["missing '}'", ">>> ENV A=${B"]),
        ("FROM busybox\nUSER ${U:?who}\n", ["U: who", ">>> USER"]),
        ("FROM busybox AS a\nCOPY --from=b x /\nFROM busybox AS b\nFROM a\n", ["needs to be defined before", ">>> COPY --from=b"]),
        ("FROM busybox AS a\nCOPY --from=a x /\n", ["circular dependency detected on stage: a"]),
        ("FROM busybox\nCOPY none /\n", ["file not found in build context or excluded by .dockerignore", "none"]),
        ("FROM busybox\nCOPY ../../etc/passwd /\n", ["passwd"]),
        ("FROM busybox\nCOPY --from=busybox /none /\n", ["none", ">>> COPY --from"]),
        ("FROM busybox\nRUN --mount=type=bind,source=none,target=/x true\n", ["none", ">>> RUN"]),
        ("FROM busybox\nSTOPSIGNAL SIGNONE\n", ["SIGNONE"]),
        ("FROM busybox\nEXPOSE x\n", ["x", ">>> EXPOSE"]),
        ("FROM busybox\nRUN <<EOF\necho\n", ["unterminated heredoc"]),
        ("ARG X\nFROM $X\n", ["should not be blank"]),
        ("FROM busybox\nUSER nobody-here\nRUN true\n", ["nobody-here"]),
        ('FROM busybox\nSHELL ["/none"]\nRUN true\n', ["/none"]),
    ],
)
def test_every_failure_names_its_place(engine: Daemon, dockerfile: str, parts: list[str]) -> None:
    told = failed(engine, dockerfile)
    assert all(part in told for part in parts), told
    assert not engine.docker("ps", "-aq").stdout


def test_triggers_may_ask_for_stages_and_documents(engine: Daemon) -> None:
    """ONBUILD of an image: a stage that only it needs is built; a here-document comes along; grandchildren do not see it."""
    base = "FROM busybox\nONBUILD COPY --from=tools /tool /got\nONBUILD RUN <<EOF\necho doc > /doc\nEOF\nONBUILD RUN cat /got > /ran\n"
    built(engine, base, "-t", "triggers")
    child = "FROM busybox AS deeper\nRUN echo deep > /deep\nFROM busybox AS tools\nCOPY --from=deeper /deep /tool\nFROM triggers\n"
    image = built(engine, child, "-t", "child")
    assert show(engine, image, "cat /got /doc /ran").split() == ["deep", "doc", "deep"]
    grandchild = built(engine, "FROM child\nRUN rm /got\n")
    assert show(engine, grandchild, "ls /got 2>/dev/null; ls /doc") == "/doc\n"
    classic = subprocess.run(
        ["docker", "-H", engine.host, "build", "--no-cache", "-"], input=child, text=True, capture_output=True,
        env=os.environ | {"DOCKER_BUILDKIT": "0"}, check=True,
    )  # fmt: skip
    assert "# Executing 3 build triggers" in classic.stdout
    assert "cannot" not in failed(engine, "FROM triggers\n")
    engine.docker("rmi", "triggers", "child")
