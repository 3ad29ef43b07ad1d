"""Which hierarchies a mountinfo file shows."""

from __future__ import annotations

from tare.linux.cgroup.detect import parse_mountinfo

ROOT = "/sys/fs/cgroup"

V2 = """\
24 1 0:22 / / rw - ext4 /dev/vda rw
35 24 0:30 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
"""

V1 = """\
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro,mode=755
32 31 0:29 / /sys/fs/cgroup/systemd rw,relatime shared:11 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/agent,name=systemd
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:12 master:3 - cgroup cgroup rw,cpu,cpuacct
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset,clone_children
"""

HYBRID = V1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def test_unified() -> None:
    layout = parse_mountinfo(V2.splitlines(), ROOT)
    assert layout.mode == "v2"
    assert layout.unified is not None and layout.unified.mount == ROOT


def test_v1_with_comounted_and_named() -> None:
    layout = parse_mountinfo(V1.splitlines(), ROOT)
    assert layout.mode == "v1"
    assert [(h.mount.removeprefix(ROOT), sorted(h.controllers), h.name) for h in layout.v1] == [
        ("/systemd", [], "systemd"),
        ("/cpu,cpuacct", ["cpu", "cpuacct"], ""),
        ("/cpuset", ["cpuset"], ""),
    ]
    assert layout.hierarchy("cpuacct") is layout.hierarchy("cpu") is layout.v1[1]
    assert layout.hierarchy("memory") is None


def test_hybrid() -> None:
    layout = parse_mountinfo(HYBRID.splitlines(), ROOT)
    assert layout.mode == "hybrid"
    assert layout.unified is not None and layout.unified.mount == f"{ROOT}/unified"


def test_mounts_elsewhere_do_not_count() -> None:
    assert parse_mountinfo(V2.replace(ROOT, "/mnt/cg").splitlines(), ROOT).unified is None
    assert parse_mountinfo(V2.replace(ROOT, f"{ROOT}X").splitlines(), ROOT).unified is None


def test_whole_hierarchy_wins_over_a_bind_of_a_part() -> None:
    bind = "50 31 0:31 /part /sys/fs/cgroup/bind rw - cgroup cgroup rw,cpuset\n"
    layout = parse_mountinfo((bind + V1).splitlines(), ROOT)
    assert [h.mount for h in layout.v1 if "cpuset" in h.controllers] == [f"{ROOT}/cpuset"]


def test_the_same_hierarchy_mounted_twice_counts_once() -> None:
    twice = V1 + "60 31 0:31 / /sys/fs/cgroup/again rw - cgroup cgroup rw,cpuset\n"
    assert len(parse_mountinfo(twice.splitlines(), ROOT).v1) == 3


def test_escaped_mount_point() -> None:
    layout = parse_mountinfo(V2.replace(ROOT, "/a\\040b").splitlines(), "/a b")
    assert layout.unified is not None and layout.unified.mount == "/a b"
