"""Requests made from the Engine API's own description (swagger 1.51), with right values, wrong ones and none: for every operation.

Parameters and bodies follow the description's types, formats, enumerations and examples, and leave them at times. Whatever is sent, the
answer has a status that the operation may have, an error says why in JSON, and a body of a success is as described. ``TARE_FUZZ=5000``
makes a long round of it; ``TARE_FUZZ_SEED`` another one.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from engine_world import Daemon
from raw_requests import call, descriptors
from swagger_world import SWAGGER, VERSION, description, faults

pytestmark = [
    pytest.mark.root, pytest.mark.skipif(not SWAGGER.exists(), reason="needs the Engine API's swagger file"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

ROUNDS = int(os.environ.get("TARE_FUZZ", "5"))
"""Requests per operation."""
WORDS = (
    "", "/", "..", "../../etc/passwd", "fuzz", "busybox", "fuzz:1", "host", "container:fuzz", "a" * 300, "%00", "\0", "x\ny", "%s", "-1",
    "é", "0", "1", "true", "99999999999999999999", "[]", "{}", '{"label":["a"]}', '{"label":{"a":true}}', '{"x":1}', "10m", "1e9", "latest",
    "unix", "fuzz/alias", "sha256:" + "0" * 64, "localhost:1/x", "/tmp", "*", "'", '"', "\\", "a b", "\u202e", "1-5", "tcp", "80/tcp",
)  # fmt: skip
NUMBERS = (0, 1, -1, 2, 7, 100, 65536, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64, 1.5, 1e300)
STREAMS = ("/stop", "/restart", "/logs", "/attach", "/attach/ws", "/stats", "/wait", "/events", "/session", "/grpc")
NETWORK = ("/images/create", "/images/search", "/images/{name}/push", "/distribution/{name}/json", "/auth", "/plugins", "/build")
"""They ask a registry, where there is none."""
SPARED = ("/swarm/init", "/swarm/join")


class Maker:
    """Values for the description's types."""

    def __init__(self, swagger: Any, seed: int) -> None:
        self._swagger = swagger
        self.random = random.Random(seed)

    def resolved(self, schema: Any) -> Any:
        while "$ref" in schema:
            node = self._swagger
            for part in schema["$ref"].split("/")[1:]:
                node = node[part]
            schema = node
        return schema

    def word(self) -> str:
        return self.random.choice(WORDS)

    def value(self, schema: Any, depth: int = 0) -> Any:
        """Mostly of the right type, sometimes the description's own example, sometimes anything."""
        schema = self.resolved(schema)
        dice = self.random.random()
        if dice < 0.08 or depth > 6:
            return self.random.choice((None, True, 0, -1, "x", [], {}, [None], {"x": []}, self.word(), self.random.choice(NUMBERS)))
        if dice < 0.3 and "example" in schema:
            return schema["example"]
        if "enum" in schema and dice < 0.9:
            return self.random.choice(schema["enum"])
        if "allOf" in schema:
            parts = [self.value(part, depth + 1) for part in schema["allOf"]]
            return {key: value for part in parts if isinstance(part, dict) for key, value in part.items()}
        kind = schema.get("type", "object")
        return getattr(self, f"_{kind}", self._string)(schema, depth)

    def _object(self, schema: Any, depth: int) -> Any:
        properties = schema.get("properties", {})
        names = self.random.sample(sorted(properties), k=min(len(properties), self.random.randint(0, 4)))
        found = {name: self.value(properties[name], depth + 1) for name in names}
        if (more := schema.get("additionalProperties")) and isinstance(more, dict):
            for _ in range(self.random.randint(0, 2)):
                found[self.word()] = self.value(more, depth + 1)
        return found

    def _array(self, schema: Any, depth: int) -> Any:
        return [self.value(schema.get("items", {}), depth + 1) for _ in range(self.random.randint(0, 3))]

    def _boolean(self, schema: Any, depth: int) -> Any:
        return self.random.random() < 0.5

    def _integer(self, schema: Any, depth: int) -> Any:
        return int(self.random.choice(NUMBERS[:-2]))

    def _number(self, schema: Any, depth: int) -> Any:
        return self.random.choice(NUMBERS)

    def _string(self, schema: Any, depth: int) -> Any:
        return self.word()

    def request(self, template: str, operation: Any, shared: Any) -> tuple[str, bytes | None, dict[str, str]]:
        """Path with query, body and headers."""
        path, query, headers, body = template, [], {}, None
        for parameter in (*shared, *operation.get("parameters", ())):
            parameter = self.resolved(parameter)
            place, name = parameter["in"], parameter["name"]
            if place == "path":
                path = path.replace("{" + name + "}", quote(self.random.choice(("fuzz", "fuzz", "fuzz", self.word())) or "x", safe=":"))
            elif place == "body":
                if parameter.get("schema", {}).get("format") == "binary" or self.random.random() < 0.05:
                    body = self.random.randbytes(self.random.choice((0, 5, 600)))
                else:
                    body = json.dumps(self.value(parameter["schema"])).encode()
                headers["Content-Type"] = self.random.choice(
                    ("application/json", "application/json", "application/x-tar", "text/plain", "")
                )
            elif self.random.random() < 0.5:
                given = self.value(parameter) if self.random.random() < 0.5 else self.word()
                text = given if isinstance(given, str) else json.dumps(given)
                if place == "query":
                    query.append(f"{quote(name)}={quote(text)}")
                else:
                    headers[name] = quote(text)
        if template == "/events":
            query.append("until=1")
        return path + ("?" + "&".join(query) if query else ""), body, headers


