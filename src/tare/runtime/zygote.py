"""The zygote: all holders are its forks, so that they share as many pages as can be shared.

A page is shared until either side writes it. The launcher handles requests, and what it writes between two forks would stay
with the earlier child as a page of its own, hundreds of kilobytes for each keeper. The zygote is a fork of the launcher that
does nothing but fork: the few pages that its loop writes are those that a holder writes anyway.

It shares its descriptors with the launcher (CLONE_FILES). An order is the number of the descriptor that becomes the new keeper's line,
and one letter for its kind. After the fork the zygote closes that descriptor: had the fork failed, the launcher's end of the line says so.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from tare.linux import libc
from tare.linux.constants import PR_SET_PDEATHSIG
from tare.runtime.holder import Holder

ORDER_SIZE = 5
_SIGKILL = int(signal.SIGKILL)

Work = Callable[[Holder], None]


class Zygote:
    """The launcher's end: orders keepers."""

    def __init__(self, work: Work, go_on: Work) -> None:
        """Fork the zygote. ``work`` is what a keeper's first worker does; ``Holder.order`` tells it what was ordered."""
        orders, self._orders = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        self.pid = libc.clone_sharing_files()
        if self.pid == 0:
            libc.prctl(PR_SET_PDEATHSIG, _SIGKILL)
            if os.getppid() == parent:
                _serve(orders, work, go_on)
            os._exit(0)

    def order(self, line: int, kind: bytes) -> None:
        """Have a keeper forked whose line is the descriptor ``line`` (taken over)."""
        os.write(self._orders, line.to_bytes(ORDER_SIZE - 1, "little") + kind)


def parse(order: bytes) -> tuple[int, bytes]:
    """(descriptor of the line, kind)."""
    return int.from_bytes(order[: ORDER_SIZE - 1], "little"), order[ORDER_SIZE - 1 :]


def _serve(orders: int, work: Work, go_on: Work) -> NoReturn:
    while True:
        order = os.read(orders, ORDER_SIZE)
        try:
            if os.fork() == 0:
                Holder(order).hold(work, go_on)
        except OSError:
            pass
        os.close(int.from_bytes(order[: ORDER_SIZE - 1], "little"))
