"""The container's first process (or an exec's) between fork and exec: run the steps, report the one that fails.

It never returns, never logs, and imports nothing: after ``PivotRoot`` every file is the container's.
"""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from tare.linux import process
from tare.runtime import messages
from tare.runtime.context import Context, KeeperGone, SetupFailed, reason
from tare.runtime.plan import Step, decode_steps
from tare.runtime.steps import hooks, kernel, mounts, namespaces, rootfs
from tare.runtime.steps import process as process_steps

if TYPE_CHECKING:
    from tare.runtime.prepared import Prepared

STEP_MODULES = (hooks, kernel, mounts, namespaces, process_steps, rootfs)
"""Importing them has made their steps known to the decoder."""


def run(line: socket.socket, steps: str | list[Any], streams: list[int], pidfd: int = -1, prepared: Prepared | None = None) -> None:
    """Go through the steps (JSON, decoded or as text); the last one becomes the program."""
    code = 1
    try:
        process.set_dumpable(False)
        context = Context(line, streams, pidfd, prepared)
        step: Step | None = None
        try:
            for step in decode_steps(json.loads(steps) if isinstance(steps, str) else steps):
                step.run(context)
        except SetupFailed as error:
            _report(line, error)
        except OSError as error:
            _report(line, SetupFailed(f"{step.describe() if step else ''}: {reason(error)}"))
        except Exception as error:
            _report(line, SetupFailed(f"{step.describe() if step else ''}: {type(error).__name__}: {error}"))
    except (KeeperGone, OSError):
        code = 2
    finally:
        os._exit(code)


def _report(line: socket.socket, error: SetupFailed) -> None:
    os.write(line.fileno(), messages.encode({"failed": error.text, "code": error.code, "plain": error.plain}))
