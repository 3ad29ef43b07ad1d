"""From the bytes of a Dockerfile to logical lines: directives, comments, continuation lines, here-documents.

A logical line is one instruction's text. What Docker does, and scripts rely on:

- Parser directives (``# name=value``) count only before anything else, comments included.
- The escape character at the end of a line, spaces behind it allowed, joins the next one to it without a space between. Comment
  lines and empty ones in between vanish (the latter with a warning).
- A here-document belongs to the line that has ``<<NAME`` in it (ADD, COPY and RUN, also behind ONBUILD); its lines are taken as they are,
  with a carriage return at their end if they have one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tare.builder.errors import DockerfileError
from tare.builder.instructions import Heredoc, Warning

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC_KEYWORDS = ("ADD", "COPY", "RUN")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<\s]+)")
_HEREDOC_NAME = re.compile(r"[A-Za-z0-9_.-]+")
MAX_LINE = 1 << 20
MAX_FILE = 16 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One logical line."""

    line: int
    end: int
    text: str
    heredocs: tuple[Heredoc, ...]


class Source:
    """A file's text, read line by line."""

    def __init__(self, data: bytes, name: str) -> None:
        self.name = name
        self.warnings: list[Warning] = []
        if len(data) > MAX_FILE:
            raise DockerfileError(f"the file is longer than {MAX_FILE >> 20} MiB", name=name)
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        self._written = text.split("\n")
        self._lines = [line.rstrip("\r") for line in self._written]
        self._at = 0
        self.directives = self._read_directives()
        self.escape = self.directives.get("escape", "\\")
        self._continuation = re.compile(f"(?:(?<=[^{re.escape(self.escape)}])|^){re.escape(self.escape)}[ \t]*$")

    def fail(self, message: str, line: int, hint: str = "", end: int = 0) -> DockerfileError:
        """The error, with the lines it is about."""
        source = "\n".join(self._lines[line - 1 : max(end, line)])
        return DockerfileError(message, name=self.name, line=line, source=source, hint=hint)

    def _read_directives(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for number, line in enumerate(self._lines, 1):
            match = _DIRECTIVE.fullmatch(line.strip())
            name = match[1].lower() if match else ""
            if match is None or name not in DIRECTIVES:
                break
            if name in found:
                raise self.fail(f"only one {name} parser directive can be used", number)
            if name == "escape" and match[2] not in ("\\", "`"):
                raise self.fail(f"invalid escape token '{match[2]}' does not match ` or \\", number)
            found[name] = match[2]
            self._at = number
        return found

    def logical_lines(self) -> list[Line]:
        """All instructions, in order."""
        found = []
        while self._at < len(self._lines):
            text = self._lines[self._at]
            self._at += 1
            if not _is_comment(text) and text.strip():
                found.append(self._logical_line(text))
        return found

    def _logical_line(self, text: str) -> Line:
        first = self._at
        joined, goes_on = self._without_continuation(text.lstrip())
        parts, size = [joined], 0
        warned = False
        while goes_on and self._at < len(self._lines):
            text = self._lines[self._at]
            self._at += 1
            if _is_comment(text):
                continue
            if not text.strip():
                warned = warned or any(line.strip() for line in self._lines[self._at :])
                continue
            joined, goes_on = self._without_continuation(text)
            parts.append(joined)
            size += len(joined)
            if size > MAX_LINE:
                raise self.fail(f"the instruction is longer than {MAX_LINE >> 20} MiB", first)
        if warned:
            self.warnings.append(Warning("NoEmptyContinuation", "Empty continuation line", self._at))  # where BuildKit says it
        line = "".join(parts).rstrip()
        heredocs = tuple(self._heredoc(match, first) for match in heredoc_marks(line))
        return Line(first, self._at, line, heredocs)

    def _without_continuation(self, text: str) -> tuple[str, bool]:
        match = self._continuation.search(text)
        return (text[: match.start()], True) if match else (text, False)

    def _heredoc(self, match: re.Match[str], first: int) -> Heredoc:
        descriptor, strip, word = match.groups()
        name = re.sub(r"['\"\\]", "", word)
        content: list[str] = []
        while self._at < len(self._lines):
            line = self._written[self._at]
            self._at += 1
            if strip:
                line = line.lstrip("\t")
            if line.rstrip("\r") == name:
                text = "".join(f"{kept}\n" for kept in content)
                return Heredoc(name, text, expand=name == word, descriptor=int(descriptor or 0))
            content.append(line)
        raise self.fail("unterminated heredoc", first, f"the here-document ends with a line that is only {name}")


def heredoc_marks(line: str) -> list[re.Match[str]]:
    """The ``<<NAME`` words of a line whose instruction takes here-documents."""
    words = line.split(None, 2)
    keyword = words[0].upper() if words else ""
    if keyword == "ONBUILD" and len(words) > 1:
        keyword = words[1].upper()
    if keyword not in _HEREDOC_KEYWORDS or "<<" not in line or line.split(None, 1)[1].lstrip().startswith("["):
        return []
    marks = []
    for word in raw_words(line):
        match = _HEREDOC.fullmatch(word)
        if match is not None and _HEREDOC_NAME.fullmatch(re.sub(r"['\"\\]", "", match[3])):
            marks.append(match)
    return marks


def raw_words(text: str, escape: str = "\\") -> list[str]:
    """Split at white space outside quotes; quotes and escapes stay."""
    words, current, quote, at = [], "", "", 0
    while at < len(text):
        char = text[at]
        if char == escape and quote != "'" and at + 1 < len(text):
            current += text[at : at + 2]
            at += 2
            continue
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char.isspace():
            if current:
                words.append(current)
            current = ""
            at += 1
            continue
        current += char
        at += 1
    return [*words, current] if current else words


def _is_comment(text: str) -> bool:
    return text.lstrip().startswith("#")
