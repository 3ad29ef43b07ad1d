"""The keeper's plumbing: from the container's output to the log and to attached clients, and from clients to its standard input.

    container ── pipe or terminal ──► Output ──► ContainerLog
                                        ├──────► Attachment ──► client socket
    container ◄─ pipe or terminal ──  Input ◄── Attachment ◄── client socket

Invariants:
- Nothing grows without bound. An attachment that has more than ``QUEUE_LIMIT`` unsent bytes stops the reading of output
  (back-pressure reaches the container, as with Docker); input that the container does not read stops the reading of
  clients.
- A client that takes nothing for ``STALL_SECONDS`` while output waits for it is dropped, so that it cannot stop a container for ever.
- End of a client's input does not mean that it has gone: only a hang-up of both directions or a failed write does.
- At the end an attachment is flushed, half-closed, read until the client closes (a close with unread input would be a
  reset and could destroy the end of the output), then closed. A client that has ended its input long before still gets all of it.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from tare.runtime.logfile import ContainerLog
from tare.runtime.reactor import HANG_UP, READ, WRITE, Reactor, Timer

CHUNK = 65536
QUEUE_LIMIT = 256 * 1024
CORK_LIMIT = 1024 * 1024
INPUT_LIMIT = 64 * 1024
STALL_SECONDS = 600.0
LINGER_SECONDS = 10.0

STREAM_NUMBERS = {"stdout": 1, "stderr": 2}


class DetachKeys:
    """Recognizes the key sequence by which a client leaves; keys of an incomplete sequence are held back and later passed on."""

    __slots__ = ("keys", "matched")

    def __init__(self, keys: bytes) -> None:
        self.keys = keys
        self.matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(what to pass on, whether the client detaches)."""
        keys = self.keys
        if not self.matched and data.find(keys[0]) < 0:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == keys[self.matched]:
                self.matched += 1
                if self.matched == len(keys):
                    return bytes(passed), True
                continue
            passed += keys[: self.matched]
            self.matched = 1 if byte == keys[0] else 0
            if not self.matched:
                passed.append(byte)
        return bytes(passed), False


class Input:
    """The container's standard input. Takes data from any number of attachments; ``close`` waits until all is written."""

    def __init__(self, reactor: Reactor, fd: int, is_terminal: bool, drained: Callable[[], None]) -> None:
        self._reactor = reactor
        self.fd = fd
        self._is_terminal = is_terminal
        self._drained = drained
        self._queue: deque[bytes] = deque()
        self._pending = 0
        self._closing = False
        self.dead = False
        if not is_terminal:
            os.set_blocking(fd, False)

    @property
    def full(self) -> bool:
        return self._pending >= INPUT_LIMIT and not self.dead

    @property
    def busy(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._queue) and not self.dead

    def write(self, data: bytes) -> None:
        if self.dead or self._closing or not data:
            return
        self._queue.append(data)
        self._pending += len(data)
        self._flush()

    def close(self) -> None:
        """No more input: the reader sees the end after what is queued. A terminal stays open."""
        if not self._is_terminal:
            self._closing = True
            self._flush()

    def _flush(self) -> None:
        while self._queue and not self.dead:
            data = self._queue[0]
            try:
                written = os.write(self.fd, data)
            except BlockingIOError:
                break
            except OSError:
                self._die()
                return
            self._pending -= written
            if written == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = data[written:]
        if self.dead:
            return
        if self._queue:
            self._watch_writable(True)
            return
        self._watch_writable(False)
        if self._closing:
            self._die()

    def _watch_writable(self, wanted: bool) -> None:
        """A terminal's descriptor is watched by its Output; here a duplicate is, so that each has its own registration."""
        if wanted:
            self._reactor.watch(self.fd, WRITE, self._on_writable)
        else:
            self._reactor.forget(self.fd)

    def _on_writable(self, events: int) -> None:
        was_full = self.full
        self._flush()
        if was_full and not self.full:
            self._drained()

    def _die(self) -> None:
        if not self.dead:
            self.dead = True
            self._queue.clear()
            self._pending = 0
            self._reactor.forget(self.fd)
            os.close(self.fd)
            self._drained()

    def destroy(self) -> None:
        """Close at once."""
        self._die()


