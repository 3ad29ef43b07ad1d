"""Devices by name: specifications are found, merged and refused as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tare.containers import cdi
from tare.containers.machine import Machine
from tare.errors import InvalidArgument
from tare.wire.container import DeviceRequest


def specification(kind: str = "example.com/dev", **edits: Any) -> dict[str, Any]:
    return {
        "cdiVersion": "0.6.0",
        "kind": kind,
        "containerEdits": {"env": ["SHARED=1"]},
        "devices": [
            {"name": "a", "containerEdits": {"env": ["WHICH=a"], "deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/null"}], **edits}},
            {"name": "all", "containerEdits": {"env": ["WHICH=all"]}},
        ],
    }


def known(folder: Path, *documents: object) -> list[cdi.Specification]:
    for number, document in enumerate(documents):
        (folder / f"{number}.json").write_text(json.dumps(document))
    return cdi.specifications([folder, folder / "absent"])


def test_edits_reach_the_configuration(tmp_path: Path) -> None:
    mounts = [{"hostPath": "/lib/x", "containerPath": "/x", "options": ["ro"]}]
    found = known(tmp_path, specification(mounts=mounts), "broken")
    names = cdi.names_of([DeviceRequest(driver="cdi", device_ids=["example.com/dev=a"])], found)
    document: dict[str, Any] = {"process": {"env": ["WHICH=none", "A=1"]}, "mounts": [], "linux": {"resources": {"devices": []}}}
    cdi.inject(document, cdi.edits_of(names, found), Machine())
    assert document["process"]["env"] == ["A=1", "SHARED=1", "WHICH=a"]
    assert document["linux"]["devices"][0] == {"path": "/dev/a", "type": "c", "major": 1, "minor": 3, "fileMode": 0o666, "uid": 0, "gid": 0}
    assert document["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm", "type": "c", "major": 1, "minor": 3}]
    assert document["mounts"] == [{"destination": "/x", "type": "bind", "source": "/lib/x", "options": ["ro", "rbind"]}]


def test_the_later_file_counts(tmp_path: Path) -> None:
    other = specification()
    other["devices"][0]["containerEdits"] = {"env": ["WHICH=second"]}
    found = known(tmp_path, specification(), other)
    assert [edits.env for edits in cdi.edits_of(["example.com/dev=a"], found)] == [["SHARED=1"], ["WHICH=second"]]


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
        (DeviceRequest(driver="cdi", device_ids=["hook.com/dev=a"]), "want hooks, which are not offered by Tare"),
    ],
)
def test_refused(tmp_path: Path, request_: DeviceRequest, text: str) -> None:
    found = known(tmp_path, specification("hook.com/dev", hooks=[{"hookName": "createContainer", "path": "/bin/true"}]))
    with pytest.raises(InvalidArgument) as caught:
        cdi.edits_of(cdi.names_of([request_], found), found)
    assert text in str(caught.value)
