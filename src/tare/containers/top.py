"""The processes of a container, as ``docker top`` lists them: the host's view (its pids, its user names) of its control group.

Nothing of the container is run or trusted for this. The default columns (``-ef``) are read from /proc without any process of ours; for
other ``ps`` arguments the host's own ps is run, by absolute path and with an argument list.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import subprocess
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tare.errors import InvalidArgument, Unsupported

TITLES = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
DEFAULT_ARGUMENTS = "-ef"

_PS = ("/bin/ps", "/usr/bin/ps")
_PS_SECONDS = 20
_PS_OUTPUT_LIMIT = 16 << 20
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_COMMAND_LIMIT = 4096


async def top(pids: Sequence[int], main_pid: int, ps_args: str = DEFAULT_ARGUMENTS) -> dict[str, Any]:
    """``{"Titles": [...], "Processes": [[...], ...]}`` for the processes ``pids`` and the task's own ``main_pid``.

    Raises ``InvalidArgument`` with dockerd's words for arguments that ps refuses or that hide the pid column.
    """
    wanted = sorted({*pids, main_pid})
    arguments = ps_args.split()
    if not arguments or arguments == [DEFAULT_ARGUMENTS]:
        rows = await asyncio.to_thread(read_processes, wanted)
        return {"Titles": list(TITLES), "Processes": rows}
    check_arguments(ps_args)
    output = await asyncio.to_thread(run_ps, arguments, wanted)
    titles, rows = parse_ps(output, set(wanted))
    return {"Titles": titles, "Processes": rows}


# ---------------------------------------------------------------------------------------------------------------------- /proc


def read_processes(pids: Sequence[int]) -> list[list[str]]:
    """Rows of ``TITLES`` as ``ps -ef`` prints them; processes that end meanwhile are left out."""
    now, ticks = time.time(), os.sysconf("SC_CLK_TCK")
    with open("/proc/stat", encoding="ascii") as stream:
        booted = next((int(line.split()[1]) for line in stream if line.startswith("btime ")), 0)
    rows = []
    for pid in pids:
        try:
            rows.append(_read_process(pid, now, booted, ticks))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return rows


def _read_process(pid: int, now: float, booted: int, ticks: int) -> list[str]:
    with open(f"/proc/{pid}/stat", "rb") as stream:
        stat = stream.read()
        uid = os.fstat(stream.fileno()).st_uid
    with open(f"/proc/{pid}/cmdline", "rb") as stream:
        command_line = stream.read(_COMMAND_LIMIT)
    return format_process(pid, uid_name(_effective_uid(pid, uid)), stat, command_line, now, booted, ticks)


def _effective_uid(pid: int, owner: int) -> int:
    """The owner of the /proc entry, but for processes that made themselves undumpable, whose entries belong to root."""
    if owner != 0:
        return owner
    with open(f"/proc/{pid}/status", "rb") as stream:
        for line in stream:
            if line.startswith(b"Uid:"):
                return int(line.split()[2])
    return owner


def format_process(pid: int, user: str, stat: bytes, command_line: bytes, now: float, booted: int, ticks: int) -> list[str]:
    """One row from proc_pid_stat(5) and the command line. The name in ``stat`` may contain anything, also parentheses and spaces."""
    name = stat[stat.index(b"(") + 1 : stat.rindex(b")")].decode("utf-8", "replace")
    fields = stat[stat.rindex(b")") + 2 :].split()
    state, ppid, tty = fields[0], int(fields[1]), int(fields[4])
    used = (int(fields[11]) + int(fields[12])) // ticks
    started = booted + int(fields[19]) / ticks
    share = min(99, int(used * 100 / max(1.0, now - started)))
    command = command_line.rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    if not command:
        command = f"[{name}] <defunct>" if state == b"Z" else f"[{name}]"
    clean = _CONTROL.sub("?", command)
    return [user, str(pid), str(ppid), str(share), start_time(started, now), terminal(tty), cpu_time(used), clean]


def start_time(started: float, now: float) -> str:
    """STIME: the hour today, the day this year, else the year."""
    began, today = time.localtime(started), time.localtime(now)
    if began.tm_year != today.tm_year:
        return str(began.tm_year)
    if began.tm_yday != today.tm_yday:
        return f"{_MONTHS[began.tm_mon - 1]}{began.tm_mday:02d}"
    return f"{began.tm_hour:02d}:{began.tm_min:02d}"


def cpu_time(seconds: int) -> str:
    """TIME: ``[days-]hh:mm:ss``."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02d}:{minute:02d}:{second:02d}"


def terminal(number: int) -> str:
    """TTY: the name of the controlling terminal's device number."""
    major, minor = os.major(number), os.minor(number)
    if number == 0:
        return "?"
    if 136 <= major <= 143:
        return f"pts/{(major - 136) * 256 + minor}"
    if major == 4:
        return f"tty{minor}" if minor < 64 else f"ttyS{minor - 64}"
    return "console" if (major, minor) == (5, 1) else "?"


@lru_cache(maxsize=256)
def uid_name(uid: int) -> str:
    """The host's name of a user as ps shows it: eight characters, a longer one cut with a plus."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
    return name if len(name) <= 8 else f"{name[:7]}+"


# ------------------------------------------------------------------------------------------------------------------------- ps


def check_arguments(ps_args: str) -> None:
    """Refuse a second column headed PID, by which another number could pass for the process's (dockerd's check)."""
    for group in re.finditer(r"\s+([^\s=]*)=\s*(PID[^\s]*)", " " + ps_args):
        if group[1] != "pid":
            raise InvalidArgument(f'specifying "{group[1]}={group[2]}" is not allowed')


def run_ps(arguments: Sequence[str], pids: Sequence[int]) -> str:
    """The output of the host's ps, asked for these processes if the arguments allow that, else for those that they choose."""
    program = next((path for path in _PS if os.access(path, os.X_OK)), None)
    if program is None:
        raise Unsupported(f"ps arguments other than {DEFAULT_ARGUMENTS} need the host's ps; install procps")
    chosen = ",".join(map(str, pids))
    problem = ""
    for extra in (["-q", chosen], []):
        try:
            done = subprocess.run(
                [program, *arguments, *extra],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PS_SECONDS,
                check=False,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "COLUMNS": "100000"},
            )
        except subprocess.TimeoutExpired:
            raise InvalidArgument("error running ps: it did not end in time") from None
        if done.returncode == 0:
            return done.stdout[:_PS_OUTPUT_LIMIT].decode("utf-8", "replace")
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        problem = f"ps: {words[0]}" if words else f"error running ps: exit status {done.returncode}"
    raise InvalidArgument(problem)


def parse_ps(output: str, pids: set[int]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the wanted processes. A line whose pid is ``-`` is a thread of the process above it; the last column is free
    text."""
    lines = output.splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise InvalidArgument("couldn't find PID field in ps output")
    column = titles.index("PID")
    rows: list[list[str]] = []
    wanted = False
    for line in lines[1:]:
        fields = line.split()
        if not fields:
            continue
        if len(fields) <= column:
            raise InvalidArgument(f"unexpected ps output: {line!r}")
        if fields[column] != "-":
            if not fields[column].isdigit():
                raise InvalidArgument(f"unexpected pid '{fields[column]}'")
            wanted = int(fields[column]) in pids
        if wanted:
            rows.append([*fields[: len(titles) - 1], " ".join(fields[len(titles) - 1 :])])
    return titles, rows
