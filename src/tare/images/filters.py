"""Which images a listing shows: Docker's filters ``dangling``, ``label``, ``before``, ``since``, ``until`` and ``reference``."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from tare.errors import InvalidArgument
from tare.images.image import Image

KNOWN = frozenset({"dangling", "label", "label!", "before", "since", "until", "reference"})
_TRUE = frozenset({"1", "true", "t"})
_FALSE = frozenset({"0", "false", "f"})
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def select(
    images: Iterable[Image], filters: Mapping[str, Sequence[str]], find: Callable[[str], Image], now: float | None = None
) -> list[Image]:
    """The images that pass all filters, newest first. ``find`` resolves the names given to ``before`` and ``since``."""
    for name in filters:
        if name not in KNOWN:
            raise InvalidArgument(f"invalid filter '{name}'")
    tests = _tests(filters, find, time.time() if now is None else now)
    found = [image for image in images if all(test(image) for test in tests)]
    patterns = [compile_pattern(pattern) for pattern in filters.get("reference", ())]
    if patterns:
        found = [image for image in (_named(image, patterns) for image in found) if image.tags or image.repo_digests]
    return sorted(found, key=lambda image: (-image.created_at, image.id))


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether ``wanted`` (``key`` or ``key=value``) is among ``labels``."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def moment(text: str, now: float) -> float:
    """A point in time: a duration before ``now`` (``24h``, ``1h30m``), seconds since the epoch, or an RFC 3339 time or date."""
    if text and _DURATION.sub("", text) == "":
        return now - sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InvalidArgument(f"invalid time {text!r}: give a duration (24h), seconds since the epoch, or an RFC 3339 time") from None


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """A shell pattern as Go's ``path.Match`` understands it: neither ``*`` nor ``?`` crosses a slash."""
    pieces: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        position += 1
        if character == "*":
            if not pieces or pieces[-1] != "[^/]*":
                pieces.append("[^/]*")
        elif character == "?":
            pieces.append("[^/]")
        elif character == "[":
            end = pattern.find("]", position + 1)
            if end < 0:
                raise InvalidArgument(f"syntax error in pattern {pattern!r}")
            body = pattern[position:end]
            negated = body.startswith("^")
            escaped = re.sub(r"([\[\]^&~|])", r"\\\1", body[negated:])
            pieces.append(("[^" if negated else "[") + escaped + "]")
            position = end + 1
        else:
            if character == "\\" and position < len(pattern):
                character = pattern[position]
                position += 1
            pieces.append(re.escape(character))
    try:
        return re.compile("".join(pieces))
    except re.error:
        raise InvalidArgument(f"syntax error in pattern {pattern!r}") from None


def _tests(filters: Mapping[str, Sequence[str]], find: Callable[[str], Image], now: float) -> list[Callable[[Image], bool]]:
    tests: list[Callable[[Image], bool]] = []
    if "dangling" in filters:
        wanted = _flag("dangling", filters["dangling"])
        tests.append(lambda image: image.dangling == wanted)
    if labels := filters.get("label"):
        tests.append(lambda image: all(has_label(image.labels, label) for label in labels))
    if unwanted := filters.get("label!"):
        tests.append(lambda image: not any(has_label(image.labels, label) for label in unwanted))
    if before := filters.get("before"):
        latest = min(find(name).created_at for name in before)
        tests.append(lambda image: image.created_at < latest)
    if since := filters.get("since"):
        earliest = max(find(name).created_at for name in since)
        tests.append(lambda image: image.created_at > earliest)
    if until := filters.get("until"):
        limit = min(moment(text, now) for text in until)
        tests.append(lambda image: image.created_at < limit)
    return tests


def _flag(name: str, values: Sequence[str]) -> bool:
    words = {value.lower() for value in values}
    if words and words <= _TRUE:
        return True
    if words and words <= _FALSE:
        return False
    raise InvalidArgument(f"invalid filter '{name}=[{' '.join(sorted(values))}]'")


def _named(image: Image, patterns: Sequence[re.Pattern[str]]) -> Image:
    """The image with only those of its names that match; a pattern may match a name with or without its tag."""

    def matches(name: str, mark: str) -> bool:
        bare = name.partition(mark)[0] if mark == "@" else name.rpartition(mark)[0]
        return any(pattern.fullmatch(name) or pattern.fullmatch(bare) for pattern in patterns)

    return replace(
        image,
        tags=tuple(name for name in image.tags if matches(name, ":")),
        repo_digests=tuple(name for name in image.repo_digests if matches(name, "@")),
    )
