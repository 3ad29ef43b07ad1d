"""Failures of a start in the words that Docker's clients know."""

from __future__ import annotations

from typing import Any

CREATE_PREFIX = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)
EXEC_PREFIX = "OCI runtime exec failed: exec failed: unable to start container process: "


def failure_text(failure: dict[str, Any], prefix: str) -> str:
    """The message for the client."""
    text = str(failure["failed"])
    return text if failure.get("plain") else f"{prefix}{text}: unknown"
