"""The daemon's settings: dockerd's flags and ``daemon.json`` keys, read into an ``EngineConfig``. Pure but for reading the file.

Three kinds of names:
- ``OPTIONS``: what Tare honours;
- ``FIXED``: dockerd's switches for which Tare has one fixed behaviour. A value that asks for just that is accepted, any other is refused
  by name: a daemon that silently ignores ``--userns-remap`` would be a security hole;
- everything else is unknown, answered with the nearest known name.

A setting given both as a flag and in the file is refused, as dockerd does, since nobody could say which counts.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tare import builder_options
from tare.config import DEFAULT_SOCKET, BuilderConfig, EngineConfig
from tare.containers.validate import ULIMITS
from tare.daemon_log import FORMATS, LEVELS
from tare.errors import InvalidArgument
from tare.runtime.lowering import BUILT_IN_INIT

DEFAULT_CONFIG_FILE = Path("/etc/tare/daemon.json")
T = TypeVar("T")
_TRUE, _FALSE = ("true", "1", "t"), ("false", "0", "f")


@dataclass(frozen=True)
class Option:
    """One setting. ``kind``: str, int, bool, path, list, map, pools, drivers, builder. ``name`` is the flag; ``key`` the one in daemon.json
    (lists are plural)."""

    name: str
    field: str
    kind: str
    help: str
    short: str = ""
    key: str = ""

    @property
    def file_key(self) -> str:
        return self.key or self.name


OPTIONS = (
    Option("host", "hosts", "list", "Daemon socket(s) to listen on: unix://PATH, tcp://HOST:PORT, fd://", "H", "hosts"),
    Option("data-root", "data_root", "path", "Root directory of persistent state"),
    Option("exec-root", "exec_root", "path", "Root directory of execution state"),
    Option("pidfile", "pidfile", "path", "Path of the daemon's PID file", "p"),
    Option("storage-driver", "storage_driver", "str", "Layer driver: erofs, overlay or vfs (default: probed)", "s"),
    Option("log-level", "log_level", "str", "Logging level: debug, info, warn, error, fatal", "l"),
    Option("log-format", "log_format", "str", "Format of the daemon's log: text or json"),
    Option("metrics-addr", "metrics_addr", "str", "Address (HOST:PORT) to serve the metrics API on"),
    Option("slow-request", "slow_request", "int", "Milliseconds from which a request is logged as slow (0: none)"),
    Option("debug", "debug", "bool", "Enable debug mode", "D"),
    Option("registry-mirror", "registry_mirrors", "list", "Mirror to ask before Docker Hub", key="registry-mirrors"),
    Option("insecure-registry", "insecure_registries", "list", "Registry without verified TLS", key="insecure-registries"),
    Option("registry-config", "registry_config", "path", "Mirrors and locations by registry, in the format of containers-registries.conf"),
    Option("registry-certs", "registry_certs", "list", "Directory of certificates by registry (certs.d)", key="registry-certs"),
    Option("http-proxy", "http_proxy", "str", "Proxy for plain HTTP towards registries"),
    Option("https-proxy", "https_proxy", "str", "Proxy for HTTPS towards registries"),
    Option("no-proxy", "no_proxy", "str", "Comma-separated hosts, domains and networks that are reached without a proxy"),
    Option("bridge", "bridge", "str", 'Default bridge to attach containers to ("none" disables networking)', "b"),
    Option("bip", "bip", "str", "Address of the default bridge as CIDR"),
    Option("bip6", "bip6", "str", "IPv6 address of the default bridge as CIDR"),
    Option("ipv6", "ipv6", "bool", "Enable IPv6 networking for the default bridge"),
    Option("fixed-cidr", "fixed_cidr", "str", "Part of the default bridge's subnet that containers get addresses of"),
    Option("fixed-cidr-v6", "fixed_cidr_v6", "str", "IPv6 subnet of the default bridge"),
    Option("default-gateway", "default_gateway", "str", "Default gateway of the default bridge's containers"),
    Option("default-gateway-v6", "default_gateway_v6", "str", "Default IPv6 gateway of the default bridge's containers"),
    Option("icc", "icc", "bool", "Enable communication between containers of the default bridge"),
    Option("ip-masq", "ip_masq", "bool", "Hide the default bridge's containers behind the host's address"),
    Option("ip", "ip", "str", "Address on which the default bridge publishes ports that name none"),
    Option("host-gateway-ip", "host_gateway_ips", "list", 'Address that "host-gateway" stands for in --add-host', key="host-gateway-ips"),
    Option(
        "default-network-opt",
        "default_network_opts",
        "drivers",
        "Option of new networks, DRIVER=OPTION=VALUE",
        key="default-network-opts",
    ),
    Option(
        "default-address-pool",
        "default_address_pools",
        "pools",
        "Where networks get their subnets: base=CIDR,size=PREFIX",
        key="default-address-pools",
    ),
    Option("mtu", "mtu", "int", "MTU of containers' networks"),
    Option("cgroup-parent", "cgroup_parent", "str", "Parent cgroup of all containers"),
    Option("log-driver", "log_driver", "str", "Default driver for container logs: json-file, local, syslog, journald or none"),
    Option("log-opt", "log_opts", "map", "Default log options, KEY=VALUE", key="log-opts"),
    Option(
        "default-ulimit", "default_ulimits", "ulimits", "Limits of containers that do not set them: NAME=SOFT[:HARD]", key="default-ulimits"
    ),
    Option("default-shm-size", "default_shm_size", "size", "Size of /dev/shm of containers that do not set it"),
    Option("default-ipc-mode", "default_ipc_mode", "str", "IPC mode of containers that do not set it: private or shareable"),
    Option("default-cgroupns-mode", "default_cgroupns_mode", "str", "Cgroup namespace of containers that do not set it: private or host"),
    Option("no-new-privileges", "no_new_privileges", "bool", "Containers' processes gain no privileges unless told otherwise"),
    Option("seccomp-profile", "seccomp_profile", "profile", "Seccomp profile of containers that name none: a file, builtin or unconfined"),
    Option("cdi-spec-dir", "cdi_spec_dirs", "list", "Directory of CDI specifications of devices", key="cdi-spec-dirs"),
    Option("builder", "builder", "builder", "Build cache's collector, entitlements and history, as the JSON object in daemon.json"),
    Option("criu", "criu", "path", "Path of criu, which makes checkpoints (default: found in the system's directories)"),
    Option("init", "init", "bool", "Run an init in every container that does not say otherwise"),
    Option("init-path", "init_path", "str", "Path of a static init on the host, or built-in for Tare's own"),
    Option("group", "group", "str", "Group of the unix socket", "G"),
    Option("tls", "tls", "bool", "Use TLS; implied by --tlsverify"),
    Option("tlsverify", "tlsverify", "bool", "Use TLS and verify the client"),
    Option("tlscacert", "tlscacert", "path", "Trust certificates signed only by this CA"),
    Option("tlscert", "tlscert", "path", "Path of the TLS certificate"),
    Option("tlskey", "tlskey", "path", "Path of the TLS key"),
    Option("shutdown-timeout", "shutdown_timeout", "int", "Seconds to wait for requests under way at shutdown"),
    Option("max-concurrent-downloads", "max_concurrent_downloads", "int", "Layers fetched at once"),
    Option(
        "drop-compressed-layers", "drop_compressed_layers", "bool", "Do not keep the compressed form of layers that were pulled or loaded"
    ),
    Option("max-concurrent-uploads", "max_concurrent_uploads", "int", "Layers pushed at once"),
    Option("max-download-attempts", "max_download_attempts", "int", "Tries of a layer's download that may bring nothing"),
    Option("dns", "dns", "list", "DNS server for containers"),
    Option("dns-search", "dns_search", "list", "DNS search domain"),
    Option("dns-opt", "dns_options", "list", "DNS option", key="dns-opts"),
    Option("label", "labels", "list", "Set key=value labels to the daemon", key="labels"),
)

RELOADABLE = ("debug", "log_level", "labels", "shutdown_timeout", "slow_request", "registry_mirrors", "insecure_registries")
"""Fields that a running daemon takes over at SIGHUP."""

FIXED: dict[str, tuple[tuple[str, ...], str]] = {
    "iptables": (_TRUE, "published ports need packet rules (nftables); --bridge=none turns networking off"),
    "ip-forward": (_TRUE, "containers' networks need forwarding; --bridge=none turns networking off"),
    "live-restore": (_TRUE, "containers always go on running without the daemon"),
    "ip6tables": (_TRUE, "IPv6 networks need packet rules (nftables), as IPv4 ones do"),
    "userland-proxy": (_FALSE, "ports are published by the kernel alone"),
    "experimental": (_FALSE, "there are no experimental features to turn on"),
    "selinux-enabled": (_FALSE, "SELinux labels are not part of this release"),
    "userns-remap": (("",), "containers share the host's user namespace, as with --userns=host"),
    "default-runtime": (("tare", "tare-runtime", "runc", "io.containerd.runc.v2"), "tare's own runtime is the only one"),
    "exec-opt": (("native.cgroupdriver=cgroupfs",), "cgroups are managed directly, without systemd"),
    "raw-logs": (_FALSE, "the log has no colours to leave out; drop the option"),
}
_SWITCHES = frozenset(name for name, (values, _) in FIXED.items() if values in (_TRUE, _FALSE))
_FILE_ALIASES = {"exec-opts": "exec-opt"}

_BY_FLAG = {option.name: option for option in OPTIONS}
_BY_SHORT = {option.short: option for option in OPTIONS if option.short}
_BY_KEY = {option.file_key: option for option in OPTIONS}


class UsageError(InvalidArgument):
    """The command line or the configuration file is wrong; the daemon does not start."""


@dataclass(frozen=True)
class Settings:
    """What the command line said: the engine's configuration and what concerns the process only."""

    config: EngineConfig
    action: str = "run"
    """``run``, ``help``, ``version`` or ``validate``."""
    arguments: tuple[str, ...] = ()
    """The command line, to be read again at SIGHUP."""


