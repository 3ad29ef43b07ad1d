"""Running the registry server: health, metrics, events, schedule, shutdown, certificates; and as a library."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from debian_registry import docker_registry
from registry_world import OCI, Registry, content, digest_of
from tare.api.registry.service import RegistryService
from tare.api.registry.settings import load
from tare.errors import InvalidArgument


class Receiver:
    """Takes events; ``answers`` are its next statuses (200 without)."""

    def __init__(self, port: int = 0) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[dict[str, str]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = receiver.answers.pop(0) if receiver.answers else 200
                receiver.requests.append(dict(self.headers))
                if status == 200:
                    receiver.events += json.loads(body)["events"]
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.send_header("Connection", "close")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextmanager
def serving(folder: Path, text: str, *options: str) -> Iterator[Registry]:
    (folder / "registry.toml").write_text(text)
    registry = Registry(folder / "root", "--config", str(folder / "registry.toml"), *options)
    try:
        yield registry
    finally:
        registry.stop()


def test_events_are_delivered_in_order_and_survive(tmp_path: Path) -> None:
    receiver = Receiver()
    hook = f'[[webhook]]\nname = "ci"\nurl = "http://127.0.0.1:{receiver.port}/events?x=1"\nheaders = {{X-Secret = "s"}}\nbackoff = 0.1\n'
    hook += 'repositories = ["team/**"]\n'
    with serving(tmp_path, hook) as registry:
        receiver.answers = [500, 429]  # a receiver that has its trouble
        manifest = registry.push_image("team/app", "v1")
        registry.push_image("other/app", "v1")
        registry.call("GET", "/v2/team/app/manifests/v1")
        blob = digest_of(b"layer")
        assert registry.call("POST", f"/v2/team/two/blobs/uploads/?mount={blob}&from=team/app", headers={"User-Agent": "me"}).status == 201
        assert registry.call("DELETE", "/v2/team/app/manifests/v1").status == 202
        wait_for(lambda: len(receiver.events) == 5)
        config, layer, pushed, mounted, deleted = receiver.events
        assert [event["action"] for event in receiver.events] == ["push", "push", "push", "mount", "delete"]
        assert (config["target"]["digest"], layer["target"]["digest"]) == (digest_of(b"{}"), blob) and layer["target"]["size"] == 5
        target = pushed["target"]
        assert (target["repository"], target["tag"], target["digest"], target["mediaType"]) == ("team/app", "v1", manifest, OCI)
        assert target["url"] == f"http://{registry.address}/v2/team/app/manifests/{manifest}" and target["size"] == target["length"] > 100
        assert (mounted["target"]["fromRepository"], mounted["request"]["useragent"]) == ("team/app", "me")
        assert deleted["target"] == {"repository": "team/app", "digest": "", "tag": "v1"}
        assert pushed["source"]["addr"] == registry.address and pushed["request"]["method"] == "PUT"
        sent = receiver.requests[0]
        assert (sent["Content-Type"], sent["X-Secret"]) == ("application/vnd.docker.distribution.events.v1+json", "s")
        receiver.close()  # nobody is there
        registry.push_blob("team/app", b"while it was away")
        time.sleep(0.3)
        registry.stop(9)
        again = Receiver(receiver.port)
        again.answers = [400, 400]
        registry.start()
        wait_for(lambda: len(again.events) == 1)
        assert again.events[0]["target"]["digest"] == digest_of(b"while it was away")
        again.answers = [404, 404, 404]  # it does not want the first of these
        registry.push_blob("team/app", b"unwanted")
        registry.push_blob("team/app", b"wanted")
        wait_for(lambda: len(again.events) == 2, 30)
        assert again.events[1]["target"]["digest"] == digest_of(b"wanted")
        second = run_registry(
            "serve", "--config", str(tmp_path / "registry.toml"), "--root", str(tmp_path / "root"), "--listen", "127.0.0.1:0"
        )
        assert second.returncode == 1 and "another process delivers events" in second.stderr
        again.close()


@pytest.mark.peer
def test_events_look_like_docker_registrys(tmp_path: Path) -> None:
    """The same push at Debian's registry: the same members, with the same kinds of values."""
    ours, theirs = Receiver(), Receiver()
    settings = {
        "notifications": {
            "endpoints": [{"name": "x", "url": f"http://127.0.0.1:{theirs.port}", "timeout": "5s", "threshold": 3, "backoff": "1s"}]
        }
    }
    hook = f'[[webhook]]\nurl = "http://127.0.0.1:{ours.port}"\nactions = ["push", "pull", "delete", "mount"]\n'
    with docker_registry(tmp_path / "debian", more=settings) as address, serving(tmp_path, hook) as registry:
        registry.push_image("app", "v1")
        registry.call("GET", "/v2/app/manifests/v1")
        wait_for(lambda: len(ours.events) == 4)
        tested, registry.address = registry.address, address
        place = registry.call("POST", "/v2/app/blobs/uploads/").headers["Location"].partition(address)[2]
        octets = {"Content-Type": "application/octet-stream"}
        assert registry.call("PUT", f"{place}&digest={digest_of(b'{}')}", b"{}", octets).status == 201
        document = {
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": {"mediaType": "a/b", "digest": digest_of(b"{}"), "size": 2},
            "layers": [],
        }
        assert registry.call("PUT", "/v2/app/manifests/v1", json.dumps(document).encode(), {"Content-Type": OCI}).status == 201
        assert registry.call("GET", "/v2/app/manifests/v1", headers={"Accept": OCI}).status == 200
        registry.address = tested
        wait_for(lambda: len(theirs.events) == 3)
    for theirs_one, ours_one in (
        (theirs.events[0], ours.events[0]),
        (theirs.events[1], ours.events[2]),
        (theirs.events[2], ours.events[3]),
    ):
        assert shape(theirs_one, ours_one) == shape(ours_one, ours_one)
    ours.close()
    theirs.close()


