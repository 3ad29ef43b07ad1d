"""Log drivers and their options: what a container may ask for, and what the keeper is told.

    json-file   Docker's format, rotated and compressed as asked
    local       our compact format, rotated at 20 MB and compressed unless asked otherwise
    syslog      sent to a syslog server (udp, tcp, tcp+tls, unix); read back from a local cache
    journald    sent to the host's journal, where there is one; read back from a local cache
    none        nowhere

Options are checked when a container is made; a receiver is looked for when it starts, because it may be away now and there then.
Texts are dockerd's.
"""

from __future__ import annotations

import os
import re
import socket
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import TYPE_CHECKING

from tare.errors import InvalidArgument, StartFailed

if TYPE_CHECKING:
    from tare.containers.record import Record

DRIVERS = ("journald", "json-file", "local", "none", "syslog")
READABLE = ("json-file", "local")
JOURNAL = "/run/systemd/journal/socket"
LOCAL_SYSLOG = ("/dev/log", "/var/run/syslog", "/var/run/log")
_LOCAL_SIZE, _LOCAL_FILES = 20 * 1000 * 1000, 5
_UNITS = {"": 1, "b": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_TRUE, _FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")

_ATTRIBUTES = ("labels", "labels-regex", "env", "env-regex", "tag")
_CACHE = ("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress")
_OPTIONS = {
    "json-file": frozenset(("max-size", "max-file", "compress", *_ATTRIBUTES)),
    "local": frozenset(("max-size", "max-file", "compress")),
    "journald": frozenset((*_ATTRIBUTES, *_CACHE)),
    "syslog": frozenset((
        "syslog-address", "syslog-facility", "syslog-format", "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key",
        "syslog-tls-skip-verify", *_ATTRIBUTES, *_CACHE,
    )),
}  # fmt: skip
_FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
_TAG_FIELD = re.compile(r"\{\{\s*\.(\w+)\s*\}\}")


@dataclass(frozen=True)
class LogSettings:
    """A container's log, understood. Sizes in bytes, 0 for no limit."""

    driver: str
    options: Mapping[str, str] = field(default_factory=dict)
    max_size: int = 0
    max_file: int = 1
    compress: bool = False
    cached: bool = False
    """Whether a driver that sends output away keeps the latest of it here."""

    @property
    def readable(self) -> bool:
        return self.driver in READABLE or self.cached

    @property
    def format(self) -> str:
        """``json-file`` or ``local``: what the files hold."""
        return "json-file" if self.driver == "json-file" else "local"

    def path(self, directory: Path, container_id: str) -> Path:
        """The file being written, in the container's directory."""
        return directory / (f"{container_id}-json.log" if self.format == "json-file" else "container.log")


def parse_size(text: str) -> int:
    """``10m``, ``1g``, ``512`` in bytes; ``-1`` for none."""
    word = text.strip().lower()
    if word == "-1":
        return -1
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kmgt]?)i?b?", word)
    if match is None:
        raise InvalidArgument(f"invalid size: '{text}'")
    return int(float(match[1]) * _UNITS[match[2]])


def settings(driver: str, options: Mapping[str, str] | None, engine_driver: str, engine_options: Mapping[str, str]) -> LogSettings:
    """Check a container's choice; the engine's own counts where the container says nothing. Raises ``InvalidArgument``."""
    driver = driver or engine_driver
    own = options or {}
    if driver == "none":
        return LogSettings(driver)
    _check_mode(own)
    if driver not in DRIVERS:
        raise InvalidArgument(
            f"logger: no log driver named '{driver}' is registered: error looking up logging plugin {driver}: plugin \"{driver}\" not found"
        )
    for name in own:
        if name not in _OPTIONS[driver] and name not in ("mode", "max-buffer-size"):
            raise InvalidArgument(f"unknown log opt '{name}' for {driver} log driver")
    merged = {**(engine_options if driver == engine_driver else {}), **own}
    for name in ("labels-regex", "env-regex"):
        _pattern(merged.get(name, ""))
    expand_tag(merged.get("tag", ""), {})
    if driver == "syslog":
        _check_syslog(merged)
    return _files(driver, merged, own)


