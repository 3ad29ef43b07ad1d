"""docs/security.md names tests: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 50
    defined = {
        path: {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        for path, _ in named
    }
    assert not [f"{path}::{name}" for path, name in named if name not in defined[path]]


def test_every_row_is_tried() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| hole")]
    assert [row for row in rows if "`tests/" not in row] == [row for row in rows if "CVE-2025-62725" in row]
