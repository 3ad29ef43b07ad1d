"""The HTTP client and the stream carrier against scripted peers on socket pairs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tare.cli.connection import Client, query_string, quote
from tare.cli.failures import CliError, DaemonError, Unreachable
from tare.cli.streams import Carrier, Demultiplexer, Escape, parse_detach_keys


class Server:
    """Answers each request on a unix socket with what ``script`` gives for its head."""

    def __init__(self, path: Path, script: Callable[[bytes], bytes]) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._script = script
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._peers: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._peers.append(peer)
            thread = threading.Thread(target=self._serve, args=(peer,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        data = b""
        try:
            while chunk := peer.recv(65536):
                data += chunk
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0)
                    while len(data) < length:
                        data += peer.recv(65536)
                    self.requests.append(head + b"\r\n\r\n" + data[:length])
                    data = data[length:]
                    answer = self._script(head)
                    for offset in range(0, len(answer), 7):  # in small pieces: framing must not depend on reads
                        peer.sendall(answer[offset : offset + 7])
                    if b"Connection: close" in answer:
                        return
        except OSError:
            return
        finally:
            peer.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for peer in self._peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Callable[[bytes], bytes]], tuple[Client, Server]]]:
    servers: list[Server] = []
    clients: list[Client] = []

    def start(script: Callable[[bytes], bytes]) -> tuple[Client, Server]:
        path = tmp_path / f"s{len(servers)}"
        servers.append(Server(path, script))
        clients.append(Client(f"unix://{path}"))
        return clients[-1], servers[-1]

    yield start
    for client in clients:
        for wire in client.idle:
            wire.close()
    for server in servers:
        server.close()


Serve = Callable[[Callable[[bytes], bytes]], tuple[Client, Server]]


def _reply(body: bytes, status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def test_documents_over_one_kept_connection(serve: Serve) -> None:
    client, server = serve(lambda head: _reply(b'{"a": 1}'))
    assert client.call("GET", "/x", {"q": "a b/ü", "on": True, "none": None}) == {"a": 1}
    assert client.call("POST", "/y", body={"b": 2}) == {"a": 1}
    assert server.connections == 1
    assert server.requests[0].startswith(b"GET /v1.51/x?q=a%20b/%C3%BC&on=1 HTTP/1.1\r\n")
    assert server.requests[1].endswith(b'\r\n\r\n{"b":2}')


def test_chunked_bodies_and_json_lines(serve: Serve) -> None:
    chunks = b'6\r\n{"a":1\r\n3;x=y\r\n}\n{\r\n7\r\n"b":2}\n\r\n0\r\nTrailer: x\r\n\r\n'
    client, server = serve(lambda head: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert list(client.stream("GET", "/events").lines()) == [{"a": 1}, {"b": 2}]
    assert client.stream("GET", "/again").read() == b'{"a":1}\n{"b":2}\n'
    assert server.connections == 1


def test_body_up_to_the_end_of_the_connection(serve: Serve) -> None:
    client, server = serve(lambda head: b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nabc")
    assert client.stream("GET", "/x").read() == b"abc"
    assert client.stream("GET", "/x").read() == b"abc"
    assert server.connections == 2


def test_an_older_daemon_is_asked_again_in_its_own_version(serve: Serve) -> None:
    def script(head: bytes) -> bytes:
        if b"/v1.51/" in head:
            return _reply(b'{"message":"client version 1.51 is too new"}', b"400 Bad Request", b"Api-Version: 1.41\r\n")
        return _reply(b"{}", extra=b"Api-Version: 1.41\r\n")

    client, server = serve(script)
    assert client.call("POST", "/containers/create", body={}) == {}
    assert client.version == "1.41"
    client.call("GET", "/info")
    assert [request.split()[1] for request in server.requests] == [b"/v1.51/containers/create", b"/v1.41/containers/create", b"/v1.41/info"]


def test_the_daemons_message_becomes_the_error(serve: Serve) -> None:
    client, _ = serve(lambda head: _reply(b'{"message":"No such container: x"}', b"404 Not Found"))
    with pytest.raises(DaemonError) as caught:
        client.call("GET", "/containers/x/json")
    assert str(caught.value) == "Error response from daemon: No such container: x" and caught.value.status == 404


@pytest.mark.parametrize("body", [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nabc",
                                  b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n"])  # fmt: skip
def test_a_cut_off_answer_is_an_error(serve: Serve, body: bytes) -> None:
    client, _ = serve(lambda head: body)
    with pytest.raises(CliError, match="in the middle"):
        client.call("GET", "/x")


def test_what_is_no_http_is_refused(serve: Serve) -> None:
    client, _ = serve(lambda head: b"SSH-2.0-x\r\nConnection: close\r\n\r\n")
    with pytest.raises(CliError, match="does not speak HTTP"):
        client.call("GET", "/x")


def test_hijack_gives_left_over_bytes(serve: Serve) -> None:
    client, server = serve(lambda head: b"HTTP/1.1 101 UPGRADED\r\nContent-Type: x/y\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly")
    sock, left, kind = client.hijack("/containers/x/attach", {"stream": True})
    data = left
    while len(data) < 5:
        data += sock.recv(10)
    sock.close()
    assert data == b"early" and kind == "x/y"
    assert b"Upgrade: tcp" in server.requests[0]


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"Cannot connect to the Tare daemon at unix://.*Is the tare daemon running"):
        Client(f"unix://{tmp_path}/none").call("GET", "/x")


def test_quoting() -> None:
    assert quote("a/b c?d", slash=False) == "a%2Fb%20c%3Fd" and quote("../x") == "../x"
    assert query_string({"a": "", "b": 0, "c": False}) == "b=0&c=0"


def _frame(stream: int, data: bytes) -> bytes:
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


@pytest.mark.parametrize("step", [1, 3, 8, 11, 1000])
def test_demultiplexer_in_pieces_of_any_size(tmp_path: Path, step: int) -> None:
    out, err = (os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out", "err"))
    data = _frame(1, b"one") + _frame(2, b"two") + _frame(1, b"") + _frame(1, b"three" * 50) + _frame(2, b"x")
    demultiplexer = Demultiplexer(out, err)
    for offset in range(0, len(data), step):
        demultiplexer.feed(memoryview(data[offset : offset + step]))
    os.close(out)
    os.close(err)
    assert (tmp_path / "out").read_bytes() == b"one" + b"three" * 50
    assert (tmp_path / "err").read_bytes() == b"twox"


def test_demultiplexer_refuses_what_is_no_frame() -> None:
    with pytest.raises(CliError, match="unrecognized stream"):
        Demultiplexer().feed(memoryview(b"\x09abcdefghijk"))


def test_many_small_frames_at_once(tmp_path: Path) -> None:
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    Demultiplexer(out, out).feed(memoryview(_frame(1, b"ab") * 5000))
    os.close(out)
    assert (tmp_path / "out").read_bytes() == b"ab" * 5000


def test_carrier_half_closes_and_goes_on_reading(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    source = tmp_path / "in"
    payload = os.urandom(3 << 20)
    source.write_bytes(payload)
    received = bytearray()

    def echo() -> None:
        while data := theirs.recv(65536):
            received.extend(data)
        theirs.sendall(_frame(1, b"after the end"))
        theirs.close()

    thread = threading.Thread(target=echo)
    thread.start()
    out = bytearray()
    fd = os.open(source, os.O_RDONLY)
    carrier = Carrier(ours, b"", multiplexed=True, stdin=fd)
    carrier._feed = lambda view: out.extend(view)
    carrier.run()
    thread.join()
    os.close(fd)
    ours.close()
    assert bytes(received) == payload and bytes(out).endswith(b"after the end")


def test_carrier_does_not_lock_up_when_both_sides_are_full(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    source = tmp_path / "in"
    source.write_bytes(b"x" * (4 << 20))
    count = 0

    def cat() -> None:
        while data := theirs.recv(65536):
            theirs.sendall(data)
        theirs.close()

    def feed(view: memoryview) -> None:
        nonlocal count
        count += len(view)

    thread = threading.Thread(target=cat)
    thread.start()
    fd = os.open(source, os.O_RDONLY)
    carrier = Carrier(ours, b"", multiplexed=False, stdin=fd)
    carrier._feed = feed
    carrier.run()
    thread.join()
    os.close(fd)
    ours.close()
    assert count == 4 << 20


def test_detach_keys() -> None:
    assert parse_detach_keys("") == b"\x10\x11" and parse_detach_keys("a,ctrl-@,ctrl-[") == b"a\x00\x1b"
    with pytest.raises(CliError, match="invalid detach keys"):
        parse_detach_keys("ctrl-p,foo")
    escape = Escape(b"\x10\x11")
    assert escape.scan(b"ab\x10") == (b"ab", False)
    assert escape.scan(b"c") == (b"\x10c", False)
    assert escape.scan(b"\x10\x10\x11z") == (b"\x10", True)
    assert Escape(b"a").scan(b"xay") == (b"x", True)
