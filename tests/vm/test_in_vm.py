"""Kernel tests on a pure cgroup v2 machine with an older kernel, in a small virtual machine (see run.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

RUNTIME = "tests/kernel/test_runtime_run.py"
CHOSEN = "test_many_layers test_masked_and_read_only_paths test_own_world".split()
"""A choice of the runtime's tests, since all is some twenty times slower there. Every one passes when given to run.py."""
WHOLE = "tests/e2e/test_resource_limits.py"
"""A daemon of the machine's own, from the API to the kernel."""
OTHERS = ["tests/kernel/test_volume_quotas.py", "tests/kernel/test_networks.py::test_scenario[sub_links]"]
"""What not every kernel has: project quotas, VLANs, macvlan and ipvlan."""


@pytest.mark.vm
@pytest.mark.root
def test_on_cgroup_v2() -> None:
    tests = ["tests/kernel/test_cgroup.py", *OTHERS, *(f"{RUNTIME}::{name}" for name in CHOSEN), WHOLE]
    command = [sys.executable, str(HERE / "run.py"), "-p", "no:hypothesispytest", *tests]
    for _ in range(2):
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env={"TARE_VM_TIMEOUT": "195", **os.environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        if done.returncode != 125:  # the emulated machine itself broke off: that says nothing of us, and is tried once more
            break
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
