"""The example in docs/library.md runs as it stands, in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

PAGE = Path(__file__).parents[2] / "docs/library.md"


def test_example(tmp_path: Path) -> None:
    example, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["entry '../../etc/passwd' is outside of the layer", "MODIFIED /greeting"]
    assert lines[2].startswith("sha256:")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
