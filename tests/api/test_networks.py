"""Networks as clients drive them: the docker command, docker-py and docker-compose, with real traffic between containers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]
ROUNDS = int(os.environ.get("TARE_NETWORK_ROUNDS", "30"))


@pytest.fixture
def network(engine: Daemon) -> Iterator[Callable[..., str]]:
    """Makes networks with unique names, and removes them with their containers."""
    made: list[str] = []

    def make(*flags: str) -> str:
        name = f"n{uuid.uuid4().hex[:8]}"
        engine.docker("network", "create", *flags, name)
        made.append(name)
        return name

    yield make
    engine.remove_all()
    for name in made:
        engine.docker("network", "rm", name, check=False)


def run(engine: Daemon, *arguments: str) -> str:
    return engine.docker("run", "-d", *arguments, "busybox", "sleep", "1000").stdout.strip()


def inside(engine: Daemon, container: str, command: str, check: bool = True) -> str:
    return engine.docker("exec", container, "sh", "-c", command, check=check).stdout


def inspect(engine: Daemon, kind: str, name: str) -> dict[str, Any]:
    return json.loads(engine.docker(kind, "inspect", name).stdout)[0]


def eventually(action: Callable[[], bool]) -> None:
    for _ in range(100):
        if action():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true in five seconds")


def refusal(engine: Daemon, *arguments: str) -> str:
    done = engine.docker(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    return done.stderr


def name_server(engine: Daemon) -> int:
    """The process of a daemon's name server."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{engine.root}/run/dns.sock" in (process / "cmdline").read_text():
                return int(process.name)
        except OSError:
            continue
    return 0


def test_names(engine: Daemon, network: Callable[..., str]) -> None:
    one, two = network(), network()
    web = run(engine, "--name", "web", "--network", one, "--network-alias", "svc", "--hostname", "thehost")
    run(engine, "--name", "web2", "--network", one, "--network-alias", "svc")
    address = inspect(engine, "container", "web")["NetworkSettings"]["Networks"][one]["IPAddress"]
    other = run(engine, "--network", one, "--link", "web:linked")
    for name in ("web", "svc", web[:12], "thehost", "linked", f"web.{one}", "WEB"):
        assert address in inside(engine, other, f"nslookup {name}"), name
    assert f"name = web.{one}" in inside(engine, other, f"nslookup {address}")
    assert "NXDOMAIN" in inside(engine, other, "nslookup nobody || true")
    stranger = run(engine, "--network", two)
    assert "NXDOMAIN" in inside(engine, stranger, "nslookup web || true")
    assert "ping: bad address" in engine.docker("exec", stranger, "ping", "-c1", "web", check=False).stderr
    engine.docker("rename", "web", "webber")
    assert address in inside(engine, other, "nslookup webber")
    engine.docker("rm", "-f", "webber")
    assert "NXDOMAIN" in inside(engine, other, "nslookup webber || true")
    names = inspect(engine, "container", "web2")["NetworkSettings"]["Networks"][one]["DNSNames"]
    assert names[:2] == ["web2", "svc"]


def test_names_survive_the_daemon_and_the_name_server(own_daemon: Daemon) -> None:
    engine = own_daemon
    engine.docker("network", "create", "net")
    one = run(engine, "--name", "one", "--network", "net")
    run(engine, "--name", "two", "--network", "net")
    engine.kill()
    pid = int(Path("/proc", str(name_server(engine)), "stat").read_text().split()[0])
    (task,) = (path for path in (engine.root / "run/containers" / one).glob("task.json"))
    init = json.loads(task.read_text())["pid"]
    found = subprocess.run(["nsenter", "-t", str(init), "-n", "busybox", "nslookup", "two", "127.0.0.11"], capture_output=True, text=True)
    assert "Name:\ttwo" in found.stdout, found
    engine.start()
    assert name_server(engine) == pid, "the same process goes on"
    assert "Name:\ttwo" in inside(engine, one, "nslookup two")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: "Name:\ttwo" in inside(engine, one, "nslookup two || true"))
    assert "Name:\tthree" in engine.docker("run", "--rm", "--name", "three", "--network", "net", "busybox", "nslookup", "three").stdout