def load(arguments: Sequence[str]) -> Settings:
    """Read flags and file. Raises ``UsageError`` with a message for the user."""
    flags, action, file = _parse_flags(list(arguments))
    if action in ("help", "version"):
        return Settings(EngineConfig(), action)
    values = dict(flags)
    for name, value in _read_file(file).items():
        if name in flags:
            raise UsageError(
                f"unable to configure the daemon with file {file or DEFAULT_CONFIG_FILE}: the following directives are specified both as a "
                f"flag and in the configuration file: {_key_of(name)}: (from flag: {_shown(flags[name])}, from file: {_shown(value)})"
            )
        values[name] = value
    config = _check(replace(EngineConfig(), **{name: _frozen(value) for name, value in values.items()}), values)
    return Settings(config, action, tuple(arguments))


def _parse_flags(arguments: list[str]) -> tuple[dict[str, Any], str, Path | None]:
    values: dict[str, Any] = {}
    action = "run"
    file: Path | None = None
    while arguments:
        argument = arguments.pop(0)
        if argument in ("-h", "--help"):
            return {}, "help", None
        if argument in ("-v", "--version"):
            return {}, "version", None
        if argument == "--validate":
            action = "validate"
            continue
        if not argument.startswith("-") or argument in ("-", "--"):
            raise UsageError(f'"tared" accepts no arguments, found "{argument}"')
        name, option, inline = _split_flag(argument)
        switch = option.kind == "bool" if option is not None else name in _SWITCHES
        if inline is None and not switch:
            if not arguments:
                raise UsageError(f"flag needs an argument: {argument}")
            value = arguments.pop(0)
        elif inline is None:
            value = "true"
        else:
            value = inline
        if name == "config-file":
            file = Path(value)
        elif option is None:
            _check_fixed(name, value, f"--{name}")
        else:
            _add_value(values, option, value)
    return values, action, file


