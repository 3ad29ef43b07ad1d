"""The same raw HTTP calls for any engine that speaks the Docker API, and what it answered: the material of ``test_against_dockerd``.

Every call has a label; two recordings are compared label by label. The calls are plain data and plain functions: no client library that
would smooth an answer. Unknown drivers are left out: dockerd looks for a plugin for 15 seconds.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

VERSION = "/v1.41"
"""The newest version that Debian's dockerd 20.10 speaks."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=40)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@dataclass
class Answer:
    """What came back: ``document`` is JSON decoded, or the text of anything else."""

    status: int
    content_type: str
    document: Any


class OpenCall:
    """A response under way."""

    def __init__(self, connection: UnixConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def finish(self) -> tuple[int, str, Any]:
        """Status, content type and document."""
        payload = self._response.read()
        self._connection.close()
        return self._response.status, self._response.headers.get("Content-Type", ""), json.loads(payload) if payload else None


class Recorder:
    """Makes calls on one engine and keeps the answers."""

    def __init__(self, socket_path: str) -> None:
        self._socket = socket_path
        self.answers: dict[str, Answer] = {}

    def call(
        self, label: str, method: str, path: str, body: Any = None, *, raw: bytes | None = None, kind: str = "application/json"
    ) -> Any:
        """One request; the answer is kept under ``label`` (unless that is empty) and its document returned."""
        connection = UnixConnection(self._socket)
        try:
            data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
            headers = {"Content-Type": kind} if data is not None and kind else {}
            connection.request(method, path if path.startswith("/v") else VERSION + path, data, headers)
            response = connection.getresponse()
            content_type = response.headers.get("Content-Type", "")
            payload = response.read()
        finally:
            connection.close()
        try:
            document = json.loads(payload) if payload else None
        except ValueError:
            document = payload.decode(errors="replace")
        if label:
            assert label not in self.answers, label
            self.answers[label] = Answer(response.status, content_type, document)
        return document

    def keep(self, label: str, status: int, content_type: str, document: Any) -> None:
        """Keep an answer that was got in another way."""
        assert label not in self.answers, label
        self.answers[label] = Answer(status, content_type, document)

    def stream(self, method: str, path: str) -> OpenCall:
        """A call whose head has come and whose body has not."""
        connection = UnixConnection(self._socket)
        connection.request(method, VERSION + path)
        return OpenCall(connection, connection.getresponse())

    def whole(self, method: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and bytes of one answer. Not recorded."""
        connection = UnixConnection(self._socket)
        try:
            connection.request(method, VERSION + path)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def raw(self, label: str, request: bytes, then: Callable[[], object] = lambda: None) -> bytes:
        """Bytes as they are; ``then`` is called when the head of the answer is there. Keeps the answer's head and its bytes."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(40)
            sock.connect(self._socket)
            sock.sendall(request)
            received = sock.recv(65536)
            then()
            while data := sock.recv(65536):
                received += data
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        shown = sorted(line for line in lines if line.split(":")[0].lower() in ("content-type", "connection", "upgrade"))
        self.keep(label, int(first.split()[1]), "", {"head": [first, *shown], "body": body.decode("latin-1")})
        return body

    def now(self) -> str:
        """The present in the form of ``since`` and ``until``."""
        return f"{time.time():.9f}"

    def create(self, name: str, command: str = "sleep 1000", **config: Any) -> str:
        """A container; returns its id. Not recorded."""
        body = {"Image": "busybox", "Cmd": ["sh", "-c", f"exec {command}"], **config}
        return str(self.call("", "POST", f"/containers/create?name={name}", body)["Id"])


def filters(**values: list[str]) -> str:
    return "filters=" + quote(json.dumps(values))


def system(r: Recorder) -> None:
    """The engine as a whole."""
    r.call("ping", "GET", "/_ping")
    r.call("ping head", "HEAD", "/_ping")
    r.call("version", "GET", "/version")
    r.call("info", "GET", "/info")
    r.call("events", "GET", f"/events?since=1&until=2&{filters(type=['container'])}")
    r.call("events bad filter", "GET", f"/events?since=1&until=2&{filters(nonsense=['x'])}")
    r.call("events bad filter json", "GET", "/events?since=1&until=2&filters=%7Bx")
    r.call("events bad since", "GET", "/events?since=yesterday&until=2")
    r.call("unknown path", "GET", "/nonsense")
    r.call("unknown method", "PUT", "/containers/json")
    r.call("too old", "GET", "/v1.1/version")
    r.call("too new", "GET", "/v1.99/version")
    r.call("swarm", "GET", "/swarm")
    r.call("services", "GET", "/services")
    r.call("nodes", "GET", "/nodes")
    r.call("plugins", "GET", "/plugins")


def creating(r: Recorder) -> None:
    """Bodies of create: refused and accepted."""
    path = "/containers/create"
    r.call("create no body", "POST", path)
    r.call("create bad json", "POST", path, raw=b"{nonsense")
    r.call("create truncated json", "POST", path, raw=b'{"Image": "busy')
    r.call("create wrong content type", "POST", path, raw=b"{}", kind="text/plain")
    r.call("create empty", "POST", path, {})
    r.call("create list", "POST", path, [])
    r.call("create string", "POST", path, "x")
    bad: dict[str, dict[str, Any]] = {
        "no image": {"Cmd": ["true"]},
        "unknown image": {"Image": "no-such-image"},
        "bad reference": {"Image": "BAD//reference"},
        "image number": {"Image": 5},
        "env string": {"Env": "A=b"},
        "env broken": {"Env": ["=b"]},
        "cmd number": {"Cmd": 5},
        "cmd numbers": {"Cmd": [5]},
        "labels list": {"Labels": ["x"]},
        "memory string": {"HostConfig": {"Memory": "64m"}},
        "memory small": {"HostConfig": {"Memory": 1000}},
        "swap small": {"HostConfig": {"Memory": 64 << 20, "MemorySwap": 1 << 20}},
        "swap alone": {"HostConfig": {"MemorySwap": 64 << 20}},
        "cpu quota": {"HostConfig": {"CpuQuota": 10}},
        "cpu period": {"HostConfig": {"CpuPeriod": 10}},
        "nano cpus": {"HostConfig": {"NanoCpus": 1000 * 10**9}},
        "nano and quota": {"HostConfig": {"NanoCpus": 10**9, "CpuQuota": 10000}},
        "cpuset": {"HostConfig": {"CpusetCpus": "0-999"}},
        "cpuset bad": {"HostConfig": {"CpusetCpus": "x"}},
        "restart policy": {"HostConfig": {"RestartPolicy": {"Name": "sometimes"}}},
        "restart count": {"HostConfig": {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}}},
        "restart and remove": {"HostConfig": {"RestartPolicy": {"Name": "always"}, "AutoRemove": True}},
        "bind relative": {"HostConfig": {"Binds": ["./x:/y"]}},
        "bind no target": {"HostConfig": {"Binds": ["/x:"]}},
        "bind mode": {"HostConfig": {"Binds": ["/x:/y:zz"]}},
        "bind root": {"HostConfig": {"Binds": ["/x:/"]}},
        "bind twice": {"HostConfig": {"Binds": ["/x:/y", "/z:/y"]}},
        "mount missing": {"HostConfig": {"Mounts": [{"Type": "bind", "Source": "/no/such", "Target": "/x"}]}},
        "mount type": {"HostConfig": {"Mounts": [{"Type": "odd", "Target": "/x"}]}},
        "mount no target": {"HostConfig": {"Mounts": [{"Type": "volume"}]}},
        "working dir": {"WorkingDir": "relative"},
        "stop signal": {"StopSignal": "NOPE"},
        "hostname": {"Hostname": "-bad-", "HostConfig": {}},
        "log option": {"HostConfig": {"LogConfig": {"Type": "json-file", "Config": {"odd": "x"}}}},
        "network container": {"HostConfig": {"NetworkMode": "container:"}},
        "host and hostname": {"HostConfig": {"NetworkMode": "container:x"}, "Hostname": "y"},
        "port": {"HostConfig": {"PortBindings": {"99999/tcp": [{"HostPort": "1"}]}}},
        "host port": {"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "99999"}]}}},
        "exposed port": {"ExposedPorts": {"x/tcp": {}}},
        "port protocol": {"ExposedPorts": {"80/odd": {}}},
        "ipc mode": {"HostConfig": {"IpcMode": "odd"}},
        "pid mode": {"HostConfig": {"PidMode": "odd"}},
        "uts mode": {"HostConfig": {"UTSMode": "odd"}},
        "userns mode": {"HostConfig": {"UsernsMode": "odd"}},
        "cgroupns mode": {"HostConfig": {"CgroupnsMode": "odd"}},
        "runtime": {"HostConfig": {"Runtime": "odd"}},
        "isolation": {"HostConfig": {"Isolation": "odd"}},
        "oom score": {"HostConfig": {"OomScoreAdj": 5000}},
        "shm size": {"HostConfig": {"ShmSize": -5}},
        "swappiness": {"HostConfig": {"MemorySwappiness": 500}},
        "blkio weight": {"HostConfig": {"BlkioWeight": 5}},
        "cap": {"HostConfig": {"CapAdd": ["NONSENSE"]}},
        "security": {"HostConfig": {"SecurityOpt": ["odd=x"]}},
        "volumes from": {"HostConfig": {"VolumesFrom": ["nobody"]}},
        "extra host": {"HostConfig": {"ExtraHosts": ["x"]}},
        "dns": {"HostConfig": {"Dns": ["x"]}},
        "link": {"HostConfig": {"Links": ["nobody:x"]}},
        "health interval": {"Healthcheck": {"Test": ["CMD", "true"], "Interval": 5}},
        "health retries": {"Healthcheck": {"Test": ["CMD", "true"], "Retries": -1}},
        "health kind": {"Healthcheck": {"Test": ["ODD", "true"]}},
        "device": {"HostConfig": {"Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "q"}]}},
        "no command": {"Cmd": [], "Entrypoint": [""]},
    }
    for name, body in bad.items():
        r.call(f"create {name}", "POST", path, {"Image": "busybox", "Cmd": ["true"], **body})
        if isinstance(r.answers[f"create {name}"].document, dict) and (made := r.answers[f"create {name}"].document.get("Id")):
            r.call("", "DELETE", f"/containers/{made}?force=1&v=1")
    for name in ("-x", "c", "a b", "x/y", "%C3%A9%C3%A9"):
        r.call(f"create name {name}", "POST", f"{path}?name={quote(name, safe='%')}", {"Image": "busybox", "Cmd": ["true"]})
    r.call("create plain", "POST", f"{path}?name=plain", {"Image": "busybox", "Cmd": ["sleep", "1000"]})
    r.call("create name taken", "POST", f"{path}?name=plain", {"Image": "busybox", "Cmd": ["true"]})
    r.call("inspect created", "GET", "/containers/plain/json")
    r.call("list created", "GET", f"/containers/json?all=1&{filters(name=['plain'])}")
    r.call("list limit", "GET", "/containers/json?limit=1")
    r.call("list size", "GET", "/containers/json?all=1&size=1")
    r.call("list limit bad", "GET", "/containers/json?limit=x")
    r.call("list filter", "GET", f"/containers/json?{filters(nonsense=['x'])}")
    r.call("list filter status", "GET", f"/containers/json?{filters(status=['odd'])}")
    r.call("list filter exited", "GET", f"/containers/json?{filters(exited=['odd'])}")
    r.call("list filter health", "GET", f"/containers/json?{filters(health=['odd'])}")
    r.call("list filter before", "GET", f"/containers/json?{filters(before=['nobody'])}")
    r.call("list filter publish", "GET", f"/containers/json?{filters(publish=['odd'])}")
    r.call("list filter json", "GET", "/containers/json?filters=x")
    r.call("list filter list", "GET", "/containers/json?filters=%5B%5D")
    r.call("list filter is-task", "GET", f"/containers/json?{filters(**{'is-task': ['odd']})}")
    r.call("list nothing", "GET", f"/containers/json?all=1&{filters(name=['nothing-here'])}")
    r.call("", "DELETE", "/containers/plain")


RICH: dict[str, Any] = {
    "Image": "busybox",
    "Hostname": "scale", "Domainname": "example.org", "User": "www-data", "Env": ["A=b", "EMPTY="], "Cmd": ["sleep", "1000"],
    "Labels": {"a": "b"}, "WorkingDir": "/tmp", "StopSignal": "SIGINT", "StopTimeout": 1, "ExposedPorts": {"80/tcp": {}, "81/udp": {}},
    "Volumes": {"/anonymous": {}},
    "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 10**9, "Timeout": 10**9, "Retries": 2},
    "HostConfig": {
        "Memory": 64 << 20, "NanoCpus": 5 * 10**8, "PidsLimit": 50, "CpuShares": 512, "CapAdd": ["NET_ADMIN"], "CapDrop": ["MKNOD"],
        "Binds": ["/etc:/host:ro", "named-volume:/named"], "Tmpfs": {"/scratch": "size=1m"},
        "Dns": ["192.0.2.1"], "ExtraHosts": ["x:192.0.2.2"],
        "PortBindings": {"80/tcp": [{"HostPort": ""}]}, "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2},
        "Ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}], "Sysctls": {"net.ipv4.ip_forward": "1"}, "Init": False,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}}, "SecurityOpt": ["no-new-privileges"], "ReadonlyRootfs": True,
        "Mounts": [{"Type": "tmpfs", "Target": "/tm"}, {"Type": "bind", "Source": "/usr", "Target": "/u", "ReadOnly": True}],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/xnull", "CgroupPermissions": "rwm"}],
    },
}  # fmt: skip


def life(r: Recorder) -> None:
    """The states of a container and what each refuses."""
    r.create("cc")
    for verb in ("stop", "kill", "pause", "unpause", "resize?h=1&w=1", "attach?stream=1&logs=0&stdout=0"):
        if not verb.startswith("attach"):
            r.call(f"created: {verb}", "POST", f"/containers/cc/{verb}")
    r.call("wait bad condition", "POST", "/containers/cc/wait?condition=odd")
    r.call("created: top", "GET", "/containers/cc/top")
    r.call("created: exec", "POST", "/containers/cc/exec", {"Cmd": ["true"]})
    r.call("created: logs", "GET", "/containers/cc/logs?stdout=1")
    r.call("created: changes", "GET", "/containers/cc/changes")
    r.call("created: stats", "GET", "/containers/cc/stats?stream=0")
    r.call("start", "POST", "/containers/cc/start")
    r.call("start again", "POST", "/containers/cc/start")
    r.call("inspect running", "GET", "/containers/cc/json")
    r.call("list running", "GET", f"/containers/json?{filters(name=['cc'])}")
    r.call("list running sized", "GET", f"/containers/json?size=1&{filters(name=['cc'])}")
    r.call("inspect sized", "GET", "/containers/cc/json?size=1")
    r.call("remove running", "DELETE", "/containers/cc")
    r.call("remove bad bool", "DELETE", "/containers/cc?link=1")
    r.call("top", "GET", "/containers/cc/top")
    r.call("top args", "GET", "/containers/cc/top?ps_args=-o+pid,comm")
    r.call("top bad args", "GET", "/containers/cc/top?ps_args=-o+comm")
    r.call("stats", "GET", "/containers/cc/stats?stream=0")
    r.call("changes", "GET", "/containers/cc/changes")
    r.call("logs none", "GET", "/containers/cc/logs")
    r.call("logs bad since", "GET", "/containers/cc/logs?stdout=1&since=x")
    r.call("logs bad until", "GET", "/containers/cc/logs?stdout=1&until=x")
    r.call("logs bad tail", "GET", "/containers/cc/logs?stdout=1&tail=x")
    r.call("kill bad signal", "POST", "/containers/cc/kill?signal=NOPE")
    r.call("kill signal number", "POST", "/containers/cc/kill?signal=99")
    r.call("kill harmless", "POST", "/containers/cc/kill?signal=SIGWINCH")
    r.call("stop bad timeout", "POST", "/containers/cc/stop?t=x")
    r.call("restart bad timeout", "POST", "/containers/cc/restart?t=x")
    r.call("resize", "POST", "/containers/cc/resize?h=10&w=20")
    r.call("resize bad", "POST", "/containers/cc/resize?h=x&w=20")
    r.call("resize nothing", "POST", "/containers/cc/resize")
    r.call("pause", "POST", "/containers/cc/pause")
    r.call("paused: pause", "POST", "/containers/cc/pause")
    r.call("paused: start", "POST", "/containers/cc/start")
    r.call("paused: exec", "POST", "/containers/cc/exec", {"Cmd": ["true"]})
    r.call("paused: remove", "DELETE", "/containers/cc")
    r.call("paused: inspect", "GET", "/containers/cc/json")
    r.call("paused: list", "GET", f"/containers/json?{filters(name=['cc'])}")
    r.call("unpause", "POST", "/containers/cc/unpause")
    r.call("running: unpause", "POST", "/containers/cc/unpause")
    r.call("rename", "POST", "/containers/cc/rename?name=dd")
    r.call("rename same", "POST", "/containers/dd/rename?name=dd")
    r.call("rename empty", "POST", "/containers/dd/rename?name=")
    r.call("rename bad", "POST", "/containers/dd/rename?name=-")
    r.create("ee")
    r.call("rename taken", "POST", "/containers/dd/rename?name=ee")
    r.call("update", "POST", "/containers/dd/update", {"CpuShares": 512})
    r.call("update bad", "POST", "/containers/dd/update", {"Memory": 5})
    r.call("update no body", "POST", "/containers/dd/update")
    r.call("update policy", "POST", "/containers/dd/update", {"RestartPolicy": {"Name": "odd"}})
    r.call("restart", "POST", "/containers/dd/restart?t=0")
    r.call("stop", "POST", "/containers/dd/stop?t=0")
    r.call("stopped: stop", "POST", "/containers/dd/stop")
    r.call("stopped: kill", "POST", "/containers/dd/kill")
    r.call("stopped: exec", "POST", "/containers/dd/exec", {"Cmd": ["true"]})
    r.call("stopped: wait", "POST", "/containers/dd/wait")
    r.call("stopped: inspect", "GET", "/containers/dd/json")
    r.call("stopped: list", "GET", f"/containers/json?all=1&{filters(name=['dd'])}")
    r.call("remove", "DELETE", "/containers/dd")
    r.call("prune bad filter", "POST", f"/containers/prune?{filters(nonsense=['x'])}")
    r.call("prune", "POST", "/containers/prune")
    r.call("prune nothing", "POST", "/containers/prune")


def failing_start(r: Recorder) -> None:
    """Programs that are not there."""
    for name, command in {"missing": ["no-such-program"], "path": ["/no/such"], "directory": ["/etc"]}.items():
        r.call("", "POST", f"/containers/create?name=fail-{name}", {"Image": "busybox", "Cmd": command})
        r.call(f"start {name}", "POST", f"/containers/fail-{name}/start")
        r.call(f"start {name}: inspect", "GET", f"/containers/fail-{name}/json")
        r.call("", "DELETE", f"/containers/fail-{name}")


def rich(r: Recorder) -> None:
    """A container with many settings, as inspect shows it."""
    r.call("rich create", "POST", "/containers/create?name=rich", RICH)
    r.call("rich start", "POST", "/containers/rich/start")
    r.call("rich inspect", "GET", "/containers/rich/json")
    r.call("rich list", "GET", f"/containers/json?{filters(name=['rich'])}")
    r.call("", "DELETE", "/containers/rich?force=1&v=1")
    r.call("", "DELETE", "/volumes/named-volume")


def unknown(r: Recorder) -> None:
    """Ids that nobody knows."""
    for verb in ("start", "stop", "restart", "kill", "pause", "unpause", "wait", "rename?name=x", "resize?h=1&w=1", "attach"):
        r.call(f"unknown: {verb}", "POST", f"/containers/nobody/{verb}")
    r.call("unknown: update", "POST", "/containers/nobody/update", {})
    for verb in ("json", "logs?stdout=1", "top", "stats?stream=0", "changes"):
        r.call(f"unknown: {verb}", "GET", f"/containers/nobody/{verb}")
    r.call("unknown: remove", "DELETE", "/containers/nobody")
    r.call("unknown: exec", "POST", "/containers/nobody/exec", {"Cmd": ["true"]})
    r.call("unknown exec: start", "POST", "/exec/nobody/start", {})
    r.call("unknown exec: json", "GET", "/exec/nobody/json")
    r.call("unknown exec: resize", "POST", "/exec/nobody/resize?h=1&w=1")


def execs(r: Recorder) -> None:
    """Exec sessions."""
    r.create("cc")
    r.call("", "POST", "/containers/cc/start")
    r.call("exec no body", "POST", "/containers/cc/exec")
    r.call("exec bad json", "POST", "/containers/cc/exec", raw=b"{x")
    r.call("exec no command", "POST", "/containers/cc/exec", {"Cmd": []})
    r.call("exec cmd string", "POST", "/containers/cc/exec", {"Cmd": "true"})
    r.call("exec keys", "POST", "/containers/cc/exec", {"Cmd": ["true"], "DetachKeys": "nonsense"})
    made = r.call("exec create", "POST", "/containers/cc/exec", {"Cmd": ["sh", "-c", "echo out"], "AttachStdout": True, "User": "root"})
    exec_id = made["Id"]
    r.call("exec inspect before", "GET", f"/exec/{exec_id}/json")
    r.call("exec start detached", "POST", f"/exec/{exec_id}/start", {"Detach": True})
    running = r.call("", "POST", "/containers/cc/exec", {"Cmd": ["sleep", "1000"]})["Id"]
    r.call("", "POST", f"/exec/{running}/start", {"Detach": True})
    r.call("exec inspect running", "GET", f"/exec/{running}/json")
    r.call("exec start again", "POST", f"/exec/{running}/start", {"Detach": True})
    r.call("exec resize bad", "POST", f"/exec/{running}/resize?h=x&w=1")
    r.call("exec ids", "GET", "/containers/cc/json")
    failing = r.call("", "POST", "/containers/cc/exec", {"Cmd": ["no-such-program"]})["Id"]
    r.call("exec start missing", "POST", f"/exec/{failing}/start", {"Detach": True})
    r.call("exec inspect missing", "GET", f"/exec/{failing}/json")
    r.call("", "DELETE", "/containers/cc?force=1")
    r.call("exec of removed", "GET", f"/exec/{running}/json")


def images(r: Recorder) -> None:
    """Images: names, removal, wrong input."""
    r.call("images", "GET", "/images/json")
    r.call("images filter", "GET", f"/images/json?{filters(nonsense=['x'])}")
    r.call("images dangling bad", "GET", f"/images/json?{filters(dangling=['odd'])}")
    r.call("images before", "GET", f"/images/json?{filters(before=['nothing'])}")
    r.call("images nothing", "GET", f"/images/json?{filters(reference=['nothing'])}")
    r.call("image inspect", "GET", "/images/busybox/json")
    r.call("image history", "GET", "/images/busybox/history")
    r.call("image tag", "POST", "/images/busybox/tag?repo=other/name&tag=v1")
    r.call("image tag bad", "POST", "/images/busybox/tag?repo=BAD&tag=v1")
    r.call("image tag bad tag", "POST", "/images/busybox/tag?repo=good&tag=a%20b")
    r.call("image tag unknown", "POST", "/images/nobody/tag?repo=good&tag=v1")
    r.call("image tag nothing", "POST", "/images/busybox/tag")
    r.call("image delete", "DELETE", "/images/other/name:v1")
    r.create("user")
    r.call("image delete used", "DELETE", "/images/busybox")
    r.call("", "DELETE", "/containers/user")
    for verb, method, path in (("inspect", "GET", "/json"), ("history", "GET", "/history"), ("delete", "DELETE", "")):
        r.call(f"image {verb} unknown", method, f"/images/nobody{path}")
        r.call(f"image {verb} bad", method, f"/images/BAD{path}")
        r.call(f"image {verb} bad digest", method, f"/images/x@sha256:12{path}")
    r.call("pull nothing", "POST", "/images/create")
    r.call("pull bad reference", "POST", "/images/create?fromImage=BAD")
    r.call("pull bad tag", "POST", "/images/create?fromImage=good&tag=a%20b")
    r.call("pull refused", "POST", "/images/create?fromImage=localhost:1/x&tag=latest")
    r.call("images prune", "POST", "/images/prune")
    r.call("images prune filter", "POST", f"/images/prune?{filters(nonsense=['x'])}")


def networks(r: Recorder) -> None:
    """Networks: the predefined ones and one of our own."""
    r.call("networks", "GET", f"/networks?{filters(name=['bridge'])}")
    r.call("networks filter", "GET", f"/networks?{filters(nonsense=['x'])}")
    r.call("networks type bad", "GET", f"/networks?{filters(type=['odd'])}")
    r.call("network inspect bridge", "GET", "/networks/bridge")
    r.call("network inspect host", "GET", "/networks/host")
    r.call("network inspect none", "GET", "/networks/none")
    r.call("network inspect unknown", "GET", "/networks/nobody")
    r.call("network delete unknown", "DELETE", "/networks/nobody")
    r.call("network delete bridge", "DELETE", "/networks/bridge")
    r.call("network create no body", "POST", "/networks/create")
    r.call("network create no name", "POST", "/networks/create", {"Name": ""})
    r.call("network create bad name", "POST", "/networks/create", {"Name": "a b"})
    r.call("network create predefined", "POST", "/networks/create", {"Name": "bridge", "CheckDuplicate": True})
    r.call("network create bad subnet", "POST", "/networks/create", {"Name": "xx", "IPAM": {"Config": [{"Subnet": "x"}]}})
    pool = {"Subnet": "10.9.9.0/24", "Gateway": "1.2.3.4"}
    r.call("network create bad gateway", "POST", "/networks/create", {"Name": "xx", "IPAM": {"Config": [pool]}})
    r.call("network create", "POST", "/networks/create", {"Name": "mine", "CheckDuplicate": True, "Labels": {"a": "b"}})
    r.call("network create again", "POST", "/networks/create", {"Name": "mine", "CheckDuplicate": True})
    r.call("network inspect", "GET", "/networks/mine")
    r.call("", "POST", "/containers/create?name=nn", {
        "Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": "mine"},
        "NetworkingConfig": {"EndpointsConfig": {"mine": {"Aliases": ["alias"]}}},
    })  # fmt: skip
    r.call("network container created", "GET", "/containers/nn/json")
    r.call("", "POST", "/containers/nn/start")
    r.call("network container inspect", "GET", "/containers/nn/json")
    r.call("network used inspect", "GET", "/networks/mine")
    r.call("network delete used", "DELETE", "/networks/mine")
    r.call("network connect unknown", "POST", "/networks/mine/connect", {"Container": "nobody"})
    r.call("network connect again", "POST", "/networks/mine/connect", {"Container": "nn"})
    r.call("network connect host", "POST", "/networks/host/connect", {"Container": "nn"})
    r.call("network connect no body", "POST", "/networks/mine/connect")
    r.call("network disconnect other", "POST", "/networks/bridge/disconnect", {"Container": "nn"})
    r.call("", "DELETE", "/containers/nn?force=1")
    r.call("network delete", "DELETE", "/networks/mine")
    r.call("network prune", "POST", "/networks/prune")
    r.call("network prune filter", "POST", f"/networks/prune?{filters(nonsense=['x'])}")
    r.call("", "POST", "/containers/create?name=ns", {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "nobody"}})
    r.call("start with unknown network", "POST", "/containers/ns/start")
    r.call("", "DELETE", "/containers/ns")


def volumes(r: Recorder) -> None:
    """Volumes."""
    r.call("volumes none", "GET", "/volumes")
    r.call("volumes filter", "GET", f"/volumes?{filters(nonsense=['x'])}")
    r.call("volume create", "POST", "/volumes/create", {"Name": "vol", "Labels": {"a": "b"}})
    r.call("volume create again", "POST", "/volumes/create", {"Name": "vol"})
    r.call("volume create anonymous", "POST", "/volumes/create", {})
    r.call("volume create bad name", "POST", "/volumes/create", {"Name": "../x"})
    r.call("volume create short name", "POST", "/volumes/create", {"Name": "v"})
    r.call("volume create bad option", "POST", "/volumes/create", {"Name": "vv", "DriverOpts": {"odd": "x"}})
    r.call("volume create no body", "POST", "/volumes/create")
    r.call("volume inspect", "GET", "/volumes/vol")
    r.call("volumes", "GET", f"/volumes?{filters(name=['vol'])}")
    r.create("vv", HostConfig={"Binds": ["vol:/data"]})
    r.call("volume delete used", "DELETE", "/volumes/vol")
    r.call("", "DELETE", "/containers/vv")
    r.call("volume delete", "DELETE", "/volumes/vol")
    r.call("volume delete unknown", "DELETE", "/volumes/vol")
    r.call("volume delete unknown force", "DELETE", "/volumes/vol?force=1")
    r.call("volume inspect unknown", "GET", "/volumes/vol")
    r.call("volume prune", "POST", "/volumes/prune")
    r.call("volume prune nothing", "POST", "/volumes/prune")
    r.call("volume prune filter", "POST", f"/volumes/prune?{filters(nonsense=['x'])}")


FAMILIES = (system, creating, failing_start, rich, life, unknown, execs, images, networks, volumes)
