"""The holder: what stays of a keeper while nothing happens.

A keeper that runs Python code costs megabytes of its own: every object that is touched has its reference count written, and the page that
it shared with its parent is copied. Most containers are idle most of the time, so the keeper's work is done by a *worker*
that ends when it has nothing to do; what remains is the holder, a fork of the zygote that has executed a dozen lines.

    zygote ─fork─► holder ─clone─► worker ─fork─► init, execs
                     │               │
                     │               └─ at rest: writes down its state, exits; the init becomes the holder's child
                     └─ idle: sleeps in epoll_wait; something happens: clones a worker, which goes on from the state

Invariants:
- Holder and worker share their descriptors (CLONE_FILES): pipes, sockets and the epoll stay as they are from worker to worker, nothing is
  handed over, and no event is lost, since readiness is level-triggered.
- At most one worker lives. While it does, the holder only waits for children; while none does, the holder only waits for the epoll.
- The holder is the container's parent (as a subreaper, when the first worker ends): its waitpid tells that the init has
  ended, and it passes the status on to the worker through a pipe.
- A worker dies with its holder, and a holder ends with a worker that ended otherwise than at rest. So "the keeper", whose pid is
  on record, is the holder, and it lives exactly as long as there is something to keep.
- An init outlives the worker that made it. Until it is set up it dies with it (PDEATHSIG), then that is taken back.
"""

from __future__ import annotations

import json
import os
import select
import signal
from _signal import signal as set_signal  # type: ignore[import-not-found]  # without the enums of signal.signal: those write pages
from collections.abc import Callable
from typing import Any, NoReturn

from tare.linux import libc
from tare.linux.constants import PR_SET_CHILD_SUBREAPER, PR_SET_NAME, PR_SET_PDEATHSIG

AT_REST = 3
"""Exit status of a worker whose state is written and that can be continued."""
_NAME = b"tare-keeper"
_SIG_DFL, _SIGCHLD, _SIGKILL = int(signal.SIG_DFL), int(signal.SIGCHLD), int(signal.SIGKILL)

State = dict[str, Any]


class Holder:
    """What a worker knows of its holder: the descriptors that outlive it."""

    def __init__(self, order: bytes) -> None:
        self.order = order
        """What kind of keeper this is to be (``runtime.zygote``)."""
        self.pid = os.getpid()
        self.epoll = select.epoll()
        self._state_fd = os.memfd_create("state", os.MFD_CLOEXEC)
        self._statuses, self._report = os.pipe2(os.O_CLOEXEC)

    @property
    def descriptors(self) -> set[int]:
        """What must stay open."""
        return {self.epoll.fileno(), self._state_fd, self._statuses, self._report}

    def save(self, state: State) -> None:
        """Write down what the next worker continues from. Only the last state counts."""
        data = json.dumps(state, separators=(",", ":")).encode()
        os.ftruncate(self._state_fd, 0)
        written = 0
        while written < len(data):
            written += os.pwrite(self._state_fd, data[written:], written)

    def load(self) -> State:
        """What the last worker wrote down."""
        state: State = json.loads(os.pread(self._state_fd, os.fstat(self._state_fd).st_size, 0))
        return state

    def wait_for(self, pid: int) -> int:
        """The wait status of the holder's child ``pid`` (which has ended or is about to)."""
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._statuses, 4096)).split(b"\n")
            for line in lines:
                child, status = line.split()
                if int(child) == pid:
                    return int(status)

    def hold(self, work: Callable[[Holder], None], go_on: Callable[[Holder], None]) -> NoReturn:
        """Be the holder. Workers run ``work`` first and ``go_on`` after each rest; they end the process themselves.

        Written for few steps, not for beauty: whatever runs here is paid for by every container.
        """
        set_signal(_SIGCHLD, _SIG_DFL)
        os.setsid()
        libc.prctl_text(PR_SET_NAME, _NAME)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
        while True:
            worker = libc.clone_sharing_files()
            if worker == 0:
                libc.prctl(PR_SET_PDEATHSIG, _SIGKILL)
                if os.getppid() == self.pid:
                    work(self)
                os._exit(70)
            while True:
                pid, status = os.waitpid(-1, 0)
                if pid == worker:
                    break
                os.write(self._report, b"%d %d\n" % (pid, status))
            if status != AT_REST << 8:
                os._exit(status >> 8)
            libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
            work = go_on
            self.epoll.poll(-1, 1)