def test_established_connections_survive_the_daemon_and_deleted_links_are_made_again(own_daemon: Daemon) -> None:
    engine = own_daemon
    engine.docker("network", "create", "net")
    engine.docker("run", "-d", "--name", "echo", "--network", "net", "-p", "127.0.0.1:0:7", "busybox", "nc", "-ll", "-p", "7", "-e", "cat")
    port = int(engine.docker("port", "echo", "7").stdout.rpartition(":")[2])
    eventually(lambda: _echoes(port))
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"before")
        assert connection.recv(100) == b"before"
        engine.kill()
        connection.sendall(b"between")
        assert connection.recv(100) == b"between"
        engine.start()
        connection.sendall(b"after")
        assert connection.recv(100) == b"after"
    bridge = f"br-{inspect(engine, 'network', 'net')['Id'][:12]}"
    engine.kill()
    subprocess.run(["ip", "link", "del", bridge], check=True)
    engine.start()
    eventually(lambda: _echoes(port))

    def veth() -> str:
        (name,) = (path.name for path in Path(f"/sys/class/net/{bridge}/brif").iterdir())
        return name

    engine.kill()
    subprocess.run(["ip", "link", "del", veth()], check=True)
    engine.start()
    eventually(lambda: _echoes(port))
    # with the daemon there: noticed, and made again without being asked for
    for command in (["del", veth()], ["del", bridge], ["set", veth(), "nomaster"]):
        subprocess.run(["ip", "link", *command], check=True)
        eventually(lambda: _echoes(port))


def _echoes(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"x")
            connection.settimeout(1)
            return connection.recv(1) == b"x"
    except OSError:
        return False


def test_live_connect_and_disconnect(engine: Daemon, network: Callable[..., str]) -> None:
    one, two = network(), network("--ipv6", "--subnet", "10.213.7.0/24", "--subnet", "fd00:213:7::/64")
    web = run(engine, "--name", "web", "--network", one)
    engine.docker("network", "connect", "--ip", "10.213.7.77", "--ip6", "fd00:213:7::77", "--alias", "also", two, "web")
    other = run(engine, "--network", two)
    assert "10.213.7.77" in inside(engine, other, "ping -4 -c1 also") and "fd00:213:7::77" in inside(engine, other, "ping -6 -c1 also")
    settings = inspect(engine, "container", "web")["NetworkSettings"]["Networks"]
    assert settings[two]["GlobalIPv6Address"] == "fd00:213:7::77" and settings[two]["IPv6Gateway"] == "fd00:213:7::1"
    assert "10.213.7.77" in inside(engine, web, "cat /etc/hosts")
    endpoints = inspect(engine, "network", two)["Containers"]
    assert endpoints[web]["IPv4Address"] == "10.213.7.77/24" and endpoints[web]["IPv6Address"] == "fd00:213:7::77/64"
    engine.docker("network", "disconnect", one, "web")
    assert "default via 10.213.7.1 dev eth1" in inside(engine, web, "ip route")
    assert web not in inspect(engine, "network", one)["Containers"]
    engine.docker("restart", "-t0", "web")
    assert list(inspect(engine, "container", "web")["NetworkSettings"]["Networks"]) == [two]
    assert "10.213.7.77" in inside(engine, other, "ping -4 -c1 also")
    assert "is not connected to network" in refusal(engine, "network", "disconnect", one, "web")
    assert "already exists in network" in refusal(engine, "network", "connect", two, "web")
    # out of the last network, and back
    engine.docker("network", "disconnect", two, "web")
    assert "eth" not in inside(engine, web, "ip -o link | grep -v lo: || true")
    engine.docker("network", "connect", "--ip", "10.213.7.77", two, "web")
    assert "Name:\tweb" in inside(engine, web, "nslookup web") and "10.213.7.77" in inside(engine, other, "ping -4 -c1 web")
    # from the default bridge into a network with names
    plain = run(engine)
    engine.docker("network", "connect", two, plain)
    assert "10.213.7.77" in inside(engine, plain, "nslookup web")


