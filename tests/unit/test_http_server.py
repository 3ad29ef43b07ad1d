"""The server on real sockets: keep-alive, pipelining, half-close, streaming, hijack, TLS, WebSocket, shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import stat
import struct
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tare.http import websocket
from tare.http.listen import ListenError
from tare.http.message import ClientDisconnected, Request, RequestError, Response
from tare.http.server import Server
from tare.http.tls import server_context

Handler = Callable[[Request], Awaitable[Response | None]]


@contextlib.asynccontextmanager
async def serving(handler: Handler, path: Path, **options: float) -> AsyncIterator[Server]:
    server = Server(handler, {"Server": "Test"}, **options)
    await server.listen(f"unix://{path}")
    try:
        yield server
    finally:
        await server.close(timeout=2)


async def ok(request: Request) -> Response:
    return Response(200, f"{request.method} {request.path}".encode(), "text/plain")


async def echo(request: Request) -> Response:
    return Response(200, await request.read(), "text/plain")


async def exchange(path: Path, data: bytes, half_close: bool = True) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    if half_close:
        writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


def bodies(raw: bytes) -> list[bytes]:
    """Bodies of a sequence of Content-Length delimited responses."""
    result = []
    while raw:
        head, _, raw = raw.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        result.append(raw[:length])
        raw = raw[length:]
    return result


async def test_half_closed_client_gets_its_reply(tmp_path: Path) -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(0.05)
        assert not request.gone
        return Response(200, b"late", "text/plain")

    async with serving(slow, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nServer: Test\r\nDate: ")
    assert answer.endswith(b"\r\n\r\nlate")


async def test_pipelining_in_order_with_bodies(tmp_path: Path) -> None:
    async def handler(request: Request) -> Response:
        body = await request.read()
        await asyncio.sleep(0.02 if request.path == "/1" else 0)
        return Response(200, request.path.encode() + body, "text/plain")

    data = (
        b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        b"POST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        b"GET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    async with serving(handler, tmp_path / "s"):
        assert bodies(await exchange(tmp_path / "s", data)) == [b"/1abc", b"/2de", b"/3"]


async def test_unread_body_is_skipped(tmp_path: Path) -> None:
    body = b"x" * 70_000
    data = b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%bGET /2 HTTP/1.1\r\nHost: x\r\n\r\n" % (len(body), body)
    async with serving(ok, tmp_path / "s"):
        assert bodies(await exchange(tmp_path / "s", data)) == [b"POST /1", b"GET /2"]


async def test_large_unread_body_closes_but_answers(tmp_path: Path) -> None:
    async with serving(ok, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_000_000)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert b"Connection: close" in answer and answer.endswith(b"POST /1")


async def test_expect_continue(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        writer.write_eof()
        assert (await reader.read()).endswith(b"\r\n\r\nhi")
        writer.close()


async def test_body_limits(tmp_path: Path) -> None:
    async def small(request: Request) -> Response:
        return Response(200, await request.read(10))

    async with serving(small, tmp_path / "s"):
        declared = await exchange(tmp_path / "s", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n" + b"x" * 11)
        chunked = await exchange(
            tmp_path / "s", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n"
        )
    assert declared.startswith(b"HTTP/1.1 413 ") and chunked.startswith(b"HTTP/1.1 413 ")


async def test_truncated_body_is_an_error(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nxx")
    assert answer.startswith(b"HTTP/1.1 400 ") and b"unexpected EOF" in answer


async def test_smuggling_is_refused_and_closed(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "s"):
        answer = await exchange(
            tmp_path / "s",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /x HTTP/1.1\r\nHost: x\r\n\r\n",
        )
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 400 ")
        assert (await exchange(tmp_path / "s", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")).startswith(b"HTTP/1.1 505 ")
        assert (await exchange(tmp_path / "s", b"\x16\x03\x01\x02\x00", half_close=False)).startswith(b"HTTP/1.1 400 ")


async def test_huge_header(tmp_path: Path) -> None:
    async with serving(ok, tmp_path / "s"):
        fits = b"GET / HTTP/1.1\r\nHost: x\r\nX-Registry-Auth: " + b"a" * 900_000 + b"\r\n\r\n"
        assert (await exchange(tmp_path / "s", fits)).startswith(b"HTTP/1.1 200 ")
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 2_000_000)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 431 ")
        writer.close()


async def test_head_and_http10(tmp_path: Path) -> None:
    async def stream(request: Request) -> None:
        out = await request.stream(content_type="text/plain")
        await out.write(b"abc")

    async with serving(ok, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", b"HEAD /p HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Content-Length: 7\r\n" in answer and answer.endswith(b"\r\n\r\n")
        answer = await exchange(tmp_path / "s", b"GET /p HTTP/1.0\r\n\r\n", half_close=False)
        assert b"Connection: close" in answer
    async with serving(stream, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", b"GET /p HTTP/1.0\r\n\r\n", half_close=False)
        assert b"chunked" not in answer and answer.endswith(b"\r\n\r\nabc")


async def test_stream_flushes_head_and_sees_the_client_leave(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.stream()
        try:
            async with request.until_disconnected():
                await asyncio.sleep(60)
        except ClientDisconnected:
            left.set()

    async with serving(handler, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Transfer-Encoding: chunked" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        writer.write_eof()
        await asyncio.sleep(0.05)
        assert not left.is_set()  # half-closed is not gone
        writer.close()
        await asyncio.wait_for(left.wait(), 5)


async def test_tcp_reset_is_gone(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def handler(request: Request) -> None:
        await request.stream()
        await request.disconnected()
        left.set()

    server = Server(handler)
    (address,) = await server.listen("tcp://127.0.0.1:0")
    sock = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.05)
    sock.shutdown(socket.SHUT_WR)
    await asyncio.sleep(0.05)
    assert not left.is_set()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    await asyncio.wait_for(left.wait(), 5)
    await server.close(1)


async def test_handler_outlives_its_client(tmp_path: Path) -> None:
    done = asyncio.Event()

    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.1)
        done.set()
        return Response()

    async with serving(handler, tmp_path / "s"):
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(b"POST /start HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()
        await asyncio.wait_for(done.wait(), 5)


async def test_failing_stream_is_cut_off(tmp_path: Path) -> None:
    async def handler(request: Request) -> None:
        out = await request.stream()
        await out.write(b"part")
        raise RuntimeError("broken")

    async with serving(handler, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert not answer.endswith(b"0\r\n\r\n")


async def test_back_pressure_bounds_memory(tmp_path: Path) -> None:
    sent = 0

    async def handler(request: Request) -> None:
        nonlocal sent
        out = await request.stream()
        for _ in range(1000):
            await out.write(b"x" * 65536)
            sent += 65536

    async with serving(handler, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"), limit=65536)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.2)
        assert sent < 4_000_000
        total = 0
        while data := await reader.read(1 << 20):
            total += len(data)
            if total > 65_536_000:
                break
        writer.close()
        assert sent == 65_536_000


async def test_upload_back_pressure(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def handler(request: Request) -> Response:
        await go.wait()
        total = 0
        async for data in request.chunks():
            total += len(data)
        return Response(200, str(total).encode())

    async with serving(handler, tmp_path / "s"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(tmp_path / "s"))
        sock.setblocking(False)
        sock.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        loop = asyncio.get_running_loop()
        upload = asyncio.create_task(loop.sock_sendall(sock, b"x" * 20_000_000))
        await asyncio.sleep(0.2)
        assert not upload.done()
        go.set()
        await upload
        assert (await loop.sock_recv(sock, 65536)).endswith(b"20000000")
        sock.close()


@pytest.mark.parametrize("pieces", [1, 2])
async def test_hijack_gives_the_socket_and_the_rest(tmp_path: Path, pieces: int) -> None:
    async def handler(request: Request) -> None:
        assert await request.read() == b"{}"
        hijacked = await request.hijack(b"HTTP/1.1 101 UPGRADED\r\n\r\n")

        def blocking() -> None:  # as another process would use it
            sock = hijacked.sock
            sock.setblocking(True)
            data = hijacked.rest
            while piece := sock.recv(65536):
                data += piece
            sock.sendall(b"got " + data)
            sock.shutdown(socket.SHUT_WR)
            sock.close()

        await asyncio.to_thread(blocking)

    request = b"POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}"
    async with serving(handler, tmp_path / "s") as server:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        if pieces == 1:
            writer.write(request + b"early ")
        else:
            writer.write(request)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 101 UPGRADED\r\n\r\n"
            writer.write(b"early ")
        await asyncio.sleep(0.02)
        writer.write(b"late")
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.endswith(b"got early late")
        writer.close()
        assert server.connection_count == 0


async def test_shutdown_ends_watchers_and_waits_for_workers(tmp_path: Path) -> None:
    finished = []

    async def handler(request: Request) -> Response | None:
        if request.path == "/watch":
            await request.stream()
            await request.disconnected()
            finished.append("watch")
            return None
        await asyncio.sleep(0.1)
        finished.append("work")
        return Response()

    server = Server(handler)
    path = tmp_path / "s"
    await server.listen(f"unix://{path}")
    tasks = [
        asyncio.create_task(exchange(path, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target, half_close=False))
        for target in (b"/watch", b"/work")
    ]
    await asyncio.sleep(0.05)
    await server.close(5)
    assert sorted(finished) == ["watch", "work"]
    assert (await tasks[0]).endswith(b"0\r\n\r\n")
    assert (await tasks[1]).startswith(b"HTTP/1.1 200")
    assert not path.exists()


async def test_header_timeout(tmp_path: Path) -> None:
    async with serving(ok, tmp_path / "s", header_timeout=0.1):
        assert (await exchange(tmp_path / "s", b"GET / HT", half_close=False)).startswith(b"HTTP/1.1 408 ")
        assert await exchange(tmp_path / "s", b"", half_close=False) == b""


async def test_unix_socket_mode_stale_and_busy(tmp_path: Path) -> None:
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    async with serving(ok, path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        other = Server(ok)
        with pytest.raises(ListenError, match="another process is listening"):
            await other.listen(f"unix://{path}")
        await other.close(0)
    path.write_text("data")
    other = Server(ok)
    with pytest.raises(ListenError, match="not a socket"):
        await other.listen(f"unix://{path}")
    assert path.read_text() == "data"
    for bad in ("tcp://1.2.3.4:99999", "ftp://x", "nonsense", "unix://relative", "fd://"):
        with pytest.raises(ListenError):
            await other.listen(bad)
    await other.close(0)


# -- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tls")
    cert, key = root / "cert.pem", root / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def tls_client(cert: Path, port: int) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(cert))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1")


def half_close(sock: ssl.SSLSocket) -> None:
    """Send close_notify as Go's CloseWrite does, and keep on reading."""
    sock.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError, BlockingIOError):
        sock._sslobj.shutdown()  # type: ignore[attr-defined]
    sock.settimeout(10)


