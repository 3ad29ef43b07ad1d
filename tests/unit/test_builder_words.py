"""Words and ignore patterns of the builder's front half."""

from __future__ import annotations

import posixpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tare.builder.expand import expand, expand_document, expand_words, names_used
from tare.builder.ignore import Patterns
from tare.errors import InvalidArgument

VALUES = {"A": "hello", "EMPTY": "", "P": "/usr/local/lib/x.tar.gz", "S": "two words", "foo": "bar"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$A", "hello"),
        ("${A}world", "helloworld"),
        ("x$NONE.y", "x.y"),
        ("'$A'", "$A"),
        ('"$A b"', "hello b"),
        (r"\$A", "$A"),
        (r'"\$A \n \" \\"', r'$A \n " \ '.rstrip()),
        ("'it''s'", "its"),
        (r"a\ b", "a b"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("${NONE:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${NONE-d}", "d"),
        ("${A:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${EMPTY+set}", "set"),
        ("${NONE+set}", ""),
        ("${NONE:-${A}}", "hello"),
        ("${NONE:-'${A}'}", "${A}"),
        ("${A:?x}", "hello"),
        ("${EMPTY?x}", ""),
        ("${P#*/}", "usr/local/lib/x.tar.gz"),
        ("${P##*/}", "x.tar.gz"),
        ("${P%.*}", "/usr/local/lib/x.tar"),
        ("${P%%.*}", "/usr/local/lib/x"),
        ("${P%nothing}", "/usr/local/lib/x.tar.gz"),
        ("${A/l/L}", "heLlo"),
        ("${A//l/L}", "heLLo"),
        ("${A/?e/J}", "Jllo"),
        ("${P/\\/usr/x}", "x/local/lib/x.tar.gz"),
        ("${A//l}", None),
        ("${A!}", None),
        ("${}", None),
        ("${A", None),
        ("'open", None),
        ('"open', None),
        ("${NONE:?is needed}", None),
        ("trailing\\", "trailing"),
    ],
)
def test_expand(word: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidArgument):
            expand(word, VALUES.get)
    else:
        assert expand(word, VALUES.get) == expected


def test_required_names_the_variable() -> None:
    with pytest.raises(InvalidArgument, match="NONE: is needed"):
        expand("${NONE:?is needed}", VALUES.get)


def test_other_escape() -> None:
    assert expand(r"C:\$A`$A", VALUES.get, "`") == r"C:\hello$A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a \"$A\" '$A'\n", "a \"hello\" 'hello'\n"),
        ("\\$A \\n \\\\ it's\n", "$A n \\ it's\n"),
        ('${NONE:-it\'s} ${A:+"x"}', 'it\'s "x"'),
        ("\\\n", "\n"),
    ],
)
def test_documents(text: str, expected: str) -> None:
    assert expand_document(text, VALUES.get) == expected


def test_names_of_digits_and_letters() -> None:
    assert expand("$10 ${ü}x", {"10": "ten", "ü": "u"}.get) == "ten ux"


def test_words() -> None:
    assert expand_words("$S 'a b' \"$S\" c\\ d  ${NONE} e", VALUES.get) == ["two", "words", "a b", "two words", "c d", "e"]
    assert expand_words("'' x", VALUES.get) == ["", "x"]
    assert expand_words("  ", VALUES.get) == []


def test_names_used() -> None:
    assert names_used("$A-${B:-$C}'$D'") >= {"A", "B", "C"}
    assert "D" not in names_used("'$D'")


@given(st.text(alphabet="${}ab:-+?#%/'\"\\ *", max_size=30))
def test_any_word_is_expanded_or_refused(word: str) -> None:
    try:
        expand(word, VALUES.get)
        expand_words(word, VALUES.get)
    except InvalidArgument:
        pass


