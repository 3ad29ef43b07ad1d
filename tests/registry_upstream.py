"""An upstream for the registry server's cache: one image, and manners that a test can change."""

from __future__ import annotations

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from registry_world import INDEX, OCI, digest_of

LAYER = "application/vnd.oci.image.layer.v1.tar"
BLOB = os.urandom(3 << 20)


class Upstream:
    """A registry with one image (``app:v1``), whose manners can be changed."""

    def __init__(self) -> None:
        self.blobs = {digest_of(BLOB): BLOB, digest_of(b"{}"): b"{}"}
        self.manifest = image(BLOB)
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.pause_at = -1
        """Byte before which a blob's answer waits for the gate."""
        self.cut_at = -1
        """Byte at which answers break off."""
        self.status = 0
        """Answer to everything, unless 0."""
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                upstream.asked.append(f"{self.command} {self.path}")
                upstream.answer(self)

            do_HEAD = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.server.shutdown()
        self.server.server_close()

    def count(self, part: str) -> int:
        return sum(part in line for line in self.asked)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path
        if self.status:
            return self.reply(handler, self.status, b'{"errors":[]}', {"Retry-After": "999"})
        if path == "/v2/":
            return self.reply(handler, 200, b"{}", {})
        if path.endswith("/tags/list?n=1000"):
            return self.reply(handler, 200, b'{"tags":["v1","v2"]}', {})
        if "/referrers/" in path:
            found = {"schemaVersion": 2, "manifests": [{"digest": digest_of(b"sig"), "size": 3, "mediaType": OCI}]}
            return self.reply(handler, 200, json.dumps(found).encode(), {"Content-Type": INDEX})
        if path in ("/v2/app/manifests/v1", f"/v2/app/manifests/{digest_of(self.manifest)}"):
            return self.reply(handler, 200, self.manifest, {"Content-Type": OCI, "Docker-Content-Digest": digest_of(self.manifest)})
        data = self.blobs.get(path.rpartition("/")[2]) if path.startswith("/v2/app/blobs/") else None
        if data is None:
            error = b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}'
            return self.reply(handler, 404, error, {})
        first = int(handler.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if "Range" in handler.headers else {}
        self.reply(handler, 206 if headers else 200, data, headers, first)
        return None

    def reply(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], first: int = 0) -> None:
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) - first)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        position = first
        while position < len(body):
            piece = body[position : position + 65536]
            if self.pause_at >= 0 and position + len(piece) > self.pause_at:
                self.gate.wait(20)
            if 0 <= self.cut_at < position + len(piece):
                self.cut_at = -1
                handler.connection.close()
                handler.close_connection = True
                return
            handler.wfile.write(piece)
            position += len(piece)


def image(*layers: bytes) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(b"{}"), "size": 2},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest_of(data), "size": len(data)} for data in layers
        ],
    }
    return json.dumps(document).encode()
