"""More families of calls for ``test_against_dockerd``: swarm and plugin endpoints, older API versions, waiting, streams, odd requests."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from docker_calls import Recorder, filters

BUSY = {"Image": "busybox", "Cmd": ["sleep", "1000"]}

SWARM_CALLS = (
    ("GET", "/swarm"), ("GET", "/swarm/unlockkey"), ("POST", "/swarm/update?version=1"), ("POST", "/swarm/leave"),
    ("POST", "/swarm/unlock"),
    ("GET", "/nodes"), ("GET", "/nodes/x"), ("DELETE", "/nodes/x"), ("POST", "/nodes/x/update?version=1"),
    ("GET", "/services"), ("POST", "/services/create"), ("GET", "/services/x"), ("DELETE", "/services/x"),
    ("POST", "/services/x/update?version=1"), ("GET", "/services/x/logs?stdout=1"),
    ("GET", "/tasks"), ("GET", "/tasks/x"), ("GET", "/tasks/x/logs?stdout=1"),
    ("GET", "/secrets"), ("POST", "/secrets/create"), ("GET", "/secrets/x"), ("DELETE", "/secrets/x"),
    ("POST", "/secrets/x/update?version=1"),
    ("GET", "/configs"), ("POST", "/configs/create"), ("GET", "/configs/x"), ("DELETE", "/configs/x"),
    ("POST", "/configs/x/update?version=1"),
)  # fmt: skip

PLUGIN_CALLS = (
    ("GET", "/plugins"), ("GET", f"/plugins?{filters(enabled=['true'])}"), ("GET", f"/plugins?{filters(nonsense=['x'])}"),
    ("GET", "/plugins/x/json"), ("DELETE", "/plugins/x"), ("POST", "/plugins/x/enable?timeout=0"), ("POST", "/plugins/x/disable"),
    ("POST", "/plugins/x/set"), ("POST", "/plugins/x/push"), ("POST", "/plugins/x/enable"),
)  # fmt: skip


def swarm(r: Recorder) -> None:
    """What only a swarm manager answers."""
    for method, path in SWARM_CALLS:
        body: Any = {"Name": "x"} if method == "POST" else None
        r.call(f"swarm {method} {path}", method, path, body)
    r.call("swarm leave force", "POST", "/swarm/leave?force=1")


def plugins(r: Recorder) -> None:
    """There are none."""
    for method, path in PLUGIN_CALLS:
        r.call(f"plugin {method} {path}", method, path, [] if path.endswith("/set") else None)


def versions(r: Recorder) -> None:
    """What older versions of the API show and take."""
    for version in ("1.24", "1.29", "1.30", "1.38", "1.39", "1.40", "1.41"):
        prefix = f"/v{version}"
        r.call("", "DELETE", "/containers/old?force=1")
        body = {**BUSY, "HostConfig": {"AutoRemove": version == "1.24"}}
        r.call(f"{version} create", "POST", f"{prefix}/containers/create?name=old", body)
        r.call(f"{version} inspect", "GET", f"{prefix}/containers/old/json")
        r.call(f"{version} list", "GET", f"{prefix}/containers/json?all=1&{filters(name=['old'])}")
        r.call(f"{version} wait", "POST", f"{prefix}/containers/old/wait")
        r.call(f"{version} info", "GET", f"{prefix}/info")
        r.call(f"{version} version", "GET", f"{prefix}/version")
        r.call(f"{version} ping", "GET", f"{prefix}/_ping")
        r.call(f"{version} networks", "GET", f"{prefix}/networks?{filters(name=['bridge'])}")
        r.call(f"{version} images", "GET", f"{prefix}/images/json")
        r.call(f"{version} volumes", "GET", f"{prefix}/volumes")
    r.call("", "DELETE", "/containers/old?force=1")


def odd_requests(r: Recorder) -> None:
    """Requests that are not quite what the API describes."""
    r.call("create without image", "POST", "/containers/create", {"Cmd": ["true"]})
    r.call("create only host", "POST", "/containers/create", {"HostConfig": {"AutoRemove": True}})
    r.call("create null", "POST", "/containers/create", raw=b"null")
    r.call("create trailing", "POST", "/containers/create", raw=b'{"Image": "no-such-image"} {"x": 1}')
    r.call("create no type", "POST", "/containers/create", raw=b'{"Image": "no-such-image"}', kind="")
    r.call("create charset", "POST", "/containers/create", raw=b'{"Image": "no-such-image"}', kind="application/json; charset=utf-8")
    r.call("create lower case", "POST", "/containers/create", raw=b'{"image": "no-such-image"}')
    r.call("create unknown field", "POST", "/containers/create", {"Image": "no-such-image", "Nonsense": {"a": [1]}})
    r.create("odd")
    r.call("start with body", "POST", "/containers/odd/start", {"HostConfig": {"Memory": 1}})
    r.call("start with small body", "POST", "/containers/odd/start", {})
    r.call("start again with name slash", "POST", "/containers/%2Fodd/start")
    r.call("inspect slash", "GET", "/containers/%2Fodd/json")
    r.call("inspect trailing slash", "GET", "/containers/odd/json/")
    r.call("inspect double slash", "GET", "/containers//json")
    r.call("inspect dots", "GET", "/containers/../containers/odd/json")
    r.call("stop negative", "POST", "/containers/odd/stop?t=abc")
    r.call("kill zero", "POST", "/containers/odd/kill?signal=0")
    r.call("kill lower", "POST", "/containers/odd/kill?signal=winch")
    r.call("kill negative", "POST", "/containers/odd/kill?signal=-1")
    r.call("resize zero", "POST", "/containers/odd/resize?h=0&w=0")
    r.call("resize negative", "POST", "/containers/odd/resize?h=-1&w=10")
    r.call("attach nothing", "POST", "/containers/odd/attach")
    r.call("attach bad keys", "POST", "/containers/odd/attach?stream=1&detachKeys=nonsense,x")
    r.call("logs bool words", "GET", "/containers/odd/logs?stdout=yes&tail=0")
    r.call("logs false words", "GET", "/containers/odd/logs?stdout=no&stderr=none")
    r.call("logs tail negative", "GET", "/containers/odd/logs?stdout=1&tail=-5")
    r.call("top quotes", "GET", "/containers/odd/top?ps_args=%27")
    r.call("kill empty", "POST", "/containers/odd/kill?signal=")
    r.call("", "POST", "/containers/odd/wait")
    r.call("rename no name", "POST", "/containers/odd/rename")
    r.call("rename own slash", "POST", "/containers/odd/rename?name=%2Fodd2")
    r.call("export unknown", "GET", "/containers/nobody/export")
    r.call("archive no path", "GET", "/containers/odd2/archive")
    r.call("archive unknown", "GET", "/containers/nobody/archive?path=/")
    r.call("archive missing", "GET", "/containers/odd2/archive?path=/no/such")
    r.call("archive head missing", "HEAD", "/containers/odd2/archive?path=/no/such")
    r.call("archive put missing", "PUT", "/containers/odd2/archive?path=/no/such", raw=b"", kind="application/x-tar")
    r.call("archive put no path", "PUT", "/containers/odd2/archive", raw=b"", kind="application/x-tar")
    r.call("update unknown field", "POST", "/containers/odd2/update", {"Nonsense": 1})
    r.call("update auto remove policy", "POST", "/containers/odd2/update", {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 4}})
    r.call("update empty", "POST", "/containers/odd2/update", {})
    r.call("remove link none", "DELETE", "/containers/nobody?link=1")
    r.call("", "DELETE", "/containers/odd2?force=1")
    r.call("list old since", "GET", "/containers/json?since=nobody")
    r.call("list negative limit", "GET", "/containers/json?limit=-1")
    r.call("list repeated filter", "GET", f"/containers/json?{filters(status=['running', 'exited'])}&{filters(nonsense=['x'])}")
    r.call("list volume filter", "GET", f"/containers/json?{filters(volume=['none'], network=['none'], ancestor=['no-such'])}")
    r.call("list id filter", "GET", f"/containers/json?{filters(id=['fff'])}")
    r.call("list label filter", "GET", f"/containers/json?{filters(label=['a=b', 'c'])}")
    r.call("events until before since", "GET", "/events?since=10&until=5")
    r.call("events typed", "GET", f"/events?since=1&until=2&{filters(type=['odd'], event=['x'], scope=['swarm'])}")
    r.call("auth empty", "POST", "/auth", raw=b"")
    r.call("session no upgrade", "POST", "/session")
    r.call("grpc no upgrade", "POST", "/grpc")
    r.call("commit unknown", "POST", "/commit?container=nobody")
    r.call("commit nothing", "POST", "/commit")
    r.call("options", "OPTIONS", "/containers/json")


def waiting(r: Recorder) -> None:
    """Every condition of wait, with exits of several kinds."""
    for condition in ("not-running", "next-exit", "removed"):
        endings = {"good": "true", "bad": "sh -c 'exit 3'", "signal": "sh -c 'kill -9 $$'"}
        for name, command in endings.items() if condition == "not-running" else [("bad", endings["bad"])]:
            container = f"w-{condition}-{name}"
            r.create(container, command, HostConfig={"AutoRemove": condition == "removed"})
            label = f"wait {condition} {name}"
            if condition == "not-running":
                r.call("", "POST", f"/containers/{container}/start")
                r.call(label, "POST", f"/containers/{container}/wait")
                r.call(f"{label}: inspect", "GET", f"/containers/{container}/json")
            else:
                waiter = _Waiter(r, label, f"/containers/{container}/wait?condition={condition}")
                r.call("", "POST", f"/containers/{container}/start")
                waiter.join()
            r.call("", "DELETE", f"/containers/{container}?force=1")
    r.create("w-removed-late")
    waiter = _Waiter(r, "wait removed by hand", "/containers/w-removed-late/wait?condition=removed")
    r.call("", "DELETE", "/containers/w-removed-late?force=1")
    waiter.join()


class _Waiter(threading.Thread):
    """A wait call under way: returns from its making when the engine has answered the head."""

    def __init__(self, r: Recorder, label: str, path: str) -> None:
        super().__init__(daemon=True)
        self._stream = r.stream("POST", path)
        self._recorder, self._label = r, label
        self.start()

    def run(self) -> None:
        self._recorder.keep(self._label, *self._stream.finish())

    def join(self, timeout: float | None = 30) -> None:
        super().join(timeout)
        assert not self.is_alive(), self._label


def streams(r: Recorder) -> None:
    """Logs and attach: heads and bytes of both framings."""
    r.create("st", "sh -c 'echo out; sleep 0.1; echo err >&2; sleep 0.1; echo last'")
    upgraded = r.raw(
        "attach upgraded", b"POST /v1.41/containers/st/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n", lambda: r.call("", "POST", "/containers/st/start"),
    )  # fmt: skip
    assert b"last" in upgraded
    for query in ("stdout=1", "stderr=1", "stdout=1&stderr=1", "stdout=1&tail=1", "stdout=1&since=4000000000", "stdout=1&until=1"):
        r.call(f"logs {query}", "GET", f"/containers/st/logs?{query}")
    head = b"GET /v1.41/containers/st/logs?stdout=1&stderr=1 HTTP/1.0\r\n\r\n"
    r.raw("logs http 1.0", head)
    r.raw("attach logs", b"POST /v1.41/containers/st/attach?logs=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n")
    r.call("", "DELETE", "/containers/st")
    r.create("tt", "sh -c 'echo out; echo err >&2'", Tty=True)
    r.call("", "POST", "/containers/tt/start")
    r.call("", "POST", "/containers/tt/wait")
    r.call("logs tty", "GET", "/containers/tt/logs?stdout=1")
    r.call("", "DELETE", "/containers/tt")
    r.create("ex")
    r.call("", "POST", "/containers/ex/start")
    for name, more in {"plain": {}, "tty": {"Tty": True}, "stdout": {"AttachStderr": False}, "missing": {"Cmd": ["no-such"]}}.items():
        body = {"Cmd": ["sh", "-c", "echo out; sleep 0.1; echo err >&2"], "AttachStdout": True, "AttachStderr": True, **more}
        made = r.call("", "POST", "/containers/ex/exec", body)["Id"]
        start = json.dumps({"Detach": False, "Tty": body.get("Tty", False)}).encode()
        r.raw(
            f"exec {name}",
            b"POST /v1.41/exec/%b/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (made.encode(), len(start), start),
        )
        r.call(f"exec {name}: inspect", "GET", f"/exec/{made}/json")
    r.call("", "DELETE", "/containers/ex?force=1")


def events(r: Recorder) -> None:
    """What a container's life publishes: types, actions and attributes, in order."""
    start = r.now()
    r.create("ev", Labels={"a": "b"})
    for verb in ("start", "pause", "unpause", "kill?signal=WINCH", "rename?name=ev2"):
        r.call("", "POST", f"/containers/ev/{verb}")
    made = r.call("", "POST", "/containers/ev2/exec", {"Cmd": ["true"]})["Id"]
    r.call("", "POST", f"/exec/{made}/start", {"Detach": True})
    for _ in range(200):  # the restart below would end it otherwise, on a busy machine
        if r.call("", "GET", f"/exec/{made}/json")["ExitCode"] is not None:
            break
        time.sleep(0.05)
    r.call("", "POST", "/containers/ev2/update", {"CpuShares": 512})
    r.call("", "POST", "/containers/ev2/restart?t=0")
    r.call("", "POST", "/containers/ev2/stop?t=0")
    r.call("", "POST", "/networks/create", {"Name": "evnet"})
    r.call("", "POST", "/networks/evnet/connect", {"Container": "ev2"})
    r.call("", "POST", "/networks/evnet/disconnect", {"Container": "ev2"})
    r.call("", "DELETE", "/networks/evnet")
    r.call("", "POST", "/volumes/create", {"Name": "evvol"})
    r.call("", "DELETE", "/volumes/evvol")
    r.call("", "POST", "/images/busybox/tag?repo=evimage&tag=v1")
    r.call("", "DELETE", "/images/evimage:v1")
    r.call("", "DELETE", "/containers/ev2")
    for kind in ("container", "network", "volume", "image"):
        text = r.call("", "GET", f"/events?since={start}&until={r.now()}&{filters(type=[kind])}")
        lines = [json.loads(line) for line in str(text or "").splitlines()] if isinstance(text, str) else [text]
        exec_lines = [line for line in lines if line["Action"].startswith("exec_")]
        r.keep(f"events {kind}", 200, "application/json", [line for line in lines if line not in exec_lines])
        r.keep(f"events {kind} exec", 200, "application/json", exec_lines)


EDGE_FAMILIES = (swarm, plugins, versions, odd_requests, waiting, streams, events)
