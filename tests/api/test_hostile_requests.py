"""Hostile and broken requests to a live daemon: whatever comes, no 500, no crash, no leaked descriptor, and a 4xx that says why.

Bodies are generated in the shape of the API's own wire structs, with values of the wrong kind and size among the right ones. The number of
examples is small by default; ``TARE_FUZZ=5000`` makes a long round of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine_world import Daemon
from raw_requests import call, descriptors, raw
from tare.wire.container import CreateRequest, ExecCreateRequest, UpdateRequest

pytestmark = [pytest.mark.root]

EXAMPLES = int(os.environ.get("TARE_FUZZ", "40"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="TARE_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PATHS = (
    "/_ping", "/info", "/version", "/containers/json", "/containers/ID/json", "/containers/ID/logs", "/containers/ID/top",
    "/containers/ID/changes", "/containers/ID/archive", "/images/json", "/images/ID/json", "/images/ID/history", "/images/get",
    "/networks", "/networks/ID", "/volumes", "/volumes/ID", "/events", "/exec/ID/json", "/plugins", "/swarm", "/distribution/ID/json",
)  # fmt: skip
PARAMETERS = ("all", "limit", "size", "filters", "since", "until", "tail", "ps_args", "path", "names", "t", "stdout", "h", "w", "name")


@pytest.fixture(scope="module")
def hostile(request: pytest.FixtureRequest, shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon; afterwards it must answer, hold no more descriptors than before, and have logged no failure."""
    before, logged = descriptors(shared_daemon), len(shared_daemon.log)
    shared_daemon.docker("create", "--name", "fuzzed", "busybox", "sleep", "1000")
    yield shared_daemon
    shared_daemon.remove_all()
    assert call(shared_daemon, "GET", "/_ping")[0] == 200
    for _ in range(100):
        if descriptors(shared_daemon) <= before + 2:
            break
        time.sleep(0.1)
    assert descriptors(shared_daemon) <= before + 2
    assert "Traceback" not in shared_daemon.log[logged:], shared_daemon.log[logged:][-4000:]


def strategy(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a field of this type: mostly of the right kind."""
    return st.one_of(_right(hint), _right(hint), _right(hint), WRONG)


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)  # fmt: skip
WORDS = st.one_of(
    st.text(max_size=30), st.sampled_from(["", "/", "..", "/../..", "busybox", "container:x", "host", "a" * 5000, "\0", "x\ny", "%s", "-1"])
)
PLAIN = {str: WORDS, int: st.integers(-(2**63), 2**63 - 1), bool: st.booleans(), float: st.floats(allow_nan=False), type(None): st.none()}
DOCUMENTS = st.recursive(WRONG, lambda inner: st.lists(inner, max_size=3)).map(lambda value: json.dumps(value).encode())
BODY_PATHS = ("/containers/create", "/networks/create", "/volumes/create", "/containers/fuzzed/update", "/auth")
LINES = (b"GET /_ping HTTP/1.1", b"POST /containers/create HTTP/1.1", b"GET * HTTP/1.1")


def _right(hint: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return st.one_of([_right(arm) for arm in typing.get_args(hint)])
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return struct(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return st.lists(strategy(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(WORDS, strategy(arguments[1]), max_size=3)
    plain = {
        str: WORDS,
        int: st.integers(-(2**63), 2**63 - 1),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        type(None): st.none(),
    }
    return plain.get(hint, WRONG)


def struct(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Objects with some of the struct's fields."""
    hints = typing.get_type_hints(kind)
    fields = [(field.encode_name, hints[field.name]) for field in msgspec.structs.fields(kind)]
    picked = st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field[0])
    return picked.flatmap(lambda chosen: st.fixed_dictionaries({name: strategy(hint) for name, hint in chosen}))


def assert_answered(status: int, body: bytes, context: object) -> None:
    assert status not in (500, 502) or b'"message":"internal error' not in body, (context, body)
    if status >= 400:
        assert json.loads(body)["message"], (context, body)


