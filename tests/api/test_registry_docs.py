"""What the documents say of the registry holds: the example runs, the settings shown are taken, the unit starts something that exists."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from pathlib import Path

from tare.api.registry.settings import Settings, load
from tare.cli.registryverbs import SERVE

ROOT = Path(__file__).parents[2]


def test_library_example(tmp_path: Path) -> None:
    _, example = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()) == ("", ['{"name":"team/app","tags":["v1"]}', "2 blobs removed"])


def test_settings_of_the_manual(tmp_path: Path) -> None:
    """Every key of every table is shown, and what is shown is taken."""
    whole, foreign, cache = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/registry.md").read_text(), re.DOTALL)
    file = tmp_path / "registry.toml"
    file.write_text(whole + cache)
    found = load(file, {}, {})
    assert (found.webhook[0].queue, found.cache[0].downloads, found.retention[0].newest) == (10000, 8, 20)
    file.write_text(foreign)
    assert load(file, {}, {}).token.foreign is not None
    shown = set(re.findall(r"^([a-z-]+) = ", whole + foreign + cache, re.MULTILINE))
    tables = (
        Settings,
        *(type(part) for part in (found.tls, found.log, found.access, found.token, found.schedule, found.metrics, found.page)),
    )
    rows = (type(found.access.rule[0]), type(found.retention[0]), type(found.webhook[0]), type(found.cache[0]))
    nested = {"tls", "log", "access", "token", "cache", "quota", "retention", "schedule", "webhook", "metrics", "page", "rule", "foreign"}
    keys = {name for table in (*tables, *rows) for name in table.__struct_encode_fields__} - nested
    assert keys - shown == {"name", "password"}  # of a webhook; beside password-file


def test_the_unit() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "packaging/systemd/tare-registry.service")
    program, *words = unit["Service"]["ExecStart"].split()
    assert Path(program).name == "tare" and words[:2] == ["registry", "serve"]
    assert {word[2:] for word in words if word.startswith("--")} <= {flag[0] for flag in SERVE.flags}
    assert unit["Service"]["Type"] == "notify"


def test_a_service_manager_hears_of_it(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        command = [
            sys.executable,
            "-m",
            "tare.api.registry.serve",
            "serve",
            "--root",
            str(tmp_path / "root"),
            "--listen",
            f"unix://{tmp_path}/s",
        ]
        process = subprocess.Popen(command, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}, stdout=subprocess.DEVNULL)
        try:
            assert manager.recv(100) == b"READY=1"
            process.terminate()
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            process.terminate()
            assert process.wait(20) == 0
