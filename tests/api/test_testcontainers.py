"""testcontainers, as its users have it: a service that is waited for, a published port, a network with aliases."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

SERVICE = 'sh -c "mkdir /w; echo hi > /w/index.html; echo READY; exec httpd -f -p 8080 -h /w"'


@pytest.fixture(autouse=True)
def environment(engine: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    monkeypatch.setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.config import testcontainers_config

    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    yield


def test_a_service_with_a_published_port() -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.waiting_utils import wait_for_logs

    with DockerContainer("busybox").with_command(SERVICE).with_exposed_ports(8080).with_env("A", "b") as service:
        wait_for_logs(service, "READY", timeout=20)
        url = f"http://{service.get_container_host_ip()}:{service.get_exposed_port(8080)}/"
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.read() == b"hi\n"
        assert service.exec("echo inside").output == b"inside\n"
        assert b"READY" in service.get_logs()[0]


def test_a_network_with_an_alias() -> None:
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.network import Network

    with Network() as network:
        alpha = DockerContainer("busybox").with_command("sleep 1000").with_network(network).with_network_aliases("alpha")
        with alpha, DockerContainer("busybox").with_command("sleep 1000").with_network(network) as other:
            assert other.exec(["ping", "-c1", "-W1", "alpha"]).exit_code == 0
