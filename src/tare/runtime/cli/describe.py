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
from tare.runtime.cli.call import Call
from tare.runtime.cli.rendering import render
from tare.runtime.cli.report import RuntimeFailure
from tare.runtime.cli.state import check_id, layout

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
            "mountExtensions": {"idmap": {"enabled": True}},
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
