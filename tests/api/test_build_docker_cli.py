"""``docker build`` (the classic builder of the docker command) against tared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]


def build(engine: Daemon, context: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"DOCKER_BUILDKIT": "0", "DOCKER_HOST": f"unix://{engine.socket}"}
    command = ["docker", "build", *arguments, str(context)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def write(context: Path, dockerfile: str, **files: str) -> Path:
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(dockerfile)
    for name, text in files.items():
        (context / name).write_text(text)
    return context


STAGES = """ARG BASE=busybox
FROM $BASE AS build
WORKDIR /src
COPY f .
RUN tr a-z A-Z < f > out
FROM busybox
LABEL who=me
COPY --from=build --chown=1:2 /src/out /out
ENV WHERE=/out
ENTRYPOINT ["cat"]
CMD ["/out"]
"""


def test_stages_cache_and_content(engine: Daemon, tmp_path: Path) -> None:
    context = write(tmp_path / "c", STAGES, f="hello\n")
    first = build(engine, context, "-t", "built:1")
    assert "Step 1/11 : ARG BASE=busybox" in first.stdout
    assert "Successfully tagged built:1" in first.stdout
    assert engine.docker("run", "--rm", "built:1").stdout == "HELLO\n"
    assert engine.docker("run", "--rm", "--entrypoint", "stat", "built:1", "-c", "%u:%g", "/out").stdout == "1:2\n"
    shown = engine.docker("inspect", "-f", "{{.Config.Labels.who}} {{.Config.Entrypoint}} {{.Config.Env}}", "built:1").stdout
    assert shown.startswith("me [cat] [")
    os.utime(context / "f")
    again = build(engine, context, "-t", "built:1")
    assert again.stdout.count("Using cache") == 8
    (context / "f").write_text("other\n")
    build(engine, context, "-t", "built:2")
    assert engine.docker("run", "--rm", "built:2").stdout == "OTHER\n"
    engine.docker("rmi", "built:1", "built:2")


def test_arguments_target_and_ignored_files(engine: Daemon, tmp_path: Path) -> None:
    context = write(
        tmp_path / "c",
        "FROM busybox AS one\nARG WHO=nobody\nRUN echo $WHO > /who\nCOPY . /all/\nFROM busybox\nRUN false\n",
        kept="k",
        secret="s",
    )
    (context / ".dockerignore").write_text("secret\nDockerfile\n.dockerignore\n")
    build(engine, context, "-t", "built:arg", "--target", "one", "--build-arg", "WHO=me")
    assert engine.docker("run", "--rm", "built:arg", "sh", "-c", "cat /who; ls /all").stdout == "me\nkept\n"
    engine.docker("rmi", "built:arg")


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM busybox\nRUN exit 7\n", "The command '/bin/sh -c exit 7' returned a non-zero code: 7"),
        ("FROM busybox\nRNU x\n", "unknown instruction: RNU"),
        ("FROM busybox\nCOPY none /\n", "none"),
        ("FROM busybox\nCOPY ../../etc/passwd /\n", "passwd"),
        ("FROM tare-test/no/such:image\n", "no/such"),
        ("FROM busybox AS a\nCOPY --from=9 x /\n", "invalid from flag value 9"),
    ],
)
def test_failures(engine: Daemon, tmp_path: Path, dockerfile: str, message: str) -> None:
    before = engine.docker("ps", "-aq").stdout
    done = build(engine, write(tmp_path / "c", dockerfile), check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert engine.docker("ps", "-aq").stdout == before


def test_a_link_in_the_context_does_not_lead_out(engine: Daemon, tmp_path: Path) -> None:
    context = write(tmp_path / "c", "FROM busybox\nCOPY link/passwd /stolen\n")
    (context / "link").symlink_to("/etc")
    assert build(engine, context, check=False).returncode != 0


def test_our_own_command(engine: Daemon, tmp_path: Path) -> None:
    context = write(tmp_path / "c", "FROM busybox\nARG A\nCOPY . /all/\nRUN echo $A > /a\n", kept="k", secret="s")
    (context / "sub").mkdir()
    (context / "sub/inner").write_text("i")
    (context / ".dockerignore").write_text("secret\nsub\n!sub/inner\n")
    identifier = tmp_path / "id"
    done = engine.tare("build", "-t", "own:1", "-t", "own:2", "--build-arg", "A=b", "--iidfile", str(identifier), str(context))
    assert "naming to docker.io/library/own:2 done" in done.stderr
    assert engine.docker("inspect", "-f", "{{.Id}}", "own:1").stdout.strip() == identifier.read_text()
    listed = engine.docker("run", "--rm", "own:2", "sh", "-c", "cat /a; cd /all; find . -type f | sort").stdout
    assert listed.split() == ["b", "./.dockerignore", "./Dockerfile", "./kept", "./sub/inner"]
    quiet = engine.tare("build", "-q", "-", input="FROM busybox\nRUN echo x > /x\n").stdout
    assert quiet.startswith("sha256:")
    failed = engine.tare("build", "-", input="FROM busybox\nRUN exit 3\n", check=False)
    assert (failed.returncode, "returned a non-zero code: 3" in failed.stderr) == (1, True)
    engine.docker("rmi", "own:1", "own:2", quiet.strip())
