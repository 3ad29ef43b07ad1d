"""Options of ``run`` and ``create`` to the body of ``POST /containers/create``.

A pure function of the options, the local environment and the files that options name. The body has the same fields as
the one docker's client sends, in the same order, so that the two can be compared field by field
(tests/unit/test_cli_create_body.py does).
"""

from __future__ import annotations

import os

from tare.cli import networkspec
from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.flags import Options

    Document = dict[str, Any]


def _refuse(message: str) -> CliError:
    return CliError(message, 125)


def body(options: Options) -> Document:
    """The whole request body. Raises CliError (125) with docker's text."""
    _check_conflicts(options)
    exposed, bindings = networkspec.publish(options.items("publish"))
    networkspec.expose(options.items("expose"), exposed)
    binds, volumes = _volumes(options.items("volume"))
    config = _config(options, exposed, volumes)
    config["HostConfig"] = _host_config(options, binds, bindings)
    config["NetworkingConfig"] = {"EndpointsConfig": _endpoints(options)}
    return config


def _check_conflicts(options: Options) -> None:
    swappiness = options.number("memory-swappiness")
    if swappiness != -1 and not 0 <= swappiness <= 100:
        raise _refuse(f"invalid value: {swappiness}. Valid memory swappiness range is 0-100")
    for flag in ("health-interval", "health-timeout", "health-retries", "health-start-period", "health-start-interval"):
        if options.number(flag) < 0:
            raise _refuse(f"--{flag} cannot be negative")
    restart = options.text("restart")
    if options.on("rm") and restart not in ("", "no"):
        raise _refuse("conflicting options: cannot specify both --restart and --rm")
    if options.text("pid") and not _namespace(options.text("pid"), "host", "container"):
        raise _refuse("--pid: invalid PID mode")
    if options.text("uts") not in ("", "host"):
        raise _refuse("--uts: invalid UTS mode")
    if options.text("userns") not in ("", "host"):
        raise _refuse("--userns: invalid USER mode")
    if options.text("cgroupns") not in ("", "host", "private"):
        raise _refuse("--cgroupns: invalid CGROUP mode")
    if options.text("log-driver") == "none" and options.items("log-opt"):
        raise _refuse("invalid logging opts for driver none")


def _namespace(mode: str, word: str, prefix: str) -> bool:
    return mode == word or (mode.startswith(f"{prefix}:") and len(mode) > len(prefix) + 1)


def _config(options: Options, exposed: Document, volumes: Document) -> Document:
    attach = options.items("attach")
    stdin = options.on("interactive")
    config: Document = {
        "Hostname": options.text("hostname"),
        "Domainname": options.text("domainname"),
        "User": options.text("user"),
        "AttachStdin": stdin or "stdin" in attach,
        "AttachStdout": not attach or "stdout" in attach,
        "AttachStderr": not attach or "stderr" in attach,
    }
    if exposed:
        config["ExposedPorts"] = exposed
    config |= {
        "Tty": options.on("tty"),
        "OpenStdin": stdin,
        "StdinOnce": stdin,
        "Env": environment(options.items("env-file"), options.items("env")) or None,
        "Cmd": options.operands[1:] or None,
    }
    health = _health(options)
    if health:
        config["Healthcheck"] = health
    config |= {
        "Image": options.operands[0],
        "Volumes": volumes,
        "WorkingDir": options.text("workdir"),
        "Entrypoint": [options.text("entrypoint")] if "entrypoint" in options.given else None,
        "OnBuild": None,
        "Labels": labels(options.items("label-file"), options.items("label")),
    }
    if options.text("stop-signal"):
        config["StopSignal"] = options.text("stop-signal")
    if "stop-timeout" in options.given:
        config["StopTimeout"] = options.number("stop-timeout")
    return config


def _health(options: Options) -> Document:
    numbers = {
        "Interval": options.number("health-interval"),
        "Timeout": options.number("health-timeout"),
        "StartPeriod": options.number("health-start-period"),
        "StartInterval": options.number("health-start-interval"),
        "Retries": options.number("health-retries"),
    }
    given: Document = {name: value for name, value in numbers.items() if value}
    command = options.text("health-cmd")
    if options.on("no-healthcheck"):
        if given or command:
            raise _refuse("--no-healthcheck conflicts with --health-* options")
        return {"Test": ["NONE"]}
    return {"Test": ["CMD-SHELL", command], **given} if command else given