def test_several_networks_at_once(engine: Daemon, network: Callable[..., str]) -> None:
    one, two = network("--subnet", "10.213.8.0/24"), network()
    first = f"name={one},ip=10.213.8.9,mac-address=02:11:22:33:44:55,alias=x"
    run(engine, "--name", "web", "--network", first, "--network", f"name={two},gw-priority=5")
    shown = inside(engine, "web", "ip addr; ip route")
    assert "02:11:22:33:44:55" in shown and "inet 10.213.8.9/24" in shown and "dev eth1" in shown.partition("default via")[2]
    taken = refusal(engine, "run", "--rm", "--network", one, "--ip", "10.213.8.9", "busybox", "true")
    assert "Address already in use" in taken


def test_requests_that_cannot_be(engine: Daemon, network: Callable[..., str]) -> None:
    name = network("--subnet", "10.213.9.0/29")
    assert "Pool overlaps with other one on this address space" in refusal(engine, "network", "create", "--subnet", "10.213.9.0/24", "x1")
    assert f"network with name {name} already exists" in refusal(engine, "network", "create", name)
    for _ in range(5):
        run(engine, "--network", name)
    exhausted = refusal(engine, "run", "--rm", "--network", name, "busybox", "true")
    assert "no available IPv4 addresses on this network's address pools" in exhausted
    assert "has active endpoints" in refusal(engine, "network", "rm", name)
    assert "not found" in refusal(engine, "network", "inspect", "nowhere") and "not found" in refusal(engine, "network", "rm", "nowhere")
    assert "host network" in refusal(engine, "network", "connect", "host", engine.docker("ps", "-q").stdout.split()[0])
    assert "is a pre-defined network" in refusal(engine, "network", "rm", "bridge")
    for option, text in (("enable_icc=maybe", 'parsing "maybe": invalid syntax'), ("gateway_mode_ipv4=routed", "is not offered")):
        assert text in refusal(engine, "network", "create", "-o", f"com.docker.network.bridge.{option}", "x1")
    outside = refusal(engine, "run", "--rm", "--network", name, "--ip", "10.1.1.1", "busybox", "true")
    assert "no configured subnet or ip-range contain" in outside
    assert "endpoint nobody not found" in refusal(engine, "network", "disconnect", "-f", name, "nobody")
    unconfigured = network()
    text = refusal(engine, "run", "--rm", "--network", unconfigured, "--ip", "172.30.0.9", "busybox", "true")
    assert "only when connecting to networks with user configured subnets" in text


def test_another_containers_network_takes_no_settings(engine: Daemon) -> None:
    run(engine, "--name", "owner")
    for flags, text in (
        (["--dns", "192.0.2.1"], "dns and the network mode"),
        (["--add-host", "a:192.0.2.1"], "custom host-to-IP mapping and the network mode"),
        (["--expose", "9"], "port exposing and the container type network mode"),
        (["-p", "9:9"], "port publishing and the container type network mode"),
        (["--hostname", "a"], "hostname and the network mode"),
        (["--link", "owner"], "container type network can't be used with links. This would result in undefined behavior"),
        (["--network", "bridge"], "cannot attach both user-defined and non-user-defined network-modes"),
    ):
        assert f"conflicting options: {text}" in refusal(engine, "run", "--rm", "--network", "container:owner", *flags, "busybox", "true")
    engine.remove_all()


def test_configuration_networks_lend_their_settings(engine: Daemon) -> None:
    try:
        engine.docker("network", "create", "--config-only", "--subnet", "10.213.11.0/24", "-o", "com.docker.network.driver.mtu=1300", "cfg")
        engine.docker("network", "create", "--config-from", "cfg", "--label", "x=y", "lent")
        shown = inspect(engine, "network", "lent")
        assert shown["ConfigFrom"] == {"Network": "cfg"} and shown["IPAM"]["Config"][0]["Subnet"] == "10.213.11.0/24"
        assert "mtu 1300" in engine.docker("run", "--rm", "--network", "lent", "busybox", "ip", "link", "show", "eth0").stdout
        assert 'configuration network "cfg" is in use' in refusal(engine, "network", "rm", "cfg")
        assert "configuration-only network cfg" in refusal(engine, "run", "--rm", "--network", "cfg", "busybox", "true")
    finally:
        engine.docker("network", "rm", "lent", "cfg", check=False)


