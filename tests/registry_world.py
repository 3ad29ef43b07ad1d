"""A registry process of ours and a client for it."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., object])
OCI = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Registry:
    """A registry process and a client for it."""

    def __init__(self, root: Path | str, *options: str, prefix: Sequence[str] = ()) -> None:
        """``prefix``: words in front of the command, as ``nsenter``."""
        self.root = root
        self.address = "127.0.0.1:0"
        self.options = options
        self.prefix = prefix
        self.start()

    def start(self) -> None:
        """Also after ``stop``: at the same port."""
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "tare.api.registry.serve",
            "serve",
            "--root",
            str(self.root),
            "--listen",
            self.address,
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split("tcp://")[1].strip(", \n")

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, *, chunks: Iterable[bytes] = ()
    ) -> http.client.HTTPResponse:
        """``chunks``: a body of no told length."""
        with closing(http.client.HTTPConnection(self.address, timeout=20)) as connection:
            connection.request(method, path, chunks or body or None, headers or {})
            response = connection.getresponse()
            with closing(response):
                response.content = response.read()  # type: ignore[attr-defined]
        return response

    def push_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        response = self.call("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data)
        assert response.status == 201, content(response)
        return digest

    def push_image(self, name: str, tag: str, **fields: Any) -> str:
        config, layer = self.push_blob(name, b"{}"), self.push_blob(name, b"layer")
        document = {
            "schemaVersion": 2,
            "mediaType": OCI,
            "config": {"mediaType": "application/x", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/y", "digest": layer, "size": 5}],
        } | fields
        data = json.dumps(document).encode()
        response = self.call("PUT", f"/v2/{name}/manifests/{tag or digest_of(data)}", data, {"Content-Type": OCI})
        assert response.status == 201, content(response)
        assert response.headers["Docker-Content-Digest"] == digest_of(data)
        if "subject" in fields:
            assert response.headers["OCI-Subject"] == fields["subject"]["digest"]
        return digest_of(data)


def content(response: http.client.HTTPResponse) -> bytes:
    return response.content  # type: ignore[attr-defined,no-any-return]


def code(response: http.client.HTTPResponse) -> str:
    return str(json.loads(content(response))["errors"][0]["code"])


class Pusher(threading.Thread):
    """Pushes images of random sizes until the registry goes (a patient one: until ``stopped``); remembers what was acknowledged."""

    def __init__(self, registry: Registry, name: str, seed: int, *, patient: bool = False) -> None:
        super().__init__()
        self._registry, self._name, self._random, self._patient = registry, name, random.Random(seed), patient
        self.stopped = False
        self.blobs: dict[str, bytes] = {}
        self.attempted: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.pending: set[str] = set()
        self.refused = 0

    def run(self) -> None:
        for number in itertools.count():
            if self.stopped:
                return
            try:
                self._push(f"v{number % 5}")
            except (OSError, http.client.HTTPException):
                if not self._patient:
                    return
                self.refused += 1

    def _call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        answer = self._registry.call(method, path, body, headers)
        if answer.status == 503 and self._patient:
            raise ConnectionError
        assert answer.status in (201, 202), content(answer)
        return answer

    def _push(self, tag: str) -> None:
        layers = [self._blob(self._random.choice([0, 10, 5000, 300_000, 1 << 20])) for _ in range(self._random.randint(0, 2))]
        config = self._blob(2)
        document = {
            "schemaVersion": 2, "mediaType": OCI, "config": {"mediaType": "application/x", "digest": config, "size": 2},
            "layers": [{"mediaType": "application/y", "digest": layer, "size": 1} for layer in layers],
            "annotations": {"number": str(self._random.random())},
        }  # fmt: skip
        data = json.dumps(document).encode()
        self.attempted[digest_of(data)] = data
        self.pending.add(tag)
        self._call("PUT", f"/v2/{self._name}/manifests/{tag}", data, {"Content-Type": OCI})
        self.tags[tag] = digest_of(data)
        self.blobs[digest_of(data)] = data
        self.pending.discard(tag)

    def _blob(self, size: int) -> str:
        call, data = self._call, self._random.randbytes(size)
        digest = digest_of(data)
        self.attempted[digest] = data
        if self._random.random() < 0.5:
            call("POST", f"/v2/{self._name}/blobs/uploads/?digest={digest}", data)
        else:
            path = call("POST", f"/v2/{self._name}/blobs/uploads/").headers["Location"]
            middle = self._random.randint(0, size)
            call("PATCH", path, data[:middle])
            call("PUT", f"{path}?digest={digest}", data[middle:])
        self.blobs[digest] = data
        return digest

    def check(self) -> None:
        """What was acknowledged is there, whole; what was not is there whole or not at all."""
        registry = self._registry
        for digest, data in self.attempted.items():
            answer = registry.call("GET", f"/v2/{self._name}/blobs/{digest}")
            assert answer.status == 200 or (answer.status == 404 and digest not in self.blobs)
            assert answer.status == 404 or content(answer) == data
        for tag, digest in self.tags.items():
            answer = registry.call("GET", f"/v2/{self._name}/manifests/{tag}")
            assert answer.status == 200
            assert digest_of(content(answer)) == answer.headers["Docker-Content-Digest"]
            if tag not in self.pending:
                assert answer.headers["Docker-Content-Digest"] == digest


def says(*sentences: str) -> Callable[[F], F]:
    """The test shows that these sentences of docs/distribution-spec.md hold."""
    assert sentences
    return lambda test: test
