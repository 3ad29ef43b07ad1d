"""A registry process of ours and a client for it."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
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
        self.root = root
        self.options = options
        self.prefix = prefix
        self.start()

    def start(self) -> None:
        command = [
            *self.prefix,
            sys.executable,
            "-m",
            "tare.api.registry.serve",
            "serve",
            "--root",
            str(self.root),
            "--listen",
            "127.0.0.1:0",
            *self.options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split("tcp://")[1].strip()

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        response.content = response.read()  # type: ignore[attr-defined]
        connection.close()
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


def says(*sentences: str) -> Callable[[F], F]:
    """The test shows that these sentences of docs/distribution-spec.md hold."""
    assert sentences
    return lambda test: test