def shape(value: object, beside: object) -> object:
    """Names and kinds of a document's members; of theirs only what a receiver could rely on (references, and empty texts, are left out)."""
    if isinstance(value, dict):
        names = set(value) & (set(beside) if isinstance(beside, dict) else set())
        missing = {name for name in set(beside if isinstance(beside, dict) else ()) - set(value) if name not in ("useragent", "tag")}
        assert not missing, missing
        return {name: shape(value[name], beside[name]) for name in sorted(names)}  # type: ignore[index]
    return type(value).__name__


def test_health_and_metrics(tmp_path: Path) -> None:
    with serving(tmp_path, '[metrics]\nlisten = ["127.0.0.1:0"]\n') as registry:
        assert registry.process.stdout is not None
        address = registry.process.stdout.readline().split("tcp://")[1].strip()
        registry.push_image("app", "v1")
        registry.call("GET", "/v2/app/manifests/v1")
        registry.call("GET", "/v2/app/manifests/none")
        here, registry.address = registry.address, address
        text = content(registry.call("GET", "/metrics")).decode()
        assert 'tare_registry_http_request_seconds_count{method="GET",route="manifest",status="404"} 1' in text
        assert 'tare_registry_objects_total{action="push",object="manifest"} 1' in text
        assert 'tare_registry_objects_total{action="pull",object="manifest"} 1' in text and "process_resident_memory_bytes" in text
        for line in text.splitlines():
            assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
        assert json.loads(content(registry.call("GET", "/healthz"))) == {"status": "ok"}
        assert registry.call("GET", "/v2/").status == 404
        registry.address = here
        assert json.loads(content(registry.call("GET", "/healthz"))) == {"status": "ok"}
        assert registry.call("GET", "/metrics").status == 404


def test_a_transfer_under_way_ends_before_the_process_does(tmp_path: Path) -> None:
    with serving(tmp_path, "") as registry:
        place = registry.call("POST", "/v2/a/blobs/uploads/").headers["Location"]
        data = os.urandom(200_000)
        host, port = registry.address.split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"PUT {place}?digest={digest_of(data)} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            )
            connection.sendall(data[:100_000])
            time.sleep(0.2)
            registry.process.terminate()
            time.sleep(0.3)
            with pytest.raises(ConnectionError):
                socket.create_connection((host, int(port)), timeout=5)
            connection.sendall(data[100_000:])
            assert b" 201 Created" in connection.recv(4096)
        assert registry.process.wait(10) == 0
    assert (tmp_path / "root/blobs/sha256" / digest_of(data).partition(":")[2]).read_bytes() == data


