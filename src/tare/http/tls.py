"""TLS under the HTTP server, with half-close: an asyncio transport made of ``ssl.SSLObject`` over memory buffers.

Why not asyncio's own: its SSLProtocol tears the whole connection down when the peer sends close_notify, whatever the application
answers. Docker's client half-closes its input as a matter of course (``docker run -i < file``) and then lost the output. Here close_notify
from the peer is the end of its input and nothing else; ours (``write_eof``) ends only our output.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

log = logging.getLogger("tare.http.tls")

HANDSHAKE_TIMEOUT = 10.0
READ_SIZE = 64 * 1024
_PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS 1.2+, ALPN http/1.1 only; with ``client_ca`` a client must show a certificate signed by it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """Protocol of the raw connection below, transport of the HTTP connection above."""

    def __init__(self, loop: asyncio.AbstractEventLoop, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        super().__init__()
        self._loop = loop
        self._make_protocol = make_protocol
        self._context = context
        self._protocol: asyncio.Protocol | None = None
        self._raw: asyncio.Transport = cast(asyncio.Transport, None)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._timer: asyncio.TimerHandle | None = None
        self._paused = self._raw_eof = self._eof_told = self._eof_sent = self._closing = self._seen_data = False

    # -- raw side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT, self._raw.abort)

    def data_received(self, data: bytes) -> None:
        if not self._seen_data:
            self._seen_data = True
            if data[:1].isalpha():
                self._raw.write(_PLAIN_HTTP)
                self._raw.close()
                return
        self._incoming.write(data)
        if self._protocol is None:
            self._handshake()
        if self._protocol is not None:
            self._read()

    def eof_received(self) -> bool:
        self._raw_eof = True
        if self._protocol is None:
            return False
        if not self._paused:
            self._tell_eof()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        if self._protocol is not None:
            self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def _handshake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            log.debug("TLS handshake failed: %s", error)
            self._flush()  # the alert
            self._raw.close()
            return
        self._flush()
        assert self._timer is not None
        self._timer.cancel()
        self._protocol = self._make_protocol()
        self._protocol.connection_made(self)

    def _read(self) -> None:
        """Hand decrypted bytes up until there are no more or reading is paused."""
        assert self._protocol is not None
        while not self._paused and not self._eof_told and not self._raw.is_closing():
            try:
                data = self._tls.read(READ_SIZE)
            except ssl.SSLWantReadError:
                if self._raw_eof:
                    self._tell_eof()
                break
            except ssl.SSLZeroReturnError:
                self._tell_eof()
                break
            except ssl.SSLError as error:
                log.debug("TLS connection failed: %s", error)
                self._flush()
                self._raw.abort()
                return
            if not data:
                self._tell_eof()
                break
            self._protocol.data_received(data)
        self._flush()

    def _tell_eof(self) -> None:
        if not self._eof_told and self._protocol is not None:
            self._eof_told = True
            self._protocol.eof_received()  # whatever it answers: the peer ended its own direction only

    def _flush(self) -> None:
        if self._outgoing.pending and not self._raw.is_closing():
            self._raw.write(self._outgoing.read())

    # -- asyncio.Transport

    def write(self, data: Any) -> None:
        if self._eof_sent:
            raise RuntimeError("write after write_eof")
        if not data or self._closing:
            return
        self._tls.write(data)
        self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify; the peer's direction stays open."""
        if self._eof_sent or self._raw.is_closing():
            return
        self._eof_sent = True
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # "want read": the peer has not sent its own yet, and need not
        self._flush()

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            self._raw.close()

    def abort(self) -> None:
        self._closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._closing or self._raw.is_closing()

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        if not self._paused:
            self._paused = True
            if not self._raw_eof:
                self._raw.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self._raw_eof:
                self._raw.resume_reading()
            self._loop.call_soon(self._read)  # what lies decrypted or buffered must not wait for the next packet

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._context
        if name == "ssl_object":
            return self._tls
        if name == "peercert":
            return self._tls.getpeercert()
        return self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._raw.get_write_buffer_limits()
