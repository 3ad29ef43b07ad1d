"""Volumes over a plain directory: names, options, creation and removal that a kill may interrupt, mount specifications."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tare.containers.mounts import parse_bind, parse_volumes_from, propagate, resolve_mounts
from tare.containers.record import MountPoint
from tare.errors import Conflict, InvalidArgument, NotFound, StartFailed
from tare.events import EventBus
from tare.linux.mountinfo import covering, parse
from tare.store.metadata import Metadata
from tare.volumes.mounting import parse_options
from tare.volumes.service import Volumes
from tare.wire.container import BindOptions, HostConfig, Mount, VolumeOptions


@pytest.fixture
def volumes(tmp_path: Path):  # type: ignore[no-untyped-def]
    metadata = Metadata(tmp_path / "db")
    service = Volumes(tmp_path / "volumes", metadata.volumes, EventBus())
    service.start()
    yield service
    metadata.close()


def test_what_is_created_is_found_and_what_is_removed_is_gone(volumes: Volumes) -> None:
    made = volumes.create("data", labels={"a": "b"})
    assert volumes.create("data") is made and volumes.mountpoint("data").stat().st_mode & 0o777 == 0o755
    anonymous = volumes.create()
    assert anonymous.labels == {"com.docker.volume.anonymous": ""} and len(anonymous.name) == 64
    for name in ("data", anonymous.name):
        volumes.remove(name)
    assert os.listdir(volumes.mountpoint("data").parents[1]) == []
    with pytest.raises(NotFound, match="get data: no such volume"):
        volumes.remove("data")
    volumes.remove("data", force=True)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("v", {}, "volume name is too short"),
        ("../x", {}, "includes invalid characters"),
        ("x" * 256, {}, "too long"),
        ("vv", {"odd": "x"}, 'create vv: invalid option: "odd"'),
        ("vv", {"type": "tmpfs"}, 'create vv: missing required option: "device"'),
        ("vv", {"device": "/x"}, 'create vv: missing required option: "type"'),
        ("vv", {"size": "much"}, "create vv: invalid size: 'much'"),
        ("vv", {"uid": "-1"}, 'invalid value for option "uid"'),
        ("vv", {"mode": "999"}, 'invalid value for option "mode"'),
        ("vv", {"uid": "4294967295"}, 'invalid value for option "uid"'),
    ],
)
def test_bad_volumes_leave_nothing(volumes: Volumes, name: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        volumes.create(name, options=options)
    assert text in str(caught.value) and os.listdir(volumes.mountpoint("x").parents[1]) == []


def test_unknown_driver_and_use(volumes: Volumes) -> None:
    with pytest.raises(NotFound, match='create vv: error looking up volume plugin nope: plugin "nope" not found'):
        volumes.create("vv", "nope")
    volumes.create("vv")
    volumes.users = lambda name: ["c1"]
    with pytest.raises(Conflict, match=r"remove vv: volume is in use - \[c1\]"):
        volumes.remove("vv")


def test_a_start_sweeps_what_a_kill_left(volumes: Volumes) -> None:
    root = volumes.mountpoint("x").parents[1]
    for leftover in (".new-1/_data", ".old-2/_data/deep"):
        (root / leftover).mkdir(parents=True)
    (root / "halfmade" / "_data").mkdir(parents=True)
    volumes.create("kept")
    volumes.start()
    assert sorted(os.listdir(root)) == ["halfmade", "kept"]
    volumes.create("halfmade")
    (root / "foreign" / "_data" / "file").mkdir(parents=True)
    with pytest.raises(Conflict, match="is no volume's"):
        volumes.create("foreign")
    assert sorted(os.listdir(root)) == ["foreign", "halfmade", "kept"]


def test_mount_options_are_split_as_mount_does() -> None:
    assert parse_options("ro,noexec,size=3m,rw,rslave") == (8, [1 << 19 | 16384], "size=3m")
    assert parse_options("rbind") == (4096 | 16384, [], "")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("vol:/d:ro,rw", "invalid mode: ro,rw"),
        ("vol:/d:z,Z", "invalid mode: z,Z"),
        ("vol:/d:copy", "invalid mode: copy"),
        ("/d:ro", "invalid volume specification: '/d:ro'"),
        ("/a:/d:nocopy", 'type "bind": field VolumeOptions must not be specified'),
        ("vol:/d:shared", 'type "volume": field BindOptions must not be specified'),
        ("/a:/", "destination can't be '/'"),
        ("a:/d", "volume name is too short"),
        (":/d", "invalid volume specification: ':/d'"),
    ],
)
def test_bad_binds(text: str, error: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_bind(text)
    assert error in str(caught.value)


def test_modes_and_defaults() -> None:
    assert (parse_bind("vol:/d").mode, parse_bind("vol:/d:ro").mode, parse_bind("/d").mode, parse_bind("/a:/d").mode) == (
        "z",
        "ro",
        "z",
        "",
    )
    assert parse_volumes_from("c:ro,z") == ("c", "ro") and parse_volumes_from("c") == ("c", "rw")
    for bad in ("c:nocopy", "c:rshared", "c:ro,rw"):
        with pytest.raises(InvalidArgument, match="invalid mode"):
            parse_volumes_from(bad)
    points = resolve_mounts(HostConfig(binds=["/:/host", "/x:/x"]), [], data_root="/var/lib/tare")
    assert [point.propagation for point in points] == ["rslave", "rprivate"]
    with pytest.raises(InvalidArgument, match="must use either propagation mode"):
        resolve_mounts(HostConfig(binds=["/:/host:private"]), [], data_root="/var/lib/tare")


@pytest.mark.parametrize("subpath", ["../x", "/abs", "a/../../b"])
def test_subpaths_stay_inside(subpath: str) -> None:
    mount = Mount(type="volume", source="vol", target="/d", volume_options=VolumeOptions(subpath=subpath))
    with pytest.raises(InvalidArgument, match="subpath must be a relative path within the volume"):
        resolve_mounts(HostConfig(mounts=[mount]), [])


def test_recursively_read_only_needs_read_only() -> None:
    mount = Mount(type="bind", source="/", target="/d", bind_options=BindOptions(read_only_force_recursive=True))
    with pytest.raises(InvalidArgument, match="must be read-only when ReadOnlyForceRecursive"):
        resolve_mounts(HostConfig(mounts=[mount]), [])


_TABLE = """\
20 1 8:1 / / rw,relatime - ext4 /dev/a rw
21 20 0:20 / /sh\\040ared rw shared:5 - tmpfs tmpfs rw
22 20 0:21 / /slave rw master:5 - tmpfs tmpfs rw
"""


def test_propagation_is_checked_against_the_hosts_mounts() -> None:
    table = parse(_TABLE.splitlines())
    entry = covering("/sh ared/deep", table)
    assert entry is not None and entry.path == "/sh ared" and entry.shared

    def point(source: str, mode: str) -> MountPoint:
        return MountPoint(type="bind", source=source, destination="/d", propagation=mode)

    with pytest.raises(StartFailed, match="path /x is mounted on / but it is not a shared mount"):
        propagate([point("/x", "rshared")], lambda: table)
    with pytest.raises(StartFailed, match="not a shared or slave mount"):
        propagate([point("/x", "slave")], lambda: table)
    assert propagate([point("/sh ared", "rshared")], lambda: table)[1] == "shared"
    assert propagate([point("/slave/x", "rslave")], lambda: table)[1] == "rslave"
