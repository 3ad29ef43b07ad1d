"""What a registry's refusals mean: from status, headers and body to one domain error with Docker's text.

Clients match on some of these texts (``pull access denied``, ``manifest for x not found``), so the registry's own words are
quoted in Docker's form: ``<code in words>: <message>``. Nothing of an answer is trusted: bodies are capped, control
characters are dropped, and an HTML page is named as what it is instead of being quoted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tare.errors import Forbidden, InvalidArgument, NotFound, ResourceExhausted, TareError, Unauthorized, Upstream
from tare.oci.reference import Reference

BODY_LIMIT = 64 << 10
_QUOTE_LIMIT = 300

_STANDARD_MESSAGES = {
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "NAME_UNKNOWN": "repository name not known to registry",
    "BLOB_UNKNOWN": "blob unknown to registry",
    "TOOMANYREQUESTS": "too many requests",
}


@dataclass(frozen=True)
class Answer:
    """A refusal as it came over the wire."""

    method: str
    url: str
    status: int
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    insufficient_scope: bool = False
    """The challenge said that a valid token lacks the right to this repository."""


class _Entry(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Body(msgspec.Struct):
    errors: list[_Entry] | None = None
    details: str = ""


def translate(answer: Answer, reference: Reference) -> TareError:
    """The error to raise for a refused request about ``reference``."""
    code, message = _first(answer)
    words = f"{code.lower().replace('_', ' ')}: {message}" if code else message
    if answer.status == 429 or code == "TOOMANYREQUESTS":
        wait = answer.headers.get("Retry-After")
        hint = f" (retry after {_clean(wait)} seconds)" if wait and wait.isdigit() else ""
        return ResourceExhausted(f"{words or 'toomanyrequests: too many requests'}{hint}: {answer.url}")
    if code == "DENIED" or answer.status == 403:
        return _denied(reference, words)
    if code == "NAME_UNKNOWN":
        return NotFound(f"repository {reference.familiar_name} not found: {words}")
    if code == "MANIFEST_UNKNOWN":
        return NotFound(f"manifest for {reference.familiar()} not found: {words}")
    if answer.status == 401:
        if answer.insufficient_scope or not code:
            return _denied(reference, "denied: requested access to the resource is denied")
        return Unauthorized(f"{words} ({answer.method} {answer.url})")
    if answer.status == 404:
        if "/manifests/" in answer.url:
            return NotFound(f"manifest for {reference.familiar()} not found: {words or 'manifest unknown'}")
        return NotFound(f"{words or 'not found'}: {answer.url}")
    return _unexpected(answer, words)


def translate_plain(answer: Answer, reference: Reference) -> TareError:
    """The error to raise for a refused look at ``reference``: the registry's own words, as ``distribution inspect`` shows them."""
    code, message = _first(answer)
    words = f"{code.lower().replace('_', ' ')}: {message}" if code else message
    if code in ("MANIFEST_UNKNOWN", "NAME_UNKNOWN") or (answer.status == 404 and not code):
        return NotFound(words or "manifest unknown: manifest unknown")
    if code == "DENIED" or answer.status == 403 or answer.insufficient_scope:
        return Forbidden(words if code == "DENIED" else "denied: requested access to the resource is denied")
    if answer.status == 401:
        return Unauthorized(words if code else "unauthorized: authentication required")
    return translate(answer, reference)


def translate_push(answer: Answer) -> TareError:
    """The error to raise for a refused request of a push: the registry's own words, as Docker shows them."""
    code, message = _first(answer)
    words = f"{code.lower().replace('_', ' ')}: {message}" if code else message
    if answer.status == 429 or code == "TOOMANYREQUESTS":
        return ResourceExhausted(words or "toomanyrequests: too many requests")
    if code == "DENIED" or answer.status == 403 or answer.insufficient_scope:
        return Forbidden(words if code == "DENIED" else "denied: requested access to the resource is denied")
    if answer.status == 401:
        return Unauthorized(words if code else "unauthorized: authentication required")
    if 400 <= answer.status < 500 and code:
        return NotFound(words) if answer.status == 404 else InvalidArgument(words)
    return _unexpected(answer, words)


def translate_login(answer: Answer) -> TareError:
    """The error to raise when a token server refuses the user: in Docker's form ``unauthorized: incorrect username or password``."""
    code, message = _first(answer)
    words = f"{code.lower().replace('_', ' ')}: {message}" if code else message
    if answer.status == 429 or code == "TOOMANYREQUESTS":
        return ResourceExhausted(words or "toomanyrequests: too many requests")
    if answer.status in (401, 403):
        return Unauthorized(words if code else f"unauthorized: {words or 'authentication required'}")
    return _unexpected(answer, words)


def is_html(answer: Answer) -> bool:
    """Whether a web page came where a registry should have answered."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind == "text/html" or answer.body[:200].lstrip().lower().startswith((b"<!doctype", b"<html"))


def _denied(reference: Reference, words: str) -> TareError:
    # Docker answers 404 here: whoever may not see a repository is not to learn that it exists.
    text = (
        f"pull access denied for {reference.familiar_name}, "
        f"repository does not exist or may require 'docker login': {words or 'denied: access forbidden'}"
    )
    return NotFound(text)


def _unexpected(answer: Answer, words: str) -> TareError:
    if is_html(answer):
        words = "the server answered with an HTML page: is it a registry?"
    status = f"{answer.status} {_clean(answer.reason)}".strip()
    text = f"received unexpected HTTP status: {status} ({answer.method} {answer.url})" + (f": {words}" if words else "")
    if answer.status == 400 or answer.status == 405:
        return Forbidden(text)
    return Upstream(text)


def _first(answer: Answer) -> tuple[str, str]:
    if is_html(answer):
        return "", ""
    try:
        body = msgspec.json.decode(answer.body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", _clean(answer.body[:_QUOTE_LIMIT].decode("utf-8", "replace"))
    entry = (body.errors or [_Entry()])[0]
    code = _clean(entry.code).upper().replace(" ", "_")
    return code, _clean(entry.message) or _STANDARD_MESSAGES.get(code, _clean(body.details))


def _clean(text: str) -> str:
    return "".join(character for character in text[:_QUOTE_LIMIT] if character.isprintable()).strip()
