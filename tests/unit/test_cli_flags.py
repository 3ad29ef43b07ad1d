"""Flag parsing: forms, kinds, errors in docker's words, suggestions."""

from __future__ import annotations

import pytest

from tare.cli import flags
from tare.cli.failures import UsageError
from tare.cli.flags import Command, Options

ROWS = (
    ("tty", "t", "bool", "terminal"),
    ("interactive", "i", "bool", "stdin"),
    ("proxy", "", "bool", "signals", True),
    ("env", "e", "list", "environment"),
    ("publish", "p", "list", "ports"),
    ("name", "", "string", "name"),
    ("memory", "m", "bytes", "limit"),
    ("last", "n", "int", "count", -1),
    ("network", "", "list", "network"),
)


def parse(*words: str, interspersed: bool = True) -> Options:
    options = flags.parse(ROWS, words, kind=flags.KINDS.__getitem__, interspersed=interspersed)
    assert options is not None
    return options


def test_forms() -> None:
    options = parse("-it", "-p80:80", "-p", "81:81", "-e=A=1", "--env", "B=2", "--env=C=3", "--name=x", "image")
    assert options.on("tty") and options.on("interactive") and options.on("proxy")
    assert options.items("publish") == ["80:80", "81:81"]
    assert options.items("env") == ["A=1", "B=2", "C=3"]
    assert options.text("name") == "x"
    assert options.operands == ["image"]
    assert options.given == {"tty", "interactive", "publish", "env", "name"}


def test_defaults_and_explicit_booleans() -> None:
    options = parse("--proxy=false", "-t=false")
    assert not options.on("proxy") and not options.on("tty")
    assert options.number("last") == -1 and options.number("memory") == 0 and options.items("env") == []


def test_operands_end_the_flags_unless_interspersed() -> None:
    assert parse("a", "-t", "b").on("tty")
    stopped = parse("-i", "a", "-t", "b", interspersed=False)
    assert not stopped.on("tty") and stopped.operands == ["a", "-t", "b"]
    assert parse("-i", "--", "-t").operands == ["-t"]


def test_old_spelling_of_network() -> None:
    assert parse("--net", "host").items("network") == ["host"]


def test_help_is_none() -> None:
    assert flags.parse(ROWS, ["--help"], kind=flags.KINDS.__getitem__) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "unknown flag: --bogus"),
        (["-Z"], "unknown shorthand flag: 'Z' in -Z"),
        (["-itZ"], "unknown shorthand flag: 'Z' in -Z"),
        (["--name"], "flag needs an argument: --name"),
        (["-p"], "flag needs an argument: 'p' in -p"),
        (["-it=3"], 'invalid argument "3" for "-t, --tty" flag: strconv.ParseBool: parsing "3": invalid syntax'),
        (["-m", "1x"], 'invalid argument "1x" for "-m, --memory" flag: invalid suffix: \'x\''),
        (["-m", "foo"], 'invalid argument "foo" for "-m, --memory" flag: invalid size: \'foo\''),
        (["-n", "x"], 'invalid argument "x" for "-n, --last" flag: strconv.ParseInt: parsing "x": invalid syntax'),
    ],
)
def test_errors(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(*words)
    assert str(caught.value).split("\n")[0] == message
    assert caught.value.code == 125


def test_the_nearest_flag_is_suggested() -> None:
    with pytest.raises(UsageError, match="Did you mean --publish"):
        parse("--pubilsh", "80:80")
    assert flags.nearest("imgaes", ["images", "inspect"]) == "images"
    assert flags.nearest("foo", ["top", "tag"]) == ""


@pytest.mark.parametrize(
    ("text", "size"),
    [("64m", 64 << 20), ("1.5g", 3 << 29), ("10kb", 10240), ("1GiB", 1 << 30), ("7", 7), ("3b", 3), ("2T", 2 << 40), ("1 k", 1024)],
)
def test_sizes(text: str, size: int) -> None:
    assert flags.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "k", "1..2m", "1mm", "0x10"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        flags.parse_size(text)


def test_swap_knows_unlimited() -> None:
    assert flags.parse_swap("-1") == -1


@pytest.mark.parametrize(
    ("text", "nanos"),
    [("1m30s", 90 * 10**9), ("1.5h", 5400 * 10**9), ("-200ms", -200_000_000), ("0", 0), ("1h2m3s4ms5us6ns", 3723004005006)],
)
def test_durations(text: str, nanos: int) -> None:
    assert flags.parse_duration(text) == nanos


@pytest.mark.parametrize(
    ("text", "word"), [("3", "missing unit"), ("3x", "unknown unit"), ("", "invalid duration"), ("s", "invalid duration")]
)
def test_bad_durations(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        flags.parse_duration(text)


@pytest.mark.parametrize(("text", "nanos"), [("1.5", 1_500_000_000), ("2", 2_000_000_000), (".25", 250_000_000), ("0.000000001", 1)])
def test_cpus(text: str, nanos: int) -> None:
    assert flags.parse_nano_cpus(text) == nanos


@pytest.mark.parametrize("text", ["abc", "", "1.0000000001"])
def test_bad_cpus(text: str) -> None:
    with pytest.raises(ValueError):
        flags.parse_nano_cpus(text)


def _command(least: int, most: int) -> Command:
    return Command("verb", "verb", "does", lambda context, options: 0, ROWS, least=least, most=most)


@pytest.mark.parametrize(
    ("least", "most", "count", "message"),
    [
        (0, 0, 1, "'tare verb' accepts no arguments"),
        (1, -1, 0, "'tare verb' requires at least 1 argument"),
        (2, 2, 1, "'tare verb' requires 2 arguments"),
        (0, 1, 2, "'tare verb' requires at most 1 argument"),
    ],
)
def test_operand_counts(least: int, most: int, count: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        _command(least, most).check_operands(parse(*("x" * count)))
    assert str(caught.value) == message and caught.value.code == 1


def test_help_page_lists_every_flag() -> None:
    page = flags.help_text(_command(0, 0))
    assert page.startswith("Usage:  tare verb\n\ndoes\n")
    assert all(f"--{row[0]}" in page for row in ROWS)
    assert max(map(len, page.splitlines())) <= 80