def _split_flag(argument: str) -> tuple[str, Option | None, str | None]:
    """(name, option or None for a fixed one, value behind "=" or glued to a short flag)."""
    if argument.startswith("--"):
        name, equals, value = argument[2:].partition("=")
        inline = value if equals else None
        if name == "config-file" or name in FIXED:
            return name, None, inline
        if name in _BY_FLAG:
            return name, _BY_FLAG[name], inline
        raise UsageError(f"unknown flag: --{name}{_suggestion(name, [*_BY_FLAG, *FIXED, 'config-file'], '--')}")
    option = _BY_SHORT.get(argument[1])
    if option is None:
        raise UsageError(f"unknown shorthand flag: {argument[1]!r} in {argument}")
    rest = argument[2:]
    return option.name, option, rest.removeprefix("=") if rest else None


def _suggestion(name: str, known: Sequence[str], prefix: str) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.6)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _add_value(values: dict[str, Any], option: Option, text: str) -> None:
    where = f"--{option.name}"
    if option.kind == "list":
        values.setdefault(option.field, []).append(text)
    elif option.kind == "pools":
        fields = dict(field.partition("=")[::2] for field in text.split(","))
        values.setdefault(option.field, []).append(_pool(fields, f'invalid argument "{text}" for "{where}" flag'))
    elif option.kind == "ulimits":
        values.setdefault(option.field, []).append(_ulimit(text, f'invalid argument "{text}" for "{where}" flag'))
    elif option.kind == "map":
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f'invalid argument "{text}" for "{where}" flag: expected KEY=VALUE')
        values.setdefault(option.field, {})[key] = value
    elif option.kind == "drivers":
        driver, first, rest = text.partition("=")
        key, second, value = rest.partition("=")
        if not (first and second and driver and key):
            raise UsageError(f'invalid argument "{text}" for "{where}" flag: expected DRIVER=OPTION=VALUE')
        values.setdefault(option.field, {}).setdefault(driver, {})[key] = value
    else:
        values[option.field] = _scalar(option, text, f'invalid argument "{text}" for "{where}" flag')


