"""docker-py, the Python SDK of Docker, against tared."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine_world import Daemon

docker = pytest.importorskip("docker")

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # docker-py leaves sockets of streams to the collector
]


@pytest.fixture
def client(engine: Daemon) -> Iterator[Any]:
    client = docker.DockerClient(base_url=engine.host, version="auto")
    yield client
    client.close()
    gc.collect()


@pytest.mark.parametrize("version", ["auto", "1.24", "1.41", "1.51"])
def test_versions(engine: Daemon, version: str) -> None:
    api = docker.APIClient(base_url=engine.host, version=version)
    assert api.ping() and api.version()["ApiVersion"] == "1.51" and api.info()["OSType"] == "linux"
    assert api.containers() == [] and api.images()
    api.close()


def test_run(client: Any) -> None:
    run = client.containers.run
    assert run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
    assert run("busybox", ["sh", "-c", "echo out; echo err >&2"], stdout=False, stderr=True, remove=True) == b"err\n"
    assert b"".join(run("busybox", ["sh", "-c", "echo 1; echo 2"], stream=True, remove=True)) == b"1\n2\n"
    with pytest.raises(docker.errors.ContainerError) as failure:
        run("busybox", ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    assert (failure.value.exit_status, failure.value.stderr) == (3, b"why\n")


def test_what_is_not_there(client: Any) -> None:
    missing: list[tuple[Callable[[], Any], type[Exception]]] = [
        (lambda: client.containers.get("nobody"), docker.errors.NotFound),
        (lambda: client.images.get("nobody"), docker.errors.ImageNotFound),
        (lambda: client.networks.get("nobody"), docker.errors.NotFound),
        (lambda: client.volumes.get("nobody"), docker.errors.NotFound),
        (lambda: client.containers.create("nobody"), docker.errors.ImageNotFound),
        (lambda: client.containers.run("localhost:1/nope"), docker.errors.APIError),
    ]
    for action, error in missing:
        with pytest.raises(error):
            action()


def _until(check: Callable[[], bool]) -> None:
    for _ in range(200):
        if check():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen within four seconds")


def test_life(client: Any) -> None:
    script = "trap 'exit 4' TERM; echo a; echo b >&2; while :; do sleep 0.05; done"
    box = client.containers.run("busybox", ["sh", "-c", script], detach=True, labels={"k": "v"})
    _until(lambda: box.logs(stdout=True, stderr=False) == b"a\n" and box.logs(stdout=False) == b"b\n")
    follower = box.logs(stream=True, follow=True)
    assert {next(follower), next(follower)} == {b"a\n", b"b\n"}
    follower.close()
    assert box.top()["Titles"]
    stats = box.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0 and stats["cpu_stats"]["cpu_usage"]["total_usage"] > 0
    box.pause()
    box.reload()
    assert box.status == "paused"
    box.unpause()
    box.rename("renamed")
    box.update(mem_limit="64m", memswap_limit="64m")
    assert [each.name for each in client.containers.list(filters={"label": "k=v"})] == ["renamed"]
    box.stop(timeout=5)
    assert box.wait()["StatusCode"] == 4
    assert not box.diff()
    box.restart(timeout=1)
    box.kill()
    assert box.wait()["StatusCode"] == 137
    box.remove()


def test_exec(client: Any) -> None:
    box = client.containers.run("busybox", ["sleep", "100"], detach=True)
    assert box.exec_run("echo x") == (0, b"x\n")
    assert box.exec_run(["sh", "-c", "echo o; echo e >&2; exit 2"], demux=True) == (2, (b"o\n", b"e\n"))
    assert b"".join(box.exec_run(["echo", "s"], stream=True).output) == b"s\n"
    code, output = box.exec_run("no-such-program")
    assert code == 127 and b"executable file not found" in output
    stream = box.exec_run("cat", socket=True, stdin=True).output
    stream._sock.sendall(b"in\n")
    stream._sock.shutdown(1)
    received = b""
    while piece := stream._sock.recv(100):
        received += piece
    assert received == b"\x01\0\0\0\0\0\0\x03in\n"
    stream.close()


def test_the_exit_code_is_there_when_the_output_has_ended(client: Any) -> None:
    box = client.containers.run("busybox", ["sleep", "100"], detach=True)
    assert [box.exec_run(["sh", "-c", f"exit {n}"]).exit_code for n in range(100)] == list(range(100))


def test_attach(client: Any) -> None:
    box = client.containers.create("busybox", "cat", stdin_open=True)
    stream = box.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    box.start()
    stream._sock.sendall(b"yo\n")
    assert stream._sock.recv(100).endswith(b"yo\n")
    stream.close()
    late = client.containers.run("busybox", ["sh", "-c", "sleep 0.2; echo late"], detach=True)
    assert b"".join(late.attach(stream=True, logs=True)) == b"late\n"


def test_images_networks_volumes(client: Any) -> None:
    image = client.images.get("busybox")
    assert image.tag("other/name", "t") and "other/name:t" in client.images.get("other/name:t").tags
    client.images.remove("other/name:t")
    assert image.history() and client.images.list("busybox")
    network = client.networks.create("sdk-net", labels={"x": "y"})
    box = client.containers.create("busybox", ["sleep", "100"])
    network.connect(box, aliases=["alias"])
    box.start()
    box.reload()
    assert set(box.attrs["NetworkSettings"]["Networks"]) == {"bridge", "sdk-net"}
    box.remove(force=True)
    network.remove()
    volume = client.volumes.create("sdk-volume", labels={"q": "r"})
    assert [each.name for each in client.volumes.list(filters={"label": "q"})] == ["sdk-volume"]
    volume.remove()


def test_events(client: Any) -> None:
    before = time.time()
    client.containers.run("busybox", "true", remove=True, name="seen")
    seen = client.events(since=before - 1, until=time.time() + 0.2, decode=True, filters={"container": "seen"})
    assert [event["Action"] for event in seen if event["Action"] in ("create", "start", "die", "destroy")] == [
        "create", "start", "die", "destroy",
    ]  # fmt: skip
