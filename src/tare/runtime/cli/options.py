"""Flags as data, and a parser for them.

The parser follows the habits of runc's command line (``--flag value``, ``--flag=value``, ``-flag``, a boolean may say ``=false``), which
other engines rely on. It is a table and one loop, because importing argparse would cost every container more time than mounting its root.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class UsageError(ValueError):
    """The command line is wrong; the text says how."""


class Flag(NamedTuple):
    """One option of a command."""

    names: str
    """Long name, then short ones, separated by spaces."""
    help: str
    value: str = ""
    """What to call the value; empty for a boolean."""
    many: bool = False
    """May be given several times."""

    @property
    def key(self) -> str:
        return self.names.split()[0].replace("-", "_")


class Parsed(dict[str, "str | bool | list[str]"]):
    """Values by key, with typed access."""

    def text(self, key: str) -> str:
        value = self.get(key, "")
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        return self.get(key) is True

    def list(self, key: str) -> list[str]:
        value = self.get(key)
        return value if isinstance(value, list) else []

    def number(self, key: str, default: int = 0) -> int:
        """An integer; UsageError when it is none."""
        text = self.text(key)
        if not text:
            return default
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"--{key.replace('_', '-')}: not a number: {text!r}") from None


class Command(NamedTuple):
    """One verb."""

    name: str
    arguments: str
    summary: str
    handler: str
    """``module:function`` below ``tare.runtime.cli``, loaded when it is needed."""
    flags: tuple[Flag, ...] = ()
    in_order: bool = False
    """Flags end at the first argument (what follows belongs to somebody else)."""


_BOOLEANS = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def parse(flags: Sequence[Flag], argv: Sequence[str], in_order: bool) -> tuple[Parsed, list[str]]:
    """Values and the remaining arguments. With ``in_order`` flags end at the first argument; ``--`` always ends them."""
    known = {name: flag for flag in flags for name in flag.names.split()}
    values, rest = Parsed(), list[str]()
    waiting = iter(argv)
    for word in waiting:
        if word == "--":
            rest.extend(waiting)
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            if in_order:
                rest.extend(waiting)
                break
            continue
        name, separator, text = word.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            if name in ("help", "h"):
                values["help"] = True
                continue
            raise UsageError(f"flag provided but not defined: {word.partition('=')[0]}")
        if not flag.value:
            if separator and text.lower() not in _BOOLEANS:
                raise UsageError(f"invalid boolean value {text!r} for --{name}")
            values[flag.key] = _BOOLEANS[text.lower()] if separator else True
            continue
        if not separator:
            found = next(waiting, None)
            if found is None:
                raise UsageError(f"flag needs an argument: --{name}")
            text = found
        values[flag.key] = [*values.list(flag.key), text] if flag.many else text
    return values, rest


def describe_flags(flags: Sequence[Flag]) -> str:
    """The table of flags for a help text."""
    rows = []
    for flag in flags:
        names = ", ".join(("--" if len(name) > 1 else "-") + name for name in flag.names.split())
        rows.append((f"{names} {flag.value}" if flag.value else names, flag.help))
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in rows)
