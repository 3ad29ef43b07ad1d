"""Devices by name: specifications are found, merged and refused as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tare.builder import rundevices
from tare.builder.instructions import RunDevice
from tare.containers import cdi
from tare.containers.machine import Machine
from tare.errors import InvalidArgument
from tare.wire.container import DeviceRequest

NVIDIA = """\
---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/null
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    - --link
    - ../libnvidia-allocator.so.1::/usr/lib/x86_64-linux-gnu/gbm/nvidia-drm_gbm.so
    env:
    - NVIDIA_CTK_DEBUG=false
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.15
    options: [ro, nosuid, nodev, bind]
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/a
      hostPath: /dev/zero
      fileMode: 0660
      permissions: rw
      major: 0x0
  name: 0  # a name, though it looks like a number
- containerEdits: &all
    deviceNodes:
    - {path: /dev/b, type: c, major: 195, minor: 255, uid: 7, permissions: none}
    mounts:
  name: all
- {name: GPU-4cf8db2d, containerEdits: *all}
kind: nvidia.com/gpu
"""
"""As ``nvidia-ctk cdi generate`` writes, and what else YAML allows."""


def specification(kind: str = "example.com/dev", **edits: Any) -> dict[str, Any]:
    return {
        "cdiVersion": "0.7.0",
        "kind": kind,
        "annotations": {"written.by": "hand"},
        "containerEdits": {"env": ["SHARED=1"]},
        "devices": [
            {"name": "a", "containerEdits": {"env": ["WHICH=a"], "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/null"}], **edits}},
            {"name": "all", "containerEdits": {"env": ["WHICH=all"]}},
        ],
    }


def known(folder: Path, *documents: object) -> cdi.Known:
    for number, document in enumerate(documents):
        text = document if isinstance(document, str) else json.dumps(document)
        (folder / f"{number}.{'yaml' if isinstance(document, str) else 'json'}").write_text(text)
    return cdi.known_devices([folder, folder / "absent"])


def configuration(**changes: Any) -> dict[str, Any]:
    return {"process": {"env": ["WHICH=none", "A=1"]}, "mounts": [], "linux": {"resources": {"devices": []}}, **changes}


def test_edits_reach_the_configuration(tmp_path: Path) -> None:
    mounts = [{"hostPath": "/lib/x", "containerPath": "/x", "options": ["ro"]}]
    found = known(tmp_path, specification(mounts=mounts, additionalGids=[0, 44]), "{broken")
    names = cdi.names_of([DeviceRequest(driver="cdi", device_ids=["example.com/dev=a"])], found)
    document = configuration(mounts=[{"destination": path} for path in ("/x", "/x/below", "/proc")])
    edits = cdi.edits_of(names, found)
    cdi.inject(document, edits, Machine())
    assert document["process"]["env"] == ["A=1", "SHARED=1", "WHICH=a"]
    assert document["linux"]["devices"][0] == {"path": "/dev/a", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}
    assert document["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm", "type": "c", "major": 1, "minor": 3}]
    assert [mount["destination"] for mount in document["mounts"]] == ["/proc", "/x", "/x/below"]
    assert document["mounts"][1] == {"destination": "/x", "type": "bind", "source": "/lib/x", "options": ["ro", "rbind"]}
    assert cdi.groups_of(edits) == ("44",)


def test_yaml_as_vendors_write_it(tmp_path: Path) -> None:
    found = known(tmp_path, NVIDIA)
    assert not found.problems and sorted(found.devices) == [f"nvidia.com/gpu={name}" for name in ("0", "GPU-4cf8db2d", "all")]
    document = configuration()
    cdi.inject(document, cdi.edits_of(["nvidia.com/gpu=0", "nvidia.com/gpu=all"], found), Machine())
    devices = {device["path"]: device for device in document["linux"]["devices"]}
    assert devices["/dev/a"] == {"path": "/dev/a", "type": "c", "major": 1, "minor": 5, "fileMode": 0o660, "uid": 0, "gid": 0}
    assert (devices["/dev/b"]["major"], devices["/dev/b"]["uid"]) == (195, 7)
    assert [rule["access"] for rule in document["linux"]["resources"]["devices"]] == [
        "rwm",
        "rw",
    ]  # of /dev/null, which all share, and /dev/a
    assert [hook["args"][1] for hook in document["hooks"]["createContainer"]] == ["create-symlinks"]


def test_the_later_directory_counts_and_one_directory_has_no_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    other = specification()
    other["devices"][0]["containerEdits"] = {"env": ["WHICH=second"]}
    other["devices"].pop()
    known(first, specification())
    known(second, other)
    found = cdi.known_devices([first, second])
    assert [edits.env for edits in cdi.edits_of(["example.com/dev=a"], found)] == [["SHARED=1"], ["WHICH=second"]]
    assert "example.com/dev=all" in found.devices
    known(second, other, other)
    found = cdi.known_devices([first, second])
    with pytest.raises(InvalidArgument, match=r"unresolvable CDI devices example.com/dev=a \(example.com/dev=a: conflicting device"):
        cdi.edits_of(["example.com/dev=a"], found)
    (second / "1.json").unlink()  # what was read is read again once it has changed
    assert "example.com/dev=a" in cdi.known_devices([first, second]).devices


@pytest.mark.parametrize(
    ("request_", "names"),
    [
        (DeviceRequest(count=-1, capabilities=[["gpu"]]), ["nvidia.com/gpu=all"]),
        (DeviceRequest(count=1, capabilities=[["gpu"]]), ["nvidia.com/gpu=a"]),
        (DeviceRequest(driver="nvidia", device_ids=["a"], capabilities=[["gpu", "compute"]]), ["nvidia.com/gpu=a"]),
    ],
)
def test_gpus(tmp_path: Path, request_: DeviceRequest, names: list[str]) -> None:
    assert cdi.names_of([request_], known(tmp_path, specification("nvidia.com/gpu"))) == names


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (DeviceRequest(count=-1, capabilities=[["gpu"]]), 'could not select device driver "" with capabilities: [[gpu]]'),
        (DeviceRequest(driver="bogus", capabilities=[["gpu"]]), 'could not select device driver "bogus" with capabilities: [[gpu]]'),
        (DeviceRequest(driver="cdi", device_ids=["x.com/y=z"]), "CDI device injection failed: unresolvable CDI devices x.com/y=z"),
        (DeviceRequest(driver="cdi", device_ids=["rdt.com/dev=a"]), "rdt.com/dev=a wants Intel RDT (intelRdt), which Tare does not offer"),
    ],
)
def test_refused(tmp_path: Path, request_: DeviceRequest, text: str) -> None:
    found = known(tmp_path, specification("rdt.com/dev", intelRdt={"closID": "x"}))
    with pytest.raises(InvalidArgument) as caught:
        cdi.edits_of(cdi.names_of([request_], found), found)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"cdiVersion": "9.0.0"}, 'invalid version "9.0.0"'),
        ({"cdiVersion": "0.5.0"}, "the spec version must be at least v0.6.0"),
        ({"cdiVersion": "v0.4.0", "annotations": {}}, "the spec version must be at least v0.5.0"),
        ({"kind": "plain"}, 'invalid kind "plain"'),
        ({"devices": []}, "invalid spec, no devices"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"devices": [{"name": "a", "containerEdits": {}}]}, 'invalid device "a": empty device edits'),
        ({"devices": [{"name": "-a", "containerEdits": {"env": ["A=1"]}}]}, 'invalid device name "-a"'),
        ({"devices": [{"name": "a", "containerEdits": {"env": ["A=1"]}}] * 2}, 'multiple device "a"'),
        ({"containerEdits": {"env": ["A"]}}, 'invalid environment variable "A"'),
        ({"containerEdits": {"deviceNodes": [{"path": "/dev/x", "type": "q"}]}}, 'device "/dev/x": invalid type "q"'),
        ({"containerEdits": {"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]}}, 'device "/dev/x": invalid permissions "rx"'),
        ({"containerEdits": {"hooks": [{"hookName": "poweroff", "path": "/x"}]}}, 'invalid hook name "poweroff"'),
        ({"containerEdits": {"hooks": [{"hookName": "prestart", "path": "x"}]}}, "its path is not absolute"),
        ({"containerEdits": {"mounts": [{"hostPath": "", "containerPath": "/x"}]}}, "invalid mount, empty host path"),
    ],
)
def test_invalid_files_are_told_with_their_reason(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    found = known(tmp_path, specification() | change)
    with pytest.raises(InvalidArgument) as caught:
        cdi.edits_of(["example.com/dev=a"], found)
    assert f"unresolvable CDI devices example.com/dev=a ({tmp_path}/0.json: " in str(caught.value) and text in str(caught.value)


@pytest.mark.parametrize("text", ["a: *b\n", "- [" * 5000, "&x [*x]\n", "kind: a/b\nkind: c/d\n", "!!python/object:os.system {}\n", "\0"])
def test_hostile_yaml_is_a_problem_of_its_file(tmp_path: Path, text: str) -> None:
    found = known(tmp_path, text)
    assert not found.devices and list(found.problems) == [str(tmp_path / "0.yaml")]


def test_devices_of_builds(tmp_path: Path) -> None:
    open_ = specification("open.com/dev")
    open_["annotations"] = {"org.mobyproject.buildkit.device.autoallow": "true"}
    open_["devices"][0]["annotations"] = {"org.mobyproject.buildkit.device.class": "fast"}
    found = known(tmp_path, specification(), open_)

    def chosen(*names: str, allow: tuple[str, ...] = (), required: bool = True) -> list[str]:
        return rundevices.chosen([RunDevice(name, required) for name in names], found, allow)

    assert chosen("open.com/dev", "open.com/dev=*", "open.com/dev=fast") == ["open.com/dev=a", "open.com/dev=all"]
    assert chosen("example.com/dev=a", allow=("device=example.com/dev=a",)) == ["example.com/dev=a"]
    assert chosen("example.com/dev=*", allow=("device",)) == ["example.com/dev=a", "example.com/dev=all"]
    assert chosen("example.com/none", required=False) == []
    with pytest.raises(InvalidArgument, match=r"devices example.com/dev=a, example.com/dev=all are requested by the build but not allowed"):
        chosen("example.com/dev=*", "open.com/dev=fast", allow=("device=open.com/dev",))
    with pytest.raises(InvalidArgument, match=r'required device "example.com/none" is not registered'):
        chosen("example.com/none")
