"""Noticing that the packet rules were changed by somebody else (a flush, a firewall's reload, dockerd's or ufw's FORWARD policy).

Every foreign transaction starts a look, at most one per second: what is missing is put back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tare.linux.nft_watch import RuleWatch

log = logging.getLogger(__name__)

SECONDS_BEFORE = 0.1
SECONDS_BETWEEN = 1.0


class Watch:
    """Calls ``look`` soon after somebody else changed rules. Runs on the event loop."""

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._watch: RuleWatch | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def start(self) -> None:
        """Raises OSError where the kernel does not tell."""
        self._watch = RuleWatch()
        asyncio.get_running_loop().add_reader(self._watch, self._on_change)

    def stop(self) -> None:
        """Look no more."""
        if self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch)
            self._watch.close()
            self._watch = None
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """Look no more, and wait for a look that is under way."""
        self.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _on_change(self) -> None:
        assert self._watch is not None
        if not self._watch.changed_by_others():
            return
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Look until nothing has changed since."""
        await asyncio.sleep(SECONDS_BEFORE)  # a reload is several transactions
        while self._again:
            self._again = False
            try:
                await self._look()
            except OSError as error:
                log.warning("packet rules cannot be looked at: %s", error.strerror or error)
            await asyncio.sleep(SECONDS_BETWEEN)