def _volumes(specs: list[str]) -> tuple[list[str], Document]:
    """Binds (with a source) and anonymous volumes (a path in the container only)."""
    binds: list[str] = []
    volumes: Document = {}
    for spec in specs:
        source, colon, rest = spec.partition(":")
        if not spec or (colon and not source) or "::" in spec or spec.endswith(":"):
            raise _refuse(f"invalid spec: {spec}: empty section between colons" if spec else "invalid empty volume spec")
        if not colon:
            volumes[spec] = {}
            continue
        if source.startswith("."):
            source = os.path.abspath(source)
        bind = f"{source}:{rest}"
        if bind not in binds:
            binds.append(bind)
    return binds, volumes


def _host_config(options: Options, binds: list[str], bindings: Document) -> Document:
    security, masked, readonly = _security(options.items("security-opt"))
    added, dropped = capabilities(options.items("cap-add"), options.items("cap-drop"))
    host: Document = {
        "Binds": binds or None,
        "ContainerIDFile": options.text("cidfile"),
        "LogConfig": {"Type": options.text("log-driver"), "Config": _pairs(options.items("log-opt"))},
        "NetworkMode": network_mode(options),
        "PortBindings": bindings,
        "RestartPolicy": restart_policy(options.text("restart")),
        "AutoRemove": options.on("rm"),
        "VolumeDriver": options.text("volume-driver"),
        "VolumesFrom": options.items("volumes-from") or None,
        "ConsoleSize": [0, 0],
    }
    if options.items("annotation"):
        host["Annotations"] = _pairs(options.items("annotation"))
    host |= {
        "CapAdd": added or None,
        "CapDrop": dropped or None,
        "CgroupnsMode": options.text("cgroupns"),
        "Dns": options.items("dns"),
        "DnsOptions": options.items("dns-option"),
        "DnsSearch": options.items("dns-search"),
        "ExtraHosts": options.items("add-host") or None,
        "GroupAdd": options.items("group-add") or None,
        "IpcMode": options.text("ipc"),
        "Cgroup": "",
        "Links": options.items("link") or None,
        "OomScoreAdj": options.number("oom-score-adj"),
        "PidMode": options.text("pid"),
        "Privileged": options.on("privileged"),
        "PublishAllPorts": options.on("publish-all"),
        "ReadonlyRootfs": options.on("read-only"),
        "SecurityOpt": security if "security-opt" in options.given else None,
    }
    if options.items("storage-opt"):
        host["StorageOpt"] = _storage(options.items("storage-opt"))
    if options.items("tmpfs"):
        host["Tmpfs"] = {path: mode for path, _, mode in (spec.partition(":") for spec in options.items("tmpfs"))}
    host |= {"UTSMode": options.text("uts"), "UsernsMode": options.text("userns"), "ShmSize": options.number("shm-size")}
    if options.items("sysctl"):
        host["Sysctls"] = _pairs(options.items("sysctl"))
    if options.text("runtime"):
        host["Runtime"] = options.text("runtime")
    host["Isolation"] = options.text("isolation")
    host |= _resources(options)
    if options.items("mount"):
        host["Mounts"] = options.objects("mount")
    host |= {"MaskedPaths": masked, "ReadonlyPaths": readonly}
    if "init" in options.given:
        host["Init"] = options.on("init")
    return host


def _resources(options: Options) -> Document:
    devices, requests = _devices(options.items("device"))
    resources: Document = {
        "CpuShares": options.number("cpu-shares"),
        "Memory": options.number("memory"),
        "NanoCpus": options.number("cpus"),
        "CgroupParent": options.text("cgroup-parent"),
        "BlkioWeight": options.number("blkio-weight"),
        "BlkioWeightDevice": options.objects("blkio-weight-device"),
        "BlkioDeviceReadBps": options.objects("device-read-bps"),
        "BlkioDeviceWriteBps": options.objects("device-write-bps"),
        "BlkioDeviceReadIOps": options.objects("device-read-iops"),
        "BlkioDeviceWriteIOps": options.objects("device-write-iops"),
        "CpuPeriod": options.number("cpu-period"),
        "CpuQuota": options.number("cpu-quota"),
        "CpuRealtimePeriod": options.number("cpu-rt-period"),
        "CpuRealtimeRuntime": options.number("cpu-rt-runtime"),
        "CpusetCpus": options.text("cpuset-cpus"),
        "CpusetMems": options.text("cpuset-mems"),
        "Devices": devices,
        "DeviceCgroupRules": options.items("device-cgroup-rule") or None,
        "DeviceRequests": [*options.objects("gpus"), *requests] or None,
    }
    resources |= {
        "MemoryReservation": options.number("memory-reservation"),
        "MemorySwap": options.number("memory-swap"),
        "MemorySwappiness": options.number("memory-swappiness"),
        "OomKillDisable": options.on("oom-kill-disable"),
        "PidsLimit": options.number("pids-limit"),
        "Ulimits": _ulimits(options.objects("ulimit")),
        "CpuCount": options.number("cpu-count"),
        "CpuPercent": options.number("cpu-percent"),
        "IOMaximumIOps": options.number("io-maxiops"),
        "IOMaximumBandwidth": options.number("io-maxbandwidth"),
    }
    return resources


