"""plan, spec, features: documents about containers and about this runtime. Nothing here runs anything."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

from tare.linux import capabilities
from tare.linux.namespaces import OCI_NAMES
from tare.runtime import mount_options
from tare.runtime.cli import bundle as bundles
from tare.runtime.cli import hooks
from tare.runtime.cli.call import Call
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.state import check_id, layout
from tare.runtime.plan import Plan, Step
from tare.runtime.steps import kernel, mounts, namespaces, process, rootfs

HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


def plan(call: Call) -> int:
    """Print what ``create`` and ``start`` would do, step by step."""
    bundle = bundles.load(call.options.text("bundle") or ".")
    container_id = call.arguments[0] if call.arguments else "container"
    check_id(container_id)
    # A number for the start socket, which does not exist yet; it is not shown.
    made = bundles.lower(bundle, container_id, call.store.directory(container_id), layout(), listener=3)
    if call.options.flag("json"):
        print(json.dumps(made.to_json(), indent=2))
        return 0
    print(render(made, bundle, sys.stdout.isatty()))
    return 0


def render(made: Plan, bundle: bundles.Bundle, colour: bool) -> str:
    """The plan as numbered lines under headings."""
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if colour else ("", "", "")
    args = " ".join(str(word) for word in bundle.config["process"].get("args") or ())
    lines = [f"{bold}{made.id}{plain}  {args}", f"{dim}{bundle.path}{plain}"]
    sections: list[tuple[str, list[str]]] = [("around it: tare-runtime create", around(made, bundle))]
    for item in made.steps:
        heading = section(item, sections[-1][0])
        if heading != sections[-1][0]:
            sections.append((heading, []))
        sections[-1][1].append(item.describe())
    after = [f"run poststart hook {hook.path}" for hook in hooks.read(bundle.config, "poststart")]
    if after:
        sections.append(("after the start: tare-runtime start", after))
    number = 0
    for heading, texts in sections:
        lines += ["", f"{bold}{heading}{plain}"]
        for text in texts:
            number += 1
            lines += _wrapped(text, f"{dim}{number:4}{plain}  ", 6)
    lines += [f"{dim}warning: {warning}{plain}" for warning in bundle.warnings]
    return "\n".join(lines)


def _wrapped(text: str, prefix: str, indent: int, width: int = 110) -> list[str]:
    """A long step goes on under itself."""
    rows, row = [], ""
    for word in text.split(" "):
        if row and len(row) + 1 + len(word) > width - indent:
            rows.append(row)
            row = "  " + word
        else:
            row = f"{row} {word}" if row else word
    rows.append(row)
    return [prefix + rows[0], *(" " * indent + later for later in rows[1:])]


def around(made: Plan, bundle: bundles.Bundle) -> list[str]:
    """What the command itself does."""
    keeper = made.keeper
    limits = {key: value for key, value in keeper.resources.items() if key != "devices"}
    lines = []
    if keeper.cgroup:
        text = ", ".join(f"{section} {json.dumps(values, sort_keys=True)}" for section, values in sorted(limits.items()))
        lines.append(f"make cgroup {keeper.cgroup}" + (f" with {text}" if text else ""))
        lines.append("allow devices: " + " ".join(_rule(rule) for rule in keeper.resources["devices"]))
    where = {
        "new": "enter a new pid namespace and fork the init as its process 1",
        "host": "fork the init in the host's pid namespace",
        "own": "fork the init, which makes its user and pid namespaces itself",
    }
    lines.append(where.get(keeper.pid_namespace, f"join the pid namespace {keeper.pid_namespace} and fork the init"))
    for name, maps in (("user", keeper.uid_map), ("group", keeper.gid_map)):
        if maps:
            lines.append(f"map {name} ids " + ", ".join(f"{m.container}-{m.container + m.size - 1} to {m.host} and up" for m in maps))
    for kind in ("prestart", "createRuntime"):
        lines.extend(f"run {kind} hook {hook.path}" for hook in hooks.read(bundle.config, kind))
    return lines


def _rule(rule: dict[str, Any]) -> str:
    def number(key: str) -> str:
        value = rule.get(key)
        return "*" if value is None or int(value) < 0 else str(value)

    sign = "+" if rule.get("allow") else "-"
    return f"{sign}{rule.get('type') or 'a'}{number('major')}:{number('minor')}/{rule.get('access') or 'rwm'}"


def section(item: Step, before: str) -> str:
    """Under which heading a step stands."""
    if isinstance(item, process.NewSession | namespaces.OpenNamespaces | namespaces.NewNamespaces | namespaces.NewUserNamespace):
        return "init: namespaces"
    if isinstance(item, mounts.OpenSources | mounts.PrivateMounts):
        return "init: root file system"
    if isinstance(item, kernel.LoopbackUp | kernel.SetNames | kernel.SetSysctls):
        return "init: kernel parameters"
    if isinstance(item, rootfs.ReadonlyPaths | rootfs.MaskPaths | rootfs.PivotRoot):
        return "init: close the root"
    if isinstance(item, kernel.SetLimits | process.NumericUser | kernel.ApparmorProfile):
        return "init: become the program"
    return before


def spec(call: Call) -> int:
    """Write an example configuration."""
    path = os.path.join(call.options.text("bundle") or ".", "config.json")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise RuntimeFailure(f"file {path} exists. Remove it first") from None
    with open(fd, "w") as file:
        json.dump(example(), file, indent="\t")
        file.write("\n")
    return 0


def example() -> dict[str, Any]:
    """A shell in a read-only root, with few capabilities and namespaces of its own."""
    held = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    safe = ["nosuid", "noexec", "nodev"]

    def mount(destination: str, fstype: str, *options: str, source: str = "") -> dict[str, Any]:
        return {"destination": destination, "type": fstype, "source": source or fstype, "options": list(options)}

    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": held, "effective": held, "permitted": held},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "tare",
        "mounts": [
            mount("/proc", "proc", *safe),
            mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
            mount("/dev/shm", "tmpfs", *safe, "mode=1777", "size=65536k", source="shm"),
            mount("/dev/mqueue", "mqueue", *safe),
            mount("/sys", "sysfs", *safe, "ro"),
            mount("/sys/fs/cgroup", "cgroup", *safe, "relatime", "ro"),
        ],
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "cgroup", "mount")],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }  # fmt: skip


def features(call: Call) -> int:
    """Print the features document of the OCI runtime-spec."""
    print(json.dumps(supported(), indent=2))
    return 0


def supported() -> dict[str, Any]:
    """What this runtime does, whatever the present machine offers."""
    options = {*mount_options.PROPAGATION, *mount_options._ATTRIBUTES, "bind", "rbind", "defaults", "remount"}
    options |= {"r" + name for name in mount_options._ATTRIBUTES}
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": list(HOOKS),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": sorted(set(OCI_NAMES) - {"time"}),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": False, "systemdUser": False, "rdma": True},
            "seccomp": seccomp_features(),
            "apparmor": {"enabled": os.path.exists("/sys/module/apparmor")},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
        },
        "annotations": {"tare.runtime.python": platform.python_version()},
    }


def seccomp_features() -> dict[str, Any]:
    """What the filter compiler knows."""
    from tare.linux import seccomp

    return {
        "enabled": True,
        "actions": sorted(seccomp._ACTIONS),
        "operators": sorted("SCMP_CMP_" + name for name in seccomp._OPERATORS),
        "archs": sorted(seccomp._ARCH_NAMES),
        "knownFlags": sorted(seccomp._FLAGS),
        "supportedFlags": sorted(seccomp._FLAGS),
    }
