"""``--chmod``: an octal mode, or changes in the words of chmod(1) (``u=rwX,go=rX``). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tare.errors import InvalidArgument

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=][rwxXst]*)+)")
_ACTION = re.compile(r"([-+=])([rwxXst]*)")
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_BITS = {"r": 4, "w": 2, "x": 1}


@dataclass(frozen=True, slots=True)
class Mode:
    """What becomes of permission bits."""

    absolute: int | None
    clauses: tuple[tuple[str, str, str], ...] = ()
    """Who, action (-, + or =) and permissions."""

    @classmethod
    def parse(cls, text: str) -> Mode:
        """``InvalidArgument`` for what chmod would refuse."""
        if re.fullmatch(r"[0-7]{1,5}", text) and int(text, 8) <= 0o7777:
            return cls(int(text, 8))
        clauses: list[tuple[str, str, str]] = []
        for clause in text.split(","):
            match = _CLAUSE.fullmatch(clause)
            if match is None:
                raise InvalidArgument(f"invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777, or symbolic")
            who = "ugo" if not match[1] or "a" in match[1] else match[1]
            clauses += [(who, action, permissions) for action, permissions in _ACTION.findall(match[2])]
        return cls(None, tuple(clauses))

    def applied(self, mode: int, *, directory: bool) -> int:
        """The new bits of a file or directory that has ``mode``."""
        if self.absolute is not None:
            return self.absolute
        for who, action, permissions in self.clauses:
            mask = change = 0
            for each in who:
                bits = sum(_BITS.get(letter, 0) for letter in set(permissions))
                if "X" in permissions and (directory or mode & 0o111):
                    bits |= 1
                change |= bits << _SHIFTS[each]
                mask |= 7 << _SHIFTS[each]
                special = {"u": 0o4000, "g": 0o2000}.get(each, 0)
                mask |= special
                change |= special if "s" in permissions else 0
            if "t" in permissions:
                change |= 0o1000
            mode = (mode & ~mask | change) if action == "=" else mode | change if action == "+" else mode & ~change
        return mode
