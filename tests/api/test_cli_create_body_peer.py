"""Our create call against the real docker CLI's, field by field: both talk to the same recording server with the same arguments."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytestmark = [pytest.mark.peer, pytest.mark.skipif(shutil.which("docker") is None, reason="no docker CLI")]

_ANSWER_ONLY = (
    "NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "IPv6Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "DNSNames",
)  # fmt: skip
"""Zero fields that Go sends along because its structure serves answers too."""


class Recorder:
    """Says yes to a ping and to a create call, and keeps what the latter contained."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.created: list[tuple[dict[str, list[str]], Any]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer, peer.makefile("rb") as lines:
                while line := lines.readline():
                    self._answer(peer, lines, line)

    def _answer(self, peer: socket.socket, lines: Any, line: bytes) -> None:
        method, target, _ = line.decode().split()
        headers = {}
        while header := lines.readline().strip():
            name, _, value = header.partition(b":")
            headers[name.lower()] = value.strip()
        body = lines.read(int(headers.get(b"content-length", b"0")))
        answer, status = b"OK", "200 OK"
        if "/containers/create" in target:
            self.created.append((parse_qs(urlsplit(target).query), json.loads(body)))
            answer, status = b'{"Id":"abc","Warnings":[]}', "201 Created"
        lines_out = [f"HTTP/1.1 {status}", "Api-Version: 1.51", "Ostype: linux", "Content-Type: application/json"]
        head = "\r\n".join([*lines_out, f"Content-Length: {len(answer)}", "", ""])
        peer.sendall(head.encode() + (b"" if method == "HEAD" else answer))

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    server = Recorder(tmp_path / "r.sock")
    yield server
    server.close()


def _normal(document: Any) -> Any:
    for endpoint in document["NetworkingConfig"]["EndpointsConfig"].values():
        for name in _ANSWER_ONLY:
            endpoint.pop(name, None)
    host = document["HostConfig"]
    document["Env"] = sorted(document["Env"] or ())
    host["Binds"] = sorted(host["Binds"] or ())  # Go iterates over a map
    for name in ("Ulimits", "Devices"):
        host[name] = sorted(host[name], key=json.dumps)
    return document


