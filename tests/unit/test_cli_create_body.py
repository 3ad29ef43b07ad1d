"""Flags of ``run`` to the body of the create call: values, local files, errors in docker's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tare.cli import createbody
from tare.cli.failures import CliError, UsageError
from tare.cli.run import CREATE, RUN


def body(*words: str) -> dict[str, Any]:
    options = RUN.parse([*words])
    assert options is not None
    return createbody.body(options)


def test_a_plain_image() -> None:
    document = body("busybox", "echo", "-n", "x")
    assert document["Image"] == "busybox" and document["Cmd"] == ["echo", "-n", "x"]
    assert (document["AttachStdin"], document["AttachStdout"], document["AttachStderr"]) == (False, True, True)
    assert document["Entrypoint"] is None and document["Env"] is None and document["Labels"] == {}
    assert document["HostConfig"]["NetworkMode"] == "default"
    assert document["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert "Init" not in document["HostConfig"] and "StopTimeout" not in document
    assert list(document["NetworkingConfig"]["EndpointsConfig"]) == ["default"]


def test_streams() -> None:
    interactive = body("-i", "x")
    assert interactive["AttachStdin"] and interactive["OpenStdin"] and interactive["StdinOnce"]
    only_err = body("-a", "stderr", "x")
    assert (only_err["AttachStdin"], only_err["AttachStdout"], only_err["AttachStderr"]) == (False, False, True)


def test_environment_from_files_flags_and_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    monkeypatch.delenv("NOT_SET", raising=False)
    file = tmp_path / "env"
    file.write_text("# comment\n\n  A=1 # kept\nOURS\nNOT_SET\nB=\r\n")
    flags = ["-e", "A=2", "-e", "OURS", "-e", "NOT_SET", "-e", "A=3"]
    assert body("--env-file", str(file), *flags, "x")["Env"] == ["A=1 # kept", "OURS=1", "B=", "A=3", "OURS=1", "NOT_SET"]
    assert body("--env-file", str(file), "x")["Env"] == ["A=1 # kept", "OURS=1", "B="]
    file.write_text("bad name=1\n")
    with pytest.raises(CliError, match="variable 'bad name' contains whitespaces"):
        body("--env-file", str(file), "x")


def test_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text("a=1\nbare\n")
    assert body("--label-file", str(file), "-l", "a=2", "-l", "c", "x")["Labels"] == {"a": "2", "c": ""}


def test_ports() -> None:
    document = body(
        "-p", "80", "-p", "127.0.0.1:8080:80/udp", "-p", "[::1]:1:2", "-p", "9000-9001:90-91", "-p", "7000-7005:70", "--expose", "5-6", "x"
    )
    assert document["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": ""}],
        "80/udp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}],
        "2/tcp": [{"HostIp": "::1", "HostPort": "1"}],
        "90/tcp": [{"HostIp": "", "HostPort": "9000"}],
        "91/tcp": [{"HostIp": "", "HostPort": "9001"}],
        "70/tcp": [{"HostIp": "", "HostPort": "7000-7005"}],
    }
    assert set(document["ExposedPorts"]) == {"80/tcp", "80/udp", "2/tcp", "90/tcp", "91/tcp", "70/tcp", "5/tcp", "6/tcp"}


def test_volumes_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = body("-v", "./a:/b:ro", "-v", "vol:/c", "-v", "/anon", "--mount", "type=bind,src=./q,dst=/q", "x")
    assert document["HostConfig"]["Binds"] == [f"{tmp_path}/a:/b:ro", "vol:/c"] and document["Volumes"] == {"/anon": {}}
    assert document["HostConfig"]["Mounts"] == [{"Type": "bind", "Source": f"{tmp_path}/q", "Target": "/q"}]


def test_a_seccomp_profile_is_read_and_inlined(tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text('{ "defaultAction": "SCMP_ACT_ALLOW",\n "x": [1, 2] }\n')
    options = body("--security-opt", f"seccomp={profile}", "--security-opt", "no-new-privileges", "x")["HostConfig"]["SecurityOpt"]
    assert options == ['seccomp={"defaultAction":"SCMP_ACT_ALLOW","x":[1,2]}', "no-new-privileges"]


def test_unmasking() -> None:
    host = body("--security-opt", "systempaths=unconfined", "x")["HostConfig"]
    assert host["MaskedPaths"] == [] and host["ReadonlyPaths"] == [] and host["SecurityOpt"] == []


def test_networks() -> None:
    config = body("--network", "a", "--network-alias", "web", "--ip", "1.2.3.4", "--network", "name=b,alias=x,driver-opt=k=v", "x")
    assert config["HostConfig"]["NetworkMode"] == "a"
    endpoints = config["NetworkingConfig"]["EndpointsConfig"]
    assert endpoints["a"]["Aliases"] == ["web"] and endpoints["a"]["IPAMConfig"] == {"IPv4Address": "1.2.3.4"}
    assert endpoints["b"]["Aliases"] == ["x"] and endpoints["b"]["DriverOpts"] == {"k": "v"}
    assert body("--net", "host", "x")["NetworkingConfig"]["EndpointsConfig"] == {}


REFUSED = [
    (["-p", "abc", "x"], "invalid containerPort: abc"),
    (["-p", "1-3:1-2", "x"], "invalid ranges specified for container and host Ports: 1-2 and 1-3"),
    (["-p", "1:2/foo", "x"], "invalid proto: foo"),
    (["--expose", "a:b", "x"], "invalid port format for --expose: a:b"),
    (["--memory-swappiness", "500", "x"], "invalid value: 500. Valid memory swappiness range is 0-100"),
    (["--rm", "--restart", "always", "x"], "conflicting options: cannot specify both --restart and --rm"),
    (["--restart", "on-failure:x", "x"], "invalid restart policy format: maximum retry count must be an integer"),
    (["--health-retries", "-1", "x"], "--health-retries cannot be negative"),
    (["--no-healthcheck", "--health-cmd", "a", "x"], "--no-healthcheck conflicts with --health-* options"),
    (["--network", "a", "--net", "host", "x"], "conflicting options: cannot attach both user-defined and non-user-defined network-modes"),
    (["--network", "a", "--network", "a", "x"], 'network "a" is specified multiple times'),
    (["--network-alias", "a", "x"], "network-scoped aliases are only supported for user-defined networks"),
    (["--mac-address", "foo", "x"], "foo is not a valid mac address"),
    (["--device", "foo", "x"], "foo is not an absolute path"),
    (["--env-file", "/nope", "x"], "open /nope: no such file or directory"),
    (["--security-opt", "foo", "x"], 'Invalid --security-opt: "foo"'),
    (["--security-opt", "seccomp=/nope", "x"], "opening seccomp profile (/nope) failed: open /nope: no such file or directory"),
    (["--storage-opt", "foo", "x"], "invalid storage option"),
    (["--log-driver", "none", "--log-opt", "a=b", "x"], "invalid logging opts for driver none"),
    (["--pid", "foo", "x"], "--pid: invalid PID mode"),
    (["--uts", "foo", "x"], "--uts: invalid UTS mode"),
    (["--userns", "foo", "x"], "--userns: invalid USER mode"),
    (["--cgroupns", "foo", "x"], "--cgroupns: invalid CGROUP mode"),
    (["-v", ":/a", "x"], "invalid spec: :/a: empty section between colons"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refused_combinations(words: list[str], message: str) -> None:
    with pytest.raises(CliError) as caught:
        body(*words)
    assert str(caught.value) == message and caught.value.code == 125


REFUSED_VALUES = [
    ("--gpus", "count=some", "value must be either"),
    ("--mount", "type=bind,src=/a", "target is required"),
    ("--mount", "foo", "invalid field 'foo' must be a key=value pair"),
    ("--mount", "type=bind,src=/a,dst=/b,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
    ("--mount", "type=bind,src=/a,dst=/b,bogus=1", "unexpected key 'bogus' in 'bogus=1'"),
    ("--ulimit", "foo=1", "invalid ulimit type: foo"),
    ("--ulimit", "nofile=5:3", "ulimit soft limit must be less than or equal to hard limit: 5 > 3"),
    ("--sysctl", "a.b=1", "sysctl 'a.b=1' is not allowed"),
    ("--add-host", "foo", 'bad format for add-host: "foo"'),
    ("--add-host", "a:b", 'invalid IP address in add-host: "b"'),
    ("--dns", "foo", "IP address is not correctly formatted: foo"),
    ("--dns-search", "f_o/", "f_o/ is not a valid domain"),
    ("--device-cgroup-rule", "x", "invalid device cgroup format 'x'"),
    ("--blkio-weight-device", "/dev/sda:5", "invalid weight for device: /dev/sda:5"),
    ("--device-read-bps", "/dev/sda", "bad format: /dev/sda"),
    ("-e", "=a", "invalid environment variable: =a"),
    ("-a", "foo", "valid streams are STDIN, STDOUT and STDERR"),
    ("--network", "name=a,bogus=1", "invalid field key bogus"),
]


@pytest.mark.parametrize(("flag", "value", "message"), REFUSED_VALUES)
def test_refused_values(flag: str, value: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        body(flag, value, "x")
    assert message in str(caught.value) and f'invalid argument "{value}" for "' in str(caught.value)
    assert caught.value.code == 125


def test_create_and_run_share_their_flags() -> None:
    names = {row[0] for row in CREATE.flags}
    assert {row[0] for row in RUN.flags} - names == {"detach", "detach-keys", "sig-proxy"}