def test_scheduled_work(tmp_path: Path) -> None:
    """Collection, retention and verification at their times; a restart knows when they were done."""
    settings = '[[retention]]\nrepositories = ["ci/**"]\nnewest = 1\n[schedule]\ngc = 0.2\ngrace = 4\nretention = 0.2\nscrub = 0.2\n'
    with serving(tmp_path, settings, "--metrics-listen", "127.0.0.1:0") as registry:
        assert registry.process.stdout is not None
        metrics = registry.process.stdout.readline().split("tcp://")[1].strip()
        for number in range(3):
            registry.push_image("ci/app", f"v{number}", annotations={"number": str(number)})
            registry.push_image("kept/app", f"v{number}", annotations={"number": str(number)})
        tags = tmp_path / "root/repositories/ci/app/_tags"
        wait_for(lambda: len(list(tags.iterdir())) == 1)
        assert len(list((tmp_path / "root/repositories/kept/app/_tags").iterdir())) == 3
        blob = digest_of(b"nobody names it").partition(":")[2]
        registry.push_blob("ci/app", b"nobody names it")
        wait_for(lambda: not (tmp_path / "root/blobs/sha256" / blob).exists())
        layer = tmp_path / "root/blobs/sha256" / digest_of(b"layer").partition(":")[2]
        layer.chmod(0o644)
        layer.write_bytes(b"rotten")
        here, registry.address = registry.address, metrics
        wait_for(lambda: "tare_registry_corrupt_blobs 1" in content(registry.call("GET", "/metrics")).decode())
        registry.address = here
    assert set(json.loads((tmp_path / "root/state/schedule.json").read_text())) == {"gc", "retention", "scrub"}


def test_a_new_certificate_without_a_restart(tmp_path: Path) -> None:
    import ssl

    def make(number: int) -> bytes:
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost".split()
        command += ["-set_serial", str(number), "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
        subprocess.run(command, check=True, capture_output=True)
        return ssl.PEM_cert_to_DER_cert((tmp_path / "certificate").read_text())

    first = make(1)
    (tmp_path / "users").write_text("")
    options = (
        "--tls-cert",
        str(tmp_path / "certificate"),
        "--tls-key",
        str(tmp_path / "key"),
        "--htpasswd",
        str(tmp_path / "users"),
        "--tokens",
    )
    with serving(tmp_path, "", *options) as registry:
        host, port = registry.address.split(":")

        def shown() -> bytes:
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))

        assert shown() == first
        (tmp_path / "key").write_text("nonsense")
        registry.process.send_signal(1)
        time.sleep(0.3)
        assert shown() == first
        second = make(2)
        registry.process.send_signal(1)
        wait_for(lambda: shown() == second)
        context = ssl.create_default_context(cafile=tmp_path / "certificate")
        context.check_hostname = False
        connection = http.client.HTTPSConnection(registry.address, context=context, timeout=10)
        connection.request("GET", "/v2/")
        answer = connection.getresponse()
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"].startswith(f'Bearer realm="https://{registry.address}/token"')
        connection.close()


def run_registry(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tare.api.registry.serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment})


async def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    root: dict[str, object] = {"root": str(tmp_path / "root"), "listen": ["127.0.0.1:0"]}
    (tmp_path / "users").write_text("joe:{SHA}notbcrypt\n")
    (tmp_path / "bad.toml").write_text("[access]\nhtpassw = 'x'\n")
    for config, flags, message in (
        (tmp_path / "bad.toml", {}, f"{tmp_path}/bad.toml: access.htpassw: there is no such key"),
        (None, {"tls-cert": "/none", "tls-key": "/none"}, "cannot use the certificate /none with the key /none: "),
        (None, {"htpasswd": "/none"}, "cannot read the password file /none: No such file"),
        (None, {"htpasswd": str(tmp_path / "users")}, f"{tmp_path}/users:1: only bcrypt entries are taken"),
        (None, {"audit-log": "/none/x"}, "cannot write to /none/x: No such file"),
        (None, {"tokens": True}, "a token service needs users"),
        (None, {"mirror": "docker.io"}, "--mirror: mirror: there is no [[cache]] with the prefix 'docker.io'"),
        (None, {"listen": ["0.0.0.0:0"]}, "nobody would need a password to write at 0.0.0.0:0: give --htpasswd FILE"),
    ):
        with pytest.raises(InvalidArgument) as error:
            async with RegistryService(load(config, {}, {**root, **flags})):
                raise AssertionError("it started")
        assert message in str(error.value)
    done = run_registry("serve", "--check", TARE_REGISTRY_ROOT="/elsewhere", TARE_REGISTRY_LISTEN="[::1]:5000")
    assert (done.returncode, json.loads(done.stdout)["root"], json.loads(done.stdout)["listen"]) == (0, "/elsewhere", ["[::1]:5000"])
    done = run_registry("gc", "--root", str(tmp_path), TARE_REGISTRY_X="1")
    assert (done.returncode, done.stderr) == (1, "tare registry: TARE_REGISTRY_X: there is no such setting\n")
