"""Pulling from Debian's docker-registry, filled with skopeo: real peers on both sides."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from fake_registry import FakeRegistry, serving
from image_builder import BuiltImage, build_image, build_index, busybox_image, write_layout
from tare.config import EngineConfig
from tare.errors import NotFound, Unavailable
from tare.events import EventBus
from tare.images.service import Images
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver
from tare.store.layers.erofs import ErofsDriver
from tare.store.layers.overlay import OverlayDriver
from tare.store.metadata import Metadata

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running docker-registry; its address."""
    if not shutil.which("docker-registry") or not shutil.which("skopeo"):
        pytest.skip("needs docker-registry and skopeo: apt-get install docker-registry skopeo")
    root = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = root / "config.yml"
    storage = {"filesystem": {"rootdirectory": str(root / "data")}}
    document = {"version": 0.1, "log": {"level": "error"}, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
    settings.write_text(json.dumps(document))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", settings], stdout=log, stderr=log)
    try:
        for _ in range(200):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def push(image: BuiltImage, layout: Path, target: str, *flags: str) -> None:
    write_layout(image, layout)
    command = ["skopeo", "copy", "-q", "--dest-tls-verify=false", *flags, f"oci:{layout}:latest", f"docker://{target}"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(params=[ErofsDriver, OverlayDriver])
async def images(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Images]:
    config = EngineConfig(data_root=tmp_path / "data", exec_root=tmp_path / "exec")
    driver: LayerDriver = request.param(config.data_root, config.exec_root)
    metadata = Metadata(config.database)
    service = Images(config, ContentStore(config.data_root), driver, metadata, EventBus())
    yield service
    await service.close()
    driver.close()
    metadata.close()


@pytest.mark.parametrize("flags", [(), ("--format", "v2s2"), ("--dest-compress-format", "zstd", "--dest-force-compress-format")])
async def test_pull_what_skopeo_pushed(registry: str, images: Images, tmp_path: Path, flags: tuple[str, ...]) -> None:
    built = busybox_image()
    target = f"{registry}/busybox:t{len(flags)}"
    if len(flags) == 3:  # older skopeo cannot force it: push an image that is zstd already
        built, flags = busybox_image(compression="zstd"), ()
    push(built, tmp_path / "layout", target, *flags)
    image = await images.pull(target)
    assert [str(diff_id) for diff_id in image.diff_ids] == built.diff_ids
    (lower,) = images._layers.acquire(image.diff_ids)
    try:
        assert (lower / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
        assert await asyncio.to_thread(subprocess.check_output, [lower / "bin/busybox", "echo", "runs"]) == b"runs\n"
    finally:
        images._layers.release(image.diff_ids)
    digest = image.repo_digests[0].partition("@")[2]
    assert (await images.pull(f"{registry}/busybox@{digest}")).id == image.id
    assert images.list()[0].tags == (target,)


async def test_missing_there(registry: str, images: Images, tmp_path: Path) -> None:
    push(busybox_image(), tmp_path / "layout", f"{registry}/present:here")
    with pytest.raises(NotFound) as failure:
        await images.pull(f"{registry}/present:gone")
    assert str(failure.value) == f"manifest for {registry}/present:gone not found: manifest unknown: manifest unknown"
    with pytest.raises(NotFound, match="not found: manifest unknown"):
        await images.pull(f"{registry}/present@sha256:{'0' * 64}")


async def test_the_event_loop_stays_free(registry: str, images: Images, tmp_path: Path) -> None:
    """While 40 MB are pulled, a heartbeat of 5 ms goes on (no exact time is asserted: the machine is shared)."""
    push(build_image({"noise": os.urandom(40 << 20)}), tmp_path / "layout", f"{registry}/noise:latest")
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    heart = asyncio.create_task(beat())
    await images.pull(f"{registry}/noise:latest")
    heart.cancel()
    assert beats >= 10


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


async def test_tls_with_an_unknown_certificate(images: Images, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted from loopback (insecure by default, as in Docker), refused from everybody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    amd64, s390x = build_image({"a": b"1"}), build_image({"a": b"2"}, architecture="s390x")
    async with serving(FakeRegistry(), context) as fake:
        for number, image in enumerate((amd64, s390x)):
            fake.add(image, tag=str(number))
        fake.add_document(*build_index({"linux/amd64": amd64, "linux/s390x": s390x}))
        assert (await images.pull(f"{fake.address}/app", "linux/amd64")).id == amd64.image_id
        monkeypatch.setattr("tare.distribution.endpoints.RegistryPolicy.is_insecure", lambda self, host: False)
        fake.requests.clear()
        with pytest.raises(Unavailable, match="tls: failed to verify certificate: x509"):
            await images.pull(f"{fake.address}/app:0")
        assert not fake.requests


async def test_no_downgrade_from_tls(images: Images, certificate: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    async with serving() as plain, serving(FakeRegistry(), context) as fake:

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            if request.path == "/v2/":
                return None
            return web.Response(status=307, headers={"Location": f"http://{plain.address}{request.path}"})

        fake.faults.append(redirect)
        with pytest.raises(Unavailable, match="refused redirect to http://"):
            await images.pull(f"{fake.address}/app")
        assert not plain.requests
