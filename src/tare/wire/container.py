"""Docker's container documents: what ``POST /containers/create`` carries and ``inspect`` shows again.

The names and defaults are those of the Engine API. These structs are also the stored form of a container's settings: Docker's words
are the domain's words here, and a second set of classes with the same forty fields would only drift. Fields whose Go default is a nil
slice or map are ``None`` here, so that a document comes out as dockerd prints it.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field


class _Wire(msgspec.Struct, rename="pascal", kw_only=True):
    pass


class Healthcheck(_Wire):
    """Durations in nanoseconds; ``test`` empty inherits, ``["NONE"]`` disables."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Config(_Wire):
    """The portable part of a container's settings; an image carries the same."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, Any] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | str | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, Any] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class LogConfig(_Wire):
    type: str = ""
    config: dict[str, str] | None = None


class RestartPolicy(_Wire):
    name: str = ""
    maximum_retry_count: int = 0


class PortBinding(_Wire):
    host_ip: str = ""
    host_port: str = ""


class Ulimit(_Wire):
    name: str = ""
    hard: int = 0
    soft: int = 0


class DeviceMapping(_Wire):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = ""


class DeviceRequest(_Wire):
    driver: str = ""
    count: int = 0
    device_ids: list[str] | None = field(name="DeviceIDs", default=None)
    capabilities: list[list[str]] | None = None
    options: dict[str, str] | None = None


class WeightDevice(_Wire):
    path: str = ""
    weight: int = 0


class ThrottleDevice(_Wire):
    path: str = ""
    rate: int = 0


class BindOptions(_Wire, omit_defaults=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class DriverConfig(_Wire):
    name: str = ""
    options: dict[str, str] | None = None


class VolumeOptions(_Wire, omit_defaults=True):
    no_copy: bool = False
    labels: dict[str, str] | None = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class TmpfsOptions(_Wire, omit_defaults=True):
    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class Mount(_Wire, omit_defaults=True):
    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class HostConfig(_Wire):
    """The part of a container's settings that belongs to this host."""

    binds: list[str] | None = None
    container_id_file: str = field(name="ContainerIDFile", default="")
    log_config: LogConfig = field(default_factory=LogConfig)
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] = field(default_factory=dict)
    restart_policy: RestartPolicy = field(default_factory=RestartPolicy)
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: list[str] | None = None
    console_size: list[int] = field(default_factory=lambda: [0, 0])
    annotations: dict[str, str] | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    cgroupns_mode: str = ""
    dns: list[str] = field(default_factory=list)
    dns_options: list[str] = field(default_factory=list)
    dns_search: list[str] = field(default_factory=list)
    extra_hosts: list[str] | None = None
    group_add: list[str] | None = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: list[str] | None = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] | None = None
    storage_opt: dict[str, str] | None = None
    tmpfs: dict[str, str] | None = None
    uts_mode: str = field(name="UTSMode", default="")
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: dict[str, str] | None = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(name="BlkioDeviceReadIOps", default=None)
    blkio_device_write_iops: list[ThrottleDevice] | None = field(name="BlkioDeviceWriteIOps", default=None)
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: list[str] | None = None
    device_requests: list[DeviceRequest] | None = None
    kernel_memory: int = 0
    kernel_memory_tcp: int = field(name="KernelMemoryTCP", default=0)
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = field(name="IOMaximumIOps", default=0)
    io_maximum_bandwidth: int = field(name="IOMaximumBandwidth", default=0)
    mounts: list[Mount] | None = None
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    init: bool | None = None


class IPAMConfig(_Wire):
    ipv4_address: str = field(name="IPv4Address", default="")
    ipv6_address: str = field(name="IPv6Address", default="")
    link_local_ips: list[str] | None = field(name="LinkLocalIPs", default=None)


class EndpointSettings(_Wire):
    """A container's place in one network, as asked for."""

    ipam_config: IPAMConfig | None = field(name="IPAMConfig", default=None)
    links: list[str] | None = None
    aliases: list[str] | None = None
    mac_address: str = ""
    driver_opts: dict[str, str] | None = None
    network_id: str = field(name="NetworkID", default="")
    gw_priority: int = 0


class NetworkingConfig(_Wire):
    endpoints_config: dict[str, EndpointSettings | None] | None = None


class CreateRequest(Config, rename="pascal", kw_only=True):
    """Body of ``POST /containers/create``: the config's fields with two objects beside them."""

    host_config: HostConfig = field(default_factory=HostConfig)
    networking_config: NetworkingConfig | None = None


class ExecCreateRequest(_Wire):
    """Body of ``POST /containers/{id}/exec``."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    console_size: list[int] | None = None
    detach_keys: str = ""
    tty: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""


class ExecStartRequest(_Wire):
    """Body of ``POST /exec/{id}/start``."""

    detach: bool = False
    tty: bool = False
    console_size: list[int] | None = None


class CheckpointCreateRequest(_Wire):
    """Body of ``POST /containers/{id}/checkpoints``."""

    checkpoint_id: str = field(name="CheckpointID", default="")
    checkpoint_dir: str = ""
    exit: bool = False


class UpdateRequest(_Wire):
    """Body of ``POST /containers/{id}/update``: limits to change; zero leaves a limit as it is."""

    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = field(name="BlkioDeviceReadIOps", default=None)
    blkio_device_write_iops: list[ThrottleDevice] | None = field(name="BlkioDeviceWriteIOps", default=None)
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    kernel_memory: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0
    pids_limit: int | None = None
    restart_policy: RestartPolicy | None = None
