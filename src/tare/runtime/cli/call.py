"""One invocation of the command: what was asked, and where containers and messages live."""

from __future__ import annotations

from typing import NamedTuple

from tare.runtime.cli.options import Parsed, UsageError
from tare.runtime.cli.report import Report
from tare.runtime.cli.state import Record, Store


class Call(NamedTuple):
    """Given to every verb."""

    globals: Parsed
    options: Parsed
    arguments: list[str]
    store: Store
    report: Report

    def argument(self, name: str) -> str:
        """The first argument; UsageError without one."""
        if not self.arguments or not self.arguments[0]:
            raise UsageError(f"{name} must be given")
        return self.arguments[0]

    def record(self) -> Record:
        """The record of the container that the first argument names."""
        return self.store.load(self.argument("container-id"))
