"""``.dockerignore``: which files of a context are left out.

One pattern per line; the last that matches a path, or a directory above it, decides. ``!`` takes back. ``*`` and ``?`` stay within one
name, ``**`` spans any number of directories, ``[a-z]`` is a class, a backslash makes the next character literal. A class may hold a
slash, and one with ``^`` does unless it names it. Patterns are relative to the context's root whether they begin with a slash or not.
"""

from __future__ import annotations

import posixpath
import re

from tare.errors import InvalidArgument

_SPANS = "**"


class Pattern:
    """One line. Matching takes time linear in pattern times path: a Dockerfile's author may be hostile to the daemon that builds it."""

    def __init__(self, text: str, *, excludes: bool) -> None:
        self.excludes = excludes
        self._names: list[re.Pattern[str] | None] = []
        """An expression for each name; None spans any number of directories."""
        self._states: _States | None = None
        """For the rare pattern that spans directories inside a name: with ``**`` there, or a class that a slash belongs to."""
        if _has_class_of_slash(text):
            self._states = _States(text)
            return
        names = text.split("/")
        if names[0].startswith(_SPANS) and names[0] != _SPANS and not any(char in text[2:] for char in "*?[\\"):
            names = [_SPANS, names[0][1:], *names[1:]]  # "**.txt" is whatever ends so
        for name in names:
            if name == _SPANS:
                if not self._names or self._names[-1] is not None:
                    self._names.append(None)
            else:
                self._names.append(name_pattern(name))
        if any(_SPANS in name and name != _SPANS for name in names):
            self._states = _States(text)
        if self._names[-1] is None:
            self._names.append(re.compile(".*", re.DOTALL))

    def matches(self, parts: list[str]) -> bool:
        """Whether it matches this path or a directory above it."""
        if self._states is not None:
            return self._states.matches("/".join(parts))
        at = resume = 0
        wanted, span = 0, -1
        while wanted < len(self._names):
            expression = self._names[wanted]
            if expression is None:
                span, resume = wanted, at
                wanted += 1
            elif at < len(parts) and expression.fullmatch(parts[at]):
                at, wanted = at + 1, wanted + 1
            elif span >= 0 and resume < len(parts):
                resume += 1
                at, wanted = resume, span + 1
            else:
                return False
        return True

    def may_reach_below(self, parts: list[str]) -> bool:
        """Whether it may match something below this directory."""
        if self._states is not None:
            return True
        for expression, part in zip(self._names, parts, strict=False):
            if expression is None:
                return True
            if not expression.fullmatch(part):
                return False
        return True


class _States:
    """A pattern as Docker matches it, character by character: ``**``, with the slash behind it, stands for ``(.*/)?`` wherever it is.

    All the ways to match are followed at the same time, so the time is linear here too.
    """

    _ANY, _STAR, _SPAN, _REST = object(), object(), object(), object()

    def __init__(self, text: str) -> None:
        self._tokens: list[object] = []
        at = 0
        while at < len(text):
            if text.startswith(_SPANS, at):
                at += 2
                at += text[at : at + 1] == "/"
                self._tokens.append(self._SPAN if at < len(text) else self._REST)
                continue
            if text[at] in "*?":
                self._tokens.append(self._STAR if text[at] == "*" else self._ANY)
            elif text[at] == "[":
                at, expression = _character_class(text, at)
                self._tokens.append(re.compile(expression))
                continue
            else:
                at += text[at] == "\\"
                if at >= len(text):
                    raise InvalidArgument(f"syntax error in pattern {text!r}: it ends with a backslash")
                self._tokens.append(text[at])
            at += 1

    def _reach(self, found: set[int]) -> set[int]:
        """With what may stand for nothing passed over."""
        waiting = list(found)
        while waiting:
            at = waiting.pop()
            if at < len(self._tokens) and self._tokens[at] in (self._STAR, self._SPAN, self._REST) and at + 1 not in found:
                found.add(at + 1)
                waiting.append(at + 1)
        return found

    def matches(self, path: str) -> bool:
        """Whether it matches this path or a directory above it."""
        end = len(self._tokens)
        states, inside = self._reach({0}), set[int]()
        """``inside``: spans that have begun and not come to a slash yet."""
        for char in path:
            if char == "/" and end in states:
                return True
            inside |= {at for at in states if at < end and self._tokens[at] is self._SPAN}
            following = {at + 1 for at in inside} if char == "/" else set()
            for at in states:
                token = self._tokens[at] if at < end else None
                if (token is self._STAR and char != "/") or token is self._REST:
                    following.add(at)
                elif (token is self._ANY and char != "/") or token == char or (isinstance(token, re.Pattern) and token.fullmatch(char)):
                    following.add(at + 1)
            states = self._reach(following)
        return end in states