@fuzz
@given(body=struct(CreateRequest))
def test_create_bodies(hostile: Daemon, body: dict[str, Any]) -> None:
    status, answer = call(hostile, "POST", "/v1.51/containers/create", json.dumps({"Image": "busybox", "Cmd": ["true"], **body}).encode())
    assert_answered(status, answer, body)
    assert status in (201, 400, 404, 409, 501), (body, answer)
    if status == 201:
        assert call(hostile, "DELETE", f"/containers/{json.loads(answer)['Id']}?v=1")[0] == 204


@fuzz
@given(body=struct(UpdateRequest))
def test_update_bodies(hostile: Daemon, body: dict[str, Any]) -> None:
    status, answer = call(hostile, "POST", "/containers/fuzzed/update", json.dumps(body).encode())
    assert_answered(status, answer, body)
    assert status in (200, 400, 409, 501), (body, answer)


@fuzz
@given(body=struct(ExecCreateRequest))
def test_exec_bodies(hostile: Daemon, body: dict[str, Any]) -> None:
    status, answer = call(hostile, "POST", "/containers/fuzzed/exec", json.dumps(body).encode())
    assert_answered(status, answer, body)
    assert status in (400, 409), (body, answer)


@fuzz
@given(body=st.one_of(st.binary(max_size=200), DOCUMENTS), path=st.sampled_from(BODY_PATHS))
def test_any_bodies(hostile: Daemon, body: bytes, path: str) -> None:
    status, answer = call(hostile, "POST", path, body)
    assert_answered(status, answer, body)
    assert status < 600 and (status >= 400 or path in ("/volumes/create", "/containers/fuzzed/update", "/auth")), (body, answer)


@fuzz
@given(path=st.sampled_from(PATHS), name=WORDS, query=st.dictionaries(st.sampled_from(PARAMETERS), WORDS, max_size=4))
def test_paths_and_queries(hostile: Daemon, path: str, name: str, query: dict[str, str]) -> None:
    if path == "/events":
        query = {**query, "until": "1"}
    target = path.replace("ID", quote(name, safe="")) + "?" + "&".join(f"{key}={quote(value)}" for key, value in query.items())
    status, answer = call(hostile, "GET", target)
    assert_answered(status, answer, target)


@fuzz
@given(
    line=st.one_of(st.binary(max_size=60), st.sampled_from(LINES)),
    headers=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from([
                b"Host: d", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: 5",
                b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Connection: Upgrade", b"Upgrade: tcp", b"Expect: 100-continue",
                b"Content-Type: application/json", b" folded", b"Host : x", b"X:\0",
            ]),
        ),
        max_size=6,
    ),
    body=st.one_of(st.binary(max_size=40), st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-5\r\n", b"ffffffffffffffff\r\n"])),
)  # fmt: skip
def test_broken_http(hostile: Daemon, line: bytes, headers: list[bytes], body: bytes) -> None:
    answer = raw(hostile, line + b"\r\n" + b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body)
    assert not answer or answer.startswith(b"HTTP/1."), answer
    assert b" 500 " not in answer.split(b"\r\n")[0], (line, headers, body, answer)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n", 431),
        (b"GET /_ping HTTP/1.1\r\nHost: d\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /_ping HTTP/9.9\r\nHost: d\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 999999999\r\n\r\n{", 413),
        (b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{", 400),
        (b"GET /containers/%2e%2e%2f%2e%2e%2fetc/json HTTP/1.1\r\nHost: d\r\n\r\n", 301),
        (b"GET /containers/%00/json HTTP/1.1\r\nHost: d\r\n\r\n", 404),
        (b"GET /v1.51/../../etc/passwd HTTP/1.1\r\nHost: d\r\n\r\n", 301),
    ],
)
def test_refused_with_the_right_status(hostile: Daemon, request_bytes: bytes, status: int) -> None:
    first = raw(hostile, request_bytes).split(b"\r\n")[0]
    assert first.split()[1] == str(status).encode(), first


