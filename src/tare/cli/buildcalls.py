"""What ``build --check`` and ``--call`` show: the checks' findings, a build's arguments, its targets."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


def show(found: dict[str, Any], call: str, *, as_json: bool) -> int:
    """Show the daemon's answer; returns the exit status: 1 for a Dockerfile that has warnings."""
    if as_json:
        from tare.cli.documents import pretty

        sys.stdout.write(pretty(found, "  ") + "\n")
    elif call == "check":
        _check(found)
    elif call == "targets":
        _table(("TARGET", "DESCRIPTION"), [(_target(each), each.get("description", "")) for each in found.get("targets") or ()])
    else:
        _outline(found)
    return 1 if call == "check" and (found.get("warnings") or found.get("buildError")) else 0


def _check(found: dict[str, Any]) -> None:
    warnings, failure = found.get("warnings") or [], found.get("buildError")
    if not warnings and not failure:
        sys.stdout.write("Check complete, no warnings found.\n")
        return
    if warnings:
        count = len(warnings)
        sys.stdout.write(f"Check complete, {count} warning{'s' if count > 1 else ''} {'have' if count > 1 else 'has'} been found!\n")
    for warning in warnings:
        url = f" - {warning['url']}" if warning.get("url") else ""
        sys.stdout.write(f"\nWARNING: {warning['ruleName']}{url}\n{warning['description']}\n{warning['detail']}\n\n")
        sys.stdout.write(_excerpt(found, warning["location"]))
    if failure:
        sys.stdout.write(f"\nERROR: {failure['message']}\n\n{_excerpt(found, failure['location']) if failure.get('location') else ''}")


def _excerpt(found: dict[str, Any], location: dict[str, Any]) -> str:
    """The lines with two of their neighbours, as BuildKit frames them."""
    from binascii import a2b_base64

    source, ranges = found["sources"][location.get("sourceIndex") or 0], location.get("ranges")
    if not ranges:
        return ""
    lines = a2b_base64(source["data"]).decode("utf-8", "replace").splitlines()
    first, last = ranges[0]["start"]["line"], ranges[-1]["end"]["line"]
    text = f"{source['filename']}:{first}\n{'-' * 20}\n"
    for number in range(max(1, first - 2), min(len(lines), last + 2) + 1):
        mark = ">>>" if first <= number <= last else "   "
        text += f"{number:4} | {mark} {lines[number - 1]}\n"
    return f"{text}{'-' * 20}\n"


def _target(each: dict[str, Any]) -> str:
    return f"{each.get('name') or '(unnamed)'}{' (default)' if each.get('default') else ''}"


def _outline(found: dict[str, Any]) -> None:
    if found.get("name"):
        sys.stdout.write(f"TARGET:{' ' * 5}{found['name']}\n\n")
    elif found.get("description"):
        sys.stdout.write(f"DESCRIPTION: {found['description']}\n\n")
    arguments = [(each["name"], each.get("value") or "", each.get("description") or "") for each in found.get("args") or ()]
    if arguments:
        _table(("BUILD ARG", "VALUE", "DESCRIPTION"), arguments)
    for title, key in (("SECRET", "secrets"), ("SSH", "ssh")):
        rows = [(each["name"], "true" if each.get("required") else "") for each in found.get(key) or ()]
        if rows:
            sys.stdout.write("\n")
            _table((title, "REQUIRED"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        sys.stdout.write("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