def _scalar(option: Option, text: str, fault: str) -> Any:
    if option.kind == "bool":
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise UsageError(f"{fault}: expected true or false")
    if option.kind == "int":
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{fault}: expected a whole number") from None
    if option.kind == "path":
        return Path(text) if text else None
    if option.kind == "size":
        return _size(text, fault)
    if option.kind == "profile":
        return _profile(text, fault)
    if option.kind == "builder":
        return _builder(text, fault)
    return text


def _pool(fields: dict[str, Any], fault: str) -> tuple[str, int]:
    """One address pool: the range, and the prefix length of the subnets that are cut from it."""
    try:
        base, size = ipaddress.ip_network(fields.pop("base")), int(fields.pop("size"))
    except (KeyError, ValueError) as error:
        raise UsageError(f"{fault}: expected base=CIDR,size=PREFIX ({error})") from None
    if fields or not base.prefixlen <= size <= base.max_prefixlen - 2:
        raise UsageError(f"{fault}: invalid subnet size {size} for {base}")
    return str(base), size


def _ulimit(text: str, fault: str) -> tuple[str, int, int]:
    """``NAME=SOFT[:HARD]``."""
    name, _, limits = text.partition("=")
    soft, colon, hard = limits.partition(":")
    return _limit(name, soft, hard if colon else soft, fault)


def _limit(name: object, soft: object, hard: object, fault: str) -> tuple[str, int, int]:
    try:
        found = (str(name), int(str(soft)), int(str(hard)))
    except ValueError:
        raise UsageError(f"{fault}: expected NAME=SOFT[:HARD]") from None
    if found[0] not in ULIMITS:
        raise UsageError(f"{fault}: invalid ulimit type: {name}")
    if min(found[1:]) < -1 or (found[2] != -1 and not -1 < found[1] <= found[2]):
        raise UsageError(f"{fault}: ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return found


def _size(text: str, fault: str) -> int:
    """A number of bytes, with k, m, g or t behind it if that is more."""
    found = re.fullmatch(r"(\d{1,15})([kmgt]?)b?", text.strip().lower())
    if found is None:
        raise UsageError(f"{fault}: expected a size such as 64m")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2]]


