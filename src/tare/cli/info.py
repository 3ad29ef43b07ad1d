"""``info``: the daemon at a glance."""

from __future__ import annotations

import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.humanize import binary_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tare.cli.context import Context
    from tare.cli.flags import Options


def text(info: dict[str, Any]) -> str:
    """The server's part, in docker's order."""
    lines = [
        f" Containers: {info.get('Containers', 0)}",
        f"  Running: {info.get('ContainersRunning', 0)}",
        f"  Paused: {info.get('ContainersPaused', 0)}",
        f"  Stopped: {info.get('ContainersStopped', 0)}",
        f" Images: {info.get('Images', 0)}",
        f" Server Version: {info.get('ServerVersion', '')}",
        f" Storage Driver: {info.get('Driver', '')}",
    ]
    lines += [f"  {name}: {value}" for name, value in info.get("DriverStatus") or ()]
    for label, key in (("Logging Driver", "LoggingDriver"), ("Cgroup Driver", "CgroupDriver"), ("Cgroup Version", "CgroupVersion")):
        if info.get(key):
            lines.append(f" {label}: {info[key]}")
    plugins = info.get("Plugins") or {}
    if plugins:
        lines.append(" Plugins:")
        lines += [f"  {name}: {' '.join(plugins[name])}" for name in ("Volume", "Network", "Log") if plugins.get(name)]
    if info.get("CDISpecDirs"):
        lines += [" CDI spec directories:", *(f"  {path}" for path in info["CDISpecDirs"])]
    if info.get("DiscoveredDevices"):
        lines += [" Discovered Devices:", *(f"  {device['Source']}: {device['ID']}" for device in info["DiscoveredDevices"])]
    if info.get("Swarm"):
        lines.append(f" Swarm: {info['Swarm'].get('LocalNodeState') or 'inactive'}")
    if info.get("Runtimes"):
        lines += [f" Runtimes: {' '.join(sorted(info['Runtimes']))}", f" Default Runtime: {info.get('DefaultRuntime', '')}"]
    if "InitBinary" in info:
        lines.append(f" Init Binary: {info['InitBinary']}")
    for label, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
        if key in info:
            lines.append(f" {label} version: {(info[key] or {}).get('ID', '')}")
    if info.get("SecurityOptions"):
        lines.append(" Security Options:")
        for option in info["SecurityOptions"]:
            fields = dict(part.partition("=")[::2] for part in option.split(","))
            lines.append(f"  {fields.pop('name', option)}")
            lines += [f"   {name.capitalize()}: {value}" for name, value in fields.items()]
    for label, key in (
        ("Kernel Version", "KernelVersion"), ("Operating System", "OperatingSystem"), ("OSType", "OSType"),
        ("Architecture", "Architecture"),
        ("CPUs", "NCPU"),
    ):  # fmt: skip
        lines.append(f" {label}: {info.get(key, '')}")
    lines.append(f" Total Memory: {binary_size(info.get('MemTotal') or 0)}")
    for label, key in (("Name", "Name"), ("ID", "ID"), ("Docker Root Dir", "DockerRootDir"), ("Debug Mode", "Debug")):
        value = info.get(key, "")
        lines.append(f" {label}: {str(value).lower() if isinstance(value, bool) else value}")
    if info.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in info["Labels"])]
    lines.append(f" Experimental: {str(bool(info.get('ExperimentalBuild'))).lower()}")
    lines += _registries(info.get("RegistryConfig") or {})
    lines.append(f" Live Restore Enabled: {str(bool(info.get('LiveRestoreEnabled'))).lower()}")
    if info.get("DefaultAddressPools"):
        lines.append(" Default Address Pools:")
        lines += [f"   Base: {pool['Base']}, Size: {pool['Size']}" for pool in info["DefaultAddressPools"]]
    if info.get("FirewallBackend"):
        lines.append(f" Firewall Backend: {info['FirewallBackend']['Driver']}")
    return "\n".join(lines) + "\n"


def _registries(registries: dict[str, Any]) -> list[str]:
    insecure = [
        *(name for name, entry in (registries.get("IndexConfigs") or {}).items() if not entry.get("Secure")),
        *(registries.get("InsecureRegistryCIDRs") or ()),
    ]
    lines = []
    if insecure:
        lines += [" Insecure Registries:", *(f"  {name}" for name in insecure)]
    if registries.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in registries["Mirrors"])]
    return lines


def _info(context: Context, options: Options) -> int:
    from tare.cli.version import CLIENT_VERSION

    choice = context.choice()
    client_part = {
        "Debug": False, "Version": CLIENT_VERSION, "Context": choice.context, "Plugins": [], "Warnings": None, "Host": choice.host,
        "HostFrom": choice.source,
    }  # fmt: skip
    layout = options.text("format")
    failure: CliError | None = None
    info: dict[str, Any] = {}
    try:
        info = context.client.call("GET", "/info")
    except CliError as error:
        failure = error
    document = {**info, "ClientInfo": client_part}
    if layout == "json":
        from tare.cli.documents import encode

        sys.stdout.write(encode(document) + "\n")
    elif layout:
        from tare.cli.tables import write_one
        from tare.cli.templatefunctions import MISSING

        try:
            write_one(layout, {**document, MISSING: "system.dockerInfo"})
        except CliError as error:
            failure = failure or error
    else:
        client_lines = (
            ("Version", CLIENT_VERSION),
            ("Context", choice.context),
            ("Debug Mode", "false"),
            ("Host", f"{choice.host} ({choice.source})"),
        )
        sys.stdout.write("Client:\n" + "".join(f" {label + ':':<12}{value}\n" for label, value in client_lines) + "\nServer:\n")
        if failure is None:
            sys.stdout.write(text(info) + "\n")
            sys.stdout.flush()
            for warning in info.get("Warnings") or ():
                sys.stderr.write(f"{warning}\n")
    if failure is not None:
        raise failure
    return 0


INFO = Command(
    "info",
    "info [OPTIONS]",
    "Display system-wide information",
    _info,
    (("format", "f", "string", "Format output: 'json' or a Go template, such as '{{.ServerVersion}}'"),),
    most=0,
    aliases=("system info", "info"),
)
