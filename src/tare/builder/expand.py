"""Variables, quotes and escapes in a Dockerfile's words.

The language is a small part of a shell's, and the same for every instruction that expands (ADD, ARG, COPY, ENV, EXPOSE, FROM, LABEL,
ONBUILD's triggers, STOPSIGNAL, USER, VOLUME, WORKDIR):

    'text'              literal
    "text"              variables are expanded; the escape character keeps ", $ and itself
    $NAME ${NAME}       the value, or nothing
    ${N:-word} ${N-word}    word when N is unset (with the colon: or empty)
    ${N:+word} ${N+word}    word when N is set (with the colon: and not empty)
    ${N:?word} ${N?word}    an error with word when N is unset (with the colon: or empty)
    ${N#pat} ${N##pat}  without the shortest or longest beginning that matches; % and %% cut the end
    ${N/pat/word} ${N//pat/word}    the first match, or every one, replaced

Outside quotes the escape character makes the next one literal. A dollar sign before anything else stands for itself. In a here-document
quotes are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tare.errors import InvalidArgument

Lookup = Callable[[str], str | None]
_NAME = re.compile(r"[^\W\d]\w*|\d+|[@*#?$!-]")
_DEPTH = 40


def expand(word: str, lookup: Lookup, escape: str = "\\") -> str:
    """The word with its variables expanded and its quotes removed. ``InvalidArgument`` names what is malformed."""
    return _Reader(word, lookup, escape).text()


def expand_document(text: str, lookup: Lookup) -> str:
    """A here-document with its variables expanded. Its escape character is the backslash whatever the file says, as with Docker."""
    return _Reader(text, lookup, "\\", quotes=False).text()


def expand_words(text: str, lookup: Lookup, escape: str = "\\") -> list[str]:
    """As ``expand``, split at white space outside quotes, also where it came from a variable."""
    return _Reader(text, lookup, escape).words()


def names_used(word: str, escape: str = "\\", *, document: bool = False) -> set[str]:
    """The variables that a word, or a here-document, asks for."""
    used: set[str] = set()

    def note(name: str) -> str:
        used.add(name)
        return "x"

    try:
        expand_document(word, note) if document else expand(word, note, escape)
    except InvalidArgument:
        pass
    return used


class _Reader:
    """One word or text. Pieces are (text, quoted) pairs, so that both results can be made of them."""

    def __init__(self, text: str, lookup: Lookup, escape: str, depth: int = 0, *, quotes: bool = True) -> None:
        if depth > _DEPTH:
            raise InvalidArgument("variable substitutions are nested too deeply")
        self._text = text
        self._lookup = lookup
        self._escape = escape
        self._quotes = quotes
        self._depth = depth
        self._at = 0
        self._pieces: list[tuple[str, bool]] = []

    def text(self) -> str:
        self._read()
        return "".join(piece for piece, _ in self._pieces)

    def words(self) -> list[str]:
        self._read()
        words: list[str] = []
        current: list[str] | None = None
        for piece, quoted in self._pieces:
            if quoted:
                current = [*(current or ()), piece]
                continue
            for part in re.split(r"(\s+)", piece):
                if not part:
                    continue
                if part.isspace():
                    if current is not None:
                        words.append("".join(current))
                    current = None
                else:
                    current = [*(current or ()), part]
        if current is not None:
            words.append("".join(current))
        return words

    def _read(self) -> None:
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == "'" and self._quotes:
                self._single_quoted()
            elif char == '"' and self._quotes:
                self._double_quoted()
            elif char == "$":
                self._pieces.append((self._dollar(), False))
            elif char == self._escape:
                self._at += 2
                # At the very end the escape character stands for nothing.
                self._pieces.append((self._text[self._at - 1 : self._at], True))
            else:
                self._at += 1
                self._pieces.append((char, False))

    def _single_quoted(self) -> None:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise InvalidArgument("unexpected end of statement while looking for matching single-quote")
        self._pieces.append((self._text[self._at + 1 : end], True))
        self._at = end + 1

    def _double_quoted(self) -> None:
        self._at += 1
        result: list[str] = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                self._pieces.append(("".join(result), True))
                return
            if char == "$":
                result.append(self._dollar())
                continue
            if char == self._escape and self._text[self._at + 1 : self._at + 2] in ('"', "$", self._escape):
                self._at += 1
                char = self._text[self._at]
            result.append(char)
            self._at += 1
        raise InvalidArgument("unexpected end of statement while looking for matching double-quote")

    def _dollar(self) -> str:
        self._at += 1
        if self._text[self._at : self._at + 1] == "{":
            return self._braces()
        match = _NAME.match(self._text, self._at)
        if match is None:
            return "$"
        self._at = match.end()
        return self._lookup(match[0]) or ""

    def _braces(self) -> str:
        start = self._at + 1
        body = self._body(start)
        match = _NAME.match(body)
        if match is None:
            raise InvalidArgument("syntax error: bad substitution")
        name, rest = match[0], body[match.end() :]
        value = self._lookup(name)
        if not rest:
            return value or ""
        return self._modified(name, value, rest)

    def _body(self, start: int) -> str:
        """Up to the closing brace; braces of inner substitutions and quoted ones do not count."""
        depth, at, quote = 1, start, ""
        while at < len(self._text):
            char = self._text[at]
            if char == self._escape and quote != "'":
                at += 1
            elif quote:
                quote = "" if char == quote else quote
            elif char in "'\"" and self._quotes:
                quote = char
            elif char == "$" and self._text[at + 1 : at + 2] == "{":
                depth += 1
                at += 1
            elif char == "}":
                depth -= 1
                if not depth:
                    self._at = at + 1
                    return self._text[start:at]
            at += 1
        raise InvalidArgument("syntax error: missing '}'")

    def _modified(self, name: str, value: str | None, rest: str) -> str:
        colon = rest[0] == ":"
        kind, argument = rest[colon : colon + 1], rest[colon + 1 :]
        if kind in ("-", "+", "?") and kind:
            present = bool(value) if colon else value is not None
            word = self._inner(argument, self._escape)
            if kind == "-":
                return value or "" if present else word
            if kind == "+":
                return word if present else ""
            if not present:
                state = "unset" if value is None else "empty"
                raise InvalidArgument(f"{name}: {word or f'is not allowed to be {state}'}")
            return value or ""
        if not colon and kind in ("#", "%"):
            longest = argument[:1] == kind
            pattern = self._inner(argument[longest:], "\0")
            return _cut(value or "", pattern, at_end=kind == "%", longest=longest)
        if not colon and kind == "/":
            return self._replaced(value or "", argument)
        raise InvalidArgument(f"unsupported modifier ({rest[: colon + 1]}) in substitution")

    def _inner(self, text: str, escape: str) -> str:
        return _Reader(text, self._lookup, escape, self._depth + 1, quotes=self._quotes).text()

    def _replaced(self, value: str, argument: str) -> str:
        every = argument[:1] == "/"
        pattern, found, word = _split_at_slash(argument[every:])
        if not found:
            raise InvalidArgument("syntax error: missing '/' in substitution")
        plain = self._inner(pattern, "\0")
        replacement = self._inner(word, self._escape)
        if not plain:
            return value
        return re.sub(_pattern(plain, greedy=True), lambda _: replacement, value, count=0 if every else 1)


def _split_at_slash(text: str) -> tuple[str, bool, str]:
    at = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "/":
            return text[:at].replace("\\/", "/"), True, text[at + 1 :]
        at += 1
    return text, False, ""


def _pattern(text: str, greedy: bool) -> str:
    """A shell pattern as a regular expression: ``*`` and ``?``, a backslash makes the next character literal."""
    result, at = [], 0
    while at < len(text):
        char = text[at]
        if char == "*":
            result.append("(?s:.*)" if greedy else "(?s:.*?)")
        elif char == "?":
            result.append("(?s:.)")
        elif char == "\\" and at + 1 < len(text):
            at += 1
            result.append(re.escape(text[at]))
        else:
            result.append(re.escape(char))
        at += 1
    return "".join(result)


def _cut(value: str, pattern: str, *, at_end: bool, longest: bool) -> str:
    expression = re.compile(_pattern(pattern, greedy=longest))
    if not at_end:
        match = expression.match(value)
        return value[match.end() :] if match else value
    starts = range(len(value) + 1) if longest else range(len(value), -1, -1)
    whole = re.compile(_pattern(pattern, greedy=True) + r"\Z")
    return next((value[:start] for start in starts if whole.match(value, start)), value)