def send(daemon: Daemon, method: str, target: str, body: bytes | None, headers: dict[str, str], stream: bool) -> tuple[int, bytes]:
    """Status and body; of a stream only what comes at once."""
    lines = [f"{method} {target} HTTP/1.1", "Host: d", "Connection: close", *(f"{name}: {value}" for name, value in headers.items())]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    received = b""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.05 if stream else 20)
        sock.connect(str(daemon.socket))
        try:
            sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
            while piece := sock.recv(1 << 16):
                received += piece
        except (TimeoutError, BrokenPipeError, ConnectionResetError):
            assert stream or received, (method, target, "no answer")
    head, _, rest = received.partition(b"\r\n\r\n")
    if not head:
        assert stream, (method, target, "no answer")
        return 0, b""
    if b"transfer-encoding: chunked" in head.lower():
        rest = re.sub(rb"(?:^|\r\n)[0-9a-f]+\r\n", b"", rest, count=1).removesuffix(b"\r\n0\r\n\r\n")
    return int(head.split()[1]), rest


@pytest.fixture(scope="module")
def target(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon with one object of each kind called ``fuzz``; afterwards it must be as before."""
    before, logged = descriptors(shared_daemon), len(shared_daemon.log)
    yield shared_daemon
    shared_daemon.remove_all()
    shared_daemon.docker("network", "prune", "-f")
    shared_daemon.docker("volume", "prune", "-af")
    for _ in range(100):
        if descriptors(shared_daemon) <= before + 2:
            break
        time.sleep(0.1)
    assert descriptors(shared_daemon) <= before + 2
    assert "Traceback" not in shared_daemon.log[logged:], shared_daemon.log[logged:][-4000:]


def furnish(daemon: Daemon) -> None:
    """What the paths name, as far as it has gone."""
    if call(daemon, "GET", "/images/busybox/json")[0] != 200:
        daemon.load_busybox()
    call(daemon, "POST", "/images/busybox/tag?repo=fuzz&tag=1")
    body = {"Image": "busybox", "Cmd": ["sleep", "1000"], "StopTimeout": 0, "Volumes": {"/v": {}}}
    call(daemon, "POST", "/containers/create?name=fuzz", json.dumps(body).encode())
    call(daemon, "POST", "/volumes/create", b'{"Name": "fuzz"}')
    if call(daemon, "GET", "/networks/fuzz")[0] != 200:
        call(daemon, "POST", "/networks/create", b'{"Name": "fuzz"}')


def wrong(template: str, status: int, answer: bytes, operation: Any, swagger: Any) -> Iterator[str]:
    """What is not as it should be in one answer."""
    if status >= 400:
        try:
            said = json.loads(answer)["message"] if answer else "nothing, to HEAD"
        except (ValueError, KeyError, TypeError):
            said = ""
        if not said:
            yield f"{status} without a reason: {answer[:200]!r}"
        elif said.startswith("internal error") or (status == 500 and not template.startswith(NETWORK)):
            yield f"{status} {said}"
    elif status in (200, 201) and "application/json" in (operation.get("produces") or swagger["produces"]):
        schema = operation["responses"].get(str(status), operation["responses"].get(status, {})).get("schema")
        if schema is not None and answer.strip():
            try:
                document = json.loads(answer)
            except ValueError:
                return  # several documents, one after the other: a stream of progress
            if document is not None:  # Go's empty list
                for fault in faults(swagger, schema, document):
                    if "'UnpackedSize' is a required" not in fault:  # the description calls it Size.Unpacked two lines later
                        yield f"{status} {fault}"


def test_every_operation_takes_anything(target: Daemon) -> None:
    swagger = description()
    maker = Maker(swagger, int(os.environ.get("TARE_FUZZ_SEED", "1")))
    found: list[str] = []
    for template, methods in sorted(swagger["paths"].items()):
        shared = methods.get("parameters", ())
        for method, operation in methods.items():
            if method == "parameters" or template in SPARED:
                continue
            furnish(target)
            for _ in range(ROUNDS):
                path, body, headers = maker.request(template, operation, shared)
                stream = template.endswith(STREAMS)
                status, answer = send(target, method.upper(), VERSION + path, body, headers, stream)
                shown = f"{method.upper()} {path} {body!r}"[:600]
                found += [f"{shown}: {text}" for text in wrong(template, status, answer, operation, swagger)]
                if template == "/containers/create" and status == 201:
                    call(target, "DELETE", f"/containers/{json.loads(answer)['Id']}?force=1&v=1")
    assert call(target, "GET", "/_ping")[0] == 200
    assert not found, "\n".join(found)
