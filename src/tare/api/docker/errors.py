"""The one table that turns domain errors into the Docker API's statuses, and the shape of an error answer.

Statuses are those dockerd uses. A client never sees a traceback: what is not meant for users becomes a 500 that names the request's
number, under which the log has the rest.
"""

from __future__ import annotations

import logging
import os

import msgspec

from tare import errors
from tare.http.message import RequestError, Response
from tare.http.routing import NoRoute

log = logging.getLogger("tare.api")

STATUSES: tuple[tuple[type[errors.TareError], int], ...] = (
    (errors.InvalidArgument, 400),
    (errors.MissingCredentials, 500),  # dockerd: "no basic auth credentials"
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.NotModified, 304),
    (errors.ResourceExhausted, 500),  # dockerd: "no space left on device", "no available IPv4 addresses"
    (errors.Unsupported, 501),
    (errors.Upstream, 500),
    (errors.Unavailable, 503),
    (errors.Corrupt, 500),
)

_COMMAND_FAILURES = (126, 127)
"""Exit codes that mean: the caller's command cannot be run. dockerd answers 400 for them, 500 for other failures to start."""


def status_of(error: BaseException) -> int:
    """HTTP status for an error; 500 for everything unknown."""
    if isinstance(error, errors.StartFailed):
        return 400 if error.exit_code in _COMMAND_FAILURES else 500
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, NoRoute):
        return 404  # also where another method would do: dockerd has no 405
    for kind, status in STATUSES:
        if isinstance(error, kind):
            return status
    return 500


def message_of(error: BaseException, request_id: str) -> str:
    """What the client may read. Errors that are nobody's message are logged here."""
    if isinstance(error, errors.TareError | RequestError | NoRoute):
        return str(error) or type(error).__name__
    if isinstance(error, OSError):
        log.error("request %s: %s", request_id, error, exc_info=error)
        if error.errno is None:
            return str(error)
        return f"{os.strerror(error.errno).lower()}" + (f": {error.filename}" if error.filename else "")
    log.error("request %s failed", request_id, exc_info=error)
    return f"internal error (request {request_id}; the daemon's log has the details)"


def response(error: BaseException, request_id: str) -> Response:
    """The whole error answer: ``{"message": ...}``."""
    status = status_of(error)
    return Response(status, msgspec.json.encode({"message": message_of(error, request_id)}) + b"\n")