def _profile(text: str, fault: str) -> str:
    """The profile itself: what lies in a file is read now, so that a broken one is found now."""
    if text in ("", "builtin", "unconfined"):
        return "" if text == "builtin" else text
    try:
        content = Path(text).read_text()
        if not isinstance(json.loads(content), dict):
            raise ValueError("a JSON object is expected")
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{fault}: opening seccomp profile ({text}) failed: {error}") from None
    return content


def _builder(text: str, fault: str) -> BuilderConfig:
    try:
        return builder_options.parse(json.loads(text))
    except (ValueError, RecursionError, InvalidArgument) as error:
        raise UsageError(f"{fault}: {error}") from None


def _check_fixed(name: str, value: str, shown: str) -> None:
    accepted, reason = FIXED[name]
    if value.lower() not in accepted:
        raise UsageError(f"{shown}={value} is not offered by Tare: {reason}")


def _read_file(file: Path | None) -> dict[str, Any]:
    path = file or DEFAULT_CONFIG_FILE
    prefix = f"unable to configure the daemon with file {path}: "
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        if file is None:
            return {}
        raise UsageError(f"{prefix}no such file or directory") from None
    except OSError as error:
        raise UsageError(f"{prefix}{error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{prefix}{error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{prefix}a JSON object is expected")
    document = document | _proxies(document.pop("proxies", {}), prefix)
    if isinstance(document.get("host-gateway-ip"), str):  # dockerd's older key
        document["host-gateway-ips"] = [document.pop("host-gateway-ip")]
    unknown = [key for key in document if key not in _BY_KEY and _FILE_ALIASES.get(key, key) not in FIXED]
    if unknown:
        hint = _suggestion(unknown[0], [*_BY_KEY, *FIXED], "")
        raise UsageError(f"{prefix}the following directives don't match any configuration option: {', '.join(unknown)}{hint}")
    values: dict[str, Any] = {}
    for key, value in document.items():
        option = _BY_KEY.get(str(key))
        if option is not None:
            values[option.field] = _from_json(option, value, f"{prefix}{key}: ")
        else:
            name = _FILE_ALIASES.get(str(key), str(key))
            for item in value if isinstance(value, list) else [value]:
                _check_fixed(name, str(item), key)
    return values


def _proxies(value: Any, prefix: str) -> dict[str, Any]:
    """The ``proxies`` object of dockerd's file, whose keys are options of their own here."""
    if not isinstance(value, dict) or not set(value) <= {"http-proxy", "https-proxy", "no-proxy"}:
        raise UsageError(f"{prefix}proxies: an object with http-proxy, https-proxy and no-proxy is expected")
    return value


def _from_json(option: Option, value: Any, prefix: str) -> Any:
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        "list": (lambda v: isinstance(v, list) and all(isinstance(item, str) for item in v), "a list of strings"),
        "map": (lambda v: isinstance(v, dict) and all(isinstance(item, str) for item in v.values()), "an object of strings"),
        "bool": (lambda v: isinstance(v, bool), "true or false"),
        "int": (lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
        "str": (lambda v: isinstance(v, str), "a string"),
        "path": (lambda v: isinstance(v, str), "a string"),
        "drivers": (
            lambda v: isinstance(v, dict) and all(isinstance(o, dict) and all(isinstance(x, str) for x in o.values()) for o in v.values()),
            "an object of objects of strings",
        ),
        "size": (lambda v: isinstance(v, str) or (isinstance(v, int) and not isinstance(v, bool)), 'a size such as "64m"'),
        "profile": (lambda v: isinstance(v, str), "a path, builtin or unconfined"),
        "builder": (lambda v: isinstance(v, dict), "an object"),
        "ulimits": (lambda v: isinstance(v, dict) and all(isinstance(item, dict) for item in v.values()), "an object of limits by name"),
        "pools": (lambda v: isinstance(v, list) and all(isinstance(item, dict) for item in v), "a list of objects with base and size"),
    }
    valid, wanted = checks[option.kind]
    if not valid(value):
        raise UsageError(f"{prefix}{wanted} is expected")
    if option.kind in ("size", "profile"):
        return _scalar(option, str(value), prefix.rstrip(": "))
    if option.kind == "builder":
        return _builder(json.dumps(value), prefix.rstrip(": "))
    if option.kind == "ulimits":
        return [_limit(item.get("Name", name), item.get("Soft"), item.get("Hard"), prefix.rstrip(": ")) for name, item in value.items()]
    if option.kind == "pools":
        return [_pool(dict(item), f"{prefix}{item}") for item in value]
    return (Path(value) if value else None) if option.kind == "path" else value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _key_of(field: str) -> str:
    return next(option.file_key for option in OPTIONS if option.field == field)


