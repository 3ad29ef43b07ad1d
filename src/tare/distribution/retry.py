"""What may be tried again, how often and after how long; and what a refused request means for that.

A failure that may pass (a broken connection, 5xx, 408, 429 with a Retry-After that we can sit out) is retried with back-off. Anything else
is final at once: asking again for what does not exist only hides the answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import aiohttp

from tare.distribution.answers import BODY_LIMIT, Answer
from tare.distribution.auth import parse_challenges
from tare.distribution.bodies import read_limited
from tare.distribution.transport import Transient
from tare.errors import ResourceExhausted, TareError, Unavailable

ATTEMPTS = 4
BACKOFF = 0.3
"""Seconds before the first retry; doubles each time."""
PATIENCE = 20.0
"""The longest Retry-After that we sit out."""

_PASSING = frozenset({408, 500, 502, 503, 504})
_T = TypeVar("_T")


class Overloaded(Transient):
    """503 with a Retry-After; ``wait`` is what it asked for, in seconds."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class RateLimited(ResourceExhausted):
    """429; ``wait`` is what Retry-After asked for, in seconds, negative when it did not say."""

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


def backoff(attempt: int) -> float:
    """Seconds to wait before retry number ``attempt`` (from 0), spread so that clients do not return in step."""
    return min(BACKOFF * 2.0**attempt, 15.0) * (0.75 + random.random() / 2)


def pause(error: BaseException, attempt: int) -> float | None:
    """Seconds to wait before trying again after ``error``; ``None`` when that is no use."""
    wait = getattr(error, "wait", 0.0)
    if not isinstance(error, (Transient, RateLimited)) or not 0 <= wait <= PATIENCE:
        return None
    return float(max(wait, backoff(attempt)))


async def retrying(operation: Callable[[], Awaitable[_T]]) -> _T:
    """Run ``operation``, again if it fails transiently; the last failure goes to the caller."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return await operation()
        except (Transient, RateLimited) as error:
            wait = pause(error, attempt)
            if wait is None:
                raise
        await asyncio.sleep(wait)
    return await operation()


async def refusal(method: str, url: str, response: aiohttp.ClientResponse, translate: Callable[[Answer], TareError]) -> TareError:
    """The error to raise for an answer that is none; reads its body and closes it."""
    try:
        body = await read_limited(response, BODY_LIMIT, cut=True)
    except Unavailable:
        body = b""
    finally:
        response.close()
    challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
    scope = any(challenge.parameters.get("error") == "insufficient_scope" for challenge in challenges)
    error = translate(Answer(method, url, response.status, response.reason or "", response.headers, body, scope))
    wait = retry_after(response.headers.get("Retry-After", ""))
    if isinstance(error, ResourceExhausted):
        return RateLimited(str(error), -1.0 if wait is None else wait)
    if response.status in _PASSING:
        return Overloaded(str(error), wait) if wait is not None else Transient(str(error))
    return error


def retry_after(text: str) -> float | None:
    """Seconds that a ``Retry-After`` header asks for, given as such or as a date (RFC 9110); ``None`` when it says nothing."""
    text = text.strip()
    if text.isdigit() and text.isascii() and len(text) < 9:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