def test_a_slow_client_holds_nobody_up(hostile: Daemon) -> None:
    """Bytes one by one, half-open heads and clients that go away, while others are served."""
    slow = []
    for _ in range(50):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(hostile.socket))
        sock.sendall(b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Le")
        slow.append(sock)
    for byte in b"ngth: 20\r\n":
        for sock in slow:
            sock.sendall(bytes((byte,)))
        assert call(hostile, "GET", "/_ping")[0] == 200
    for sock in slow:
        sock.close()


def test_deep_and_long_json(hostile: Daemon) -> None:
    for body in (b"[" * 100_000, b'{"Image":' * 50_000, b'{"Labels":{' + b",".join(b'"%d":"x"' % n for n in range(20_000)) + b"}}"):
        status, answer = call(hostile, "POST", "/containers/create", body)
        assert status == 400 and json.loads(answer)["message"], answer[:200]


def test_pipelined_requests_are_answered_in_order(hostile: Daemon) -> None:
    paths = ["/_ping", "/version", "/nothing", "/_ping"]
    data = b"".join(f"GET {path} HTTP/1.1\r\nHost: d\r\n\r\n".encode() for path in paths)
    answer = raw(hostile, data)
    assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 404, 200]


def test_followers_of_a_flood_hold_nobody_up(hostile: Daemon) -> None:
    """Two hundred clients take as much of a flooding container's log as they can get; others are answered, and memory stays flat."""
    script = "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done"
    limits = ["--log-opt", "max-size=5m", "--log-opt", "max-file=2"]
    hostile.docker("run", "-d", "--name", "flood", *limits, "busybox", "sh", "-c", script)
    before = resident(hostile)
    followers = []
    for _ in range(200):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(hostile.socket))
        sock.sendall(b"GET /containers/flood/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: d\r\n\r\n")
        sock.setblocking(False)
        followers.append(sock)
    done = threading.Event()
    taken = dict.fromkeys(followers, 0)

    def take() -> None:
        while not done.wait(0.002):
            for sock in followers:
                with contextlib.suppress(BlockingIOError):
                    taken[sock] += len(sock.recv(1 << 16))

    reader = threading.Thread(target=take)
    reader.start()
    try:
        time.sleep(1)
        waits = []
        for _ in range(9):
            started = time.monotonic()
            assert call(hostile, "GET", "/_ping")[0] == 200
            waits.append(time.monotonic() - started)
        for _ in range(200):
            if min(taken.values()) > 1 << 16:
                break
            time.sleep(0.05)
    finally:
        done.set()
        reader.join()
        for sock in followers:
            sock.close()
        hostile.docker("rm", "-f", "flood")
    assert sorted(waits)[4] < 1, waits
    assert min(taken.values()) > 1 << 16, "everybody has his turn"
    assert resident(hostile) - before < 32 << 20


def resident(daemon: Daemon) -> int:
    assert daemon.process is not None
    return int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_clients_that_leave_their_execs_and_attachments(hostile: Daemon) -> None:
    """Execs whose clients send rubbish and go at any moment, and web sockets with broken frames: the container stays at hand."""
    dice = random.Random(3)
    hostile.docker("run", "-d", "-i", "--name", "left", "busybox", "cat")
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    attach = (
        b"GET /containers/left/attach/ws?stream=1&stdout=1&stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    )
    for number in range(100):
        make = json.dumps({"Cmd": ["cat"], "AttachStdin": True, "AttachStdout": True, "Tty": dice.random() < 0.5}).encode()
        made = json.loads(call(hostile, "POST", "/containers/left/exec", make)[1])["Id"]
        body = b'{"Detach": false, "Tty": false}'
        head = f"POST /exec/{made}/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n"
        start = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + dice.randbytes(dice.choice((0, 10, 70000)))
        frames = b"".join(
            bytes((dice.choice((0x81, 0x82, 0x01, 0x00, 0x88, 0x89, 0x83, 0xF1)), dice.choice((0, 0x80)) | dice.choice((0, 5, 126, 127))))
            + dice.randbytes(dice.choice((0, 4, 200)))
            for _ in range(dice.randint(1, 5))
        )
        for data in (start, attach + key + b"\r\n" + frames) if number % 3 == 0 else (start,):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(0.03)
                sock.connect(str(hostile.socket))
                with contextlib.suppress(OSError):
                    sock.sendall(data)
                    if dice.random() < 0.5:
                        sock.shutdown(socket.SHUT_WR)
                    sock.recv(1000)
    assert hostile.docker("exec", "left", "echo", "here", timeout=30).stdout == "here\n"
    hostile.docker("rm", "-f", "left", timeout=30)