CASES = [
    ("node_modules", {"node_modules", "node_modules/a/b"}, {"src/node_modules"}),
    ("**/node_modules", {"node_modules", "src/a/node_modules/x"}, {"node_modules2"}),
    ("*.log", {"a.log"}, {"a/b.log", "log"}),
    ("**/*.log", {"a.log", "x/y/b.log"}, {"a.logs"}),
    ("**.txt", {"a.txt", "d/e.txt"}, {"a.txt2"}),
    ("/secret", {"secret", "secret/key"}, {"a/secret"}),
    ("a/**", {"a/b", "a/b/c"}, {"a", "ab"}),
    ("a/**/z", {"a/z", "a/b/c/z"}, {"a/zz", "b/a/z"}),
    ("a?c", {"abc"}, {"ac", "abbc", "a/c"}),
    ("[a-c]x", {"ax", "cx"}, {"dx"}),
    ("[^a-c]x", {"dx"}, {"ax"}),
    ("a[^b]c", {"a/c", "axc"}, {"abc", "a//c"}),
    ("a[b/]c/*.o", {"a/c/x.o", "abc/x.o"}, {"a/c/d/x.o", "adc/x.o"}),
    ("src/[^.]*", {"src/a", "src/a/b"}, {"src/.a", "src"}),
    (r"\*x", {"*x"}, {"ax"}),
    ("**", {"a", "a/b"}, set()),
    ("*", {"a", "a/b"}, set()),
    ("# comment\n\na", {"a"}, {"# comment"}),
    ("*\n!keep\n!dir/file", {"x", "dir/other"}, {"keep", "keep/sub", "dir/file"}),
    ("docs\n!docs/README.md", {"docs/x", "docs"}, {"docs/README.md"}),
    ("*.md\n!README*.md\nREADME-secret.md", {"a.md", "README-secret.md"}, {"README.md", "README-x.md"}),
    ("./a/../b/", {"b", "b/c"}, {"a"}),
    ("a*b*c", {"axbxc", "abc"}, {"axbx", "ab/c"}),
]


@pytest.mark.parametrize(("text", "out", "kept"), CASES)
def test_ignore(text: str, out: set[str], kept: set[str]) -> None:
    patterns = Patterns(text)
    assert {path for path in out | kept if patterns.excluded(path)} == out


def reference(pattern: str, path: str) -> bool:
    """Docker's own translation into a regular expression, for small inputs."""
    if pattern.startswith("**") and not any(char in pattern[2:] for char in "*?[") and pattern not in ("**", "**/"):
        suffix = pattern[2:]
        paths = [path.rsplit("/", cut)[0] for cut in range(path.count("/") + 1)]
        return any(each.endswith(suffix) or (suffix.startswith("/") and each == suffix[1:]) for each in paths)
    expression, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**", at):
            at += 2
            at += pattern[at : at + 1] == "/"
            expression += "(?:.*/)?" if at < len(pattern) else ".*"
            continue
        end = pattern.find("]", at)
        if pattern[at] == "[" and end > at:
            expression += pattern[at : end + 1]
            at = end + 1
            continue
        expression += {"*": "[^/]*", "?": "[^/]"}.get(pattern[at], re.escape(pattern[at]))
        at += 1
    return any(re.fullmatch(expression, path.rsplit("/", cut)[0]) for cut in range(path.count("/") + 1))


_PIECES = st.sampled_from(["a", "b", ".", "*", "?", "/", "**", "[^a]", "[a/]", "[ab]", "[^/]"])


@given(st.lists(_PIECES, min_size=1, max_size=9).map("".join), st.text(alphabet="ab./", min_size=1, max_size=9))
def test_patterns_are_dockers(pattern: str, path: str) -> None:
    if "[" in pattern and ("/." in pattern or ".." in pattern):
        return  # cleaned as a path first, which must not take a class apart
    pattern, path = posixpath.normpath(pattern).lstrip("/"), posixpath.normpath(path).lstrip("/")
    if pattern not in ("", ".") and path not in ("", ".") and not path.startswith(".."):
        assert Patterns(pattern).excluded(path) == reference(pattern, path), (pattern, path)


def test_directories_that_need_not_be_read() -> None:
    patterns = Patterns("node_modules\ndocs\n!docs/**/*.md\nout\n!outer")
    assert patterns.can_skip("node_modules")
    assert not patterns.can_skip("docs")
    assert not patterns.can_skip("docs/deep/er")
    assert patterns.can_skip("out")
    assert not patterns.can_skip("src")


@pytest.mark.parametrize("text", ["[a", "[]", "[b-a]", "a\\", "[^a]\\", "!", "[a-]"])
def test_malformed_patterns(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Patterns(text)


def test_hostile_patterns_take_no_time() -> None:
    assert not Patterns("*a" * 60 + "b").excluded("a" * 250)
    assert not Patterns("**/a/" * 60 + "b").excluded("/".join("a" * 120))
    assert not Patterns("a**" * 60 + "b").excluded("/".join("a" * 120))


@given(st.text(alphabet="ab*?/[]!\\^-.", max_size=20), st.text(alphabet="ab/", min_size=1, max_size=12))
def test_any_pattern(text: str, path: str) -> None:
    try:
        Patterns(text).excluded(path)
    except InvalidArgument:
        pass