def _shown(value: Any) -> str:
    return f"[{' '.join(value)}]" if isinstance(value, list) else str(value)


def _check(config: EngineConfig, given: dict[str, Any]) -> EngineConfig:
    """Everything that can be seen to be wrong without touching the machine; fills in what follows from other settings."""
    if config.log_level not in LEVELS:
        raise UsageError(f"unable to parse logging level: {config.log_level} (one of {', '.join(LEVELS)})")
    if config.log_format not in FORMATS:
        raise UsageError(f"invalid log format: {config.log_format} (one of {', '.join(FORMATS)})")
    if config.metrics_addr is not None and not config.metrics_addr.rpartition(":")[2].isdecimal():
        raise UsageError(f"invalid metrics address {config.metrics_addr}: expected HOST:PORT")
    if not 68 <= config.mtu <= 65535:
        raise UsageError(f"invalid MTU {config.mtu}: expected 68 to 65535")
    if config.shutdown_timeout < -1:
        raise UsageError(f"invalid shutdown timeout {config.shutdown_timeout}: expected seconds, or -1 for no limit")
    if config.max_concurrent_downloads < 1:
        raise UsageError(f"invalid max concurrent downloads: {config.max_concurrent_downloads}")
    if config.max_concurrent_uploads < 1:
        raise UsageError(f"invalid max concurrent uploads: {config.max_concurrent_uploads}")
    if config.max_download_attempts < 1:
        raise UsageError(f"invalid max download attempts: {config.max_download_attempts}")
    if config.init_path and config.init_path != BUILT_IN_INIT and not Path(config.init_path).is_absolute():
        raise UsageError(f"invalid init path {config.init_path}: expected an absolute path, or {BUILT_IN_INIT}")
    for mode, known, name in (
        (config.default_ipc_mode, ("private", "shareable"), "ipc-mode"),
        (config.default_cgroupns_mode, ("", "private", "host"), "cgroupns-mode"),
    ):
        if mode not in known:
            raise UsageError(f"invalid default {name} {mode!r}: expected {' or '.join(filter(None, known))}")
    for server in config.dns:
        _checked(ipaddress.ip_address, server, f"{server} is not an ip address")
    _check_default_bridge(config)
    for label in config.labels:
        if not label.partition("=")[1]:
            raise UsageError(f'bad attribute format: "{label}": labels are KEY=VALUE')
    for name in ("data_root", "exec_root"):
        path: Path | None = getattr(config, name)
        if path is None or not path.is_absolute():
            raise UsageError(f"--{name.replace('_', '-')} must be an absolute path")
    return _check_derived(config, given)


