"""A plan as a page for humans: numbered steps under headings, in the order in which they happen.

A step describes itself; where its own words are terse (bit sets, flags), the page spells them out.
"""

from __future__ import annotations

import json
from typing import Any

from tare.linux import capabilities
from tare.linux.constants import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_PRIVATE,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)
from tare.runtime import hooks
from tare.runtime.cli import bundle as bundles
from tare.runtime.plan import Plan, Step
from tare.runtime.steps import kernel, mounts, namespaces, network, process, rootfs

ATTRIBUTES = {MOUNT_ATTR_RDONLY: "ro", MOUNT_ATTR_NOSUID: "nosuid", MOUNT_ATTR_NODEV: "nodev", MOUNT_ATTR_NOEXEC: "noexec"}
PROPAGATION = {MS_PRIVATE: "private", MS_SHARED: "shared", MS_SLAVE: "slave", MS_UNBINDABLE: "unbindable"}


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
        sections[-1][1].append(words(item))
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
        "own": "fork the init, which makes its pid namespace itself",
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
    if isinstance(item, kernel.LoopbackUp | network.ConfigureLink):
        return "init: network"
    if isinstance(item, kernel.SetNames | kernel.SetSysctls):
        return "init: kernel parameters"
    if isinstance(item, rootfs.ReadonlyPaths | rootfs.MaskPaths | rootfs.PivotRoot):
        return "init: close the root"
    if isinstance(item, kernel.SetLimits | process.NumericUser | kernel.ApparmorProfile):
        return "init: become the program"
    return before


def words(item: Step) -> str:
    """What a step does, in words."""
    if isinstance(item, mounts.PrivateMounts):
        kind = PROPAGATION.get(item.propagation, hex(item.propagation))
        return f"make the whole mount tree {kind}: nothing of ours shows on the host"
    if isinstance(item, mounts.MountFilesystem):
        options = [*_attributes(item.attributes), *item.options]
        return f"mount {item.fstype} on {item.destination}" + (f" ({','.join(options)})" if options else "")
    if isinstance(item, namespaces.NamespacesReady):
        return "report that the namespaces exist"
    if isinstance(item, process.DropPrivileges):
        names = " ".join(_capabilities(item.bounding)) or "none"
        text = f"become the user, umask {item.umask:03o}; capabilities {names}; inheritable and ambient none"
        limited = item.permitted & ~item.effective
        return text + (f"; permitted but not effective {' '.join(_capabilities(limited))}" if limited else "")
    if isinstance(item, process.FindProgram):
        return f"find {item.args[0]!r} in the container's PATH" if "/" not in item.args[0] else f"find {item.args[0]}"
    if isinstance(item, process.Execute):
        return "report that all is ready, execute the program"
    return item.describe()


def _attributes(bits: int) -> list[str]:
    return [name for bit, name in ATTRIBUTES.items() if bits & bit]


def _capabilities(bits: int) -> list[str]:
    names = [name.removeprefix("CAP_").lower() for number, name in enumerate(capabilities.NAMES) if bits >> number & 1]
    return ["all"] if len(names) == len(capabilities.NAMES) else names