def test_internal_networks_lead_nowhere(engine: Daemon, network: Callable[..., str]) -> None:
    container = run(engine, "--name", "shut", "--network", network("--internal"), "--dns", "192.0.2.1")
    assert "default" not in inside(engine, container, "ip route")
    assert "SERVFAIL" in inside(engine, container, "nslookup example.com || true")
    assert "Name:\tshut" in inside(engine, container, "nslookup shut")


def test_containers_without_icc_are_apart(engine: Daemon, network: Callable[..., str]) -> None:
    name = network("-o", "com.docker.network.bridge.enable_icc=false")
    run(engine, "--name", "apart", "--network", name)
    other = run(engine, "--network", name)
    assert "100% packet loss" in inside(engine, other, "ping -c1 -W1 apart || true")
    gateway = inspect(engine, "network", name)["IPAM"]["Config"][0]["Gateway"]
    assert " 0% packet loss" in inside(engine, other, f"ping -c1 {gateway}")


def test_macvlan_and_missing_kernel_modules(engine: Daemon) -> None:
    made = engine.docker("network", "create", "-d", "macvlan", "mvtest", check=False)
    if made.returncode:
        assert "macvlan is not supported by this kernel" in made.stderr
    else:
        run(engine, "--name", "m1", "--network", "mvtest")
        assert " 0% packet loss" in engine.docker("run", "--rm", "--network", "mvtest", "busybox", "ping", "-c1", "m1").stdout
        engine.remove_all()
        engine.docker("network", "rm", "mvtest")
    parent = refusal(engine, "network", "create", "-d", "macvlan", "-o", "parent=nolink0", "mvtest")
    assert "parent interface was not found" in parent


def test_bandwidth_is_limited(engine: Daemon, network: Callable[..., str]) -> None:
    container = run(engine, "--network", network("-o", "tare.bandwidth=8mbit/16mbit"))
    assert "rate 8Mbit" in subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    pid = str(inspect(engine, "container", container)["State"]["Pid"])
    assert "rate 16Mbit" in subprocess.run(["nsenter", "-t", pid, "-n", "tc", "qdisc"], capture_output=True, text=True, check=True).stdout
    engine.tare("run", "-d", "--network-bandwidth", "3mbit", "busybox", "sleep", "1000")
    assert "rate 3Mbit" in subprocess.run(["tc", "qdisc", "show"], capture_output=True, text=True, check=True).stdout
    wrong = engine.tare("run", "--rm", "--network-bandwidth", "fast", "busybox", "true", check=False)
    assert "invalid bandwidth 'fast'" in wrong.stderr


def test_ipv6_ports(engine: Daemon, network: Callable[..., str]) -> None:
    name = network("--ipv6")
    run(engine, "--name", "six", "--network", name, "-p", "0:7")
    engine.docker("exec", "-d", "six", "nc", "-ll", "-p", "7", "-e", "cat")
    four, six = engine.docker("port", "six").stdout.split("\n")[:2]
    assert four.startswith("7/tcp -> 0.0.0.0:") and six.startswith("7/tcp -> [::]:") and four.rpartition(":")[2] == six.rpartition(":")[2]
    gateway = inspect(engine, "network", name)["IPAM"]["Config"][1]["Gateway"]

    def echoes() -> bool:
        try:
            with socket.create_connection((gateway, int(six.rpartition(":")[2])), 1) as connection:
                connection.sendall(b"x")
                return connection.recv(1) == b"x"
        except OSError:
            return False

    eventually(echoes)


