"""Command lines in the POSIX/GNU manner of docker's: declared flags, one parser, help text, error text.

Why not argparse: it costs 6 ms to import, and it differs from docker where users notice: ``-it``, ``-p80:80``,
``--rm=false``, flags that end at the first operand (``run IMAGE sh -c ...``), and the wording of errors. Flags are
plain tuples in tables, so that a verb with a hundred of them loads in no time; a value is checked by its *kind* while
parsing, so a bad one is refused before the daemon hears of anything.

A flag table row is ``(name, shorthand, kind, help)`` or ``(name, shorthand, kind, help, default)``. Kinds are the
keys of ``KINDS``.
"""

from __future__ import annotations

from tare.cli.failures import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Row = tuple[str, str, str, str] | tuple[str, str, str, str, object]
    Kind = tuple[str, bool, Callable[[str], object]]
    """Placeholder in help, whether values accumulate, converter (raises ValueError with docker's text)."""

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))


def parse_bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def parse_int(text: str) -> int:
    try:
        if text != text.strip() or "_" in text:
            raise ValueError
        return int(text, 0) if text[:2].lower() in ("0x", "0o", "0b") else int(text)
    except ValueError:
        raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def parse_uint16(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if int(text) > 0xFFFF:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def parse_filter(text: str) -> str:
    if "=" not in text and text:
        raise ValueError("bad format of filter (expected name=value)")
    return text


def parse_size(text: str) -> int:
    """Bytes of ``64m``, ``1.5g``, ``10kb``, ``1GiB``; every unit is a power of 1024 here, as in docker's memory flags."""
    body = text.strip(" ")
    digits = len(body.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ "))
    number, suffix = body[:digits], body[digits:].strip().lower()
    if not number or not number.replace(".", "", 1).isdecimal():
        raise ValueError(f"invalid size: '{text}'")
    unit = suffix.removesuffix("ib") if suffix.endswith("ib") else suffix.removesuffix("b")
    if unit not in ("", "k", "m", "g", "t", "p") or suffix in ("ib",):
        raise ValueError(f"invalid suffix: '{suffix}'")
    return int(float(number) * 1024 ** " kmgtp".index(unit or " "))


def parse_swap(text: str) -> int:
    return -1 if text == "-1" else parse_size(text)


_SECOND = 10**9
_DURATION_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 1_000_000, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND}


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration: ``1m30s``, ``1.5h``, ``-200ms``."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    if not rest:
        raise ValueError(f'time: invalid duration "{text}"')
    total = 0.0
    while rest:
        digits = 0
        while digits < len(rest) and (rest[digits].isdecimal() or rest[digits] == "."):
            digits += 1
        letters = digits
        while letters < len(rest) and not (rest[letters].isdecimal() or rest[letters] == "."):
            letters += 1
        number, unit, rest = rest[:digits], rest[digits:letters], rest[letters:]
        if not number.replace(".", "", 1).isdecimal():
            raise ValueError(f'time: invalid duration "{text}"')
        if not unit:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if unit not in _DURATION_UNITS:
            raise ValueError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _DURATION_UNITS[unit]
    return int(-total if text[0] == "-" else total)


def parse_nano_cpus(text: str) -> int:
    """Billionths of a processor of a decimal such as ``1.5``."""
    whole, _, fraction = text.removeprefix("+").removeprefix("-").partition(".")
    if not (whole + fraction).isdecimal():
        raise ValueError(f"failed to parse {text} as a rational number")
    if len(fraction.rstrip("0")) > 9:
        raise ValueError("value is too precise")
    nanos = int(whole or "0") * 10**9 + int((fraction + "0" * 9)[:9])
    return -nanos if text.startswith("-") else nanos


def parse_stream(text: str) -> str:
    if text.lower() not in ("stdin", "stdout", "stderr"):
        raise ValueError("valid streams are STDIN, STDOUT and STDERR")
    return text.lower()


def _plain(text: str) -> str:
    return text


KINDS: dict[str, Kind] = {
    "bool": ("", False, parse_bool),
    "string": ("string", False, _plain),
    "list": ("list", True, _plain),
    "map": ("map", True, _plain),
    "int": ("int", False, parse_int),
    "uint16": ("uint16", False, parse_uint16),
    "bytes": ("bytes", False, parse_size),
    "swap": ("bytes", False, parse_swap),
    "duration": ("duration", False, parse_duration),
    "decimal": ("decimal", False, parse_nano_cpus),
    "filter": ("filter", True, parse_filter),
    "stream": ("list", True, parse_stream),
}


class Options:
    """Parsed flags. Typed getters return the default for what was not given; ``given`` tells which were."""

    __slots__ = ("_values", "given", "operands")

    def __init__(self, defaults: dict[str, object]) -> None:
        self._values = defaults
        self.given: set[str] = set()
        self.operands: list[str] = []

    def set(self, name: str, value: object, *, accumulate: bool) -> None:
        if accumulate:
            current = self._values[name]
            previous = list(current) if isinstance(current, list) and name in self.given else []
            self._values[name] = [*previous, value]
        else:
            self._values[name] = value
        self.given.add(name)

    def on(self, name: str) -> bool:
        return self._values[name] is True

    def text(self, name: str) -> str:
        value = self._values[name]
        return value if isinstance(value, str) else ""

    def number(self, name: str) -> int:
        value = self._values[name]
        return value if isinstance(value, int) else 0

    def items(self, name: str) -> list[str]:
        value = self._values[name]
        return value if isinstance(value, list) else []

    def objects(self, name: str) -> list[object]:
        """Values of a flag whose converter yields more than text."""
        value = self._values[name]
        return value if isinstance(value, list) else []


class Command:
    """One verb: its names, its flags, how many operands it takes, and the function that does it.

    ``interspersed`` is false where everything after the first operand belongs to the container. ``most`` is -1 for any number.
    """

    __slots__ = (
        "aliases",
        "error_prefix",
        "examples",
        "flags",
        "interspersed",
        "kinds",
        "least",
        "most",
        "name",
        "run",
        "summary",
        "usage",
    )

    def __init__(
        self,
        name: str,
        usage: str,
        summary: str,
        run: Callable[[Context, Options], int],
        flags: Iterable[Row] = (),
        *,
        least: int = 0,
        most: int = -1,
        interspersed: bool = True,
        aliases: Sequence[str] = (),
        examples: Sequence[str] = (),
        kinds: dict[str, Kind] | None = None,
        error_prefix: str = "",
    ) -> None:
        self.name = name
        self.usage = usage
        self.summary = summary
        self.run = run
        self.flags = flags
        self.least = least
        self.most = most
        self.interspersed = interspersed
        self.aliases = aliases
        self.examples = examples
        self.kinds = kinds or {}
        self.error_prefix = error_prefix

    def kind(self, name: str) -> Kind:
        return self.kinds.get(name) or KINDS[name]

    def parse(self, words: Sequence[str]) -> Options | None:
        """The options in ``words``; ``None`` when ``--help`` was asked for. Raises UsageError."""
        return parse(self.flags, words, kind=self.kind, interspersed=self.interspersed)

    def check_operands(self, options: Options) -> None:
        count, least, most = len(options.operands), self.least, self.most
        if least <= count and (most < 0 or count <= most):
            return
        if most == 0:
            raise UsageError(f"'tare {self.name}' accepts no arguments", 1)
        if least == most:
            raise UsageError(f"'tare {self.name}' requires {least} {_plural(least)}", 1)
        if most < 0:
            raise UsageError(f"'tare {self.name}' requires at least {least} {_plural(least)}", 1, see=True)
        if least == 0:
            raise UsageError(f"'tare {self.name}' requires at most {most} {_plural(most)}", 1)
        raise UsageError(f"'tare {self.name}' requires at least {least} and at most {most} {_plural(most)}", 1)


def _plural(count: int) -> str:
    return "argument" if count == 1 else "arguments"


if TYPE_CHECKING:
    from tare.cli.context import Context


_ZERO: dict[str, object] = {"bool": False, "int": 0, "uint16": 0, "bytes": 0, "swap": 0, "duration": 0, "decimal": 0}


def _default(kind: Kind, row: Row) -> object:
    if len(row) > 4:
        return row[4]
    if kind[1]:
        return []
    return _ZERO.get(row[2], "")


def parse(rows: Iterable[Row], words: Sequence[str], *, kind: Callable[[str], Kind], interspersed: bool = True) -> Options | None:
    """Parse ``words`` against a flag table. ``None`` means that help was asked for."""
    parser = _Parser(rows, words, kind)
    while parser.position < len(words):
        word = parser.next()
        if word == "--":
            parser.rest()
        elif word.startswith("--"):
            if not parser.long(word):
                return None
        elif word.startswith("-") and len(word) > 1:
            if not parser.short(word):
                return None
        else:
            parser.options.operands.append(word)
            if not interspersed:
                parser.rest()
    return parser.options


class _Parser:
    """One command line on its way into `Options`."""

    def __init__(self, rows: Iterable[Row], words: Sequence[str], kind: Callable[[str], Kind]) -> None:
        self._words = words
        self._kind = kind
        self._by_name: dict[str, Row] = {}
        self._by_short: dict[str, Row] = {}
        defaults: dict[str, object] = {}
        for row in rows:
            self._by_name[row[0]] = row
            if row[1]:
                self._by_short[row[1]] = row
            defaults[row[0]] = _default(kind(row[2]), row)
        self.options = Options(defaults)
        self.position = 0

    def next(self) -> str:
        self.position += 1
        return self._words[self.position - 1]

    def rest(self) -> None:
        """What is left are operands."""
        self.options.operands.extend(self._words[self.position :])
        self.position = len(self._words)

    def long(self, word: str) -> bool:
        """``--name``, ``--name=value`` or ``--name value``. False for ``--help``."""
        name, equals, value = word[2:].partition("=")
        row = self._by_name.get(name) or self._by_name.get(ALIASES.get(name, ""))
        if row is None:
            if name == "help":
                return False
            raise UsageError(f"unknown flag: --{name}{_nearest_flag(name, self._by_name)}")
        if not equals:
            value = "true" if row[2] == "bool" else self._argument(f"--{name}")
        _store(self.options, row, value, self._kind)
        return True

    def short(self, word: str) -> bool:
        """``-x``, ``-xyz``, ``-xVALUE``, ``-x=VALUE`` or ``-x VALUE``. False for ``-h``."""
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            row = self._by_short.get(letter)
            if row is None:
                if letter == "h":
                    return False
                raise UsageError(f"unknown shorthand flag: '{letter}' in -{letter}{letters}")
            if row[2] == "bool" and not letters.startswith("="):
                value = "true"
            elif letters:
                value, letters = letters.removeprefix("="), ""
            else:
                value = self._argument(f"'{letter}' in -{letter}")
            _store(self.options, row, value, self._kind)
        return True

    def _argument(self, shown: str) -> str:
        if self.position >= len(self._words):
            raise UsageError(f"flag needs an argument: {shown}")
        return self.next()


ALIASES = {"net": "network", "net-alias": "network-alias", "dns-opt": "dns-option", "time": "timeout"}
"""Old spellings that docker still accepts without showing them."""


def _store(options: Options, row: Row, text: str, kind: Callable[[str], Kind]) -> None:
    _, accumulate, convert = kind(row[2])
    try:
        options.set(row[0], convert(text), accumulate=accumulate)
    except ValueError as error:
        shown = f"-{row[1]}, --{row[0]}" if row[1] else f"--{row[0]}"
        raise UsageError(f'invalid argument "{text}" for "{shown}" flag: {error}') from None


def _nearest_flag(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f"\n\nDid you mean --{found}?" if found else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``word`` was probably meant to be, or nothing."""
    best, best_distance = "", 2 if len(word) <= 4 else 3
    for candidate in known:
        if candidate.startswith(word) and len(word) >= 3:
            distance = 1
        elif abs(len(candidate) - len(word)) >= best_distance:
            continue
        else:
            distance = _distance(word, candidate)
        if distance < best_distance and distance < len(candidate):
            best, best_distance = candidate, distance
    return best


def _distance(left: str, right: str) -> int:
    """Damerau-Levenshtein distance with adjacent swaps."""
    before: list[int] = []
    previous = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        current = [i]
        for j, b in enumerate(right, 1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        before, previous = previous, current
    return previous[-1]


def help_text(command: Command) -> str:
    """The page that ``tare VERB --help`` prints."""
    parts = [f"Usage:  tare {command.usage}", command.summary]
    if command.aliases:
        parts.append("Aliases:\n  " + ", ".join(f"tare {alias}" for alias in command.aliases))
    if command.examples:
        parts.append("Examples:\n" + "\n".join(f"  {line}" for line in command.examples))
    rows = list(command.flags)
    if rows:
        parts.append("Options:\n" + flag_lines(rows, command.kind))
    return "\n\n".join(parts) + "\n"


def flag_lines(rows: Sequence[Row], kind: Callable[[str], Kind]) -> str:
    """The aligned list of flags."""
    heads = []
    for row in rows:
        short = f"-{row[1]}, " if row[1] else "    "
        placeholder = kind(row[2])[0]
        heads.append(f"  {short}--{row[0]}" + (f" {placeholder}" if placeholder else ""))
    width = max(map(len, heads)) + 3
    lines = []
    for head, row in zip(heads, rows, strict=True):
        text = row[3]
        if len(row) > 4 and row[4] not in (False, "", 0, None, []):
            shown = f'"{row[4]}"' if isinstance(row[4], str) else str(row[4]).lower()
            text += f" (default {shown})"
        body = _wrap(text, max(80 - width, 40))
        lines.append(head.ljust(width) + body[0])
        lines.extend(" " * width + line for line in body[1:])
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return lines
