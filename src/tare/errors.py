"""The one hierarchy of errors that services raise and faces translate.

Why one hierarchy: a service says *what kind* of thing went wrong in domain words; only a face (the Docker API, the registry API, the
CLI) knows statuses and exit codes, and each keeps its mapping in one table. Messages are lower case, name the object, and where the
Docker clients match on dockerd's text they carry that text (also where it starts with a capital, as in "No such container: x").

The runtime and the kernel layer below do not use this module: they raise ``OSError`` with errno and path.
"""

from __future__ import annotations


class TareError(Exception):
    """Root of all errors that are meant for a user. ``str(error)`` is the whole message."""


class InvalidArgument(TareError):
    """The request itself is wrong: malformed name, bad option, impossible combination."""


class Unauthorized(TareError):
    """Credentials are missing or were refused."""


class MissingCredentials(Unauthorized):
    """A registry wants credentials and the caller gave none."""


class Forbidden(TareError):
    """The caller may not do this, whatever the credentials."""


class NotFound(TareError):
    """The named object does not exist."""


class Conflict(TareError):
    """The object's present state forbids the operation: name taken, container running, image in use."""


class NotModified(TareError):
    """The object already is as asked (start of a running container)."""


class ResourceExhausted(TareError):
    """A bounded resource is used up: addresses, disk, a size limit."""


class Unsupported(TareError):
    """Neither the engine nor this machine offers it; the message says which and what would."""


class Unavailable(TareError):
    """A peer (registry, keeper, launcher, daemon) cannot be reached or broke off."""


class Upstream(Unavailable):
    """A server that the engine asked on the caller's behalf (a registry) failed or cannot be reached."""


class Corrupt(TareError):
    """Data does not match its digest or its schema."""


class StartFailed(TareError):
    """A container's or exec's process could not be started.

    ``exit_code`` is what Docker reports for it: 127 command not found, 126 not executable, 128 otherwise.
    """

    def __init__(self, message: str, exit_code: int = 128) -> None:
        super().__init__(message)
        self.exit_code = exit_code
