"""More families of calls for ``test_against_dockerd``: archives, filters, modes of containers, health, usage, commits, registries."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import time
from typing import Any
from urllib.parse import quote

from docker_calls import Recorder, filters

WHEN = 1_000_000_000
SLEEP = {"Image": "busybox", "Cmd": ["sleep", "1000"]}


def tar_of(**files: bytes) -> bytes:
    """A tar with these files, dated and owned alike wherever it is made."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode, entry.uid = len(content), WHEN, 0o640, 33
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _listing(data: bytes) -> Any:
    """What a tar holds, in order; times only where a test set them."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [
            [
                entry.name,
                entry.type.decode(),
                oct(entry.mode & 0o7777),
                entry.uid,
                entry.gid,
                entry.size,
                entry.linkname,
                entry.mtime == WHEN,
            ]
            for entry in tar
        ]


def _archive(r: Recorder, label: str, method: str, query: str) -> None:
    """A call of ``archive``: the head's description of the file, and the tar's members."""
    status, headers, payload = r.whole(method, f"/containers/ar/archive?{query}")
    document: Any = None
    if status < 400:
        stat = json.loads(base64.b64decode(headers["X-Docker-Container-Path-Stat"]))
        stat["mtime"] = stat["mtime"].startswith("2001-09-09")
        document = {"stat": stat, "type": headers["Content-Type"], "members": _listing(payload) if payload else None}
    elif payload:
        document = json.loads(payload)
    r.keep(label, status, "", document)


def archives(r: Recorder) -> None:
    """HEAD, GET and PUT of archives, of a container that was never started and of one that runs; export."""
    r.create("ar", Volumes={"/vol": {}})
    content = tar_of(**{"one": b"1", "dir/two": b"22", "../three": b"3", "/four": b"4"})
    for state in ("created", "running"):
        if state == "running":
            r.call("", "POST", "/containers/ar/start")
        put = "/containers/ar/archive?path="
        r.call(f"put {state}", "PUT", f"{put}/tmp", raw=content, kind="application/x-tar")
        r.call(f"put into a file {state}", "PUT", f"{put}/etc/passwd", raw=content, kind="application/x-tar")
        r.call(f"put into nothing {state}", "PUT", f"{put}/no/such", raw=content, kind="application/x-tar")
        r.call(f"put junk {state}", "PUT", f"{put}/tmp", raw=b"x" * 2000, kind="application/x-tar")
        r.call(f"put a volume {state}", "PUT", f"{put}/vol", raw=tar_of(inside=b"v"), kind="application/x-tar")
        over = tar_of(etc=b"a file instead of a directory")
        r.call(f"put over a directory {state}", "PUT", f"{put}/&noOverwriteDirNonDir=1", raw=over, kind="application/x-tar")
        paths = "/tmp/one /tmp /tmp/ /tmp/. /tmp/../tmp/one tmp/dir/two /etc/passwd /bin/sh /bin/sh/x /vol/inside /no/such /etc/passwd/ / ."
        for path in paths.split():
            for method in ("HEAD", "GET") if path not in ("/", ".") else ("HEAD",):
                _archive(r, f"archive {method} {path} {state}", method, f"path={path}")
        _archive(r, f"archive HEAD without path {state}", "HEAD", "")
    changed = r.call("", "GET", "/containers/ar/changes")
    r.keep("changes after put", 200, "", sorted((item["Path"], item["Kind"]) for item in changed))
    r.call("", "DELETE", "/containers/ar?force=1&v=1")
    r.create("ro", HostConfig={"ReadonlyRootfs": True, "Binds": ["/etc:/host:ro"]})
    r.call("put read-only", "PUT", "/containers/ro/archive?path=/tmp", raw=content, kind="application/x-tar")
    r.call("put read-only mount", "PUT", "/containers/ro/archive?path=/host", raw=content, kind="application/x-tar")
    r.call("", "DELETE", "/containers/ro")


def listing(r: Recorder) -> None:
    """Filters that find something, and prunes that take only what is meant."""
    r.create("la", Labels={"k": "v", "both": ""}, ExposedPorts={"80/tcp": {}}, HostConfig={"PortBindings": {"80/tcp": [{"HostPort": ""}]}})
    r.create("lb", Labels={"k": "w"}, HostConfig={"Binds": ["lvol:/data"]})
    r.create("lc", "sh -c 'exit 3'", Labels={"x": "y"})
    for name in ("la", "lc"):
        r.call("", "POST", f"/containers/{name}/start")
    r.call("", "POST", "/containers/lc/wait")
    wanted: dict[str, dict[str, list[str]]] = {
        "label": {"label": ["k"]}, "label value": {"label": ["k=v"]}, "labels": {"label": ["k", "both"]}, "name": {"name": ["^/l[ab]$"]},
        "name anchored": {"name": ["^/la$"]}, "names": {"name": ["^/la$", "^/lb$"]}, "status": {"status": ["created"], "name": ["^/l"]},
        "statuses": {"status": ["created", "exited"], "name": ["^/l.$"]}, "exited": {"exited": ["3"], "name": ["^/lc$"]},
        "ancestor": {"ancestor": ["busybox"], "name": ["^/l.$"]}, "ancestor tag": {"ancestor": ["busybox:latest"], "name": ["^/la$"]},
        "volume": {"volume": ["lvol"]}, "volume path": {"volume": ["/data"]}, "network": {"network": ["bridge"], "name": ["^/l.$"]},
        "publish": {"publish": ["1-65535/tcp"], "name": ["^/la$"]}, "expose": {"expose": ["80"], "name": ["^/la$"]},
        "health": {"health": ["none"], "name": ["^/la$"]}, "before": {"before": ["lb"], "name": ["^/l.$"]},
        "since": {"since": ["la"], "name": ["^/l.$"]}, "is-task": {"is-task": ["false"], "name": ["^/la$"]},
    }  # fmt: skip
    for label, filter_ in wanted.items():
        found = r.call("", "GET", f"/containers/json?all=1&{filters(**filter_)}")
        r.keep(f"list by {label}", 200, "", sorted(item["Names"][0] for item in found))
    old = quote(json.dumps({"label": {"k": True, "both": True}}))
    r.call("list filters of old clients", "GET", f"/containers/json?all=1&filters={old}")
    r.call("list limited", "GET", f"/containers/json?limit=1&{filters(name=['^/l.$'])}")
    for label, filter_ in {"label": {"label": ["k=w"]}, "not label": {"label": ["x"], "label!": ["k"]}, "until": {"until": ["1h"]}}.items():
        pruned = r.call("", "POST", f"/containers/prune?{filters(**filter_)}")
        r.keep(f"prune by {label}", 200, "", len(pruned["ContainersDeleted"] or ()))
    r.call("prune bad until", "POST", f"/containers/prune?{filters(until=['odd'])}")
    r.call("prune two untils", "POST", f"/containers/prune?{filters(until=['1h', '2h'])}")
    for name in ("la", "lb", "lc"):
        r.call("", "DELETE", f"/containers/{name}?force=1&v=1")
    r.call("", "DELETE", "/volumes/lvol")


MODES: dict[str, dict[str, Any]] = {
    "host": {"HostConfig": {"NetworkMode": "host", "PidMode": "host", "IpcMode": "host", "UTSMode": "host", "UsernsMode": "host"}},
    "none": {"HostConfig": {"NetworkMode": "none", "IpcMode": "none"}, "NetworkDisabled": True},
    "joined": {"HostConfig": {"NetworkMode": "container:owner", "PidMode": "container:owner", "IpcMode": "container:owner"}},
    "from": {"HostConfig": {"VolumesFrom": ["owner:ro"]}},
    "linked": {"HostConfig": {"Links": ["owner:alias"]}},
    "unnamed": {"Tty": True, "OpenStdin": True, "StdinOnce": True, "Entrypoint": ["sh", "-c"], "Cmd": ["exec sleep 1000"]},
    "loose": {"HostConfig": {"SecurityOpt": ["seccomp=unconfined", "label=disable"], "MaskedPaths": [], "ReadonlyPaths": []}},
    "grouped": {"HostConfig": {"GroupAdd": ["audio", "77"], "OomScoreAdj": 10, "ShmSize": 1 << 20, "CgroupParent": ""}},
    "limited": {"HostConfig": {"MemoryReservation": 32 << 20, "Memory": 64 << 20, "MemorySwap": -1, "CpuPeriod": 50000, "CpuQuota": 25000,
                               "CpusetCpus": "0", "CpusetMems": "0", "PidsLimit": -1, "BlkioWeight": 0}},
    "annotated": {"OnBuild": ["RUN x"], "Shell": ["/bin/x"], "HostConfig": {"ContainerIDFile": "/x", "VolumeDriver": "local"}},
}  # fmt: skip


def modes(r: Recorder) -> None:
    """Namespaces, links, volumes of others: what inspect and the list show, before, while and after they run."""
    r.create("owner", Volumes={"/shared": {}}, HostConfig={"IpcMode": "shareable", "Binds": ["mvol:/named"]})
    r.call("", "POST", "/containers/owner/start")
    for name, more in MODES.items():
        settings = {**SLEEP, **more}
        r.call(f"mode {name}: create", "POST", f"/containers/create?name=m-{name}", settings)
        r.call(f"mode {name}: created", "GET", f"/containers/m-{name}/json")
        r.call(f"mode {name}: start", "POST", f"/containers/m-{name}/start")
        r.call(f"mode {name}: running", "GET", f"/containers/m-{name}/json")
        r.call(f"mode {name}: list", "GET", f"/containers/json?{filters(name=[f'm-{name}'])}")
        if name not in ("host", "joined"):  # another engine's processes are of no interest
            r.call(f"mode {name}: top", "GET", f"/containers/m-{name}/top?ps_args=-o+pid,args")
        r.call("", "POST", f"/containers/m-{name}/stop?t=0")
        r.call(f"mode {name}: stopped", "GET", f"/containers/m-{name}/json")
    r.call("owner's links", "GET", f"/containers/json?{filters(name=['owner'])}")
    r.call("remove a link", "DELETE", "/containers/m-linked/alias?link=1")
    for name in (*(f"m-{name}" for name in MODES), "owner"):
        r.call("", "DELETE", f"/containers/{name}?force=1&v=1")
    r.call("", "DELETE", "/volumes/mvol")


def health(r: Recorder) -> None:
    """A check that passes, one that fails and one that is switched off, with the events of it."""
    start = r.now()
    for name, test in {"good": ["CMD-SHELL", "echo fine"], "bad": ["CMD", "sh", "-c", "echo ill; exit 5"], "off": ["NONE"]}.items():
        r.create(f"h-{name}", Healthcheck={"Test": test, "Interval": 100_000_000, "Timeout": 5 * 10**9, "Retries": 2})
        r.call("", "POST", f"/containers/h-{name}/start")
    for name, wanted in {"good": "healthy", "bad": "unhealthy"}.items():
        for _ in range(100):
            found = r.call("", "GET", f"/containers/h-{name}/json")["State"]["Health"]
            if found["Status"] == wanted:
                break
            time.sleep(0.1)
        r.keep(f"health {name}", 200, "", {"Status": found["Status"], "Log": found["Log"][:1]})
    for name in ("good", "bad", "off"):
        r.call(f"health {name}: list", "GET", f"/containers/json?{filters(name=[f'h-{name}'], health=['healthy', 'unhealthy', 'none'])}")
        r.call("", "DELETE", f"/containers/h-{name}?force=1")
    text = r.call("", "GET", f"/events?since={start}&until={r.now()}&{filters(event=['health_status'])}")
    lines = [json.loads(line) for line in str(text).splitlines()]
    r.keep("health events", 200, "", sorted((line["Action"], sorted(line["Actor"]["Attributes"])) for line in lines))


def event_filters(r: Recorder) -> None:
    """Events again, by every filter."""
    start = r.now()
    r.create("ef", Labels={"x": "y"})
    for verb in ("start", "kill?signal=WINCH", "stop?t=0"):
        r.call("", "POST", f"/containers/ef/{verb}")
    id = r.call("", "GET", "/containers/ef/json")["Id"]
    r.call("", "DELETE", "/containers/ef")
    wanted: dict[str, dict[str, list[str]]] = {
        "container": {"container": ["ef"]}, "container id": {"container": [id]}, "short id": {"container": [id[:12]]},
        "event": {"event": ["die"]}, "events": {"event": ["start", "destroy"]}, "image": {"image": ["busybox"]},
        "image tag": {"image": ["busybox:latest"]}, "label": {"label": ["x"]}, "label value": {"label": ["x=y"]},
        "label other": {"label": ["x=z"]}, "type": {"type": ["network"]}, "types": {"type": ["network", "container"]},
        "network": {"network": ["bridge"]}, "scope": {"scope": ["local"]}, "scope swarm": {"scope": ["swarm"]},
        "daemon": {"daemon": ["nobody"]}, "volume": {"volume": ["nothing"]}, "two": {"type": ["container"], "event": ["kill"]},
        "plugin": {"plugin": ["x"]}, "node": {"node": ["x"]},
    }  # fmt: skip
    until = r.now()
    for label, filter_ in wanted.items():
        text = r.call("", "GET", f"/events?since={start}&until={until}&{filters(**filter_)}")
        lines = text if isinstance(text, str) else json.dumps(text) if text else ""
        events = [json.loads(line) for line in lines.splitlines()]
        r.keep(f"events by {label}", 200, "", [[event["Type"], event["Action"], event.get("scope")] for event in events])


def usage(r: Recorder) -> None:
    """``system df``, with something of each kind."""
    r.create("df", "sh -c 'echo 12345 > /file'", HostConfig={"Binds": ["dfvol:/data"]}, Labels={"a": "b"})
    r.call("", "POST", "/containers/df/start")
    r.call("", "POST", "/containers/df/wait")
    found = r.call("", "GET", "/system/df")
    mine = [item for item in found["Containers"] if item["Names"] == ["/df"]]
    volumes = [item for item in found["Volumes"] if item["Name"] == "dfvol"]
    images = [item for item in found["Images"] if "busybox:latest" in (item["RepoTags"] or ())]
    r.keep("df", 200, "", {"keys": sorted(found), "Containers": mine, "Volumes": volumes, "Images": images})
    r.call("", "DELETE", "/containers/df")
    r.call("", "DELETE", "/volumes/dfvol")


def commits(r: Recorder) -> None:
    """Images made of containers."""
    r.create("co", "sh -c 'echo text > /made'", Env=["A=b"], Labels={"l": "m"}, ExposedPorts={"1/tcp": {}})
    r.call("", "POST", "/containers/co/start")
    r.call("", "POST", "/containers/co/wait")
    changes = quoted_changes("ENV C=d", 'CMD ["e"]', "EXPOSE 2/udp", "LABEL n=o", "USER p", "WORKDIR /q", "VOLUME /r")
    r.call("commit", "POST", f"/commit?container=co&repo=committed&tag=one&comment=why&author=who&{changes}")
    r.call("commit: inspect", "GET", "/images/committed:one/json")
    history = r.call("", "GET", "/images/committed:one/history")
    r.keep("commit: history", 200, "", history[:1])
    r.call("commit config", "POST", "/commit?container=co&repo=committed&tag=two", {"Cmd": ["x"], "Env": ["Z=z"], "Labels": {"s": "t"}})
    r.call("commit config: inspect", "GET", "/images/committed:two/json")
    r.call("commit bad change", "POST", f"/commit?container=co&{quoted_changes('RUN x')}")
    r.call("commit bad word", "POST", f"/commit?container=co&{quoted_changes('NONSENSE x')}")
    r.call("commit bad repo", "POST", "/commit?container=co&repo=BAD")
    r.call("commit bad tag", "POST", "/commit?container=co&repo=good&tag=a%20b")
    for tag in ("one", "two"):
        r.call("", "DELETE", f"/images/committed:{tag}")
    r.call("", "DELETE", "/containers/co")


def quoted_changes(*changes: str) -> str:
    return "&".join(f"changes={quote(change)}" for change in changes)


def registries(r: Recorder) -> None:
    """Credentials, distribution and search where no registry answers."""
    r.call("auth refused", "POST", "/auth", {"username": "u", "password": "p", "serveraddress": "localhost:1"})
    r.call("auth list", "POST", "/auth", [])
    r.call("distribution refused", "GET", "/distribution/localhost:1/x/json")
    r.call("distribution bad name", "GET", "/distribution/BAD/json")
    r.call("distribution id", "GET", f"/distribution/{'0' * 64}/json")
    r.call("search nothing", "GET", "/images/search")
    r.call("search bad limit", "GET", "/images/search?term=x&limit=x")
    r.call("search big limit", "GET", "/images/search?term=x&limit=1000")
    r.call("search filter", "GET", f"/images/search?term=x&{filters(nonsense=['x'])}")
    r.call("push bad name", "POST", "/images/BAD/push", raw=b"", kind="")
    r.call("save unknown", "GET", "/images/get?names=nobody")
    r.call("save one unknown", "GET", "/images/nobody/get")
    r.call("load junk", "POST", "/images/load", raw=b"x" * 1024, kind="application/x-tar")


def websockets(r: Recorder) -> None:
    """Attaching through a web socket: the head, and the frames of a container's output."""
    r.create("ws", "sh -c 'sleep 0.3; echo out'")
    head = (
        b"GET /v1.41/containers/ws/attach/ws?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nOrigin: http://d\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    r.raw("ws attach", head, lambda: r.call("", "POST", "/containers/ws/start"))
    r.call("", "DELETE", "/containers/ws?force=1")


MORE_FAMILIES = (archives, listing, modes, health, event_filters, usage, commits, registries, websockets)
