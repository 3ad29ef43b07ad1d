"""The daemon's log on standard error: text (logfmt, as dockerd writes) or one JSON object a line.

One record is one line, whatever a client sent. A record may carry fields (``extra={"fields": {...}}``): they become ``key=value`` in
text and members of the object in JSON.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

FORMATS = ("text", "json")
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR, "fatal": logging.CRITICAL}


class TextFormat(logging.Formatter):
    """``time="…" level=info msg="…" key=value``; line ends inside are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        line = f'time="{_time(record)}" level={_level(record)} msg="{_escaped(_message(self, record))}"'
        return line + "".join(f" {name}={_value(value)}" for name, value in _fields(record).items())


class JsonFormat(logging.Formatter):
    """``{"level":"info","msg":"…","time":"…"}`` with the record's fields beside."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {**_fields(record), "level": _level(record), "msg": _message(self, record), "time": _time(record)}
        return json.dumps(document, separators=(",", ":"), default=str)


def start(log_format: str, level: str) -> None:
    """Log to standard error from now on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormat() if log_format == "json" else TextFormat())
    logging.getLogger().handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """``level`` is one of ``LEVELS``."""
    logging.getLogger("tare").setLevel(LEVELS[level])


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return fields


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    message = record.getMessage()
    return f"{message}\n{formatter.formatException(record.exc_info)}" if record.exc_info else message


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.created % 1 * 1e6):06d}Z"


def _level(record: logging.LogRecord) -> str:
    return "fatal" if record.levelno >= logging.CRITICAL else record.levelname.lower()


def _value(value: object) -> str:
    text = _escaped(str(value))
    return text if text and all(c.isalnum() or c in "-._/@:+" for c in text) else f'"{text}"'


def _escaped(text: str) -> str:
    """A quoted value: nothing that a client sent can begin a new record or drive a terminal."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
