"""The API's cost beside dockerd's. Usage (root): python bench/api.py

ping and list with 100 running containers over one kept connection; the docker command's ``ps``; bytes through an attachment; the daemon's
memory under 200 followers of logs and of events; its share of a core while 100 containers' stats are streamed.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
from pathlib import Path

from peers import DOCKER, Engine, engines, isolate, median_ms, report

CONTAINERS = 100
CLIENTS = 200
ATTACH_MIB = 2048
ROUNDS = 300


class Connection(http.client.HTTPConnection):
    """HTTP over the engine's socket."""

    def __init__(self, engine: Engine) -> None:
        super().__init__("docker")
        self._path = engine.socket

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def get(self, path: str) -> bytes:
        self.request("GET", path)
        answer = self.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body


def latency(engine: Engine, path: str) -> float:
    """Median over one kept connection, in microseconds."""
    connection = Connection(engine)
    try:
        return median_ms(lambda: connection.get(path), ROUNDS) * 1000
    finally:
        connection.close()


def docker(engine: Engine, *arguments: str) -> list[str]:
    return [DOCKER, "-H", f"unix://{engine.socket}", *arguments]


def docker_ps(engine: Engine) -> float:
    import subprocess

    return median_ms(lambda: subprocess.run(docker(engine, "ps", "-q"), check=True, stdout=subprocess.DEVNULL), 20)


def attach_rate(engine: Engine) -> float:
    """MB/s through a raw attachment to a container with a log that is not kept."""
    import json

    connection = Connection(engine)
    settings = {
        "Image": "busybox",
        "Cmd": ["dd", "if=/dev/zero", "bs=1M", f"count={ATTACH_MIB}"],
        "HostConfig": {"LogConfig": {"Type": "none"}},
    }
    connection.request("POST", "/containers/create?name=flood", json.dumps(settings), {"Content-Type": "application/json"})
    assert connection.getresponse().read()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(engine.socket)
        sock.sendall(b"POST /containers/flood/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        assert b" 101 " in sock.recv(4096)
        connection.request("POST", "/containers/flood/start")
        connection.getresponse().read()
        buffer = bytearray(1 << 20)
        total, started = 0, time.perf_counter()
        while count := sock.recv_into(buffer):
            total += count
        seconds = time.perf_counter() - started
    assert total >= ATTACH_MIB << 20
    connection.request("DELETE", "/containers/flood?force=1")
    connection.getresponse().read()
    connection.close()
    return total / seconds / 1e6


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def followers(engine: Engine, path: str) -> tuple[float, float]:
    """Memory that 200 clients of ``path`` cost the daemon: when they are there, and after two more seconds of traffic."""
    assert engine.process is not None
    before = resident_mib(engine.process.pid)
    clients = []
    for _ in range(CLIENTS):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(engine.socket)
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        clients.append(sock)
    time.sleep(1)
    first = resident_mib(engine.process.pid) - before
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        for sock in clients:
            sock.setblocking(False)
            try:
                assert sock.recv(1 << 16), "a client was dropped"
            except BlockingIOError:
                pass
        time.sleep(0.02)
    later = resident_mib(engine.process.pid) - before
    for sock in clients:
        sock.close()
    return first, later


def stats_share(engine: Engine) -> float:
    """Percent of a core that streaming the stats of all containers takes."""
    assert engine.process is not None
    names = [f"s{number}" for number in range(CONTAINERS)]
    clients = []
    for name in names:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(engine.socket)
        sock.sendall(f"GET /containers/{name}/stats HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        clients.append(sock)
    time.sleep(3)
    used, started = cpu_seconds(engine.process.pid), time.monotonic()
    time.sleep(8)
    share = (cpu_seconds(engine.process.pid) - used) / (time.monotonic() - started) * 100
    for sock in clients:
        sock.close()
    return share


def measure(engine: Engine) -> dict[str, float]:
    """All figures of one engine."""
    import subprocess

    for number in range(CONTAINERS):
        subprocess.run(
            docker(engine, "run", "-d", "--name", f"s{number}", "busybox", "sleep", "100000"), check=True, stdout=subprocess.DEVNULL
        )
    talking = ("run", "-d", "--name", "talk", "busybox", "sh", "-c", "while :; do echo line; sleep 0.1; done")
    subprocess.run(docker(engine, *talking), check=True, stdout=subprocess.DEVNULL)
    found = {
        "GET /_ping": latency(engine, "/_ping"),
        "GET /containers/json, 100 containers": latency(engine, "/containers/json"),
        "docker ps, 100 containers": docker_ps(engine),
        "attach": attach_rate(engine),
    }
    found["200 clients of logs -f, MiB"], found["… two seconds later, MiB"] = followers(engine, "/containers/talk/logs?stdout=1&follow=1")
    found["200 clients of events, MiB"], _ = followers(engine, "/events")
    found["stats of 100 containers, % of a core"] = stats_share(engine)
    names = [f"s{number}" for number in range(CONTAINERS)]
    subprocess.run(docker(engine, "rm", "-f", "talk", *names), check=True, stdout=subprocess.DEVNULL)
    return found


def main() -> None:
    isolate()
    with engines(with_podman=False) as found:
        figures = {name: measure(engine) for name, engine in found.items()}
    for what, ours in figures["tare"].items():
        unit = "MB/s" if what == "attach" else "ms" if what.startswith("docker") else "us" if what.startswith("GET") else ""
        report(what, ours, {"docker": figures["docker"][what]}, unit, higher_is_better=what == "attach")


if __name__ == "__main__":
    main()
