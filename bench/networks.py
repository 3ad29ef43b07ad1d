"""What networks cost: published ports and networked containers by number, DNS answers, throughput beside a plain veth pair, set-up; and the
same of dockerd's, as far as it can be asked from outside."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "tests" / "kernel"), str(HERE.parent / "tests"), str(HERE.parent / "src")]

SECONDS = 0.5
ROUNDS = 9
PEER_PORTS = 20
PORTS = 1000
CONTAINERS = 200
QUERIES = 20000
PEERS = 8


def main() -> None:
    """In a network namespace of its own: nothing of the host's is touched."""
    if os.environ.get("TARE_BENCH_INSIDE") != "1":
        environment = {**os.environ, "TARE_BENCH_INSIDE": "1"}
        raise SystemExit(subprocess.run(["unshare", "-n", sys.executable, __file__], env=environment, check=False).returncode)
    with tempfile.TemporaryDirectory(prefix="tare-bench-") as directory:
        asyncio.run(measure(Path(directory)))
    from dockerd_world import DOCKERD, dockerd

    if DOCKERD.exists():
        with dockerd() as path:
            measure_dockerd(path)


def measure_dockerd(path: str) -> None:
    """A container of dockerd's with published ports, and another that asks for its name and receives from it."""
    from networks_world import Namespace

    class Container(Namespace):
        """The network namespace of a running container."""

        def __init__(self, *flags: str) -> None:
            name = docker("run", "-d", "--network", "net", *flags, "busybox", "sleep", "1000")
            self.fd = os.open(f"/proc/{docker('inspect', '-f', '{{.State.Pid}}', name)}/ns/net", os.O_RDONLY)
            self.address = docker("inspect", "-f", "{{.NetworkSettings.Networks.net.IPAddress}}", name)

    def docker(*arguments: str) -> str:
        done = subprocess.run(["docker", "-H", f"unix://{path}", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    docker("network", "create", "net")
    before = proxies()
    one = Container("--name", "c7", "-p", f"20000-{20000 + PEER_PORTS - 1}:20000-{20000 + PEER_PORTS - 1}")
    line(f"dockerd: processes for {PEER_PORTS} published ports", str(proxies() - before))
    two = Container()
    answers, late = questions(two, "c7", PEERS)
    line(f"dockerd: DNS, {PEERS} clients asking at once", f"{answers:.0f} answers/s, p99 {late:.2f} ms")
    rates = [throughput(one.run, two.run, one.address)[0] for _ in range(ROUNDS)]
    line("dockerd: container to container", f"{statistics.median(rates):.1f} Gbit/s")
    docker("rm", "-f", *docker("ps", "-aq").split())


def proxies() -> int:
    """How many processes of docker-proxy there are."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += b"docker-proxy" in (process / "cmdline").read_bytes()
        except OSError:
            continue
    return count


async def measure(root: Path) -> None:
    from networks_world import Engine, Namespace, build_outside

    from tare.linux.netlink import Route
    from tare.networks.creation import NewNetwork
    from tare.networks.model import Connection
    from tare.networks.ports import PortBinding

    build_outside()
    engine = Engine(root / "data")
    networks = engine.networks
    await networks.start()
    net = await networks.create(NewNetwork("net"))

    # published ports, and places of containers, by number
    times = []
    for number in range(PORTS):
        begin = time.perf_counter()
        await networks.connect(f"{number:064x}", f"c{number}", bindings=[PortBinding(80)])
        times.append((time.perf_counter() - begin) * 1000)
    line("port published: first 20, last 20 (median)", f"{statistics.median(times[:20]):.2f} ms, {statistics.median(times[-20:]):.2f} ms")
    for number in range(PORTS):
        await networks.disconnect(f"{number:064x}")

    connections: list[Connection] = []
    inside: list[Namespace] = []
    times = []
    for number in range(CONTAINERS):
        begin = time.perf_counter()
        connection = await networks.connect(f"{number:064x}", f"c{number}", network=net.id)
        spent = time.perf_counter() - begin
        namespace = Namespace()  # what a spare init has ready
        begin = time.perf_counter()
        with Route() as route:
            master = route.link(connection.bridge)
            assert master is not None
            route.add_veth(
                connection.host_link, connection.interface, peer_ns_fd=namespace.fd, master_index=master.index, peer_mac=connection.mac
            )
        spent += time.perf_counter() - begin

        def configure(connection: Connection = connection) -> float:
            begin = time.perf_counter()
            with Route() as route:
                link = route.link(connection.interface)
                assert link is not None
                route.add_address(link.index, connection.cidr)
                route.set_link(link.index, up=True)
                route.add_route(None, connection.gateway, link.index)
            return time.perf_counter() - begin

        spent += namespace.run(configure)
        begin = time.perf_counter()
        await asyncio.to_thread(serve, networks.name_server([connection]), connection.container_id, namespace.fd)
        spent += time.perf_counter() - begin
        times.append(spent * 1000)
        connections.append(connection)
        inside.append(namespace)
    line(
        "network set-up of a container (place, veth, addresses, DNS): first 20, last 20",
        f"{statistics.median(times[1:21]):.2f} ms, {statistics.median(times[-20:]):.2f} ms (to be at most 5 ms, 1.5 times)",
    )
    children = len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    line(f"processes for {CONTAINERS} containers' networks, beside the daemon", str(children))

    answers, late = await asyncio.to_thread(questions, inside[0], "c7", PEERS)
    line(f"DNS, {PEERS} clients asking at once", f"{answers:.0f} answers/s, p99 {late:.2f} ms (to be 5000/s, 5 ms)")

    # throughput: beside a plain veth pair between two namespaces
    left, right = Namespace(), Namespace()
    with Route() as route:
        route.add_veth("plain0", "plain1", peer_ns_fd=right.fd)
        link = route.link("plain0")
        assert link is not None
        route.set_link(link.index, ns_fd=left.fd)

    def address(name: str, cidr: str) -> Callable[[], None]:
        def give() -> None:
            with Route() as route:
                link = route.link(name)
                assert link is not None
                route.add_address(link.index, cidr)
                route.set_link(link.index, up=True)

        return give

    left.run(address("plain0", "10.255.0.1/24"))
    right.run(address("plain1", "10.255.0.2/24"))
    first, second = connections[0], connections[1]
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    for bridged, condition in (("0", ""), ("1", ", br_netfilter on")) if switch.exists() else (("", ""),):
        if bridged:
            switch.write_text(bridged)
        runs: dict[str, list[tuple[float, float]]] = {"plain veth": [], "container to container": [], "host to container": []}
        for _ in range(ROUNDS):
            runs["plain veth"].append(await asyncio.to_thread(throughput, right.run, left.run, "10.255.0.2"))
            runs["container to container"].append(await asyncio.to_thread(throughput, inside[1].run, inside[0].run, second.address))
            runs["host to container"].append(await asyncio.to_thread(throughput, inside[0].run, lambda action: action(), first.address))
        for name, rates in runs.items():
            beside = list(zip(rates, runs["plain veth"], strict=True))
            share, work = (100 * statistics.median(each[at] / plain[at] for each, plain in beside) for at in (0, 1))
            text = f"{statistics.median(rate for rate, _ in rates):.1f} Gbit/s"
            line(
                f"{name}{condition}",
                f"{text} ({share:.0f} % of the plain pair's just before; per processor second {work:.0f} %; to be 95 %)",
            )
    for connection in connections:
        await networks.disconnect(connection.container_id)
    inside.clear()
    await networks.remove(net.id)
    await engine.networks.close()


def serve(path: Path, container_id: str, namespace: int) -> None:
    from tare.runtime import name_service

    name_service.serve(str(path), container_id, namespace, os.getpid())


def questions(namespace: object, name: str, clients: int) -> tuple[float, float]:
    """Answers per second, and the milliseconds within which 99 of 100 came. Each client is a process with one question at a time."""
    from tare.networks.dns import wire

    message = wire.HEADER.pack(7, wire.RECURSION_DESIRED, 1, 0, 0, 0) + wire.pack_name(name) + b"\0\1\0\1"
    sockets = [namespace.socket(socket.SOCK_DGRAM) for _ in range(clients)]  # type: ignore[attr-defined]
    for sock in sockets:
        sock.connect(("127.0.0.11", 53))
    readers, children = [], []
    begin = time.perf_counter()
    for sock in sockets:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            taken = []
            for _ in range(QUERIES // clients):
                start = time.perf_counter()
                sock.send(message)
                assert len(sock.recv(512)) > len(message)
                taken.append(time.perf_counter() - start)
            taken.sort()
            os.write(writer, f"{taken[int(len(taken) * 0.99)] * 1000}\n".encode())
            os._exit(0)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    elapsed = time.perf_counter() - begin
    late = max(float(os.read(reader, 100) or b"inf") for reader in readers)
    for reader in readers:
        os.close(reader)
    return QUERIES / elapsed, late


def throughput(at_server: Callable[..., object], at_client: Callable[..., object], address: str) -> tuple[float, float]:
    """Gbit/s of one TCP connection, and Gbit per second of the processor (which says more on a busy machine). Sockets are made where they
    belong, and used here, so that nearly all work of the kernel's is done, and counted, in this process."""
    listener = at_server(lambda: socket.create_server((address, 0)))
    client = at_client(lambda: socket.create_connection((address, listener.getsockname()[1])))  # type: ignore[attr-defined]
    peer, _ = listener.accept()  # type: ignore[attr-defined]
    block = bytes(1 << 20)
    begin = time.process_time()
    stop = time.perf_counter() + SECONDS

    def send() -> None:
        while time.perf_counter() < stop:
            client.sendall(block)  # type: ignore[attr-defined]
        client.close()  # type: ignore[attr-defined]

    sender = threading.Thread(target=send)
    sender.start()
    received, buffer = 0, bytearray(1 << 20)
    while count := peer.recv_into(buffer):
        received += count
    sender.join()
    peer.close()
    listener.close()  # type: ignore[attr-defined]
    moved = received * 8 / 1e9
    return moved / SECONDS, moved / (time.process_time() - begin)


def line(what: str, result: str) -> None:
    print(f"{what:84} {result}", flush=True)


if __name__ == "__main__":
    main()
