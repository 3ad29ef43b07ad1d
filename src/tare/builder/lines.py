"""HTTP connections that another thread can end at any moment: while a name is looked up, while a server does not answer, while it sends.

A socket is known from before it is connected, by a descriptor of its own, since TLS takes the first one over. A look-up cannot be
ended: it goes on in a thread of its own, and nobody waits for it any more.
"""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

_Addresses = Sequence[tuple[int, int, int, str, Any]]


class Line:
    """The connections of one transfer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[socket.socket] = []
        self._waiting: list[queue.SimpleQueue[_Addresses | OSError]] = []
        self._ended = False

    def opener(self) -> urllib.request.OpenerDirector:
        line = self

        class Plain(http.client.HTTPConnection):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self._create_connection = line.dial

        class Secure(http.client.HTTPSConnection):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self._create_connection = line.dial

        class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
            def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Plain, request)

            def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
                return self.do_open(Secure, request)

        opener = urllib.request.OpenerDirector()  # nothing but HTTP, wherever a server leads to
        for handler in (urllib.request.ProxyHandler, Handler, urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler):
            opener.add_handler(handler())
        opener.add_handler(urllib.request.HTTPErrorProcessor())
        opener.add_handler(urllib.request.UnknownHandler())
        return opener

    def dial(self, address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        """A connection, as ``socket.create_connection`` makes it."""
        failure = OSError(f"no address of {address[0]}")
        for family, kind, protocol, _, place in self._look_up(*address):
            sock = socket.socket(family, kind, protocol)
            try:
                self._watch(sock)
                sock.settimeout(timeout)
                sock.connect(place)
                return sock
            except OSError as error:
                sock.close()
                failure = error
                if self._ended:
                    break
        raise failure

    def _look_up(self, host: str, port: int) -> _Addresses:
        answers: queue.SimpleQueue[_Addresses | OSError] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                answers.put(error if isinstance(error, OSError) else OSError(f"{host!r} is no host name"))

        with self._lock:
            self._check()
            self._waiting.append(answers)
        threading.Thread(target=ask, name="look-up", daemon=True).start()
        found = answers.get()
        if isinstance(found, OSError):
            raise found
        return found

    def _watch(self, sock: socket.socket) -> None:
        with self._lock:
            self._check()
            self._known.append(sock.dup())

    def _check(self) -> None:
        if self._ended:
            raise ConnectionAbortedError("the transfer was ended")

    def hang_up(self) -> None:
        """End everything, from any thread; what begins later fails at once."""
        with self._lock:
            self._ended = True
            for sock in self._known:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for answers in self._waiting:
                answers.put(ConnectionAbortedError("the transfer was ended"))

    def close(self) -> None:
        """The transfer is over."""
        with self._lock:
            self._ended = True
            for sock in self._known:
                sock.close()
            self._known.clear()
