"""docs/compatibility.md says what the code has and the tests back, and nothing more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_backed() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "compatibility.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
