"""The front half on the whole corpus, and on a list of faulty files: goldens that were reviewed.

``TARE_RECORD=1`` writes them anew; then read the difference.
"""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder_corpus import Case, cases
from tare.builder import instructions as ins
from tare.builder.checks import check
from tare.builder.errors import DockerfileError
from tare.builder.expand import expand, expand_document
from tare.builder.parser import parse
from tare.builder.stages import BuildGraph, plan
from tare.errors import InvalidArgument

_FAULTY = Path(__file__).parents[1] / "data" / "dockerfile_errors.txt"
_RULE = "-" * 40


def described(dockerfile: ins.Dockerfile, graph: BuildGraph) -> str:
    """A parsed file and its stages, a line for each thing."""
    lines = [f"directive {name}={value}" for name, value in dockerfile.directives.items()]
    for each in dockerfile.instructions:
        place = str(each.line) if each.line == each.end else f"{each.line}-{each.end}"
        lines.append(f"{place} {each.keyword} {_fields(each)}".rstrip())
    lines += [f"warning {each.line} {each.rule}: {each.message}" for each in dockerfile.warnings]
    for stage in graph.stages:
        needs = ",".join(map(str, sorted(stage.depends_on)))
        base = f"stage {stage.base_stage}" if stage.base_stage is not None else stage.base
        lines.append(f"stage {stage.index} {stage.name or '-'}: on {base}, needs [{needs}], {len(stage.instructions)} instructions")
    lines.append(f"target {graph.target.index}")
    return "".join(f"{line}\n" for line in lines)


def _fields(value: object) -> str:
    """The fields that are not as they are when nothing is written."""
    shown = []
    for each in fields(value):  # type: ignore[arg-type]
        got = getattr(value, each.name)
        if each.name in ("line", "end", "text") or got in ((), "", None, False, 0):
            continue
        if isinstance(got, ins.Instruction):
            got = f"({got.keyword} {_fields(got)})"
        shown.append(f"{each.name}={got if isinstance(got, str) and got.startswith('(') else repr(got)}")
    return " ".join(shown)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_corpus(case: Case) -> None:
    target = case.flags[case.flags.index("--target") + 1] if "--target" in case.flags else ""
    given = [case.flags[at + 1].partition("=") for at, flag in enumerate(case.flags) if flag == "--build-arg"]
    dockerfile = parse((case.directory / case.dockerfile).read_bytes(), case.dockerfile)
    text = described(dockerfile, plan(dockerfile, {name: value for name, _, value in given}, target, "linux/amd64"))
    golden = case.directory / "parsed.txt"
    if os.environ.get("TARE_RECORD"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_faulty_files() -> None:
    """Each is followed by what a person is shown."""
    parts = _FAULTY.read_text().split(f"{_RULE}\n")[1:]
    rebuilt = ""
    for part in parts:
        source = part.partition("=>\n")[0]
        try:
            plan(parse(source.encode()))
        except DockerfileError as error:
            rebuilt += f"{_RULE}\n{source}=>\n{error.explain()}\n"
        else:
            pytest.fail(f"nothing is wrong with:\n{source}")
    head = _FAULTY.read_text().partition(_RULE)[0]
    if os.environ.get("TARE_RECORD"):
        _FAULTY.write_text(head + rebuilt)
    assert head + rebuilt == _FAULTY.read_text()
    assert len(parts) >= 30


_TEXTS = [(case.directory / case.dockerfile).read_bytes() for case in cases()]
_PIECES = [
    b"",
    b"\\",
    b"\n",
    b"\\\n",
    b'"',
    b"'",
    b"$",
    b"${",
    b"}",
    b"<<EOF",
    b"\nEOF\n",
    b"[",
    b"]",
    b"--",
    b"=",
    b"#",
    b"\xff",
    b"\0",
    b"\t",
    b" FROM ",
]


@given(st.sampled_from(_TEXTS), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 8), st.sampled_from(_PIECES)), min_size=1, max_size=6))
def test_damaged_files_are_parsed_or_refused(text: bytes, edits: list[tuple[float, int, bytes]]) -> None:
    """Never with another error, and what is refused can be explained."""
    for where, length, piece in edits:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + length :]
    try:
        dockerfile = parse(text)
        graph = plan(dockerfile)
        described(dockerfile, graph)
        check(dockerfile, text.decode("utf-8", "replace"), {})
    except InvalidArgument as error:
        if isinstance(error, DockerfileError):
            error.explain()
    for name in ("Dockerfile", "x"):
        for line in text.splitlines():
            expanded(line.decode("utf-8", "replace"), name)


def expanded(line: str, name: str) -> None:
    try:
        expand(line, {"A": name, "V": "1"}.get)
        expand_document(line, {"A": name}.get)
    except InvalidArgument:
        pass