def _ulimits(given: list[object]) -> list[Document]:
    """The last one of each name."""
    by_name: dict[str, Document] = {}
    for limit in given:
        if isinstance(limit, dict):
            by_name[str(limit["Name"])] = limit
    return list(by_name.values())


def _devices(specs: list[str]) -> tuple[list[Document], list[Document]]:
    """Device nodes, and requests for devices in the container device interface's naming (``vendor/class=name``)."""
    nodes: list[Document] = []
    names: list[str] = []
    for spec in specs:
        if not spec.startswith("/") and "=" in spec and "/" in spec.partition("=")[0]:
            names.append(spec)
            continue
        parts = spec.split(":")
        host, inside, mode = parts[0], parts[0], "rwm"
        if len(parts) > 3:
            raise _refuse(f"invalid device specification: {spec}")
        if len(parts) == 3:
            inside, mode = parts[1], parts[2]
            if not _is_mode(mode):
                raise _refuse(f"bad mode specified: {mode}")
        elif len(parts) == 2:
            inside, mode = (inside, parts[1]) if _is_mode(parts[1]) else (parts[1], mode)
        if not inside.startswith("/"):
            raise _refuse(f"{inside} is not an absolute path")
        nodes.append({"PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": mode})
    requests = [{"Driver": "cdi", "Count": 0, "DeviceIDs": names, "Capabilities": None, "Options": None}] if names else []
    return nodes, requests


def _is_mode(text: str) -> bool:
    return bool(text) and not text.strip("rwm") and len(set(text)) == len(text)


def _security(given: list[str]) -> tuple[list[str], list[str] | None, list[str] | None]:
    """Security options with the seccomp profile read in, and the masked and read-only paths (None leaves the defaults)."""
    from tare.cli.documents import decode, encode

    result: list[str] = []
    masked: list[str] | None = None
    for option in given:
        name, separator, value = option.partition("=")
        if not separator and name != "no-new-privileges":
            name, separator, value = option.partition(":")
            if not separator:
                raise _refuse(f'Invalid --security-opt: "{option}"')
        if option == "systempaths=unconfined":
            masked = []
            continue
        if name == "seccomp" and value not in ("builtin", "unconfined"):
            text = _read_file(value, f"opening seccomp profile ({value}) failed")
            try:
                option = f"seccomp={encode(decode(text))}"
            except ValueError as error:
                raise _refuse(f"compacting json for seccomp profile ({value}) failed: {error}") from None
        result.append(option)
    return result, masked, masked


def _storage(given: list[str]) -> dict[str, str]:
    for option in given:
        if "=" not in option:
            raise _refuse("invalid storage option")
    return _pairs(given)


def _pairs(given: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (pair.partition("=") for pair in given)}


def restart_policy(text: str) -> Document:
    """``on-failure:3`` as the API's document; the daemon judges the name."""
    name, colon, count = text.partition(":")
    if colon and not name:
        raise _refuse("invalid restart policy format: no policy provided before colon")
    retries = 0
    if count:
        try:
            retries = int(count)
        except ValueError:
            raise _refuse("invalid restart policy format: maximum retry count must be an integer") from None
    return {"Name": name, "MaximumRetryCount": retries}


def _read_file(path: str, failure: str = "") -> str:
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        reason = f"open {path}: {(error.strerror or '').lower()}"
        raise _refuse(f"{failure}: {reason}" if failure else reason) from None


