"""Networking against the kernel: each scenario in a process and a network namespace of its own (see networks_world.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
HERE = Path(__file__).parent
TRAFFIC = [
    "traffic",
    "ipv6_traffic",
    "hairpin",
    "sctp",
    "sub_links",
    "over_two_machines",
    "user_networks",
    "upstream_names",
    "udp_flows",
    "names_before_the_loopback_is_up",
]
UPKEEP = ["conflicts", "restore", "daemons", "options", "network_options", "dropping_host", "rules_taken_away"]


@pytest.mark.parametrize(
    "scenario",
    [*TRAFFIC, *UPKEEP],
)
def test_scenario(scenario: str, tmp_path: Path) -> None:
    file = "networks_upkeep_scenarios.py" if scenario in UPKEEP else "networks_scenarios.py"
    command = ["unshare", "-n", sys.executable, "-X", "faulthandler", str(HERE / file), scenario]
    done = subprocess.run([*command, str(tmp_path / "root")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