class Attachment:
    """One client."""

    def __init__(
        self,
        stdio: Stdio,
        number: int,
        sock: socket.socket,
        *,
        stdin: bool,
        streams: tuple[bool, bool],
        multiplexed: bool,
        detach_keys: bytes = b"",
        corked: bool = False,
        owner: int = 0,
    ) -> None:
        self.stdio = stdio
        self.number = number
        self.sock = sock
        self.stdin = stdin
        self.streams = streams
        self.multiplexed = multiplexed
        self.corked = corked
        self.owner = owner
        """Which control connection corked it: when that one ends, nobody can uncork."""
        self._detach = DetachKeys(detach_keys) if detach_keys else None
        self._queue: deque[bytes | memoryview] = deque()
        self._pending = 0
        self._ending = False
        self._read_all = False
        """Whether the client's input has been read to its end."""
        self._hung_up = False
        self._events = -1
        self._stall: Timer | None = None
        sock.setblocking(False)
        self._update()

    # Output

    @property
    def full(self) -> bool:
        return self._pending > (CORK_LIMIT if self.corked else QUEUE_LIMIT)

    def feed(self, stream: int, data: bytes) -> None:
        """Output of the container."""
        if not self.streams[stream - 1] or self._ending:
            return
        if self.multiplexed:
            header = bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big")
            parts: list[bytes] = [header, data]
        else:
            parts = [data]
        size = len(data) + 8 * self.multiplexed
        sent = 0
        if not self._queue and not self.corked:
            try:
                sent = self.sock.sendmsg(parts, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass
            except OSError:
                self.drop()
                return
        if sent == size:
            return
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
                continue
            rest = memoryview(part)[sent:] if sent else part
            sent = 0
            self._queue.append(rest)
            self._pending += len(rest)
        self._update()

    def uncork(self) -> None:
        if self.corked:
            self.corked = False
            self._flush()

    def _flush(self) -> None:
        progress = False
        while self._queue and not self.corked:
            part = self._queue[0]
            try:
                sent = self.sock.send(part, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self.drop()
                return
            progress = True
            self._pending -= sent
            if sent == len(part):
                self._queue.popleft()
            else:
                self._queue[0] = memoryview(part)[sent:]
        if progress and self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._ending and not self._queue:
            self._half_close()
        self._update()
        if progress and not self.full:
            self.stdio.resume_output()

    # Input

    def take(self, data: bytes) -> bool:
        """Input of the client, also what it sent before it was handed to us. False when it detached."""
        detached = False
        if self._detach is not None:
            data, detached = self._detach.feed(data)
        if self.stdin and self.stdio.input is not None:
            self.stdio.input.write(data)
        if detached:
            self.drop(flush=True)
        return not detached

    def _read(self) -> None:
        try:
            data = self.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self.drop()
            return
        if not data:
            self._read_all = True
        if self._ending:
            if not data and (self._hung_up or not self._queue):
                self.drop()
            else:
                self._update()
            return
        if data:
            self.take(data)
            if self.stdio.input is not None and self.stdio.input.full:
                self._update()
            return
        self._input_ended()
        if self._hung_up:
            self.drop()
        else:
            self._update()

    def _input_ended(self) -> None:
        if self.stdin:
            self.stdin = False
            self.stdio.input_ended()

    # Readiness

    def _update(self) -> None:
        """Tell the reactor what we wait for now."""
        if self.sock.fileno() < 0:
            return
        events = 0
        paused = self.stdio.input is not None and self.stdio.input.full
        if not self._read_all and (self._ending or (self.stdin and not paused)):
            events |= READ
        if self._queue and not self.corked:
            events |= WRITE
            if self._stall is None:
                self._stall = self.stdio.reactor.after(STALL_SECONDS, self.drop)
        if self._hung_up and not events:
            # A hang-up cannot be masked and would be reported without end: look again when input can be taken.
            self.stdio.reactor.forget(self.sock.fileno())
            self._events = -1
        elif events != self._events:
            self._events = events
            self.stdio.reactor.watch(self.sock.fileno(), events, self._on_event)

    def input_drained(self) -> None:
        self._update()

    def _on_event(self, events: int) -> None:
        if events & HANG_UP:
            self._hung_up = True
            if not (events & READ) and not (self.stdin and self.stdio.input is not None and self.stdio.input.full):
                self._input_ended()
                self.drop()
                return
        if events & READ:
            self._read()
        elif self._hung_up:
            self._update()
        if events & WRITE and self.sock.fileno() >= 0:
            self._flush()

    # The end

    def finish(self) -> None:
        """The process has ended: flush, half-close, linger, close."""
        if not self._ending:
            self._ending = True
            self.corked = False
            self._flush()

    def _half_close(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop()
            return
        if self._read_all:
            self.drop()
        elif self._stall is None:
            self._stall = self.stdio.reactor.after(LINGER_SECONDS, self.drop)

    def drop(self, flush: bool = False) -> None:
        """Close now."""
        fd = self.sock.fileno()
        if fd < 0:
            return
        if flush:
            while self._queue:
                try:
                    self.sock.send(self._queue.popleft(), socket.MSG_NOSIGNAL)
                except OSError:
                    break
        if self._stall is not None:
            self._stall.cancel()
        self.stdio.reactor.forget(fd)
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        self._queue.clear()
        self._pending = 0
        self.stdio.detached(self)


class Output:
    """One of the container's output streams."""

    def __init__(self, stdio: Stdio, name: str, fd: int) -> None:
        self.stdio = stdio
        self.name = name
        self.number = STREAM_NUMBERS[name]
        self.fd = fd
        self.ended = False
        self._watched = False
        os.set_blocking(fd, False)
        self.resume()

    def resume(self) -> None:
        if not self._watched and not self.ended:
            self.stdio.reactor.watch(self.fd, READ, self._on_event)
            self._watched = True

    def _pause(self) -> None:
        if self._watched:
            self.stdio.reactor.forget(self.fd)
            self._watched = False

    def _on_event(self, events: int) -> None:
        if self.stdio.output_blocked():
            self._pause()
            return
        self.pump()

    def pump(self) -> bool:
        """Read once and hand on. False when there is nothing now, or never again."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process closed its side of the terminal
            data = b""
        if not data:
            self.close()
            return False
        self.stdio.deliver(self, data)
        return True

    def close(self) -> None:
        if not self.ended:
            self._pause()
            self.ended = True
            os.close(self.fd)
            self.stdio.output_ended()


class Stdio:
    """All connections of one process (a container's first one, or an exec)."""

    def __init__(self, reactor: Reactor, log: ContainerLog | None, stdin_once: bool, tty: bool, on_ended: Callable[[], None]) -> None:
        self.reactor = reactor
        self.log = log
        self.tty = tty
        self.input: Input | None = None
        self.outputs: list[Output] = []
        self.attachments: dict[int, Attachment] = {}
        self._stdin_once = stdin_once
        self._on_ended = on_ended
        self._next_number = 1
        self._finished = False

    def open_input(self, fd: int) -> None:
        """Give the write side of standard input (owned)."""
        self.input = Input(self.reactor, fd, self.tty, self._input_drained)

    def open_output(self, name: str, fd: int) -> None:
        """Give the read side of an output stream (owned)."""
        self.outputs.append(Output(self, name, fd))

    def pipes(self) -> dict[str, int]:
        """Our ends of the process's pipes, by stream."""
        found = {output.name: output.fd for output in self.outputs if not output.ended}
        if self.input is not None and not self.input.dead:
            found["stdin"] = self.input.fd
        return found

    def rest(self) -> dict[str, Any] | None:
        """All that is needed to go on in another worker; None while a client is attached or input waits."""
        if self.attachments or self._finished or (self.input is not None and self.input.busy):
            return None
        return {
            "input": -1 if self.input is None or self.input.dead else self.input.fd,
            "outputs": [(output.name, output.fd) for output in self.outputs if not output.ended],
            "next": self._next_number,
        }

    def wake(self, resting: dict[str, Any]) -> None:
        """Go on from what ``rest`` told."""
        if resting["input"] >= 0:
            self.open_input(resting["input"])
        for name, fd in resting["outputs"]:
            self.open_output(name, fd)
        self._next_number = resting["next"]

    def attach(
        self,
        sock: socket.socket,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        multiplexed: bool,
        prefix: bytes = b"",
        detach_keys: bytes = b"",
        corked: bool = False,
        owner: int = 0,
    ) -> int:
        """Connect a client; returns its number."""
        number = self._next_number
        self._next_number += 1
        attachment = Attachment(
            self,
            number,
            sock,
            stdin=stdin and self.input is not None,
            streams=(stdout or (self.tty and stderr), stderr),
            multiplexed=multiplexed,
            detach_keys=detach_keys,
            corked=corked,
            owner=owner,
        )
        self.attachments[number] = attachment
        if corked and self.log is not None:
            for name in STREAM_NUMBERS:
                pending = self.log.pending(name)
                if pending:
                    attachment.feed(STREAM_NUMBERS[name], pending)
        if prefix and stdin:
            attachment.take(prefix)
        if self._finished:
            attachment.finish()
        return number

    def deliver(self, output: Output, data: bytes) -> None:
        if self.log is not None:
            self.log.write(output.name, data)
        if self.attachments:
            for attachment in list(self.attachments.values()):
                attachment.feed(output.number, data)

    def say(self, text: bytes) -> None:
        """Tell the attached clients something on standard output that the process did not write."""
        for attachment in list(self.attachments.values()):
            attachment.feed(STREAM_NUMBERS["stdout"], text)

    def output_blocked(self) -> bool:
        """Whether some client is too far behind."""
        return any(attachment.full for attachment in self.attachments.values())

    def resume_output(self) -> None:
        if not self.output_blocked():
            for output in self.outputs:
                output.resume()

    def input_ended(self) -> None:
        """A client's input ended."""
        if self._stdin_once and self.input is not None:
            self.input.close()

    def _input_drained(self) -> None:
        for attachment in list(self.attachments.values()):
            attachment.input_drained()

    def detached(self, attachment: Attachment) -> None:
        if self.attachments.pop(attachment.number, None) is not None:
            self.resume_output()
            if self._finished and not self.attachments:
                self._on_ended()

    def output_ended(self) -> None:
        if all(output.ended for output in self.outputs):
            self._on_ended()

    @property
    def drained(self) -> bool:
        """Whether all output has been read to its end."""
        return all(output.ended for output in self.outputs)

    def drain(self, limit: int = 1024) -> None:
        """The process has ended: take what its pipes still hold, however far behind the clients are (a pipe holds little)."""
        for output in self.outputs:
            rounds = limit
            while not output.ended and rounds and output.pump():
                rounds -= 1

    def release_corked(self, owner: int) -> None:
        """Drop clients that wait for somebody who has gone."""
        for attachment in list(self.attachments.values()):
            if attachment.corked and attachment.owner == owner:
                attachment.drop()

    def finish(self) -> None:
        """No more output will come: end log and attachments."""
        if self._finished:
            return
        self._finished = True
        for output in self.outputs:
            output.close()
        if self.input is not None:
            self.input.destroy()
            self.input = None
        if self.log is not None:
            self.log.close()
        for attachment in list(self.attachments.values()):
            attachment.finish()
