"""What a container costs: start to end, exec, forty at once, the daemon's own path, memory, logs. Beside docker and podman, in one run."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import BIN, DOCKER, Engine, engines, isolate, median_ms, report


class _Client:
    """HTTP over a Unix socket with next to no work of its own: what is measured is the daemon."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(path)
        self._data = b""

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} /v1.41{path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._sock.sendall(head.encode() + body)

    def receive(self) -> bytes:
        """The whole answer of a request (with a length, or chunked)."""
        head = self._until(b"\r\n\r\n").lower()
        body = b""
        if b"content-length: " in head:
            body = self._take(int(head.partition(b"content-length: ")[2].split()[0]))
        elif b"chunked" in head:
            while size := int(self._until(b"\r\n"), 16):
                body += self._take(size + 2)[:-2]
            self._take(2)
        if int(head.split()[1]) >= 400:
            raise RuntimeError(f"{head!r} {body!r}")
        return body

    def call(self, method: str, path: str, body: bytes = b"") -> bytes:
        self.send(method, path, body)
        return self.receive()

    def _until(self, end: bytes) -> bytes:
        while end not in self._data:
            self._fill()
        found, _, self._data = self._data.partition(end)
        return found

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._fill()
        found, self._data = self._data[:size], self._data[size:]
        return found

    def _fill(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise RuntimeError("the daemon closed the connection")
        self._data += data

    def close(self) -> None:
        self._sock.close()


_CREATE = json.dumps({"Image": "busybox:latest", "Cmd": ["true"]}).encode()


def daemon_path(engine: Engine) -> float:
    """Milliseconds of create → start → exit known, over open connections; no command line involved."""
    client, waiting = _Client(engine.socket), _Client(engine.socket)
    try:
        client.call("GET", "/_ping")
        waiting.call("GET", "/_ping")
        started = time.perf_counter()
        identifier = json.loads(client.call("POST", "/containers/create", _CREATE))["Id"]
        waiting.send("POST", f"/containers/{identifier}/wait?condition=next-exit")
        client.call("POST", f"/containers/{identifier}/start")
        waiting.receive()
        milliseconds = (time.perf_counter() - started) * 1000
        client.call("DELETE", f"/containers/{identifier}?force=1")
        return milliseconds
    finally:
        client.close()
        waiting.close()


def bench_run(found: dict[str, Engine]) -> None:
    times = {name: median_ms(lambda e=engine: e.run("run", "--rm", "busybox", "true"), 15) for name, engine in found.items()}
    report("run --rm busybox true (bridge)", times.pop("tare"), times)
    ours = [DOCKER, "-H", f"unix://{found['tare'].socket}", "run", "--rm", "busybox", "true"]
    through = median_ms(lambda: subprocess.run(ours, check=True, capture_output=True), 15)
    report("the same through the docker CLI", through, {"docker": times["docker"]})
    path = {name: statistics.median(daemon_path(found[name]) for _ in range(30)) for name in ("tare", "docker")}
    report("daemon's path: create, start, exit known", path.pop("tare"), path)


def bench_exec(found: dict[str, Engine]) -> None:
    for engine in found.values():
        engine.run("run", "-d", "--name", "target", "busybox", "sleep", "1000")
    times = {name: median_ms(lambda e=engine: e.run("exec", "target", "true"), 15) for name, engine in found.items()}
    report("exec true", times.pop("tare"), times)
    for engine in found.values():
        engine.run("rm", "-f", "target")


def bench_rate(found: dict[str, Engine]) -> None:
    rates = {}
    for name, engine in found.items():
        with ThreadPoolExecutor(8) as pool:
            started = time.perf_counter()
            list(pool.map(lambda _, e=engine: e.run("run", "--rm", "busybox", "true"), range(40)))
            rates[name] = 40 / (time.perf_counter() - started)
    report("40 starts, 8 at a time", rates.pop("tare"), rates, "/s", higher_is_better=True)


def _proportional_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def bench_memory(found: dict[str, Engine]) -> None:
    engine = found["tare"]
    names = [f"idle{number}" for number in range(20)]
    for name in names:
        engine.run("run", "-d", "--name", name, "busybox", "sleep", "1000")
    time.sleep(3)  # idle: keepers rest after half a second without events
    keepers = []
    for name in names:
        pid = int(engine.run("inspect", "--format", "{{.State.Pid}}", name).stdout)
        parent = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid"))
        keepers.append(_proportional_kib(int(parent.split()[1])))
    assert engine.process is not None
    status = Path(f"/proc/{engine.process.pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    print(f"{'keeper, proportional, mean of 20 idle':<46} tare {sum(keepers) / len(keepers) / 1024:9.2f} MB")
    print(f"{'daemon, resident, with 20 idle containers':<46} tare {resident:9.1f} MB")
    engine.run("rm", "-f", *names)


def bench_log(found: dict[str, Engine]) -> None:
    rates = {}
    line = "x" * 79
    for name in ("tare", "docker"):
        engine = found[name]
        engine.run("run", "-d", "--name", "writer", "busybox", "sh", "-c", f"yes {line} | head -c 200000000")
        started = time.perf_counter()
        engine.run("wait", "writer")
        rates[name] = 200 / (time.perf_counter() - started)
        engine.run("rm", "-f", "writer")
    report("200 MB of lines into the log", rates.pop("tare"), rates, "MB/s", higher_is_better=True)


def bench_version(found: dict[str, Engine]) -> None:
    times = {name: median_ms(lambda e=found[name]: e.run("version"), 20) for name in ("tare", "docker")}
    report("version", times.pop("tare"), times)


def main() -> None:
    isolate()
    subprocess.run([BIN / "python", "-m", "compileall", "-q", "src"], check=False)
    with engines() as found:
        for bench in (bench_version, bench_run, bench_exec, bench_rate, bench_memory, bench_log):
            bench(found)


if __name__ == "__main__":
    main()
