"""The verbs of ``tare-runtime`` as data, and the call of one. A verb's module is loaded when it is called."""

from __future__ import annotations

import os
import sys

from tare.runtime.cli.options import Command, Flag, Parsed, UsageError, describe_flags, parse

VERSION = "0.1.0"
SPEC = "1.2.0"
DEFAULT_ROOT = "/run/tare-runtime"

GLOBAL_FLAGS = (
    Flag("root", f"directory of the containers' state (default {DEFAULT_ROOT})", "DIR"),
    Flag("log", "append messages to this file", "FILE"),
    Flag("log-format", "format of the log: text or json", "FORMAT"),
    Flag("debug", "say more"),
    Flag("systemd-cgroup", "not supported: cgroups are managed through cgroupfs"),
    Flag("rootless", "ignored: true, false or auto", "MODE"),
    Flag("criu", "ignored: there is no checkpoint", "PATH"),
    Flag("version v", "print the version"),
    Flag("help h", "print help"),
)

_BUNDLE = Flag("bundle b", "directory of the bundle (default: here)", "DIR")
_PID_FILE = Flag("pid-file", "write the process id into this file", "FILE")
_CONSOLE = Flag("console-socket", "unix socket that takes the terminal's master", "PATH")
_FDS = Flag("preserve-fds", "descriptors above 2 that the program inherits", "N")
_CREATION = (
    _BUNDLE,
    _PID_FILE,
    _CONSOLE,
    _FDS,
    Flag("no-pivot", "not supported: it would leave the host's tree reachable"),
    Flag("no-new-keyring", "accepted: the session keyring is never changed"),
)
_FORMAT = Flag("format f", "table or json", "FORMAT")

COMMANDS = (
    Command("create", "ID", "make a container; its program waits for start", "lifecycle:create", _CREATION),
    Command("start", "ID", "run the program of a created container", "lifecycle:start"),
    Command(
        "run", "ID", "create, start, wait, delete", "lifecycle:run",
        (
            *_CREATION,
            Flag("detach d", "do not wait"),
            Flag("keep", "do not delete the container afterwards"),
            Flag("no-subreaper", "accepted"),
        ),
    ),
    Command("state", "ID", "print the state document", "lifecycle:state"),
    Command(
        "kill", "ID [SIGNAL]", "send a signal (default SIGTERM)", "lifecycle:kill",
        (Flag("all a", "to every process of the container"),),
    ),
    Command("delete", "ID", "remove a stopped container", "lifecycle:delete", (Flag("force f", "kill it first"),)),
    Command(
        "exec", "ID COMMAND [ARGUMENT ...]", "run a further process in a container", "execution:execute",
        (
            _PID_FILE, _CONSOLE, _FDS,
            Flag("process p", "OCI process document", "FILE"),
            Flag("tty t", "with a terminal"),
            Flag("detach d", "do not wait"),
            Flag("cwd", "working directory", "DIR"),
            Flag("env e", "environment variable", "NAME=VALUE", many=True),
            Flag("user u", "numeric user and group", "UID[:GID]"),
            Flag("additional-gids g", "further groups", "GID", many=True),
            Flag("cap c", "add a capability", "NAME", many=True),
            Flag("no-new-privs", "set no_new_privs"),
            Flag("apparmor", "AppArmor profile", "NAME"),
            Flag("ignore-paused", "also in a paused container"),
        ),
        in_order=True,
    ),
    Command("list", "", "list containers", "listing:list_containers", (_FORMAT, Flag("quiet q", "ids only"))),
    Command("ps", "ID [PS-OPTION ...]", "list the processes of a container", "listing:ps", (_FORMAT,), in_order=True),
    Command("pause", "ID", "stop all processes", "limits:pause"),
    Command("resume", "ID", "let them go on", "limits:resume"),
    Command(
        "update", "ID", "change resource limits", "limits:update",
        (
            Flag("resources r", "linux.resources document, - for standard input", "FILE"),
            *(Flag(f"{name}", f"set {name}", "VALUE") for name in (
                "blkio-weight", "cpu-period", "cpu-quota", "cpu-burst", "cpu-share", "cpu-rt-period", "cpu-rt-runtime", "cpu-idle",
                "memory", "memory-reservation", "memory-swap", "pids-limit", "cpuset-cpus", "cpuset-mems",
            )),
        ),
    ),
    Command(
        "events", "ID", "print resource usage", "listing:events",
        (Flag("stats", "once"), Flag("interval", "time between two lines (default 5s)", "DURATION")),
    ),
    Command(
        "plan", "[ID]", "print every step of a container's start, without running it", "describe:plan",
        (_BUNDLE, Flag("json", "as data")),
    ),
    Command("spec", "", "write an example config.json", "describe:spec", (_BUNDLE,)),
    Command("features", "", "print what this runtime supports", "describe:features"),
)  # fmt: skip


