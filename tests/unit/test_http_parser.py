"""The request parser: whatever way the bytes are cut, the same requests; and what must be refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.http.parser import MAX_HEAD, ProtocolError, RequestParser

STREAM = (
    b"POST /a?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"
    b"\r\nGET /b HTTP/1.1\r\nhost:h\r\nX-A: 1\r\nx-a:\t2 \r\n\r\n"
    b"PUT /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
    b"GET /d HTTP/1.0\r\n\r\n"
)
EXPECTED = [("POST", "/a?x=1", b"hello"), ("GET", "/b", b""), ("PUT", "/c", b"abc0123456789"), ("GET", "/d", b"")]


def run(pieces: list[bytes]) -> list[tuple[str, str, bytes]]:
    parser = RequestParser()
    found: list[tuple[str, str, bytes]] = []
    head, body = None, b""
    for piece in pieces:
        parser.feed(piece)
        while True:
            if head is None:
                head = parser.next_head()
                if head is None:
                    break
                body = b""
            data = parser.next_data()
            if data is None:
                break
            if data:
                body += data
                continue
            found.append((head.method, head.target, body))
            head = None
    return found


@pytest.mark.parametrize("cut", range(len(STREAM)))
def test_split_at_every_byte(cut: int) -> None:
    assert run([STREAM[:cut], STREAM[cut:]]) == EXPECTED


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_any_cuts(cuts: list[int]) -> None:
    marks = sorted({0, len(STREAM), *cuts})
    assert run([STREAM[a:b] for a, b in pairwise(marks)]) == EXPECTED


@given(st.binary(max_size=300))
def test_garbage_never_fails_otherwise(data: bytes) -> None:
    for prefix in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"):
        try:
            run([prefix + data])
        except ProtocolError as error:
            assert 400 <= error.status < 600


def head(*lines: bytes, first: bytes = b"POST / HTTP/1.1", host: bool = True) -> bytes:
    return b"\r\n".join([first, *([b"Host: x"] if host else []), *lines, b"", b""])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(b"Content-Length: 3", b"Transfer-Encoding: chunked"), 400),
        (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400),
        (head(b"Transfer-Encoding: gzip, chunked"), 501),
        (head(b"Transfer-Encoding: xchunked"), 501),
        (head(b"Content-Length: 3", b"Content-Length: 3"), 400),
        (head(b"Content-Length: 3, 3"), 400),
        (head(b"Content-Length: +3"), 400),
        (head(b"Content-Length: 0x3"), 400),
        (head(b"Content-Length: -1"), 400),
        (head(b"Content-Length:"), 400),
        (head("Content-Length: ٣".encode()), 400),
        (head(b"Content-Length : 3"), 400),
        (head(b" folded: 1"), 400),
        (head(b"A: 1", b" more"), 400),
        (head(b"A: 1\n"), 400),
        (head(b"A: a\rb"), 400),
        (head(b"A: a\x00b"), 400),
        (head(b"no colon"), 400),
        (head(b": empty"), 400),
        (head(b"Host: y"), 400),
        (head(host=False), 400),
        (head(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"), 400),
        (head(first=b"GET / HTTP/2.0"), 505),
        (head(first=b"GET /"), 400),
        (head(first=b"GET  / HTTP/1.1"), 400),
        (head(first=b"GET /a b HTTP/1.1"), 400),
        (head(first=b"G\x01T / HTTP/1.1"), 400),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"\x16\x03\x01", 400),
        (b"\r\n" * 10, 400),
        (head(b"Expect: magic"), 417),
        (head(*[b"A: %d" % i for i in range(300)]), 431),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * (MAX_HEAD + 10), 431),
    ],
)
def test_refused(data: bytes, status: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        run([data])
    assert caught.value.status == status


@pytest.mark.parametrize(
    "body",
    [
        b"-1\r\n",
        b"0x3\r\nabc",
        b"3 3\r\n",
        b"\r\n",
        b"3\nabc",
        b"3\r\nabcX\r\n",
        b"f" * 20 + b"\r\n",
        b"3;" + b"x" * 2000,
        b"0\r\nbad\r\n\r\n",
    ],
)
def test_bad_chunks(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        run([head(b"Transfer-Encoding: chunked") + body])


def test_rest_after_upgrade() -> None:
    parser = RequestParser()
    parser.feed(head(b"Connection: Upgrade", b"Upgrade: tcp", b"Content-Length: 2") + b"{}early")
    assert parser.next_head() is not None
    assert parser.next_data() == b"{}"
    assert parser.next_data() == b""
    assert parser.take_rest() == b"early"
