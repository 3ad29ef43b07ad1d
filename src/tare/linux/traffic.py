"""Traffic control through rtnetlink: a token bucket for what a link sends.

It replaces what was there. Rates in bytes per second (below 2^32: the 64-bit attributes are not used).

Followed: tc(8), tc-tbf(8), linux/pkt_sched.h.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from tare.linux import netlink_message as nl
from tare.linux.netlink import Route

RTM_NEWQDISC = 36
TC_H_ROOT = 0xFFFFFFFF
TCA_KIND = 1
TCA_OPTIONS = 2
TCA_TBF_PARMS = 1
TCA_TBF_RTAB = 2
TCA_TBF_BURST = 6

_TCMSG = struct.Struct("=BxHiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_CELL_LOG = 9
"""Steps of 512 bytes in the rate table: 256 of them cover the largest offloaded packet but for cells that are extrapolated."""
_LINKLAYER_ETHERNET = 1


def _ticks_per_microsecond() -> float:
    ticks, microseconds = (int(word, 16) for word in Path("/proc/net/psched").read_text().split()[:2])
    return ticks / microseconds


class Traffic(Route):
    """An open rtnetlink socket for traffic control."""

    def shape(self, index: int, rate: int) -> None:
        """Send at most ``rate`` bytes per second, a tenth of a second's worth at once; the rest waits up to 100 ms."""
        if not rate:
            return
        burst = max(rate // 10, 16384)
        spec, table, ticks = self._rate(rate, burst)
        limit = rate // 10 + burst
        parms = spec + _RATESPEC.pack(0, 0, 0, 0, 0, 0) + struct.pack("=III", limit, ticks, 0)
        options = nl.attribute(TCA_TBF_PARMS, parms) + nl.attribute_u32(TCA_TBF_BURST, burst) + nl.attribute(TCA_TBF_RTAB, table)
        payload = _TCMSG.pack(0, 0, index, 1 << 16, TC_H_ROOT, 0)
        payload += nl.attribute_text(TCA_KIND, "tbf") + nl.nested(TCA_OPTIONS, options)
        self._request(RTM_NEWQDISC, nl.NLM_F_CREATE | nl.NLM_F_REPLACE, payload, "tbf")

    @staticmethod
    def _rate(rate: int, burst: int) -> tuple[bytes, bytes, int]:
        """A rate as the kernel wants it: specification, table of times per packet size, and the burst as time."""
        if rate >= 1 << 32:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE), f"rate of {rate} bytes/s")
        factor = _ticks_per_microsecond() * 1_000_000

        def ticks(size: int) -> int:
            return min(int(size / rate * factor), (1 << 32) - 1)

        table = struct.pack("=256I", *(ticks((step + 1) << _CELL_LOG) for step in range(256)))
        return _RATESPEC.pack(_CELL_LOG, _LINKLAYER_ETHERNET, 0, -1, 0, rate), table, ticks(burst)
