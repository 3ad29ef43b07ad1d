"""What dockerd refuses, discards and fills in when a container is made."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tare.containers.machine import Machine
from tare.containers.validate import check_resources, normalise_host_config
from tare.errors import InvalidArgument
from tare.wire.container import (
    Config,
    DeviceMapping,
    DeviceRequest,
    Healthcheck,
    HostConfig,
    RestartPolicy,
    Ulimit,
    UpdateRequest,
)

MACHINE = Machine(cpus=2, cgroup_version=1, oom_kill_disable=True)
MB = 1 << 20


def normalise(host: HostConfig | None = None, config: Config | None = None, machine: Machine = MACHINE) -> tuple[HostConfig, list[str]]:
    host = host or HostConfig()
    return host, normalise_host_config(host, config or Config(), None, machine)


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ({"memory": 5 * MB}, "Minimum memory limit allowed is 6MB"),
        ({"memory": -1}, "Minimum memory limit allowed is 6MB"),
        ({"memory": 10 * MB, "memory_swap": 9 * MB}, "Minimum memoryswap limit should be larger than memory limit, see usage"),
        ({"memory_swap": 9 * MB}, "You should always set the Memory limit when using Memoryswap limit, see usage"),
        ({"memory_reservation": MB}, "Minimum memory reservation allowed is 6MB"),
        (
            {"memory": 10 * MB, "memory_reservation": 20 * MB},
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"nano_cpus": 3_000_000_000}, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"nano_cpus": -1}, "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"nano_cpus": 10**9, "cpu_period": 1000}, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        ({"nano_cpus": 10**9, "cpu_quota": 1000}, "Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
        ({"cpu_period": 1}, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
        ({"cpu_quota": 1}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpuset_cpus": "0-7"}, "Requested CPUs are not available - requested 0-7, available: 0-1"),
        ({"cpuset_cpus": "x"}, "Invalid value x for cpuset cpus"),
        ({"cpuset_mems": "3"}, "Requested memory nodes are not available - requested 3, available: 0"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
        ({"oom_score_adj": 1001}, "Invalid value 1001, range for oom score adj is [-1000, 1000]"),
        ({"shm_size": -1}, "SHM size can not be less than 0"),
        ({"cap_add": ["NOPE"]}, 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
        ({"cap_drop": ["NOPE"]}, 'invalid CapDrop: unknown capability: "CAP_NOPE"'),
        ({"security_opt": ["nonsense"]}, 'invalid --security-opt 1: "nonsense"'),
        ({"security_opt": ["a=b"]}, 'invalid --security-opt 2: "a=b"'),
        ({"security_opt": ["no-new-privileges=perhaps"]}, 'invalid --security-opt 2: "no-new-privileges=perhaps"'),
        ({"security_opt": ["seccomp={"]}, "Decoding seccomp profile failed"),
        ({"sysctls": {"kernel.core_pattern": "|x"}}, 'sysctl "kernel.core_pattern" is not in a separate kernel namespace'),
        ({"sysctls": {"net.ipv4.ip_forward": "1"}, "network_mode": "host"}, "not allowed in host network namespace"),
        ({"sysctls": {"kernel.msgmax": "1"}, "ipc_mode": "host"}, "not allowed in the hosts ipc namespace"),
        ({"sysctls": {"net.ipv4.ip_forward": "1\nkernel.x=2"}}, "has to be one line"),
        ({"sysctls": {"net/../kernel/core_pattern": "1"}}, "invalid sysctl name"),
        ({"sysctls": {"net..x": "1"}}, "invalid sysctl name"),
        ({"device_cgroup_rules": ["c 1:3"]}, "invalid device cgroup rule format: 'c 1:3'"),
        ({"devices": [DeviceMapping(path_on_host="/dev/full", cgroup_permissions="rx")]}, "invalid device mode: rx"),
        ({"restart_policy": RestartPolicy(name="sometimes")}, "invalid restart policy: unknown policy 'sometimes'"),
        ({"restart_policy": RestartPolicy(name="always", maximum_retry_count=1)}, "can only be used with 'on-failure'"),
        ({"restart_policy": RestartPolicy(name="always"), "auto_remove": True}, "can't create 'AutoRemove' container"),
        ({"ulimits": [Ulimit(name="nofiles", soft=1, hard=1)]}, "invalid ulimit type: nofiles"),
        ({"ulimits": [Ulimit(name="nofile", soft=2, hard=1)]}, "ulimit soft limit must be less than or equal to hard limit: 2 > 1"),
        ({"runtime": "kata"}, "unknown or invalid runtime name: kata"),
        ({"uts_mode": "x"}, "invalid UTS mode: x"),
        ({"cgroupns_mode": "x"}, "invalid cgroup namespace mode: x"),
        (
            {"device_requests": [DeviceRequest(capabilities=[["gpu"]])]},
            'could not select device driver "" with capabilities: [[gpu]]',
        ),
    ],
)
def test_refused(host: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        normalise(HostConfig(**host))
    assert text in str(refused.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"working_dir": "rel"}, "the working directory 'rel' is invalid, it needs to be an absolute path"),
        ({"env": ["=x"]}, "invalid environment variable: =x"),
        ({"hostname": "x" * 65}, "invalid hostname format"),
        ({"stop_signal": "SIGNOPE"}, "SIGNOPE"),
        ({"healthcheck": Healthcheck(interval=5)}, "Interval in Healthcheck cannot be less than 1ms"),
        ({"healthcheck": Healthcheck(retries=-1)}, "Retries in Healthcheck cannot be negative"),
    ],
)
def test_refused_config(config: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        normalise(config=Config(**config))


def test_defaults() -> None:
    host, warnings = normalise()
    assert warnings == []
    assert (host.network_mode, host.ipc_mode, host.cgroupns_mode, host.runtime) == ("bridge", "private", "host", "runc")
    assert host.shm_size == 64 * MB
    assert host.restart_policy.name == "no"
    assert host.oom_kill_disable is False
    assert host.masked_paths is not None
    assert "/proc/kcore" in host.masked_paths
    assert host.pids_limit is None
    host, _ = normalise(machine=Machine(cgroup_version=2))
    assert (host.cgroupns_mode, host.oom_kill_disable) == ("private", None)
    host, _ = normalise(HostConfig(privileged=True, network_mode="default", pids_limit=0))
    assert (host.masked_paths, host.network_mode, host.pids_limit) == (None, "bridge", None)
    host, _ = normalise(HostConfig(masked_paths=[], cap_add=["net_admin", "CAP_NET_ADMIN", "all"]))
    assert (host.masked_paths, host.cap_add) == ([], ["ALL", "CAP_NET_ADMIN"])


def test_swap_defaults_to_as_much_as_memory() -> None:
    assert normalise(HostConfig(memory=64 * MB))[0].memory_swap == 128 * MB
    assert normalise(HostConfig(memory=64 * MB, memory_swap=-1))[0].memory_swap == -1


def test_what_the_machine_lacks_is_discarded_with_a_warning() -> None:
    poor = Machine(controllers=frozenset(), blkio_weight=False, swap_limit=False)
    host, warnings = normalise(
        HostConfig(memory=64 * MB, pids_limit=5, blkio_weight=100, oom_kill_disable=True, cpuset_cpus="0", kernel_memory=1), machine=poor
    )
    assert (host.memory, host.memory_swap, host.pids_limit, host.blkio_weight, host.cpuset_cpus) == (0, 0, None, 0, "")
    assert host.oom_kill_disable is None
    assert len(warnings) == 6
    host, warnings = normalise(HostConfig(memory=64 * MB), machine=Machine(swap_limit=False))
    assert host.memory_swap == -1
    assert warnings == ["Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap."]


def test_update_may_change_swap_alone() -> None:
    request = UpdateRequest(memory_swap=64 * MB)
    assert check_resources(request, MACHINE, update=True) == []
    with pytest.raises(InvalidArgument):
        check_resources(UpdateRequest(memory=1), MACHINE, update=True)


def test_a_profile_of_ones_own_is_read_when_the_container_is_made() -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_TYPO"}]}
    with pytest.raises(InvalidArgument, match="SCMP_ACT_TYPO"):
        normalise(HostConfig(security_opt=["seccomp=" + json.dumps(profile)]))
