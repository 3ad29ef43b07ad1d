"""Which device nodes a group's processes may use: OCI device rules as a policy that v1 files and the v2 program both follow. Pure.

Rules come as a list in which later ones override earlier ones; a rule for "all devices" therefore forgets what came before. The result is
what the v1 controller keeps in the kernel: a default and exceptions from it. The list starts from "deny": an allow-list that names a few
nodes must not leave the others open because nobody wrote the first line.

The v1 controller drops an exception only for a rule with exactly the same numbers. "Allow every character device, then deny 1:3" would
silently keep 1:3 allowed; ``Policy.add`` refuses such a list instead, and v2 refuses it too so that a container means the same everywhere.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import Any

ANY = -1
ALL_ACCESS = frozenset("rwm")

Node = tuple[str, int, int]
"""Type (``b`` or ``c``), major, minor; ``ANY`` for every number."""


class Policy:
    """``allow`` is the answer for a node that no exception covers; an exception turns it around for the given accesses."""

    def __init__(self, allow: bool = False, exceptions: dict[Node, frozenset[str]] | None = None) -> None:
        self.allow = allow
        self.exceptions = exceptions if exceptions is not None else {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and (self.allow, self.exceptions) == (other.allow, other.exceptions)

    def __repr__(self) -> str:
        return f"Policy({'all' if self.allow else 'nothing'} but {self.lines()})"

    @classmethod
    def of(cls, rules: Iterable[Mapping[str, Any]]) -> Policy:
        """The policy of OCI ``linux.resources.devices`` (or of a part of it)."""
        policy = cls()
        for rule in rules:
            policy.add(rule)
        return policy

    def add(self, rule: Mapping[str, Any]) -> None:
        """Apply one OCI rule on top; raises ``OSError`` (EINVAL) for a rule that is malformed or that v1 cannot express."""
        access = frozenset(rule.get("access") or "rwm")
        kind = rule.get("type") or "a"
        major, minor = _number(rule, "major"), _number(rule, "minor")
        if kind not in ("a", "b", "c", "u") or not access <= ALL_ACCESS:
            raise _invalid(rule, "is malformed")
        if kind == "a" and (major, minor) == (ANY, ANY) and access == ALL_ACCESS:
            self.allow = bool(rule.get("allow"))
            self.exceptions.clear()
            return
        for node_kind in ("b", "c") if kind == "a" else ("c" if kind == "u" else kind):
            self._add_node((node_kind, major, minor), access, bool(rule.get("allow")), rule)

    def _add_node(self, node: Node, access: frozenset[str], allow: bool, rule: Mapping[str, Any]) -> None:
        present = self.exceptions.get(node, frozenset())
        if allow != self.allow:
            self.exceptions[node] = present | access
            return
        for other, accesses in self.exceptions.items():
            if other != node and _overlap(other, node) and accesses & access:
                raise _invalid(rule, "overrides only a part of an earlier, different rule")
        if node in self.exceptions:
            self.exceptions[node] = present - access
            if not self.exceptions[node]:
                del self.exceptions[node]

    def lines(self) -> list[str]:
        """The exceptions in the syntax of ``devices.allow`` and ``devices.deny``."""
        return [line(node, access) for node, access in self.exceptions.items()]


def line(node: Node, access: Iterable[str]) -> str:
    """One rule in v1 syntax, as ``c 136:* rwm``."""
    kind, major, minor = node
    present = set(access)
    letters = "".join(letter for letter in "rwm" if letter in present)
    return f"{kind} {_star(major)}:{_star(minor)} {letters}"


def v1_writes(target: Policy, present: Policy | None = None) -> list[tuple[str, str]]:
    """(file, line) pairs that lead a v1 group to ``target``.

    Without ``present`` the group starts afresh. With it, two allow-lists are led into each other by their difference only: a running
    container never sees a moment in which a node that stays allowed is denied.
    """
    if present is None or present.allow or target.allow:
        files = ("devices.allow", "devices.deny") if target.allow else ("devices.deny", "devices.allow")
        return [(files[0], "a")] + [(files[1], text) for text in target.lines()]
    writes = []
    for node, access in present.exceptions.items():
        surplus = access - target.exceptions.get(node, frozenset())
        if surplus:
            writes.append(("devices.deny", line(node, surplus)))
    for node, access in target.exceptions.items():
        missing = access - present.exceptions.get(node, frozenset())
        if missing:
            writes.append(("devices.allow", line(node, missing)))
    return writes


def parse_list(text: str) -> Policy:
    """The policy that a ``devices.list`` file shows. (A default of "allow" hides its exceptions there: only ``a *:* rwm`` is printed.)"""
    policy = Policy()
    for entry in text.splitlines():
        kind, numbers, access = entry.split(" ")
        major, minor = (ANY if number == "*" else int(number) for number in numbers.split(":"))
        if kind == "a":
            return Policy(allow=True)
        policy.exceptions[kind, major, minor] = frozenset(access)
    return policy


def _number(rule: Mapping[str, Any], key: str) -> int:
    value = rule.get(key)
    if value is None or value == ANY:
        return ANY
    if not isinstance(value, int) or not 0 <= value < 2**32:
        raise _invalid(rule, f"has a bad {key} number")
    return value


def _overlap(first: Node, second: Node) -> bool:
    return first[0] == second[0] and all(a == b or ANY in (a, b) for a, b in zip(first[1:], second[1:], strict=True))


def _star(number: int) -> str:
    return "*" if number == ANY else str(number)


def _invalid(rule: Mapping[str, Any], why: str) -> OSError:
    return OSError(errno.EINVAL, f"device rule {dict(rule)!r} {why}")