def _file_lines(paths: list[str], *, local: bool) -> list[str]:
    """``KEY=value`` lines of env and label files; with ``local``, a bare KEY takes its value from our own environment."""
    result: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            raise _refuse(f"invalid env file ({path}): read {path}: is a directory")
        for line in _read_file(path).split("\n"):
            line = line.removesuffix("\r").lstrip()
            if not line or line.startswith("#"):
                continue
            name, equals, value = line.partition("=")
            name = name.lstrip()
            if not name:
                raise _refuse(f"invalid env file ({path}): no variable name on line '{line}'")
            if any(char.isspace() for char in name):
                raise _refuse(f"invalid env file ({path}): variable '{name}' contains whitespaces")
            if equals:
                result.append(f"{name}={value}")
            elif local and name in os.environ:
                result.append(f"{name}={os.environ[name]}")
    return result


def environment(files: list[str], given: list[str]) -> list[str]:
    """The Env list: files first, then flags, of which the last value of a name holds.

    A name without a value takes ours. Where we have none, a flag stays bare, by which the daemon takes the image's variable away.
    """
    chosen: dict[str, str] = {}
    for entry in given:
        name, equals, _ = entry.partition("=")
        chosen[name] = entry if equals or name not in os.environ else f"{name}={os.environ[name]}"
    return [*_file_lines(files, local=True), *chosen.values()]


def capabilities(add: list[str], drop: list[str]) -> tuple[list[str], list[str]]:
    """Full names, each once, sorted."""
    return sorted({_capability(name) for name in add}), sorted({_capability(name) for name in drop})


def _capability(name: str) -> str:
    upper = name.strip().upper()
    return upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"


def labels(files: list[str], given: list[str]) -> dict[str, str]:
    return _pairs([*_file_lines(files, local=False), *given])


def _networks(options: Options) -> list[Document]:
    return [dict(network) for network in options.objects("network") if isinstance(network, dict)]


def network_mode(options: Options) -> str:
    networks = _networks(options)
    return str(networks[0]["name"]) if networks else "default"


def _user_defined(name: str) -> bool:
    return name not in ("default", "bridge", "host", "none") and not name.startswith("container:")


def _endpoints(options: Options) -> Document:
    given = _networks(options)
    networks = given or [{"name": "default"}]
    if len({_user_defined(network["name"]) for network in networks}) > 1:
        raise _refuse("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
    first = networks[0]
    for flag, key in (("network-alias", "alias"), ("link-local-ip", "link-local-ip")):
        if options.items(flag):
            if first.get(key):
                raise _refuse(f"conflicting options: cannot specify both --{flag} and per-network {key}")
            first[key] = options.items(flag)
    for flag in ("ip", "ip6", "mac-address"):
        if options.text(flag):
            if first.get(flag):
                raise _refuse(f"conflicting options: cannot specify both --{flag} and per-network {flag}")
            first[flag] = options.text(flag)
    if options.text("network-bandwidth"):
        first["driver-opt"] = {**first.get("driver-opt", {}), "tare.bandwidth": options.text("network-bandwidth")}
    if options.items("link") and first["name"] != "default":
        first["links"] = options.items("link")
    result: Document = {}
    for network in networks:
        if network["name"] in result:
            raise _refuse(f'network "{network["name"]}" is specified multiple times')
        endpoint = _endpoint(network)
        if len(given) != 1 or any(endpoint.values()):
            result[network["name"]] = endpoint
    return result


def _endpoint(network: Document) -> Document:
    if not _user_defined(network["name"]):
        if network.get("alias"):
            raise _refuse("network-scoped aliases are only supported for user-defined networks")
        if network.get("links") and network["name"] != "bridge":
            raise _refuse("links are only supported for user-defined networks")
    mac = network.get("mac-address", "").strip()
    if mac and not networkspec.is_mac(mac):
        raise _refuse(f"{mac} is not a valid mac address")
    ipam: Document = {}
    if network.get("ip"):
        ipam["IPv4Address"] = network["ip"]
    if network.get("ip6"):
        ipam["IPv6Address"] = network["ip6"]
    if network.get("link-local-ip"):
        ipam["LinkLocalIPs"] = network["link-local-ip"]
    return {
        "IPAMConfig": ipam or None,
        "Links": network.get("links"),
        "Aliases": network.get("alias"),
        "MacAddress": mac,
        "DriverOpts": network.get("driver-opt"),
        "GwPriority": network.get("gw-priority", 0),
    }
