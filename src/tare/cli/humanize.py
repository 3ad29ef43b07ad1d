"""Durations, sizes and times in the words that docker's tables use."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MINUTE, _HOUR = 60, 3600


def duration(seconds: float) -> str:
    """``About a minute``, ``3 weeks``; the coarse words of ``ps`` and ``images``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // _MINUTE
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / _HOUR + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / _HOUR) // 24 // 365} years"


def ago(unix_seconds: float) -> str:
    """How long ago a moment was; what dockerd means by "no date" is N/A."""
    if unix_seconds <= 0:
        return "N/A"
    return duration(max(time.time() - unix_seconds, 0)) + " ago"


_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


def _scaled(value: float, base: float, units: Sequence[str], digits: int) -> str:
    index = 0
    while value >= base and index < len(units) - 1:
        value /= base
        index += 1
    return f"{value:.{digits}g}{units[index]}"


def size(value: float, digits: int = 4) -> str:
    """Decimal units: ``4.21kB``."""
    return _scaled(float(value), 1000.0, _DECIMAL, digits)


def size3(value: float) -> str:
    """Decimal units with three digits, as in the tables of images and containers."""
    return size(value, 3)


def binary_size(value: float) -> str:
    """Binary units: ``7.5MiB``."""
    return _scaled(float(value), 1024.0, _BINARY, 4)


def local_time(unix_seconds: float) -> str:
    """``2026-11-23 20:10:29 +0000 UTC``: Go's default form of a time, to the second."""
    moment = time.localtime(unix_seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", moment)


def go_time(text: str) -> str:
    """``2026-11-23 20:10:29.123 +0000 UTC`` of an RFC 3339 time: how Go prints a moment."""
    date, _, clock = text.partition("T")
    if clock.endswith("Z"):
        return f"{date} {clock[:-1]} +0000 UTC"
    zone = clock[-6:].replace(":", "")
    return f"{date} {clock[:-6]} {zone} {zone}"


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time as JSON documents carry it; 0 for none and for Go's zero time."""
    nanos = parse_time_ns(text)
    return nanos / 1e9


def parse_time_ns(text: str) -> int:
    """Unix nanoseconds of an RFC 3339 time; 0 for none and for Go's zero time."""
    if not text or text.startswith("0001-"):
        return 0
    body, offset = text, 0
    if body.endswith(("Z", "z")):
        body = body[:-1]
    elif len(body) > 6 and body[-6] in "+-" and body[-3] == ":":
        sign = -1 if body[-6] == "-" else 1
        offset = sign * (int(body[-5:-3]) * _HOUR + int(body[-2:]) * _MINUTE)
        body = body[:-6]
    main, _, fraction = body.partition(".")
    date, _, clock = main.replace("t", "T").partition("T")
    year, month, day = (int(part) for part in date.split("-"))
    hour, minute, second = (int(part) for part in clock.split(":"))
    days = _days(year, month, day)
    seconds = days * 86400 + hour * _HOUR + minute * _MINUTE + second - offset
    return seconds * 10**9 + int((fraction + "0" * 9)[:9])


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 of a date of the Gregorian calendar (years that begin in March make leap days last)."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146097 + day_of_era - 719468


def shorten(text: str, length: int) -> str:
    """Cut to ``length`` characters with an ellipsis as the last."""
    return text if len(text) <= length else text[: length - 1] + "…" if length > 1 else text[:length]


def short_id(identifier: str) -> str:
    """The first twelve digits, without an algorithm's name."""
    return identifier.partition(":")[2][:12] if ":" in identifier else identifier[:12]


def moment_argument(text: str) -> str:
    """``--since`` and ``--until`` as the API wants them: ``seconds[.nanoseconds]``.

    Takes a Unix time, an RFC 3339 time with or without zone, date only, or a duration back from now. Raises ValueError.
    """
    if not text:
        return ""
    if text.replace(".", "", 1).isdecimal():
        return text
    from tare.cli.flags import parse_duration

    try:
        nanos = time.time_ns() - parse_duration(text)
    except ValueError:
        nanos = _calendar(text)
    return f"{nanos // 10**9}.{nanos % 10**9:09d}"


def _calendar(text: str) -> int:
    date, separator, clock = text.partition("T")
    zoned = clock.endswith("Z") or (len(clock) > 6 and clock[-6] in "+-")
    plain = clock[:-1] if clock.endswith("Z") else clock[:-6] if zoned else clock
    zone = clock[len(plain) :]
    if not separator:
        plain = "00:00:00"
    elif plain.count(":") == 0:
        plain += ":00:00"
    elif plain.count(":") == 1:
        plain += ":00"
    try:
        nanos = parse_time_ns(f"{date}T{plain}{zone or 'Z'}")
    except ValueError:
        raise ValueError(f'failed to parse value as time or duration: "{text}"') from None
    if zone:
        return nanos
    seconds = nanos // 10**9
    utc = time.gmtime(seconds)
    return nanos + (int(time.mktime((*utc[:6], 0, 0, -1))) - seconds) * 10**9
