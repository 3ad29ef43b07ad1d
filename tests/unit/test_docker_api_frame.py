"""The Docker API's frame over a fake engine: versions, errors, parameters, filters, system endpoints, routing, daemon options."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tare import daemon_options, errors
from tare.api.docker import versions
from tare.api.docker.app import DockerApi, default_headers
from tare.api.docker.errors import status_of
from tare.api.docker.filter_parameter import Filters
from tare.api.docker.params import boolean, integer, json_body, json_response
from tare.api.docker.routes import Routes, add_absent, add_system, plain
from tare.api.docker.system import SystemHandlers
from tare.config import EngineConfig
from tare.daemon_options import UsageError, load
from tare.events import EventBus
from tare.http.message import Request, Response
from tare.http.routing import NoRoute, Router
from tare.http.server import Server


class Body(msgspec.Struct, rename="pascal"):
    name: str = ""
    tty: bool = False


class Api:
    """A server over a fake engine and a client for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bus = EventBus()
        containers = SimpleNamespace(checkpoints=SimpleNamespace(criu=SimpleNamespace(offered=False)))
        self.engine: Any = SimpleNamespace(events=self.bus, config=EngineConfig(), images=SimpleNamespace(), containers=containers)

    def table(self) -> Routes:
        routes: Routes = Router()
        add_system(routes, SystemHandlers(self.engine))
        add_absent(routes)
        routes.add("POST", "/body", plain(self._body))
        routes.add("GET", "/raise/{kind}", plain(self._raise))
        routes.add("GET", "/params", plain(self._params))
        return routes

    async def _body(self, request: Request) -> Response:
        return json_response(await json_body(request, Body))

    async def _raise(self, request: Request) -> Response:
        kind = request.params["kind"]
        if kind == "bug":
            raise RuntimeError("secret detail")
        raise getattr(errors, kind)("the text")

    async def _params(self, request: Request) -> Response:
        return json_response([boolean(request, "b"), integer(request, "i", 7)])

    async def ask(self, method: str, target: str, body: bytes = b"", content_type: str | None = "application/json") -> tuple[int, str, str]:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        kind = f"Content-Type: {content_type}\r\n" if body and content_type is not None else ""
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        raw = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()
        head, _, rest = raw.partition("\r\n\r\n")
        return int(head.split()[1]), head, rest

    async def message(self, method: str, target: str, body: bytes = b"", content_type: str | None = "application/json") -> tuple[int, str]:
        status, _, rest = await self.ask(method, target, body, content_type)
        return status, json.loads(rest)["message"]


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    made = Api(tmp_path / "s")
    server = Server(DockerApi(made.engine, made.table()), default_headers())
    await server.listen(f"unix://{made.path}")
    yield made
    await server.close(2)


async def test_ping_and_versions(api: Api) -> None:
    for method in ("GET", "HEAD"):
        status, head, body = await api.ask(method, "/_ping")
        assert status == 200 and body == ("OK" if method == "GET" else "")
        assert "Api-Version: 1.51\r\n" in head and "Ostype: linux" in head and "Docker-Experimental: false" in head
    assert (await api.ask("GET", "/v1.24/version"))[0] == 200
    assert await api.message("GET", "/v1.52/version") == (
        400,
        "client version 1.52 is too new. Maximum supported API version is 1.51",
    )
    assert await api.message("GET", "/v1.10/version") == (
        400,
        "client version 1.10 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
    )
    document = json.loads((await api.ask("GET", "/version"))[2])
    assert document["ApiVersion"] == "1.51" and document["MinAPIVersion"] == "1.24" and "Tare" in document["Platform"]["Name"]


async def test_unknown_pages_and_methods(api: Api) -> None:
    for method, target in (("GET", "/nope"), ("PUT", "/version"), ("GET", "/vabc/version"), ("GET", "/version/")):
        assert await api.message(method, target) == (404, "page not found")
    assert (await api.message("GET", "/v1.41/swarm"))[0] == 503
    assert (await api.message("POST", "/services/create"))[1].startswith("This node is not a swarm manager.")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("InvalidArgument", 400),
        ("Unauthorized", 401),
        ("Forbidden", 403),
        ("NotFound", 404),
        ("Conflict", 409),
        ("ResourceExhausted", 500),
        ("Unsupported", 501),
        ("Unavailable", 503),
        ("Corrupt", 500),
    ],
)
async def test_error_table(api: Api, kind: str, status: int) -> None:
    assert await api.message("GET", f"/raise/{kind}") == (status, "the text")