def test_docker_py(engine: Daemon) -> None:
    docker = pytest.importorskip("docker")
    client = docker.DockerClient(base_url=engine.host)
    ipam = docker.types.IPAMConfig(
        pool_configs=[docker.types.IPAMPool("10.213.10.0/24", "10.213.10.128/25", "10.213.10.254", {"a": "10.213.10.128"})]
    )
    made = client.networks.create("pynet", ipam=ipam, labels={"k": "v"}, options={"com.docker.network.driver.mtu": "1400"})
    try:
        made.reload()
        assert made.attrs["IPAM"]["Config"][0]["AuxiliaryAddresses"] == {"a": "10.213.10.128"}
        container = client.containers.run("busybox", "sleep 100", detach=True, network="pynet")
        container.reload()
        settings = container.attrs["NetworkSettings"]["Networks"]["pynet"]
        assert settings["IPAddress"] == "10.213.10.129" and settings["Gateway"] == "10.213.10.254"
        assert b"mtu 1400" in container.exec_run("ip link show eth0").output
        assert [network.name for network in client.networks.list(filters={"label": "k=v"})] == ["pynet"]
        client.networks.get("bridge").connect(container, aliases=None)
        made.disconnect(container)
        container.remove(force=True)
        assert client.networks.prune(filters={"label": "k=v"})["NetworksDeleted"] == ["pynet"]
    finally:
        engine.remove_all()
        engine.docker("network", "rm", "pynet", check=False)
        client.close()


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_compose_resolves_services(engine: Daemon, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(
        "version: '3'\nservices:\n  db:\n    image: busybox\n    command: sleep 1000\n    networks: {back: {aliases: [storage]}}\n"
        "    volumes: ['ram:/ram', 'plain:/plain:ro', '/anonymous']\n    tmpfs: /scratch:size=1m\n"
        "  web:\n    image: busybox\n    command: sleep 1000\n    networks: [back, front]\n"
        "networks:\n  back:\n    internal: true\n    ipam: {config: [{subnet: 10.213.12.0/24}]}\n"
        "    driver_opts: {com.docker.network.driver.mtu: '1200'}\n  front:\n"
        "volumes:\n  plain:\n  ram:\n    driver_opts: {type: tmpfs, device: tmpfs, o: 'size=64k'}\n"
    )
    environment = {**os.environ, "DOCKER_HOST": engine.host, "COMPOSE_PROJECT_NAME": f"p{uuid.uuid4().hex[:6]}"}

    def compose(*arguments: str) -> str:
        done = subprocess.run(["docker-compose", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        compose("up", "-d", "--scale", "db=2")
        found = compose("exec", "-T", "web", "nslookup", "db")
        assert len({line for line in found.splitlines() if line.startswith("Address: ")}) == 2, found
        assert "Name:\tstorage" in compose("exec", "-T", "web", "nslookup", "storage")
        shown = compose("exec", "-T", "db", "sh", "-c", "ip addr show eth0; df -k /ram /scratch; touch /plain/x || true")
        assert "mtu 1200" in shown and "inet 10.213.12." in shown and shown.count("tmpfs") == 2
    finally:
        compose("down", "-v", "-t", "0")
    assert environment["COMPOSE_PROJECT_NAME"] not in engine.docker("volume", "ls", "-q").stdout


def test_nothing_is_left_of_many_networks(engine: Daemon) -> None:
    def state() -> tuple[set[str], str]:
        links = {path.name for path in Path("/sys/class/net").iterdir() if path.name.startswith(("br-", "veth"))}
        rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        return links, rules

    ids = []
    for number in range(ROUNDS):
        network_id = engine.docker("network", "create", f"round{number}").stdout.strip()
        ids.append(network_id[:12])
        if number % 10 == 0:
            engine.docker("run", "--rm", "--network", f"round{number}", "-p", "0:80", "busybox", "true")
        engine.docker("network", "rm", f"round{number}")
    links, rules = state()
    assert not [name for name in ids if f"br-{name}" in links or name in rules]
    descriptors = list(Path(f"/proc/{engine.process.pid}/fd").iterdir())
    assert len(descriptors) < 200