class Patterns:
    """The patterns of one file."""

    def __init__(self, text: str) -> None:
        """``InvalidArgument`` names a pattern that is malformed."""
        self._patterns: list[Pattern] = []
        for line in text.removeprefix("\ufeff").splitlines():
            if line.startswith("#") or not line.strip():
                continue
            pattern = line.strip()
            excludes = not pattern.startswith("!")
            if not excludes:
                pattern = pattern[1:].strip()
                if not pattern:
                    raise InvalidArgument('illegal exclusion pattern: "!"')
            pattern = posixpath.normpath(pattern).lstrip("/") or "."
            if pattern != ".":
                self._patterns.append(Pattern(pattern, excludes=excludes))

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def excluded(self, path: str) -> bool:
        """Whether a path (relative, with slashes) is left out."""
        parts = path.split("/")
        result = False
        for pattern in self._patterns:
            if pattern.excludes != result and pattern.matches(parts):
                result = pattern.excludes
        return result

    def can_skip(self, directory: str) -> bool:
        """Whether nothing below an excluded directory can come back, so that it need not be looked into."""
        if not self.excluded(directory):
            return False
        parts = directory.split("/")
        return not any(pattern.may_reach_below(parts) for pattern in self._patterns if not pattern.excludes)


def name_pattern(name: str) -> re.Pattern[str]:
    """A pattern for one name. What lies between two stars is taken where it is found first, without trying again later: that is enough, and
    keeps the time linear."""
    pieces, at = [""], 0
    while at < len(name):
        char = name[at]
        if char == "*":
            pieces.append("")
        elif char == "?":
            pieces[-1] += "."
        elif char == "\\":
            at += 1
            if at >= len(name):
                raise InvalidArgument(f"syntax error in pattern {name!r}: it ends with a backslash")
            pieces[-1] += re.escape(name[at])
        elif char == "[":
            at, expression = _character_class(name, at)
            pieces[-1] += expression
            continue
        else:
            pieces[-1] += re.escape(char)
        at += 1
    first, *middle = pieces
    last = ".*" + middle.pop() if middle else ""
    return re.compile(first + "".join(f"(?>.*?{piece})" for piece in middle if piece) + last, re.DOTALL)


def _has_class_of_slash(text: str) -> bool:
    """Whether a class says something about slashes: then the pattern cannot be taken apart into names."""
    at = 0
    while at < len(text):
        if text[at] == "[":
            start = at
            at, expression = _character_class(text, at)
            if "/" in text[start:at] or re.fullmatch(expression, "/"):
                return True
        else:
            at += 2 if text[at] == "\\" else 1
    return False


def _character_class(pattern: str, start: int) -> tuple[int, str]:
    """(position behind it, regular expression) of a class such as ``[^a-c\\]]``."""
    at = start + 1
    negated = pattern[at : at + 1] == "^"
    at += negated
    parts: list[str] = []
    while at < len(pattern):
        if pattern[at] == "]":
            if not parts:
                break
            return at + 1, ("[^" if negated else "[") + "".join(parts) + "]"
        low, at = _class_character(pattern, at)
        high = low
        if pattern[at : at + 1] == "-":
            high, at = _class_character(pattern, at + 1)
        if high < low:
            break
        parts.append(re.escape(low) + ("-" + re.escape(high) if high != low else ""))
    raise InvalidArgument(f"syntax error in pattern {pattern!r}: bad character class")


def _class_character(pattern: str, at: int) -> tuple[str, int]:
    escaped = pattern[at : at + 1] == "\\"
    at += escaped
    if at >= len(pattern) or (not escaped and pattern[at] in "]-"):
        raise InvalidArgument(f"syntax error in pattern {pattern!r}: bad character class")
    return pattern[at], at + 1
