"""Who may do what with which repository. Pure.

A user's rights on a repository are all that the matching rules give; no rule takes anything away, so their order does not matter. Without
any rule whoever proved a name may do everything.

Patterns: ``*`` is any text within one part of a name, ``**`` any text, ``{user}`` the name of whoever asks: ``home/{user}/**``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tare.api.registry.settings import Rule

ALL = frozenset(("pull", "push", "delete"))
NONE: frozenset[str] = frozenset()
_REMEMBER = 4096


class Rights:
    """``anonymous``: what everybody may do everywhere, also without a name."""

    def __init__(
        self, rules: Sequence[Rule] = (), groups: Mapping[str, Sequence[str]] | None = None, *, anonymous: frozenset[str] = NONE
    ) -> None:
        self._rules = rules
        self._members = {name: frozenset(members) for name, members in (groups or {}).items()}
        self._everywhere = anonymous
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    @property
    def for_nobody(self) -> bool:
        """Whether anything at all may be done without a name."""
        return bool(self._everywhere) or any(rule.anonymous for rule in self._rules)

    @property
    def uniform(self) -> bool:
        """Whether all repositories are alike for everybody."""
        return not self._rules

    def of(self, user: str, repository: str) -> frozenset[str]:
        """``user`` is empty for whoever proved no name."""
        key = (user, repository)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBER:
                self._known.clear()
            found = self._known[key] = self._find(user, repository)
        return found

    def _find(self, user: str, repository: str) -> frozenset[str]:
        if not self._rules:
            return ALL if user else self._everywhere
        found = set(self._everywhere)
        for rule in self._rules:
            if self._is_for(rule, user) and matches(rule.repositories, repository, user):
                found.update(rule.rights)
        return frozenset(found)

    def _is_for(self, rule: Rule, user: str) -> bool:
        if rule.anonymous:
            return True
        if not user:
            return False
        return user in rule.users or "*" in rule.users or any(user in self._members[group] for group in rule.groups)


def matches(patterns: Iterable[str], repository: str, user: str = "") -> bool:
    """Whether any of the patterns is meant."""
    return any(_expression(pattern, user).fullmatch(repository) for pattern in patterns if user or "{user}" not in pattern)


_WORDS = re.compile(r"\*\*|\*|\{user\}|[^*{]+|\{")
_expressions: dict[tuple[str, str], re.Pattern[str]] = {}


def _expression(pattern: str, user: str) -> re.Pattern[str]:
    key = (pattern, user if "{user}" in pattern else "")
    found = _expressions.get(key)
    if found is None:
        words = {"**": ".*", "*": "[^/]*", "{user}": re.escape(user)}
        found = re.compile("".join(words.get(word) or re.escape(word) for word in _WORDS.findall(pattern)), re.DOTALL)
        if len(_expressions) >= _REMEMBER:
            _expressions.clear()
        _expressions[key] = found
    return found
