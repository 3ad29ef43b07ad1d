"""Docker settings to OCI configuration: against bundles of a real dockerd, and case by case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tare.containers.machine import DeviceNode, Machine
from tare.containers.security_options import DEFAULT_CAPABILITIES
from tare.containers.spec import environment, exec_process, runtime_config
from tare.errors import InvalidArgument
from tare.wire.container import Config, DeviceMapping, ExecCreateRequest, HostConfig, ThrottleDevice, Ulimit

DATA = Path(__file__).parent.parent / "data" / "dockerd"
ID = "ab" * 32


class FakeMachine(Machine):
    """A machine with three device nodes."""

    nodes = (
        DeviceNode("/dev/full", "c", 1, 7, 0o666, 0, 0),
        DeviceNode("/dev/fuse", "c", 10, 229, 0o600, 0, 0),
        DeviceNode("/dev/vda", "b", 254, 0, 0o660, 0, 6),
    )

    def device(self, path: str) -> DeviceNode:
        for node in self.nodes:
            if node.path == path:
                return node
        raise FileNotFoundError(2, "No such file or directory", path)

    def devices_below(self, path: str) -> list[DeviceNode]:
        return list(self.nodes)


MACHINE = FakeMachine(cgroup_version=1, nodename="vm", oom_kill_disable=True)


def make(config: Config | None = None, host: HostConfig | None = None, **more: Any) -> dict[str, Any]:
    more.setdefault("machine", MACHINE)
    return runtime_config(config or Config(cmd=["x"], hostname="h"), host or HostConfig(), container_id=ID, **more)


def mount(document: dict[str, Any], place: str) -> dict[str, Any] | None:
    return next((entry for entry in document["mounts"] if entry["destination"] == place), None)


# Where we differ from dockerd 20.10, and why.
#   oci version, domain name: runtime-spec 1.1 has a field, dockerd writes a sysctl
#   masked paths: newer dockerd masks two more (given here from the container's record anyway)
#   device rules: we write out what runc adds by itself; ours come without the useless denial of fuse
#   zeros: we leave out what is not set;  noNewPrivileges: always said;  init: the task driver's business
def comparable(document: dict[str, Any]) -> dict[str, Any]:
    document = json.loads(json.dumps(document))
    document.pop("ociVersion")
    document["process"].pop("user", None)
    document["process"].setdefault("noNewPrivileges", False)
    document["process"]["capabilities"] = sorted(document["process"]["capabilities"]["bounding"])
    if document["process"]["args"][:2] == ["/sbin/docker-init", "--"]:
        document["process"]["args"] = document["process"]["args"][2:]
    linux = document["linux"]
    linux.pop("seccomp", None)
    sysctl = linux.get("sysctl") or {}
    if "kernel.domainname" in sysctl:
        document["domainname"] = sysctl.pop("kernel.domainname")
    linux["sysctl"] = sysctl
    rules = linux["resources"].pop("devices")
    assert rules[0] == {"allow": False, "access": "rwm"}
    document["allowed"] = {
        (rule["type"], tuple(None if n in (None, -1) else n for n in (rule.get("major"), rule.get("minor"))), rule["access"])
        for rule in rules
        if rule["allow"] and not (rule.get("major") == 1 and rule["access"] == "rwm") and rule.get("major") not in (5, 136)
    } - {("c", (None, None), "m"), ("b", (None, None), "m")}
    for part in list(linux["resources"]):
        kept = {key: value for key, value in linux["resources"][part].items() if value}
        linux["resources"][part] = kept
        if not kept:
            del linux["resources"][part]
    document["mounts"] = {
        entry["destination"]: (entry["type"], entry["source"], sorted(entry["options"]))
        for entry in document["mounts"]
        if entry["destination"] != "/sbin/docker-init"
    }
    return {key: value for key, value in document.items() if value or key not in ("root", "annotations")}


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.json")))
def test_as_dockerd(name: str) -> None:
    golden = json.loads((DATA / f"{name}.json").read_text())
    config = msgspec.convert(golden["config"], Config)
    host = msgspec.convert(golden["host_config"], HostConfig)
    asked = [entry for entry in golden["oci"]["mounts"] if entry["destination"].startswith(("/etc/", "/t"))]
    namespaces = {}
    if host.network_mode == "host":
        namespaces = {"network": "/tmp/tare/dk/exec/netns/default", "pid": "", "ipc": "", "uts": ""}
    document = runtime_config(
        config,
        host,
        container_id=golden["id"],
        mounts=asked,
        namespaces=namespaces,
        cgroups_path=f"/docker/{golden['id']}",
        own_network=host.network_mode != "host",
        machine=MACHINE,
    )
    assert ("seccomp" in document["linux"]) == golden["seccomp"]
    assert comparable(document) == comparable(golden["oci"])


def test_default_process() -> None:
    process = make(Config(entrypoint=["/e"], cmd=["a", "b"], hostname="web"))["process"]
    assert process["args"] == ["/e", "a", "b"]
    assert process["env"][1] == "HOSTNAME=web"
    assert process["cwd"] == "/"
    assert set(process["capabilities"]["effective"]) == set(DEFAULT_CAPABILITIES)
    assert "inheritable" not in process["capabilities"]
    assert process["noNewPrivileges"] is False


def test_environment() -> None:
    assert environment(["A=1", "PATH=/x", "A=2"], hostname="h", tty=True) == ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=2"]
    assert environment(["TERM", "HOSTNAME"], hostname="h", tty=True) == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        (["NET_ADMIN"], ["chown"], {*DEFAULT_CAPABILITIES, "CAP_NET_ADMIN"} - {"CAP_CHOWN"}),
        (["ALL"], ["CAP_NET_RAW"], set(MACHINE.capabilities) - {"CAP_NET_RAW"}),
        (["cap_kill"], ["ALL"], {"CAP_KILL"}),
        (None, ["all"], set()),
    ],
)
def test_capabilities(add: list[str] | None, drop: list[str], expected: set[str]) -> None:
    process = make(host=HostConfig(cap_add=add, cap_drop=drop))["process"]
    assert set(process["capabilities"]["bounding"]) == expected


def test_privileged_is_all_that_the_engine_has_and_no_more() -> None:
    held = tuple(name for name in MACHINE.capabilities if name != "CAP_SYS_RESOURCE")
    document = make(host=HostConfig(privileged=True), machine=FakeMachine(capabilities=held))
    assert document["process"]["capabilities"]["bounding"] == list(held)
    linux = document["linux"]
    assert not {"seccomp", "maskedPaths", "readonlyPaths"} & set(linux)
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert [node["path"] for node in linux["devices"]] == ["/dev/full", "/dev/fuse", "/dev/vda"]
    for place in ("/sys", "/sys/fs/cgroup"):
        assert "ro" not in (mount(document, place) or {})["options"]


def test_cgroup_files_are_read_only() -> None:
    """CVE-2022-0492, CVE-2023-25809."""
    for host in (HostConfig(), HostConfig(readonly_rootfs=True), HostConfig(cap_add=["SYS_ADMIN"])):
        assert "ro" in (mount(make(host=host), "/sys/fs/cgroup") or {})["options"]


def test_namespaces() -> None:
    def kinds(**more: Any) -> dict[str, str]:
        return {item["type"]: item.get("path", "new") for item in make(**more)["linux"]["namespaces"]}

    everything = dict.fromkeys(("mount", "network", "uts", "pid", "ipc", "cgroup"), "new")
    assert kinds(machine=FakeMachine(cgroup_version=2)) == everything
    assert kinds() == {kind: path for kind, path in everything.items() if kind != "cgroup"}
    assert kinds(host=HostConfig(cgroupns_mode="private")) == everything
    assert "cgroup" not in kinds(host=HostConfig(cgroupns_mode="host"), machine=FakeMachine(cgroup_version=2))
    joined = kinds(namespaces={"network": "/proc/7/ns/net", "pid": ""})
    assert joined["network"] == "/proc/7/ns/net"
    assert "pid" not in joined


def test_names_need_an_own_uts_namespace() -> None:
    document = make(Config(cmd=["x"], hostname="h", domainname="d"), namespaces={"uts": ""})
    assert not {"hostname", "domainname"} & set(document)
    document = make(Config(cmd=["x"], hostname="h", domainname="d"))
    assert (document["hostname"], document["domainname"]) == ("h", "d")


def test_shared_memory_follows_the_ipc_namespace() -> None:
    assert mount(make(host=HostConfig(ipc_mode="none")), "/dev/shm") is None
    shared = mount(make(host=HostConfig(ipc_mode="container:x"), namespaces={"ipc": "/proc/42/ns/ipc"}), "/dev/shm")
    assert (shared or {})["source"] == "/proc/42/root/dev/shm"
    assert "size=1048576" in (mount(make(host=HostConfig(shm_size=1 << 20)), "/dev/shm") or {})["options"]


def test_mounts_of_the_user_replace_ours() -> None:
    asked = [
        {"destination": "/dev/shm", "type": "bind", "source": "/x", "options": ["rbind"]},
        {"destination": "/sys/fs/cgroup", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind"]},
    ]
    document = make(mounts=asked)
    found = [entry["source"] for entry in document["mounts"] if entry["destination"] in ("/dev/shm", "/sys/fs/cgroup")]
    assert found == ["/x", "/sys/fs/cgroup"]
    places = [entry["destination"] for entry in make(mounts=[{"destination": "/dev", "type": "bind", "source": "/dev"}])["mounts"]]
    assert places == ["/proc", "/sys", "/sys/fs/cgroup", "/dev"]


def test_read_only_root_leaves_the_users_mounts_alone() -> None:
    engine_file = {"destination": "/etc/hosts", "type": "bind", "source": f"/d/{ID}/hosts", "options": ["rbind", "rprivate"]}
    own = {"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rprivate"]}
    document = make(host=HostConfig(readonly_rootfs=True), mounts=[engine_file, own])
    assert document["root"] == {"readonly": True}
    assert "ro" in (mount(document, "/etc/hosts") or {})["options"]
    assert "ro" not in (mount(document, "/data") or {})["options"]


def test_devices() -> None:
    host = HostConfig(
        devices=[DeviceMapping(path_on_host="/dev/full", path_in_container="/dev/xx", cgroup_permissions="r")],
        device_cgroup_rules=["b 254:* rw"],
    )
    linux = make(host=host)["linux"]
    assert linux["devices"] == [{"path": "/dev/xx", "type": "c", "major": 1, "minor": 7, "fileMode": 0o666, "uid": 0, "gid": 0}]
    assert linux["resources"]["devices"][-2:] == [
        {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "r"},
        {"allow": True, "type": "b", "major": 254, "access": "rw"},
    ]
    with pytest.raises(InvalidArgument, match='adding custom device "/dev/nope": no such file or directory'):
        make(host=HostConfig(devices=[DeviceMapping(path_on_host="/dev/nope")]))


def test_limits() -> None:
    host = HostConfig(
        memory=64 << 20,
        memory_swap=-1,
        nano_cpus=1_500_000_000,
        pids_limit=-1,
        ulimits=[Ulimit(name="nofile", soft=5, hard=-1)],
        blkio_device_read_bps=[ThrottleDevice(path="/dev/vda", rate=1000)],
    )
    document = make(host=host)
    found = document["linux"]["resources"]
    assert found["memory"] == {"limit": 64 << 20, "swap": -1}
    assert found["cpu"] == {"period": 100000, "quota": 150000}
    assert found["pids"] == {"limit": -1}
    assert found["blockIO"] == {"throttleReadBpsDevice": [{"major": 254, "minor": 0, "rate": 1000}]}
    assert document["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": (1 << 64) - 1}]


def test_sysctls() -> None:
    host = HostConfig(sysctls={"net.ipv4.ping_group_range": "1 0"})
    assert make(host=host)["linux"]["sysctl"] == {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "1 0"}
    assert make(own_network=False)["linux"]["sysctl"] == {}


def test_seccomp() -> None:
    first, second = make()["linux"]["seccomp"], make()["linux"]["seccomp"]
    assert first is second
    assert "seccomp" not in make(host=HostConfig(security_opt=["seccomp=unconfined"]))["linux"]
    own = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]})
    assert make(host=HostConfig(security_opt=[f"seccomp={own}"], privileged=True))["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"
    with pytest.raises(InvalidArgument, match="Decoding seccomp profile failed"):
        make(host=HostConfig(security_opt=["seccomp=/no/json"]))


def test_exec() -> None:
    config = Config(hostname="h", working_dir="/w", cmd=["x"])
    host = HostConfig(security_opt=["no-new-privileges:true"], ulimits=[Ulimit(name="nproc", soft=1, hard=2)])
    process = exec_process(config, host, ExecCreateRequest(cmd=["ls"], tty=True), ["A=1"], MACHINE)
    assert process["args"] == ["ls"]
    assert process["env"][1:] == ["HOSTNAME=h", "TERM=xterm", "A=1"]
    assert process["cwd"] == "/w"
    assert process["noNewPrivileges"] is True
    assert process["rlimits"][0]["type"] == "RLIMIT_NPROC"
    assert process["terminal"] is True
    privileged = exec_process(config, host, ExecCreateRequest(cmd=["ls"], privileged=True, working_dir="/"), [], MACHINE)
    assert privileged["capabilities"]["bounding"] == list(MACHINE.capabilities)
    assert privileged["cwd"] == "/"
