"""Signal names and numbers as Docker's clients write them."""

from __future__ import annotations

import signal

from tare.errors import InvalidArgument

_NAMES = {name.removeprefix("SIG"): int(number) for name, number in signal.Signals.__members__.items()}
_NAMES.update({f"RTMIN+{n}": int(signal.SIGRTMIN) + n for n in range(1, 16)})
_NAMES.update({f"RTMAX-{n}": int(signal.SIGRTMAX) - n for n in range(1, 15)})


def parse_signal(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``sigterm`` or ``15``. Raises ``InvalidArgument`` with dockerd's text."""
    word = text.strip().upper()
    if word.isdecimal():
        number = int(word) if len(word) < 10 else signal.NSIG
        if 0 < number < signal.NSIG:
            return number
        if number:
            raise InvalidArgument(f"the linux daemon does not support signal {number}")
    elif (found := _NAMES.get(word.removeprefix("SIG"))) is not None:
        return found
    raise InvalidArgument(f"invalid signal: {text}")
