"""Where the engine keeps things and how it was told to behave: the one place that knows host paths.

On disk:

    data_root/            (default /var/lib/tare, mode 0711)   survives a reboot
        lock              flock held by the engine that owns this root
        metadata.db       SQLite, WAL
        blobs/sha256/HEX  content store (OCI layout)
        ingest/           downloads in progress
        layers/DRIVER/    layers by diff_id
        snapshots/ID/     a container's upper and work directories
        containers/ID/    hostname, hosts, resolv.conf, logs
        volumes/NAME/_data
    exec_root/            (default /run/tare, mode 0711)       gone after a reboot
        containers/ID/    keeper.sock, exit.json, runtime state (mode 0700)
        layers/DRIVER/    mount points of shared layers
        tare.sock         default API socket
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_DATA_ROOT = Path("/var/lib/tare")
DEFAULT_EXEC_ROOT = Path("/run/tare")
DEFAULT_SOCKET = "unix:///run/tare/tare.sock"
DEFAULT_PIDFILE = Path("/run/tare/tared.pid")


@dataclass(frozen=True)
class CacheRule:
    """One rule by which the build cache is collected (``builder.collection``)."""

    filters: tuple[tuple[str, str], ...] = ()
    """Which entries are meant, in the words of ``builder prune --filter``."""
    unused_for: float = 0.0
    """Only what nobody has used for so many seconds."""
    reserved: int = 0
    """Bytes that may stay in any case."""
    most: int = 0
    """No more than these stay; 0: no limit."""
    free: int = 0
    """So many of the disk shall be free."""


@dataclass(frozen=True)
class BuilderConfig:
    """The object ``builder`` of dockerd's ``daemon.json``."""

    collect: bool = True
    rules: tuple[CacheRule, ...] = ()
    """Empty: BuildKit's default rules, with the three sizes below."""
    reserved: int = 0
    most: int = 0
    free: int = 0
    """All 0: parts of the disk."""
    refused: frozenset[str] = frozenset()
    """Entitlements that no build gets, whatever its client allows."""
    history_age: float = 0.0
    """Seconds that builds stay in the history; 0: for ever."""
    history_entries: int = 0
    """How many builds stay in it; 0: a hundred."""


@dataclass(frozen=True)
class EngineConfig:
    """Settings of one engine. Field names follow dockerd's flags and ``daemon.json`` keys."""

    data_root: Path = DEFAULT_DATA_ROOT
    exec_root: Path = DEFAULT_EXEC_ROOT
    hosts: tuple[str, ...] = (DEFAULT_SOCKET,)
    pidfile: Path | None = DEFAULT_PIDFILE
    storage_driver: str | None = None
    """Layer driver; ``None`` means probe."""
    log_level: str = "info"
    log_format: str = "text"
    """How the daemon's own log is written: ``text`` or ``json``."""
    metrics_addr: str | None = None
    """HOST:PORT of the Prometheus metrics."""
    slow_request: int = 1000
    """Milliseconds from which a request is logged as slow; 0 logs none."""
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    registry_config: Path | None = None
    """Mirrors and other settings by registry; ``None`` means ``/etc/tare/registries.toml`` if there is one."""
    registry_certs: tuple[Path, ...] = (Path("/etc/tare/certs.d"), Path("/etc/docker/certs.d"))
    """Where certificates by registry are looked for."""
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    cgroup_parent: str = "/tare"
    bridge: str | None = None
    """Name of the default bridge; ``none`` disables networking; ``None`` means our own (tare0, or the next free name)."""
    bip: str | None = None
    """Address of the default bridge as CIDR; ``None`` means the first free default pool."""
    bip6: str | None = None
    """Its IPv6 address; needs ``ipv6``. ``None`` means the first free default pool."""
    ipv6: bool = False
    """Whether the default bridge has IPv6."""
    fixed_cidr: str | None = None
    """The part of the default bridge's subnet that is handed out; without ``bip`` its whole subnet."""
    fixed_cidr_v6: str | None = None
    default_gateway: str | None = None
    """Where the default bridge's containers send what leaves their subnet; ``None`` means the bridge."""
    default_gateway_v6: str | None = None
    icc: bool = True
    """Whether containers of the default bridge may talk to each other."""
    ip_masq: bool = True
    """Whether containers of the default bridge appear outside with the host's address."""
    ip: str = "0.0.0.0"
    """Where the default bridge publishes ports that name no address."""
    host_gateway_ips: tuple[str, ...] = ()
    """What ``--add-host NAME:host-gateway`` stands for; empty means the default bridge's addresses."""
    mtu: int = 1500
    default_network_opts: dict[str, dict[str, str]] = field(default_factory=dict)
    """Options of new networks that do not give them, by driver."""
    default_address_pools: tuple[tuple[str, int], ...] = ()
    """Where networks without a subnet get theirs: (range, prefix length of a subnet); empty means Docker's."""
    default_ulimits: tuple[tuple[str, int, int], ...] = ()
    """Resource limits (name, soft, hard) of containers that do not set them."""
    default_shm_size: int = 0
    """Bytes of /dev/shm; 0 means Docker's 64 MiB."""
    default_ipc_mode: str = "private"
    default_cgroupns_mode: str = ""
    """``private`` or ``host``; empty means what suits the machine's control groups."""
    no_new_privileges: bool = False
    """Containers' processes gain no privileges unless their container says otherwise."""
    seccomp_profile: str = ""
    """A profile's JSON text for containers that name none, ``unconfined``, or empty for the built-in one."""
    cdi_spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    """Where specifications of devices are looked for; of two that know the same device the later directory's counts."""
    builder: BuilderConfig = BuilderConfig()
    log_driver: str = "json-file"
    log_opts: dict[str, str] = field(default_factory=lambda: {"max-size": "100m", "max-file": "5"})
    shutdown_timeout: int = 15
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5
    drop_compressed_layers: bool = False
    """Whether images lose their compressed layers once they are here: less disk, other digests when they are pushed elsewhere."""
    max_download_attempts: int = 5
    """Tries in a row of one layer's download that may bring nothing."""
    debug: bool = False
    labels: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    criu: Path | None = None
    """The program that makes checkpoints; ``None`` means the one on PATH."""
    init: bool = False
    """Containers that do not say otherwise get an init."""
    init_path: str = ""
    """Host path of a static init, ``built-in`` for our own, or empty for the host's if it has one."""
    group: str | None = None
    """Group that owns the unix sockets (dockerd: ``docker``); ``None`` leaves root."""
    tls: bool = False
    tlsverify: bool = False
    tlscacert: Path | None = None
    tlscert: Path | None = None
    tlskey: Path | None = None

    @property
    def database(self) -> Path:
        return self.data_root / "metadata.db"

    def container_dir(self, container_id: str) -> Path:
        """Persistent files of one container (hostname, hosts, resolv.conf, logs)."""
        return Path(f"{self.data_root}/containers/{container_id}")

    def run_dir(self, container_id: str) -> Path:
        """Volatile files of one container's task (keeper socket, exit record)."""
        return Path(f"{self.exec_root}/containers/{container_id}")
