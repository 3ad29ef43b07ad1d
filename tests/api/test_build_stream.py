"""``POST /build`` message by message beside dockerd's classic builder; only ids and digests of contents may differ."""

from __future__ import annotations

import io
import json
import re
import socket
import tarfile
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from dockerd_world import DOCKERD, dockerd
from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

EVERYTHING = """ARG V=1
FROM busybox AS a
RUN echo out; sleep 0.1; echo err >&2
COPY f /f
WORKDIR /w
ENV A=$V
FROM busybox
COPY --from=a /f /g
ADD f f /d/
RUN ["true"]
CMD ["x"]
LABEL a=b
EXPOSE 80
VOLUME /v
USER 1
HEALTHCHECK NONE
STOPSIGNAL 9
SHELL ["/bin/sh","-c"]
ONBUILD RUN x
ENTRYPOINT ["e"]
MAINTAINER me
"""
NAMED = {"t": "stream:1", "buildargs": '{"N":"1"}', "labels": '{"l":"m"}'}
FAILS = "FROM busybox\nRUN echo no; exit 3\n"
CASES: dict[str, tuple[str, dict[str, str]]] = {
    "everything": (EVERYTHING, {**NAMED, "nocache": "1"}),
    "all of it cached": (EVERYTHING, NAMED),
    "quiet": (EVERYTHING, {**NAMED, "q": "1"}),
    "only a stage": (EVERYTHING, {"target": "a"}),
    "a failing command": (FAILS, {"t": "stream:2"}),
    "a failing command, quiet": (FAILS, {"q": "1"}),
    "containers are kept": ("FROM busybox\nRUN echo kept\n", {"rm": "0", "nocache": "1"}),
    "without a network": ("FROM busybox\nRUN echo net\n", {"networkmode": "none", "nocache": "1"}),
    "triggers": ("FROM stream-base\nLABEL x=y\n", {"nocache": "1"}),
    "a missing file": ("FROM busybox\nCOPY nope /\n", {}),
    "a file outside": ("FROM busybox\nCOPY ../x /\n", {}),
    "nothing": ("", {}),
    "nothing but scratch": ("FROM scratch\n", {}),
    "an impossible platform": ("FROM busybox\n", {"platform": "zz"}),
    "an isolation of another system": ("FROM busybox\n", {"isolation": "zz"}),
    "security options": ("FROM busybox\n", {"securityopt": '["a"]'}),
}


@pytest.fixture(scope="module")
def oracle() -> Iterator[str]:
    if not DOCKERD.exists():
        pytest.skip("needs dockerd: apt-get install docker.io")
    with dockerd() as path:
        yield path


def ask(path: str, dockerfile: str, query: dict[str, str]) -> tuple[int, str]:
    """Status and messages."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in (("Dockerfile", dockerfile), ("f", "x")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    body = buffer.getvalue()
    head = f"POST /v1.41/build?{urlencode(query)} HTTP/1.0\r\nContent-Type: application/x-tar\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(120)
        sock.connect(path)
        sock.sendall(head.encode() + body)
        try:
            while data := sock.recv(65536):
                answer += data
        except ConnectionResetError:
            pass  # dockerd, when it has not read all of the context
    status, _, text = answer.partition(b"\r\n\r\n")
    lines = [json.dumps(json.loads(line)) for line in text.decode().splitlines() if line.startswith("{")]
    shown = re.sub(r"sha256:[0-9a-f]{64}", "DIGEST", "\n".join(lines))
    return int(status.split()[1]), re.sub(r"\b[0-9a-f]{12}\b", "ID", re.sub(r"(file|dir|multi):[0-9a-f]{64}", r"\1:DIGEST", shown))


@pytest.mark.parametrize("name", CASES)
def test_the_same_messages(engine: Daemon, oracle: str, name: str) -> None:
    dockerfile, query = CASES[name]
    ours = str(engine.socket)
    if name == "triggers":
        for path in (oracle, ours):
            ask(path, "FROM busybox\nONBUILD RUN echo trig\nONBUILD LABEL a=b\n", {"t": "stream-base"})
    assert ask(ours, dockerfile, query) == ask(oracle, dockerfile, query)
