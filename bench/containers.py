"""What a container costs: start to end, exec, forty at once, the daemon's own path, memory, logs. Beside docker and podman, in one run."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import BIN, DOCKER, Engine, engines, isolate, median_ms, report


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def _call(connection: _UnixConnection, method: str, path: str, body: object = None) -> bytes:
    connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
    return data


def daemon_path(engine: Engine) -> None:
    """create → start → exit known, over one connection; no command line involved."""
    connection = _UnixConnection(engine.socket)
    waiting = _UnixConnection(engine.socket)
    request = {"Image": "busybox:latest", "Cmd": ["true"]}
    identifier = ""
    try:
        identifier = json.loads(_call(connection, "POST", "/v1.41/containers/create", request))["Id"]
        waiting.request("POST", f"/v1.41/containers/{identifier}/wait?condition=next-exit")
        answer = waiting.getresponse()
        _call(connection, "POST", f"/v1.41/containers/{identifier}/start")
        answer.read()
    finally:
        _daemon_path_leftovers.append((engine.socket, identifier))
        connection.close()
        waiting.close()


_daemon_path_leftovers: list[tuple[str, str]] = []


def remove_leftovers() -> None:
    for path, identifier in _daemon_path_leftovers:
        connection = _UnixConnection(path)
        _call(connection, "DELETE", f"/v1.41/containers/{identifier}?force=1")
        connection.close()
    _daemon_path_leftovers.clear()


def bench_run(found: dict[str, Engine]) -> None:
    times = {name: median_ms(lambda e=engine: e.run("run", "--rm", "busybox", "true"), 15) for name, engine in found.items()}
    report("run --rm busybox true (bridge)", times.pop("tare"), times)
    ours = [DOCKER, "-H", f"unix://{found['tare'].socket}", "run", "--rm", "busybox", "true"]
    through = median_ms(lambda: subprocess.run(ours, check=True, capture_output=True), 15)
    report("the same through the docker CLI", through, {"docker": times["docker"]})
    path = {name: median_ms(lambda e=found[name]: daemon_path(e), 30) for name in ("tare", "docker")}
    report("daemon's path: create, start, exit known", path.pop("tare"), path)
    remove_leftovers()


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
