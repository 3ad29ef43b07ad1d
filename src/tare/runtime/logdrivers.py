"""From the plan of a log to the object that writes it. Drivers that few containers use are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tare.runtime.jsonlog import JsonLog
from tare.runtime.logfile import ContainerLog, LogFile
from tare.runtime.plan import LogPlan


def open_log(plan: LogPlan, resting: Mapping[str, Any] | None = None) -> ContainerLog | None:
    """The log that the plan describes, or its continuation from what ``rest`` told. None for no log. Raises OSError, ValueError."""
    if plan.driver == "none":
        return None
    if plan.driver == "json-file":
        return JsonLog(_file(plan, resting), plan.attributes, resting)
    from tare.runtime.locallog import LocalLog

    if plan.driver == "local":
        return LocalLog(_file(plan, resting), resting)
    from tare.runtime.forwardlog import ForwardingLog, connection

    cache = LocalLog(_file(plan, resting), resting) if plan.path else None
    return ForwardingLog(connection(plan.driver, plan.options), cache, resting)


def _file(plan: LogPlan, resting: Mapping[str, Any] | None) -> LogFile:
    return LogFile(plan.path, plan.max_size, plan.max_file, plan.compress, resting)
