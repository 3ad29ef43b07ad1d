"""The daemon's settings for containers that do not say otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tare.config import EngineConfig
from tare.containers.daemon_defaults import fill
from tare.daemon_options import UsageError, load
from tare.wire.container import HostConfig, Ulimit


def settings(tmp_path: Path, document: object, *flags: str) -> EngineConfig:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps(document))
    return load(["--config-file", str(file), *flags]).config


def test_flags_and_file_say_the_same(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    by_file = settings(
        tmp_path,
        {
            "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 200, "Soft": 100}, "core": {"Hard": -1, "Soft": -1}},
            "default-shm-size": "1M", "no-new-privileges": True, "default-ipc-mode": "shareable", "default-cgroupns-mode": "host",
            "seccomp-profile": str(profile),
        },
    )  # fmt: skip
    by_flag = settings(
        tmp_path, {}, "--default-ulimit", "nofile=100:200", "--default-ulimit=core=-1", "--default-shm-size", "1m", "--no-new-privileges",
        "--default-ipc-mode", "shareable", "--default-cgroupns-mode=host", "--seccomp-profile", str(profile),
    )  # fmt: skip
    assert by_file == by_flag
    assert by_file.default_ulimits == (("nofile", 100, 200), ("core", -1, -1))
    assert by_file.default_shm_size == 1 << 20 and by_file.seccomp_profile == profile.read_text()


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--default-ulimit=nofile", "NAME=SOFT"), ("--default-ulimit=x=1", "invalid ulimit type"), ("--default-ulimit=nofile=2:1", "soft"),
        ("--default-ulimit=nofile=-2", "soft"), ("--default-shm-size=x", "size"), ("--default-ipc-mode=host", "invalid default ipc-mode"),
        ("--default-cgroupns-mode=x", "cgroupns-mode"), ("--seccomp-profile=/nonexistent", "opening seccomp profile"),
        ("--seccomp-profile=/etc/hostname", "opening seccomp profile"), ("--userns-remap=default", "user namespace"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, flag: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        settings(tmp_path, {}, flag)


@pytest.mark.parametrize(
    "document", [{"default-ulimits": []}, {"default-ulimits": {"x": 1}}, {"default-shm-size": []}, {"seccomp-profile": 1}]
)
def test_refused_in_the_file(tmp_path: Path, document: object) -> None:
    with pytest.raises(UsageError):
        settings(tmp_path, document)


def test_a_container_that_says_something_is_left_alone() -> None:
    engine = EngineConfig(
        default_ulimits=(("nofile", 1, 2), ("core", 0, 0)), default_shm_size=5, default_ipc_mode="shareable", no_new_privileges=True,
        seccomp_profile="unconfined",
    )  # fmt: skip
    host = HostConfig(
        ulimits=[Ulimit(name="nofile", soft=7, hard=8)], shm_size=9, ipc_mode="host", security_opt=["seccomp=x", "no-new-privileges:false"]
    )
    fill(host, engine)
    assert [(item.name, item.soft) for item in host.ulimits or ()] == [("nofile", 7), ("core", 0)]
    assert (host.shm_size, host.ipc_mode, host.security_opt) == (9, "host", ["seccomp=x", "no-new-privileges:false"])
    host = HostConfig(privileged=True)
    fill(host, engine)
    assert (host.shm_size, host.ipc_mode, host.security_opt) == (5, "shareable", ["no-new-privileges"])
