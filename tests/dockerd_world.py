"""A private dockerd in network and mount namespaces of its own: the oracle of the API tests."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine_world import DOCKER, busybox_tar

DOCKERD = Path("/usr/sbin/dockerd")


@contextmanager
def dockerd(*options: str, host_network: bool = False) -> Iterator[str]:
    """Path of the socket of a fresh dockerd that has the busybox image; its process id is in the file ``pid`` beside. On the host's network
    it makes no networks and changes nothing."""
    with tempfile.TemporaryDirectory(prefix="tare-oracle-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        socket, log = root / "d.sock", root / "log"
        flags = f"-H unix://{socket} --data-root {root}/data --exec-root {root}/run --pidfile {root}/pid --storage-driver vfs"
        flags = " ".join((flags, *options))
        unshare, script = ["unshare", "--net", "--mount"], f"ip link set lo up && exec {DOCKERD} {flags}"
        if host_network:
            unshare, script = ["unshare", "--mount"], f"exec {DOCKERD} {flags} --bridge none --iptables=false --ip-forward=false"
        with log.open("wb") as output:
            process = subprocess.Popen([*unshare, "sh", "-c", script], stdout=output, stderr=output)
        try:
            for _ in range(400):
                if process.poll() is not None:
                    raise AssertionError(f"dockerd ended:\n{log.read_text(errors='replace')[-3000:]}")
                if socket.exists():
                    break
                time.sleep(0.05)
            command = [str(DOCKER), "-H", f"unix://{socket}", "import", "-", "busybox:latest"]
            subprocess.run(command, input=busybox_tar(), check=True, capture_output=True)
            yield str(socket)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