CASES = {
    "plain": "busybox",
    "command": "busybox sh -c exit",
    "interactive": "-it busybox",
    "stdin only": "-i -a stdin busybox",
    "environment": "-e A=b -e HOME -e NOT_SET_ANYWHERE -e A=c busybox",
    "volumes": "-v /a:/b:ro -v vol:/c -v /anon -v /x:/y:rshared,z --volumes-from q:ro --volume-driver local busybox",
    "bind mounts": "--mount type=bind,source=/x,target=/y,readonly,bind-propagation=rslave --mount "
    "type=bind,src=/q,dst=/r,bind-recursive=disabled busybox",
    "volume mounts": "--mount "
    "type=volume,src=v,dst=/z,volume-opt=a=b,volume-nocopy,volume-label=c=d,volume-driver=local --mount dst=/anon busybox",
    "tmpfs mounts": "--mount type=tmpfs,target=/t,tmpfs-size=10m,tmpfs-mode=1700 --tmpfs /run:rw,size=3m --tmpfs /tmp busybox",
    "ports": "-p 8080:80 -p 127.0.0.1:53:53/udp -p 9000-9001:9000-9001 -p 7 -p [::1]:5:6 -p 70-75:8 "
    "--expose 7000-7001 --expose 9/sctp -P busybox",
    "long ports": "-p published=8080,target=80,protocol=udp busybox",
    "identity": "-u 1:2 -w /w --hostname h --domainname d --group-add 5 --group-add tty --name foo busybox",
    "memory": "-m 64m --memory-swap -1 --memory-reservation 32m --memory-swappiness 10 --kernel-memory 5m --shm-size 1g busybox",
    "oom": "-m 1g --oom-kill-disable --oom-score-adj -500 busybox",
    "processor": "--cpus 1.5 -c 512 --cpu-period 100000 --cpu-quota 50000 --cpuset-cpus 0-1 --cpuset-mems 0 "
    "--cpu-rt-period 1 --cpu-rt-runtime 2 busybox",
    "io": "--blkio-weight 300 --blkio-weight-device /dev/sda:100 --device-read-bps /dev/sda:1mb --device-write-bps /dev/sda:2k "
    "--device-read-iops /dev/sda:5 --device-write-iops /dev/sda:6 busybox",
    "limits": "--pids-limit 5 --ulimit nofile=10:20 --ulimit nproc=3 --ulimit core=-1 busybox",
    "sysctls": "--sysctl net.ipv4.ip_forward=1 --sysctl kernel.shmmax=5 busybox",
    "restart": "--restart on-failure:3 busybox",
    "restart always": "--restart always busybox",
    "remove": "--rm busybox",
    "init": "--init busybox",
    "no init": "--init=false busybox",
    "dns": "--dns 1.1.1.1 --dns-search example.com --dns-search . --dns-option ndots:1 --add-host "
    "a:1.2.3.4 --add-host b=::1 --add-host c:host-gateway busybox",
    "network": "--network foo busybox",
    "network host": "--network host busybox",
    "network of a container": "--network container:foo busybox",
    "network with options": "--network foo --network-alias al --ip 1.2.3.4 --ip6 fd00::1 --mac-address "
    "02:42:ac:11:00:02 --link a:b busybox",
    "networks": "--network name=a,alias=x,alias=y,ip=1.2.3.4,driver-opt=k=v,gw-priority=3 --network b busybox",
    "link": "--link a:b --link c busybox",
    "devices": "--device /dev/null:/dev/n:rw --device /dev/zero --device /dev/full:r --device-cgroup-rule 'c 1:* rwm' busybox".replace(
        "'", ""
    ),
    "health": "--health-cmd true --health-interval 3s --health-timeout 1m --health-retries 2 "
    "--health-start-period 5s --health-start-interval 1s busybox",
    "no health": "--no-healthcheck busybox",
    "capabilities": "--cap-add SYS_ADMIN --cap-add net_admin --cap-drop CAP_CHOWN --cap-drop net_admin --privileged busybox",
    "all capabilities": "--cap-add ALL --cap-add NET_ADMIN --cap-drop ALL --cap-drop chown busybox",
    "environment files": "--env-file {files}/env --label-file {files}/labels -e A=last -l a=last --security-opt "
    "seccomp={files}/seccomp.json busybox",
    "security": "--security-opt no-new-privileges --security-opt seccomp=unconfined --security-opt label:disable busybox",
    "unmasked": "--security-opt systempaths=unconfined busybox",
    "read only": "--read-only busybox",
    "namespaces": "--ipc shareable --pid host --uts host --userns host --cgroupns private --cgroup-parent /x busybox",
    "labels": "-l x=y -l z --annotation d=e busybox",
    "entrypoint": "--entrypoint /bin/sh busybox -c exit",
    "stop": "--stop-signal TERM --stop-timeout 3 busybox",
    "logs": "--log-driver json-file --log-opt max-size=1m --log-opt a=b busybox",
    "storage": "--storage-opt size=3 --runtime runc --isolation default busybox",
    "platform": "--platform linux/amd64 busybox",
    "attach": "-a stdout -a stderr busybox",
}


@pytest.mark.parametrize("name", CASES)
def test_same_request_as_docker(recorder: Recorder, name: str) -> None:
    files = recorder.path.parent
    (files / "env").write_text("# x\nA=first\nB=1 2\n\nHOME\nNOT_SET_ANYWHERE\n")
    (files / "labels").write_text("a=first\nb\n")
    (files / "seccomp.json").write_text('{ "defaultAction": "SCMP_ACT_ALLOW", "names": ["a", "ü"] }\n')
    words = CASES[name].format(files=files).split()
    if name == "devices":  # one argument with spaces
        index = words.index("--device-cgroup-rule")
        words[index + 1 : index + 4] = ["c 1:* rwm"]
    environment = {**os.environ, "HOME": str(recorder.path.parent)}
    for key in ("DOCKER_HOST", "TARE_HOST", "DOCKER_CONTEXT"):
        environment.pop(key, None)
    host = f"unix://{recorder.path}"
    for program in (["docker"], [sys.executable, "-m", "tare.cli"]):
        done = subprocess.run([*program, "-H", host, "create", *words], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0 and done.stdout == "abc\n", done.stderr
    (their_query, theirs), (our_query, ours) = recorder.created
    assert our_query == their_query
    assert _normal(ours) == _normal(theirs)


def test_an_empty_entrypoint(recorder: Recorder) -> None:
    for program in (["docker"], [sys.executable, "-m", "tare.cli"]):
        subprocess.run([*program, "-H", f"unix://{recorder.path}", "create", "--entrypoint", "", "x"], capture_output=True, check=True)
    assert recorder.created[0][1]["Entrypoint"] == recorder.created[1][1]["Entrypoint"] == [""]