async def test_other_failures(api: Api) -> None:
    status, _, body = await api.ask("GET", "/raise/NotModified")
    assert (status, body) == (304, "")
    status, text = await api.message("GET", "/raise/bug")
    assert status == 500 and "secret" not in text and "request" in text
    assert status_of(errors.StartFailed("x", 127)) == 400 and status_of(errors.StartFailed("x", 128)) == 500


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        (b'{"Name":', "application/json", "invalid JSON: unexpected EOF"),
        (b"{bad", "application/json", "invalid JSON: "),
        (b'{"Tty":"yes"}', "application/json", "invalid JSON: json: cannot unmarshal string into Go struct field Body.Tty of type bool"),
        (b"[1]", "application/json", "invalid JSON: "),
        (b"{} {}", "application/json", "invalid JSON: unexpected content after JSON"),
        (b"", "application/json", "invalid JSON: got EOF while reading request body"),
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"{}", "nonsense", "malformed Content-Type header (nonsense)"),
        (b"{}", None, "malformed Content-Type header"),
        (b"[" * 100_000, "application/json", "invalid JSON: "),
        (b'{"Name":"\xff"}', "application/json", "invalid JSON: "),
    ],
)
async def test_bad_bodies(api: Api, body: bytes, content_type: str | None, text: str) -> None:
    status, message = await api.message("POST", "/body", body, content_type)
    assert status == 400 and message.startswith(text)


async def test_good_body_and_parameters(api: Api) -> None:
    status, _, body = await api.ask("POST", "/body", b'{"name":"a","Tty":null,"Unknown":1}', "application/json; charset=utf-8")
    assert status == 200 and json.loads(body) == {"Name": "a", "Tty": False}
    for value, wanted in (("", False), ("0", False), ("no", False), ("False", False), ("none", False), ("1", True), ("x", True)):
        assert json.loads((await api.ask("GET", f"/params?b={value}"))[2]) == [wanted, 7]
    assert json.loads((await api.ask("GET", "/params?i=-3"))[2]) == [False, -3]
    assert (await api.message("GET", "/params?i=abc"))[0] == 400