def _files(driver: str, merged: Mapping[str, str], own: Mapping[str, str]) -> LogSettings:
    sent = driver not in READABLE
    prefix = "cache-" if sent else ""
    modest = driver != "json-file"
    size = parse_size(merged[f"{prefix}max-size"]) if f"{prefix}max-size" in merged else _LOCAL_SIZE if modest else -1
    if size == 0 or size < -1:
        raise InvalidArgument("max-size must be a positive number" if modest else f"invalid size: '{merged[f'{prefix}max-size']}'")
    text = merged.get(f"{prefix}max-file", str(_LOCAL_FILES if modest else 1))
    count = int(text) if re.fullmatch(r"\d{1,6}", text) else 0
    if count < 1:
        raise InvalidArgument("max-file cannot be less than 1" if re.fullmatch(r"-?\d+", text) else f"invalid value for max-file: {text}")
    compress = _boolean(merged, f"{prefix}compress", modest and count > 1)
    if not modest:
        if count > 1 and size <= 0 and "max-file" in own:
            raise InvalidArgument("max-file cannot be set without max-size")
        if compress and (count <= 1 or size <= 0):
            raise InvalidArgument("compress cannot be true when max-file is less than 2 or max-size is not set")
    elif compress and count < 2 and f"{prefix}compress" in own:
        raise InvalidArgument("compression cannot be enabled when max file count is 1")
    cached = sent and not _boolean(merged, "cache-disabled", False)
    return LogSettings(driver, merged, max(size, 0), count, compress, cached)


def _check_mode(options: Mapping[str, str]) -> None:
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidArgument(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in options:
        if mode != "non-blocking":
            raise InvalidArgument("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        try:
            parse_size(options["max-buffer-size"])
        except InvalidArgument as error:
            raise InvalidArgument(f"error parsing option max-buffer-size: {error}") from None


def _check_syslog(options: Mapping[str, str]) -> None:
    facility(options.get("syslog-facility", ""))
    if options.get("syslog-format", "") not in _FORMATS:
        raise InvalidArgument("Invalid syslog format")
    _boolean(options, "syslog-tls-skip-verify", False)
    address = options.get("syslog-address", "")
    scheme, separator, place = address.partition("://")
    if not address:
        return
    if not separator:
        raise InvalidArgument(f"syslog-address should be in form proto://address, got {address}")
    if scheme not in ("udp", "tcp", "tcp+tls", "unix", "unixgram"):
        raise InvalidArgument(f'unsupported scheme: "{scheme}"')
    if scheme.startswith("unix"):
        if not os.path.exists(place):
            raise InvalidArgument(f"stat {place}: no such file or directory")
    elif not _host_and_port(place)[0]:
        raise InvalidArgument(f"invalid syslog-address: {address}")


def _host_and_port(place: str) -> tuple[str, int]:
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:/\[\]]+)(?::(\d{1,5}))?/?", place)
    return (match[1].strip("[]"), int(match[2] or 514)) if match else ("", 0)


def facility(text: str) -> int:
    """Number of a syslog facility given by name or number; ``daemon`` for none."""
    if not text:
        return SysLogHandler.LOG_DAEMON
    if text.isdecimal() and int(text) <= 23:
        return int(text)
    if text not in SysLogHandler.facility_names:
        raise InvalidArgument("invalid syslog facility")
    return SysLogHandler.facility_names[text]