def _check_default_bridge(config: EngineConfig) -> None:
    if config.bridge is not None and (config.bip or config.bip6):
        flag = "--bip" if config.bip else "--bip6"
        raise UsageError(f"you specified -b & {flag}, mutually exclusive options. Please specify only one")
    for value, flag, version in ((config.bip, "--bip", 4), (config.bip6, "--bip6", 6)):
        if value is not None and not _is_interface(value, version):
            raise UsageError(f"invalid {flag} {value}: expected ADDRESS/PREFIX")
    for value, flag, version in ((config.fixed_cidr, "--fixed-cidr", 4), (config.fixed_cidr_v6, "--fixed-cidr-v6", 6)):
        if value is not None and not _is_network(value, version):
            raise UsageError(f"invalid {flag} {value}: expected a network as CIDR")
    for text in config.host_gateway_ips:
        _checked(ipaddress.ip_address, text, f"invalid --host-gateway-ip {text}: not an IP address")
    for address, flag, kind in (
        (config.ip, "--ip", ipaddress.IPv4Address),
        (config.default_gateway, "--default-gateway", ipaddress.IPv4Address),
        (config.default_gateway_v6, "--default-gateway-v6", ipaddress.IPv6Address),
    ):
        if address:
            _checked(kind, address, f"invalid {flag} {address}: not an {kind.__name__.removesuffix('Address')} address")
    for value, flag in (
        (config.bip6, "--bip6"),
        (config.fixed_cidr_v6, "--fixed-cidr-v6"),
        (config.default_gateway_v6, "--default-gateway-v6"),
    ):
        if value and not config.ipv6:
            raise UsageError(f"{flag} needs IPv6 on the default bridge: add --ipv6")


def _is_interface(text: str, version: int) -> bool:
    try:
        return "/" in text and ipaddress.ip_interface(text).version == version
    except ValueError:
        return False


def _is_network(text: str, version: int) -> bool:
    try:
        return "/" in text and ipaddress.ip_network(text, strict=False).version == version
    except ValueError:
        return False


def _check_derived(config: EngineConfig, given: dict[str, Any]) -> EngineConfig:
    changes: dict[str, Any] = {"cdi_spec_dirs": tuple(map(Path, config.cdi_spec_dirs))}
    if config.tlsverify:
        changes["tls"] = True
    if config.tls or config.tlsverify:
        needed = ["tlscert", "tlskey"] + (["tlscacert"] if config.tlsverify else [])
        for name in needed:
            if getattr(config, name) is None:
                raise UsageError(f"TLS needs --{name}")
    if "exec_root" in given:
        # A private daemon should not fall over the system's: what lies in the exec root by default follows it.
        if "hosts" not in given:
            changes["hosts"] = (f"unix://{config.exec_root}/tare.sock",)
        if "pidfile" not in given:
            changes["pidfile"] = config.exec_root / "tared.pid"
    return replace(config, **changes)


def _checked(parse: Callable[[str], T], text: str, message: str) -> T:
    try:
        return parse(text)
    except ValueError:
        raise UsageError(message) from None


def reloaded(running: EngineConfig, fresh: EngineConfig) -> tuple[EngineConfig, list[str]]:
    """(the running configuration with what may change taken from ``fresh``, names of changes that need a restart)."""
    pending = [
        field.name
        for field in fields(EngineConfig)
        if field.name not in RELOADABLE and getattr(running, field.name) != getattr(fresh, field.name)
    ]
    return replace(running, **{name: getattr(fresh, name) for name in RELOADABLE}), pending


def usage() -> str:
    """The text of ``tared --help``."""
    lines = ["Usage:  tared [OPTIONS]", "", "The daemon of the Tare container engine.", "", "Options:"]
    rows = [("", "config-file", "str", f"Daemon configuration file (default {DEFAULT_CONFIG_FILE})")]
    rows += [(option.short, option.name, option.kind, option.help) for option in OPTIONS]
    rows += [("", "validate", "bool", "Validate the configuration and exit"), ("v", "version", "bool", "Print version and quit")]
    for short, name, kind, text in sorted(rows, key=lambda row: row[1]):
        flag = (f"-{short}, " if short else "    ") + f"--{name}" + ("" if kind == "bool" else f" {kind}")
        lines.append(f"  {flag:<38}{text}")
    lines += ["", f"Listens on {DEFAULT_SOCKET} unless told otherwise. Containers go on running when the daemon stops."]
    return "\n".join(lines)


def fail(message: str) -> int:
    """Print a usage error as dockerd does and return the exit code."""
    print(f"{message}\nSee 'tared --help'.", file=sys.stderr)
    return 1
