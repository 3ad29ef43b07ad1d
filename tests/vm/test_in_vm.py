"""Kernel tests on a pure cgroup v2 machine: each set boots its own small virtual machine (see run.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

SETS = {
    "cgroup": ["tests/kernel/test_cgroup.py"],
}


@pytest.mark.vm
@pytest.mark.root
@pytest.mark.parametrize("name", SETS)
def test_on_cgroup_v2(name: str) -> None:
    command = [sys.executable, str(HERE / "run.py"), *SETS[name]]
    done = subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