def read_all(sock: ssl.SSLSocket) -> bytes:
    data = b""
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while piece := sock._sslobj.read(65536):  # type: ignore[attr-defined]
            data += piece
    return data


async def test_tls_half_close_keeps_the_output(certificate: tuple[Path, Path]) -> None:
    """Regression: asyncio's own TLS drops everything after the peer's close_notify."""

    async def handler(request: Request) -> Response | None:
        if request.path == "/plain":
            await asyncio.sleep(0.05)
            return Response(200, b"late", "text/plain")
        hijacked = await request.hijack(b"HTTP/1.1 101 UPGRADED\r\n\r\n")

        def work() -> None:
            sock = hijacked.sock
            sock.setblocking(True)
            total = len(hijacked.rest)
            while piece := sock.recv(65536):
                total += len(piece)
            sock.sendall(b"y" * 3_000_000 + str(total).encode())
            sock.shutdown(socket.SHUT_WR)
            sock.close()

        await asyncio.to_thread(work)
        return None

    server = Server(handler)
    (address,) = await server.listen("tcp://127.0.0.1:0", context=server_context(*certificate))
    port = int(address.rpartition(":")[2])

    def plain() -> bytes:
        with tls_client(certificate[0], port) as sock:
            assert sock.selected_alpn_protocol() == "http/1.1"
            sock.sendall(b"GET /plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            half_close(sock)
            return read_all(sock)

    def attach() -> bytes:
        with tls_client(certificate[0], port) as sock:
            sock.sendall(b"POST /attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly")
            assert sock.recv(1000) == b"HTTP/1.1 101 UPGRADED\r\n\r\n"  # Python's shutdown would stumble over it
            sock.sendall(b"x" * 2_000_000)
            half_close(sock)
            return read_all(sock)

    assert (await asyncio.to_thread(plain)).endswith(b"\r\n\r\nlate")
    answer = await asyncio.to_thread(attach)
    assert answer.endswith(b"y2000005") and len(answer) > 3_000_000

    def confused() -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return sock.recv(65536)

    assert b"Client sent an HTTP request to an HTTPS server" in await asyncio.to_thread(confused)
    await server.close(2)


# -- WebSocket


def masked(opcode: int, payload: bytes, final: bool = True) -> bytes:
    key = os.urandom(4)
    size = len(payload)
    head = bytes([(0x80 if final else 0) | opcode])
    head += bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + struct.pack(">H", size)
    return head + key + websocket.unmask(payload, key)


WS_HEAD = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def test_websocket(tmp_path: Path) -> None:
    async def handler(request: Request) -> None:
        hijacked = await websocket.accept(request)

        def work() -> None:
            sock = hijacked.sock
            sock.setblocking(True)
            data = b""
            while len(data) < 11:
                data += sock.recv(100)
            sock.sendall(b"got " + data)
            sock.close()

        await asyncio.to_thread(work)

    async with serving(handler, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(WS_HEAD + b"\r\n" + masked(2, b"hello", final=False) + masked(9, b"p") + masked(0, b" wor") + masked(1, b"ld"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        rest = await asyncio.wait_for(reader.read(), 5)
        assert rest == websocket.frame(10, b"p") + websocket.frame(2, b"got hello world") + websocket.frame(8, struct.pack(">H", 1000))
        writer.close()
        refused = await exchange(tmp_path / "s", WS_HEAD + b"Origin: http://evil.example\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 403 ")


async def test_websocket_refuses_broken_frames(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def handler(request: Request) -> None:
        hijacked = await websocket.accept(request)
        assert await asyncio.get_running_loop().sock_recv(hijacked.sock, 10) == b""
        hijacked.sock.close()
        ended.set()

    async with serving(handler, tmp_path / "s"):
        answer = await exchange(tmp_path / "s", WS_HEAD + b"\r\n" + websocket.frame(2, b"unmasked"))
        assert answer.endswith(websocket.frame(8, struct.pack(">H", 1002)))
        await asyncio.wait_for(ended.wait(), 5)


async def test_request_error_is_answered(tmp_path: Path) -> None:
    async def handler(request: Request) -> Response:
        raise RequestError(400, "bad thing")

    async with serving(handler, tmp_path / "s"):
        assert b"bad thing" in await exchange(tmp_path / "s", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize("chunked", [True, False])
async def test_the_rest_of_a_body_comes_while_its_beginning_is_taken(tmp_path: Path, chunked: bool) -> None:
    taken: list[bytes] = []
    begun, resume = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def sink(piece: bytes | memoryview) -> None:
        taken.append(bytes(piece))
        loop.call_soon_threadsafe(begun.set)
        resume.wait(5)

    async def handler(request: Request) -> Response:
        with ThreadPoolExecutor(1) as pool:
            await request.receive(sink, pool)
        return Response(200, b"taken", "text/plain")

    framing, first, rest = (
        ("Transfer-Encoding: chunked", b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n") if chunked else ("Content-Length: 2", b"a", b"b")
    )
    async with serving(handler, tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(f"PUT / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode() + first)
        await asyncio.wait_for(begun.wait(), 5)
        writer.write(rest)
        await asyncio.sleep(0.1)  # the server's loop reads it
        resume.set()
        assert (await asyncio.wait_for(reader.readuntil(b"taken"), 5)).startswith(b"HTTP/1.1 200 OK")
        writer.close()
    assert b"".join(taken) == b"ab"