async def test_events_replay_follow_and_filter(api: Api) -> None:
    first = api.bus.publish("container", "start", "c1", {"image": "busybox:1", "name": "one"})
    api.bus.publish("network", "connect", "n1", {"container": "c1"})
    api.bus.publish("container", "exec_create: sh", "c1", {"image": "busybox:1", "name": "one"})
    until = "9999999999"
    past = f"/events?since=1&until={(first.time_nano + 10**9) / 1e9:.9f}"
    lines = (await api.ask("GET", past + '&filters={"image":["busybox"],"event":{"start":true,"exec_create":true}}'))[2]
    found = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    assert [event["Action"] for event in found] == ["start", "exec_create: sh"]
    assert found[0]["status"] == "start" and found[0]["id"] == "c1" and found[0]["from"] == "busybox:1"
    assert found[0]["timeNano"] == first.time_nano and found[0]["Actor"]["ID"] == "c1"
    reader, writer = await asyncio.open_unix_connection(str(api.path))
    writer.write(f"GET /events?until={until} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    api.bus.publish("image", "pull", "i1", {"name": "x"})
    assert b'"pull"' in await asyncio.wait_for(reader.readuntil(b"\n\r\n"), 5)
    writer.close()
    async with asyncio.timeout(5):
        while api.bus.subscriber_count:  # noqa: ASYNC110 - the bus tells nobody
            await asyncio.sleep(0.01)
    assert (await api.message("GET", "/events?since=5&until=3"))[1] == "`since` time (5) cannot be after `until` time (3)"
    assert (await api.message("GET", '/events?filters={"foo":["x"]}'))[1] == "invalid filter 'foo'"
    assert (await api.message("GET", "/events?filters=bad"))[1] == "invalid filter"


def test_filters() -> None:
    assert Filters.parse('{"a":{"x":true,"y":false}}') == Filters.parse('{"a":["x"]}') == {"a": ["x"]}
    filters = Filters.parse('{"label":["k=v","w"],"label!":["n"],"dangling":["1"]}')
    assert filters.matches_labels({"k": "v", "w": ""}) and not filters.matches_labels({"k": "v", "w": "", "n": "1"})
    assert filters.flag("dangling") and not filters.flag("other")
    with pytest.raises(errors.InvalidArgument, match=r"invalid filter 'dangling=\[x\]'"):
        Filters.parse('{"dangling":["x"]}').flag("dangling")
    for bad in ("[]", '{"a":1}', '{"a":[1]}', "[" * 100_000):
        with pytest.raises(errors.InvalidArgument):
            Filters.parse(bad)


def test_router() -> None:
    router: Router[str] = Router()
    router.add("GET", "/images/json", "list")
    router.add("GET", "/images/{name:*}/json", "inspect")
    router.add("DELETE", "/images/{name:*}", "delete")
    router.add("GET", "/c/{id}/json", "container")
    assert router.find("GET", "/images/json")[0].handler == "list"
    route, params = router.find("GET", "/images/a/b:5000/c/json")
    assert route.handler == "inspect" and params == {"name": "a/b:5000/c"}
    assert router.find("DELETE", "/images/json")[0].handler == "delete"
    with pytest.raises(NoRoute) as caught:
        router.find("PUT", "/c/x/json")
    assert caught.value.allowed == ("GET",)
    for path in ("/c//json", "/c/a/b/json", "/", "", "/c"):
        with pytest.raises(NoRoute):
            router.find("GET", path)
    assert versions.split("/v1.30/info") == ((1, 30), "/info") and versions.split("/info")[0] == versions.MAXIMUM


# -- daemon options


def test_options(tmp_path: Path) -> None:
    config = load(["-H", "unix:///a", "-Htcp://1.2.3.4:5", "--data-root=/d", "--log-opt", "max-size=1m", "-D", "--label", "a=b"]).config
    assert config.hosts == ("unix:///a", "tcp://1.2.3.4:5") and config.data_root == Path("/d")
    assert config.debug and config.labels == ("a=b",) and config.log_opts == {"max-size": "1m"}
    private = load(["--exec-root", "/x"]).config
    assert private.hosts == ("unix:///x/tare.sock",) and private.pidfile == Path("/x/tared.pid")
    assert load(["--iptables", "--live-restore=true"]).config == EngineConfig()
    file = tmp_path / "daemon.json"
    file.write_text('{"debug": true, "hosts": ["unix:///f"], "log-opts": {"max-file": "2"}, "live-restore": true, "registry-mirrors": []}')
    assert load(["--config-file", str(file)]).config.hosts == ("unix:///f",)
    changed, pending = daemon_options.reloaded(EngineConfig(), load(["--config-file", str(file)]).config)
    assert changed.debug and changed.hosts == EngineConfig().hosts and set(pending) == {"hosts", "log_opts"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data-rot", "/x"], r"unknown flag: --data-rot \(did you mean --data-root\?\)"),
        (["--mtu", "abc"], 'invalid argument "abc" for "--mtu" flag'),
        (["--mtu"], "flag needs an argument: --mtu"),
        (["extra"], 'accepts no arguments, found "extra"'),
        (["--userns-remap", "default"], "--userns-remap=default is not offered"),
        (["--iptables=false"], "--iptables=false is not offered"),
        (["--log-level", "loud"], "unable to parse logging level: loud"),
        (["--tlsverify"], "TLS needs --tlscert"),
        (["--bip", "10.0.0.1/24", "-b", "br0"], "mutually exclusive"),
        (["--dns", "nope"], "nope is not an ip address"),
        (["-Z"], "unknown shorthand flag"),
        (["--config-file", "/nonexistent.json"], "no such file"),
    ],
)
def test_bad_options(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load(arguments)


def test_bad_files(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    for content, text in (
        ('{"foo": 1}', "the following directives don't match any configuration option: foo"),
        ('{"debug": "yes"}', "debug: true or false is expected"),
        ("[]", "a JSON object is expected"),
        ("{", "unable to configure the daemon with file"),
        ('{"hosts": ["unix:///a"]}', r"specified both as a flag and in the configuration file: hosts: \(from flag: \[unix:///b\]"),
    ):
        file.write_text(content)
        with pytest.raises(UsageError, match=text):
            load(["--config-file", str(file), "-H", "unix:///b"])
