"""Debian's docker-registry on a free loopback port, open or with alice's password."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

HTPASSWD = "alice:$2b$05$abcdefghijklmnopqrstuuhKF09ZYWwH2zP/0fwE1X8e/Q1YNx/hO\n"
"""Alice's password is "x", as bcrypt: the only kind that the registry takes."""


@contextmanager
def docker_registry(root: Path, *, closed: bool = False, more: dict[str, object] | None = None) -> Iterator[str]:
    """Its address; ``closed`` asks for alice's password, ``more`` are further settings."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry: apt-get install docker-registry")
    root.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(root / "registry")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        **(more or {}),
    }
    if closed:
        (root / "htpasswd").write_text(HTPASSWD)
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
    (root / "registry.yml").write_text(json.dumps(settings))
    with (root / "registry.log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", root / "registry.yml"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