def invoke(argv: list[str]) -> int:
    """Run one command line; its exit status."""
    try:
        options, rest = parse(GLOBAL_FLAGS, argv, in_order=True)
        if options.flag("version"):
            print(f"tare-runtime version {VERSION}\nspec: {SPEC}\npython: {sys.version.split()[0]}")
            return 0
        if options.flag("help") or not rest or rest[0] == "help":
            print(_help())
            return 0 if rest or options else 1
        command = next((known for known in COMMANDS if known.name == rest[0]), None)
        if command is None:
            raise UsageError(f"no such command: {rest[0]}")
        own, arguments = parse(command.flags, rest[1:], command.in_order)
        if own.flag("help"):
            print(_help_of(command))
            return 0
        _check(options, own)
    except UsageError as error:
        print(f"tare-runtime: {error}", file=sys.stderr)
        return 1
    return _call(command, options, own, arguments)


def _check(options: Parsed, own: Parsed) -> None:
    if options.flag("systemd_cgroup"):
        raise UsageError("--systemd-cgroup is not supported: use the cgroupfs cgroup manager")
    if options.text("log_format") not in ("", "text", "json"):
        raise UsageError(f"unknown log-format {options.text('log_format')!r}")
    if own.flag("no_pivot"):
        raise UsageError("--no-pivot is not supported: without pivot_root the host's tree stays reachable")


def _call(command: Command, options: Parsed, own: Parsed, arguments: list[str]) -> int:
    from tare.runtime.cli.report import Report, RuntimeFailure

    report = Report(options.text("log"), options.text("log_format") or "text", options.flag("debug"))
    try:
        from importlib import import_module

        from tare.runtime.cli.call import Call
        from tare.runtime.cli.state import Store

        module, _, function = command.handler.partition(":")
        store = Store(os.path.abspath(options.text("root") or DEFAULT_ROOT))
        handler = getattr(import_module(f"tare.runtime.cli.{module}"), function)
        return int(handler(Call(options, own, arguments, store, report)))
    except RuntimeFailure as error:
        report.error(str(error))
        return error.code
    except UsageError as error:
        report.error(f"{error}\n\n{_help_of(command)}")
        return 1
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        report.error(f"{command.name}: {error.filename}: {text}" if error.filename else f"{command.name}: {text}")
        return 1


def _help() -> str:
    width = max(len(command.name) for command in COMMANDS)
    verbs = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    usage = "usage: tare-runtime [OPTIONS] COMMAND [ARGUMENT ...]\n\nRun containers from OCI bundles."
    return f"{usage}\n\nCommands:\n{verbs}\n\nOptions:\n{describe_flags(GLOBAL_FLAGS)}"


def _help_of(command: Command) -> str:
    usage = f"usage: tare-runtime {command.name}{' [OPTIONS]' if command.flags else ''} {command.arguments}".rstrip()
    flags = f"\n\nOptions:\n{describe_flags(command.flags)}" if command.flags else ""
    return f"{usage}\n\n{command.summary[0].upper()}{command.summary[1:]}.{flags}"