def _boolean(options: Mapping[str, str], name: str, default: bool) -> bool:
    text = options.get(name)
    if text is None:
        return default
    if text not in _TRUE + _FALSE:
        raise InvalidArgument(f'error parsing option {name}: strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in _TRUE


def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text else None
    except re.error as error:
        raise InvalidArgument(f"error parsing regexp: {error}") from None


def expand_tag(template: str, values: Mapping[str, str]) -> str:
    """Fill ``{{.Name}}`` and its like in. Without values only the names are checked. Raises ``InvalidArgument``."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in _TAG_FIELDS:
            raise InvalidArgument(f'failed to parse log tag: template: log-tag: can\'t evaluate field "{match[1]}"')
        return values.get(match[1], "")

    text = _TAG_FIELD.sub(value, template)
    if "{{" in text:
        raise InvalidArgument(f"failed to parse log tag: {template}")
    return text


_TAG_FIELDS = ("ID", "FullID", "Name", "ImageID", "ImageFullID", "ImageName", "DaemonName", "Hostname", "Command")


def tag_values(record: Record) -> dict[str, str]:
    """What the fields of a tag stand for."""
    image = record.image.partition(":")[2] or record.image
    return {
        "ID": record.id[:12],
        "FullID": record.id,
        "Name": record.name,
        "ImageID": image[:12],
        "ImageFullID": record.image,
        "ImageName": record.config.image,
        "DaemonName": "docker",
        "Hostname": os.uname().nodename,
        "Command": " ".join((record.path, *record.args)),
    }


def attributes(record: Record, options: Mapping[str, str]) -> dict[str, str]:
    """Labels and variables of the container that go with each of its lines, and its tag."""
    labels = record.config.labels or {}
    environment = dict(entry.partition("=")[::2] for entry in record.config.env or ())
    chosen: dict[str, str] = {}
    for values, names, pattern in (
        (labels, options.get("labels", ""), _pattern(options.get("labels-regex", ""))),
        (environment, options.get("env", ""), _pattern(options.get("env-regex", ""))),
    ):
        wanted = {name.strip() for name in names.split(",") if name}
        chosen.update((name, value) for name, value in values.items() if name in wanted or (pattern and pattern.search(name)))
    if options.get("tag"):
        chosen["tag"] = expand_tag(options["tag"], tag_values(record))
    return chosen


def receiver(record: Record, log: LogSettings) -> dict[str, str]:
    """What the keeper needs to send output away; empty for drivers that do not. Resolves names: call it in a thread.

    Raises ``StartFailed`` when there is nobody to send to.
    """
    if log.driver not in ("syslog", "journald"):
        return {}
    options = log.options
    tag = expand_tag(options.get("tag") or "{{.ID}}", tag_values(record))
    queue = {"queue": str(parse_size(options["max-buffer-size"]))} if "max-buffer-size" in options else {}
    if log.driver == "journald":
        if not os.path.exists(JOURNAL):
            raise _no_start("journald is not enabled on this host")
        extra = {re.sub(r"[^A-Z0-9_]", "_", key.upper()).lstrip("_0123456789"): text for key, text in attributes(record, options).items()}
        names = {"CONTAINER_ID": record.id[:12], "CONTAINER_ID_FULL": record.id, "CONTAINER_NAME": record.name, "CONTAINER_TAG": tag}
        names |= {"IMAGE_NAME": record.config.image, "SYSLOG_IDENTIFIER": tag}
        return {"address": f"unixgram://{JOURNAL}", **queue, **{key: text for key, text in extra.items() if key and key != "TAG"}, **names}
    found = {
        "tag": tag, "host": os.uname().nodename, "pid": str(os.getpid()), "format": options.get("syslog-format", ""),
        "facility": str(facility(options.get("syslog-facility", ""))), **queue,
    }  # fmt: skip
    for key, option in (("ca", "syslog-tls-ca-cert"), ("cert", "syslog-tls-cert"), ("key", "syslog-tls-key")):
        if options.get(option):
            found[key] = options[option]
    if _boolean(options, "syslog-tls-skip-verify", False):
        found["skip_verify"] = "1"
    if options.get("syslog-address", "").startswith("tcp+tls"):
        found["library"] = ":".join((sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED") or ""))
    return found | _reach(options.get("syslog-address", ""))


def _reach(address: str) -> dict[str, str]:
    """Find the syslog server, and that it is there."""
    scheme, _, place = address.partition("://")
    if not address or scheme.startswith("unix"):
        for path in (place,) if address else LOCAL_SYSLOG:
            for kind, word in ((socket.SOCK_DGRAM, "unixgram"), (socket.SOCK_STREAM, "unix")):
                with socket.socket(socket.AF_UNIX, kind) as sock:
                    sock.settimeout(2)
                    if sock.connect_ex(path) == 0:
                        return {"address": f"{word}://{path}"}
        raise _no_start("Unix syslog delivery error")
    host, port = _host_and_port(place)
    if scheme == "tcp+tls" and ":" not in place:
        port = 6514
    kind = socket.SOCK_DGRAM if scheme == "udp" else socket.SOCK_STREAM
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=kind)[0]
    except OSError as error:
        raise _no_start(f"dial {scheme[:3]}: lookup {host}: {(error.strerror or 'no such host').lower()}") from None
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        try:
            sock.connect(target)
        except OSError as error:
            raise _no_start(f"dial {scheme[:3]} {place}: connect: {(error.strerror or 'i/o timeout').lower()}") from None
    ip = f"[{target[0]}]" if family == socket.AF_INET6 else target[0]
    return {"address": f"{scheme}://{ip}:{port}", "name": host}


def _no_start(why: str) -> StartFailed:
    return StartFailed(f"failed to create task for container: failed to initialize logging driver: {why}", 128)
