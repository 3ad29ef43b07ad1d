"""What older API versions mean and see; JSON that is none, in Go's words. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from tare.api.docker import version_differences as differences
from tare.api.docker.params import parse_json
from tare.errors import InvalidArgument
from tare.wire.container import BindOptions, CreateRequest, Healthcheck, HostConfig, Mount, UpdateRequest, VolumeOptions


def request() -> CreateRequest:
    mounts = [
        Mount(type="bind", bind_options=BindOptions(non_recursive=True, create_mountpoint=True, read_only_non_recursive=True)),
        Mount(type="volume", volume_options=VolumeOptions(subpath="x")),
    ]
    host = HostConfig(auto_remove=True, console_size=[5, 6], annotations={"a": "b"}, mounts=mounts)
    return CreateRequest(image="busybox", healthcheck=Healthcheck(start_interval=7), host_config=host)


def test_the_newest_version_is_left_alone() -> None:
    body = request()
    differences.create_request(body, (1, 51))
    assert body == request()


@pytest.mark.parametrize(
    ("version", "kept"),
    [
        ((1, 24), set()),
        ((1, 25), {"auto_remove"}),
        ((1, 40), {"auto_remove", "non_recursive"}),
        ((1, 42), {"auto_remove", "non_recursive", "create_mountpoint", "console_size"}),
        ((1, 43), {"auto_remove", "non_recursive", "create_mountpoint", "console_size", "annotations"}),
        (
            (1, 44),
            {
                "auto_remove",
                "non_recursive",
                "create_mountpoint",
                "console_size",
                "annotations",
                "start_interval",
                "read_only_non_recursive",
            },
        ),
    ],
)
def test_fields_that_a_version_does_not_know(version: tuple[int, int], kept: set[str]) -> None:
    body = request()
    differences.create_request(body, version)
    host = body.host_config
    assert host.mounts is not None and host.mounts[0].bind_options is not None and body.healthcheck is not None
    bind = host.mounts[0].bind_options
    found = {
        "auto_remove": host.auto_remove,
        "console_size": host.console_size == [5, 6],
        "annotations": bool(host.annotations),
        "non_recursive": bind.non_recursive,
        "create_mountpoint": bind.create_mountpoint,
        "read_only_non_recursive": bind.read_only_non_recursive,
        "start_interval": bool(body.healthcheck.start_interval),
    }
    assert {name for name, there in found.items() if there} == kept


def test_defaults_of_old_versions() -> None:
    old = CreateRequest(image="busybox")
    differences.create_request(old, (1, 39))
    assert old.host_config.ipc_mode == "shareable"
    given = CreateRequest(image="busybox", host_config=HostConfig(ipc_mode="private", cgroupns_mode="private"))
    differences.create_request(given, (1, 24))
    assert (given.host_config.ipc_mode, given.host_config.cgroupns_mode) == ("private", "private")
    update = UpdateRequest(pids_limit=5)
    differences.update_request(update, (1, 39))
    assert update.pids_limit is None


def test_a_new_demand_in_an_old_version_is_refused() -> None:
    body = CreateRequest(image="busybox", host_config=HostConfig(mounts=[Mount(bind_options=BindOptions(read_only_force_recursive=True))]))
    with pytest.raises(InvalidArgument, match=r"ReadOnlyForceRecursive needs API v1\.44"):
        differences.create_request(body, (1, 43))


def test_aliases_before_dns_names() -> None:
    def view() -> dict[str, Any]:
        networks = {"mine": {"Aliases": ["web"], "MacAddress": ""}, "bridge": {"Aliases": None, "MacAddress": "02:42"}}
        return {
            "Id": "0123456789abcdef",
            "Config": {"Hostname": "host"},
            "HostConfig": {"NetworkMode": "bridge"},
            "NetworkSettings": {"Networks": networks},
        }

    old = differences.inspect_view(view(), (1, 44))["NetworkSettings"]["Networks"]
    assert old["mine"]["Aliases"] == ["web", "0123456789ab", "host"] and old["bridge"]["Aliases"] is None
    assert differences.inspect_view(view(), (1, 45)) == view()


def test_security_options_had_no_names() -> None:
    options = ["name=seccomp,profile=builtin", "name=cgroupns"]
    assert differences.security_options(options, (1, 24)) == ["seccomp"]
    assert differences.security_options(options, (1, 25)) == options


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{n", "invalid character 'n' looking for beginning of object key string"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a": 1 "b"}', "invalid character '\"' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'{"a": x}', "invalid character 'x' looking for beginning of value"),
        (b'{"Image": "busy', "unexpected EOF"),
        (b"{} {}", "unexpected content after JSON"),
        (b"[]", "json: cannot unmarshal array into Go value of type CreateRequest"),
        (b'{"Image": 5}', "json: cannot unmarshal number into Go struct field CreateRequest.Image of type string"),
        (
            b'{"HostConfig": {"Memory": "5"}}',
            "json: cannot unmarshal string into Go struct field CreateRequest.HostConfig.Memory of type int64",
        ),
    ],
)
def test_json_that_cannot_be_read(body: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_json(CreateRequest, body)
    assert str(caught.value) == f"invalid JSON: {text}"


def test_null_is_an_object_without_fields() -> None:
    assert parse_json(CreateRequest, b" null ") == CreateRequest()
