"""Pure parts of the containers service: merge rules, mounts, names, signals, views, lenient decoding."""

from __future__ import annotations

import msgspec
import pytest

from tare.api.docker.attach import frames, parse_detach_keys
from tare.api.docker.container_views import human_duration, rfc3339, status_text
from tare.containers.logformats import Line
from tare.containers.logs import padded_time, parse_time
from tare.containers.merge import merge, merge_env
from tare.containers.mounts import parse_bind, resolve_mounts
from tare.containers.names import check_name, new_id, random_name
from tare.containers.record import Record, State
from tare.containers.signals import parse_signal
from tare.errors import InvalidArgument
from tare.wire.container import Config, CreateRequest, Healthcheck, HostConfig, Mount
from tare.wire.decode import decode


def test_own_command_replaces_image_command_but_not_its_entrypoint() -> None:
    image = Config(entrypoint=["/entry"], cmd=["default"], env=["PATH=/bin", "A=image"], labels={"x": "image"})
    merged = merge(Config(cmd=["own"], env=["A=own"], labels={"x": "own"}), image)
    assert (merged.entrypoint, merged.cmd) == (["/entry"], ["own"])
    assert merged.env == ["A=own", "PATH=/bin"]
    assert merged.labels == {"x": "own"}


def test_own_entrypoint_drops_the_image_command() -> None:
    merged = merge(Config(entrypoint=["/own"]), Config(entrypoint=["/entry"], cmd=["default"]))
    assert (merged.entrypoint, merged.cmd) == (["/own"], None)


def test_empty_entrypoint_resets_the_image_entrypoint() -> None:
    merged = merge(Config(entrypoint=[""], cmd=["sh"]), Config(entrypoint=["/entry"]))
    assert (merged.entrypoint, merged.cmd) == (None, ["sh"])


def test_string_commands_are_lists_of_one() -> None:
    assert merge(Config(cmd="ls"), None).cmd == ["ls"]


def test_healthcheck_fields_come_from_the_image_one_by_one() -> None:
    merged = merge(Config(cmd=["x"], healthcheck=Healthcheck(retries=7)), Config(healthcheck=Healthcheck(test=["CMD", "y"], retries=3)))
    assert merged.healthcheck is not None
    assert (merged.healthcheck.test, merged.healthcheck.retries) == (["CMD", "y"], 7)


def test_a_bare_name_hides_the_image_variable() -> None:
    assert merge_env(["A=1", "B=2"], ["A"]) == ["A", "B=2"]


@pytest.mark.parametrize(
    ("text", "kind", "source", "destination", "writable"),
    [
        ("/src:/dst", "bind", "/src", "/dst", True),
        ("/src/../other:/dst/:ro", "bind", "/other", "/dst", False),
        ("name:/dst:nocopy", "volume", "name", "/dst", True),
        ("/only", "volume", None, "/only", True),
        ("/src:/dst:rw,rslave", "bind", "/src", "/dst", True),
    ],
)
def test_binds(text: str, kind: str, source: str | None, destination: str, writable: bool) -> None:
    point = parse_bind(text)
    assert (point.type, point.destination, point.writable) == (kind, destination, writable)
    if source is not None:
        assert source in (point.source, point.name)
    else:
        assert point.anonymous and len(point.name) == 64


@pytest.mark.parametrize("text", ["", "a:b:c:d", "/a:relative", "/a:/b:bogus", "/a:/b:ro,rw", "../x:/y", "/a:/", "n:/x:rshared"])
def test_bad_binds_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_bind(text)


def test_one_destination_is_mounted_once() -> None:
    with pytest.raises(InvalidArgument, match="Duplicate mount point: /x"):
        resolve_mounts(HostConfig(binds=["/a:/x", "/b:/x/"]), [])


def test_image_volumes_yield_to_own_mounts() -> None:
    points = resolve_mounts(HostConfig(binds=["/a:/x"], mounts=[Mount(type="tmpfs", target="/t")]), ["/x", "/y"])
    assert [(p.type, p.destination) for p in points] == [("bind", "/x"), ("tmpfs", "/t"), ("volume", "/y")]


def test_missing_bind_source_by_mount_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="bind source path does not exist: /no/such/path"):
        resolve_mounts(HostConfig(mounts=[Mount(type="bind", source="/no/such/path", target="/x")]), [])


@pytest.mark.parametrize("name", ["", "-x", "a", "a b", "/", "a/b", "é", "x" * 3 + "\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidArgument, match="Invalid container name"):
        check_name(name)


def test_random_names_avoid_taken_ones_and_ids_are_not_numbers() -> None:
    assert check_name(random_name(set()))
    assert len(new_id()) == 64 and not new_id()[:12].isdecimal()


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("SIGKILL", 9), ("sighup", 1), ("10", 10), ("RTMIN+3", 37)])
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


def test_a_number_beyond_the_kernels_signals() -> None:
    with pytest.raises(InvalidArgument, match="the linux daemon does not support signal 65"):
        parse_signal("65")


@pytest.mark.parametrize("text", ["", "FOO", "0", "-1", "SIG"])
def test_bad_signals(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid signal"):
        parse_signal(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"), (179, "2 minutes"),
        (3600, "About an hour"), (3600 * 47, "47 hours"), (86400 * 3, "3 days"), (86400 * 20, "2 weeks"), (86400 * 100, "3 months"),
        (86400 * 365 * 3, "3 years"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_times() -> None:
    assert rfc3339(0) == "0001-01-01T00:00:00Z"
    assert rfc3339(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert parse_time("2023-11-14T22:13:20.12Z") == 1_700_000_000_120_000_000
    assert padded_time("2023-11-14T22:13:20.12Z") == "2023-11-14T22:13:20.120000000Z"


def test_status_column() -> None:
    record = Record(id="i", name="n", created=1, image="", config=Config(), host_config=HostConfig())
    assert status_text(record) == "Created"
    now = 10_000_000_000
    record.state = State(status="running", started_at=now - 3_000_000_000)
    assert status_text(record, now=now) == "Up 3 seconds"
    assert status_text(record, "healthy", now) == "Up 3 seconds (healthy)"
    record.state = State(status="exited", exit_code=3, started_at=1, finished_at=now - 65_000_000_000)
    assert status_text(record, now=now) == "Exited (3) About a minute ago"


def test_detach_keys() -> None:
    assert parse_detach_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_detach_keys("a,ctrl-\\") == b"a\x1c"
    with pytest.raises(InvalidArgument, match="Invalid detach keys"):
        parse_detach_keys("ctrl-!")


def test_frames() -> None:
    assert frames([Line(2, b"abc", "", None)]) == b"\x02\x00\x00\x00\x00\x00\x00\x03abc"


def test_documents_are_read_as_go_reads_them() -> None:
    request = decode(
        CreateRequest,
        b'{"image":"x","CMD":null,"unknown":1,"hostconfig":{"Binds":null,"portbindings":{"80/tcp":[{"hostport":"1"}],"81/tcp":null}}}',
    )
    assert request.image == "x" and request.cmd is None
    bindings = request.host_config.port_bindings
    assert bindings["80/tcp"] is not None and bindings["80/tcp"][0].host_port == "1"
    with pytest.raises(msgspec.ValidationError):
        decode(CreateRequest, b'{"Tty": "yes"}')
