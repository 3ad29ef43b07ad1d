"""exec: a further process in a running container."""

from __future__ import annotations

import json
import os
from typing import Any

from tare.runtime import lowering
from tare.runtime.cli import bundle as bundles
from tare.runtime.cli.call import Call
from tare.runtime.cli.lifecycle import check_console, descriptors, write_pid_file
from tare.runtime.cli.options import Parsed, UsageError
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.starter import Starter
from tare.runtime.cli.state import Record, cgroup
from tare.runtime.plan import StdioPlan

CAPABILITY_SETS = ("bounding", "effective", "permitted")


def execute(call: Call) -> int:
    """Run a process in a container; in the foreground its exit status is ours."""
    record = call.record()
    status = call.store.status(record)
    if status == "paused" and not call.options.flag("ignore_paused"):
        raise RuntimeFailure("cannot exec in a paused container (use --ignore-paused to override)")
    if status not in ("running", "paused", "created"):
        raise RuntimeFailure(f"cannot exec in a {status} container")
    count, extra = descriptors(call.options)
    process = described(call, record)
    process["env"] = [*(process.get("env") or ()), *extra]
    detached, console_socket = call.options.flag("detach"), call.options.text("console_socket")
    tty = bool(process.get("terminal"))
    check_console(tty, detached, console_socket)
    from tare.runtime.cli.foreground import Foreground, terminal_size

    console = process.get("consoleSize") or {}
    size = (int(console.get("height") or 0), int(console.get("width") or 0))
    waiting = None if detached else Foreground()
    proxied = tty and waiting is not None and not console_socket
    if proxied:
        size = terminal_size(0)
    try:
        plan = lowering.lower_exec("", process, StdioPlan(tty, rows=size[0], columns=size[1]), record.exec_defaults, user=None)
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeFailure(f"invalid process: {error}") from None
    starter = Starter(bundles.adapt(plan.steps, -1, count), console_socket, waiting.use_master if proxied and waiting else None)
    starter.group = cgroup(record)
    fork_inside(starter, record, count)
    try:
        starter.follow()
        for warning in starter.warnings:
            call.report.warning(warning)
        write_pid_file(call.options.text("pid_file"), starter.pid)
    except BaseException:
        starter.kill()
        raise
    return 0 if waiting is None else waiting.wait(starter.pid)


def fork_inside(starter: Starter, record: Record, count: int) -> None:
    """Fork the process so that it is born into the container's pid namespace."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except OSError:
        raise RuntimeFailure("container not running") from None
    try:
        if record.exec_defaults.get("pid"):
            starter.enter_pid_namespace(f"/proc/{record.pid}/ns/pid")
        starter.fork(range(3, 3 + count), pidfd)
    finally:
        os.close(pidfd)


def described(call: Call, record: Record) -> dict[str, Any]:
    """The OCI process that the command line describes: a file, or the container's own with another program."""
    options = call.options
    path = options.text("process")
    if path:
        try:
            with open(path, "rb") as file:
                process: dict[str, Any] = json.loads(file.read())
            warnings = bundles.check_process(process)
        except (OSError, ValueError, AttributeError) as error:
            raise RuntimeFailure(f"{path}: {error}") from None
        for warning in warnings:
            call.report.warning(warning)
        return process
    if len(call.arguments) < 2:
        raise UsageError("process args cannot be empty")
    process = dict(call.store.config(record.id)["process"])
    process["args"] = call.arguments[1:]
    process["terminal"] = options.flag("tty")
    process.pop("consoleSize", None)
    process["env"] = [*(process.get("env") or ()), *options.list("env")]
    for key, field in (("cwd", "cwd"), ("apparmor", "apparmorProfile")):
        if options.text(key):
            process[field] = options.text(key)
    if options.flag("no_new_privs"):
        process["noNewPrivileges"] = True
    user = _user(options, dict(process.get("user") or {}))
    process["user"] = user
    if options.list("cap"):
        sets = process.get("capabilities") or {}
        process["capabilities"] = {name: [*(sets.get(name) or ()), *options.list("cap")] for name in CAPABILITY_SETS}
    return process


def _user(options: Parsed, user: dict[str, Any]) -> dict[str, Any]:
    text = options.text("user")
    try:
        if text:
            uid, separator, gid = text.partition(":")
            user["uid"] = int(uid)
            if separator:
                user["gid"] = int(gid)
        groups = [int(number) for number in options.list("additional_gids")]
    except ValueError:
        raise UsageError("--user and --additional-gids take numbers: UID[:GID]") from None
    if groups:
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *groups]
    return user
