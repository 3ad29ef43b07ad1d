"""What the command tells: errors and warnings on stderr, and in the log file in the format that engines parse (runc's, that is logrus').

json   {"level":"error","msg":"...","time":"2026-01-02T03:04:05Z"}
text   time="2026-01-02T03:04:05Z" level=error msg="..."
"""

from __future__ import annotations

import json
import os
import sys
import time


class RuntimeFailure(Exception):
    """A verb could not do its work. ``code`` is the exit status of the command."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


class Report:
    """Where messages go."""

    def __init__(self, path: str = "", style: str = "text", debug: bool = False) -> None:
        self.path = path
        self.style = style
        self.verbose = debug

    def error(self, text: str) -> None:
        self._write("error", text)
        print(f"tare-runtime: {text}", file=sys.stderr, flush=True)

    def warning(self, text: str) -> None:
        self._write("warning", text)
        if not self.path:
            print(f"tare-runtime: warning: {text}", file=sys.stderr, flush=True)

    def debug(self, text: str) -> None:
        if self.verbose:
            self._write("debug", text)
            if not self.path:
                print(f"tare-runtime: {text}", file=sys.stderr, flush=True)

    def _write(self, level: str, text: str) -> None:
        if not self.path:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.style == "json":
            line = json.dumps({"level": level, "msg": text, "time": now}, separators=(",", ":"))
        else:
            line = f"time={json.dumps(now)} level={level} msg={json.dumps(text)}"
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError:
            return
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)
