"""Every sentence of docs/distribution-spec.md has a test that names it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs/distribution-spec.md"


def test_every_sentence_has_a_test_that_names_it() -> None:
    sentences = re.findall(r"^\| ([a-z]{3}-\d+) \|", TABLE.read_text(), re.MULTILINE)
    assert len(sentences) == len(set(sentences)) > 100
    named = set()
    for path in TESTS.glob("api/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                found = [call for call in node.decorator_list if isinstance(call, ast.Call) and ast.unparse(call.func) == "says"]
                assert not found or node.name.startswith("test_")
                named |= {ast.literal_eval(argument) for call in found for argument in call.args}
    assert named == set(sentences)
