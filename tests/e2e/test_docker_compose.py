"""docker-compose against tared: two services with a network, a volume, a health check that the second waits for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

PROJECT = """
version: "2.4"
services:
  web:
    image: busybox
    command: sh -c "mkdir -p /w; echo hello > /w/index.html; echo serving; exec httpd -f -p 80 -h /w"
    networks: [inner]
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD-SHELL", "wget -q -O- http://127.0.0.1/"], interval: 300ms, timeout: 5s, retries: 20}
    stop_grace_period: 0s
  user:
    image: busybox
    command: sh -c "echo started; exec sleep 1000"
    depends_on: {web: {condition: service_healthy}}
    networks: {inner: {aliases: [client]}}
    volumes: ["data:/data:ro"]
    stop_grace_period: 0s
networks: {inner: {}}
volumes: {data: {}}
"""


def test_a_project_goes_up_and_down(engine: Daemon, tmp_path: Path) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("needs docker-compose: apt-get install --no-install-recommends docker-compose")
    file = tmp_path / "docker-compose.yml"
    file.write_text(PROJECT)

    def compose(*arguments: str) -> str:
        done = subprocess.run(
            [program, "-f", str(file), "-p", "weights", *arguments],
            env={**os.environ, "DOCKER_HOST": engine.host}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        compose("up", "-d")
        assert "Up (healthy)" in compose("ps")
        logs = compose("logs", "--no-color")
        assert "serving" in logs and "started" in logs
        assert compose("exec", "-T", "web", "cat", "/w/index.html") == "hello\n"
        assert compose("exec", "-T", "user", "wget", "-q", "-O-", "http://web/") == "hello\n", "the service's name resolves"
        compose("up", "-d", "--scale", "user=2")
        assert engine.docker("ps", "-q", "--filter", "label=com.docker.compose.service=user").stdout.count("\n") == 2
        compose("up", "-d", "--scale", "user=1")
        assert engine.docker("ps", "-q", "--filter", "label=com.docker.compose.service=user").stdout.count("\n") == 1
        compose("stop")
        compose("start")
    finally:
        compose("down", "-v")
    assert engine.docker("ps", "-aq").stdout == ""
    assert engine.docker("volume", "ls", "-q").stdout == ""
    assert "weights" not in engine.docker("network", "ls").stdout
