"""Log drivers: what is written can be read back, over rotation and compression; options are dockerd's; messages reach their receiver."""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.containers import logdrivers
from tare.containers.logformats import Line
from tare.containers.logs import LogQuery, LogReader
from tare.containers.record import Record
from tare.errors import InvalidArgument, StartFailed
from tare.runtime.forwardlog import ForwardingLog, connection
from tare.runtime.jsonlog import JsonLog
from tare.runtime.locallog import LocalLog
from tare.runtime.logfile import LogFile
from tare.wire.container import Config, HostConfig


def read(path: Path, max_file: int, driver: str, **query: object) -> list[Line]:
    async def collect() -> list[Line]:
        reader = LogReader(path, max_file, driver)
        return [line async for batch in reader.read(LogQuery(**query)) for line in batch]  # type: ignore[arg-type]

    return asyncio.run(collect())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=80), st.just(b"x\n" * 900)), max_size=12), st.integers(0, 2))
def test_local_gives_back_every_byte(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], tail: int) -> None:
    path = tmp_path_factory.mktemp("log") / "container.log"
    log = LocalLog(LogFile(str(path)))
    for chunk in chunks:
        log.write("stdout", chunk)
    log.close()
    data = b"".join(chunks)
    lines = read(path, 1, "local")
    assert b"".join(line.data for line in lines) == data
    assert read(path, 1, "local", tail=tail) == lines[len(lines) - min(tail, len(lines)) :]


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_rotated_and_compressed(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "container.log"
    file = LogFile(str(path), 20_000, 4, compress=True)
    log = LocalLog(file) if driver == "local" else JsonLog(file)
    for number in range(1400):
        log.write("stderr" if number % 3 == 0 else "stdout", b"line %d\n" % number)
    log.close()
    assert path.stat().st_size <= 20_100
    assert 0 < len(gzip.decompress((tmp_path / "container.log.1.gz").read_bytes())) <= 20_100
    assert not (tmp_path / "container.log.1").exists()
    assert not list(tmp_path.glob("*.new"))
    everything = read(path, 4, driver)
    first = int(everything[0].data.split()[1])
    assert [line.data for line in everything] == [b"line %d\n" % number for number in range(first, 1400)]
    for tail in (1, 5, len(everything) - 1):
        assert read(path, 4, driver, tail=tail) == everything[-tail:]
    assert read(path, 4, driver, stdout=False) == [line for line in everything if line.stream == 2]


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_a_follower_is_not_lost_by_compression(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "container.log"
    file = LogFile(str(path), 4_000, 9, compress=True)
    log = LocalLog(file) if driver == "local" else JsonLog(file)

    async def follow() -> list[bytes]:
        ended = asyncio.Event()
        seen: list[bytes] = []

        async def reader() -> None:
            async for batch in LogReader(path, 9, driver).read(LogQuery(follow=True), ended.wait()):
                seen.extend(line.data for line in batch)

        task = asyncio.create_task(reader())
        for number in range(400):
            log.write("stdout", b"line %d\n" % number)
            if number % 40 == 0:
                await asyncio.sleep(0)
        log.close()
        ended.set()
        await task
        return seen

    assert asyncio.run(follow()) == [b"line %d\n" % number for number in range(400)]


def test_a_log_of_one_file_is_followed_over_its_new_beginning(tmp_path: Path) -> None:
    path = tmp_path / "container.log"
    log = LocalLog(LogFile(str(path), 2_000))

    async def follow() -> list[bytes]:
        ended, came = asyncio.Event(), asyncio.Event()
        seen: list[bytes] = []

        async def reader() -> None:
            async for batch in LogReader(path, 1, "local").read(LogQuery(follow=True), ended.wait()):
                seen.extend(line.data for line in batch)
                came.set()

        task = asyncio.create_task(reader())
        for number in range(80):
            log.write("stdout", b"line %d\n" % number)
            await came.wait()
            came.clear()
        log.close()
        ended.set()
        await task
        return seen

    assert asyncio.run(follow()) == [b"line %d\n" % number for number in range(80)]


def test_local_goes_on_after_a_rest(tmp_path: Path) -> None:
    path = tmp_path / "container.log"
    first = LocalLog(LogFile(str(path)))
    first.write("stdout", b"one\ntw")
    resting = first.rest()
    second = LocalLog(LogFile(str(path), resting=resting), resting)
    second.write("stdout", b"o\n")
    second.close()
    assert [line.data for line in read(path, 1, "local")] == [b"one\n", b"two\n"]


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("bogus", {}, "logger: no log driver named 'bogus' is registered"),
        ("json-file", {"bogus": "1"}, "unknown log opt 'bogus' for json-file log driver"),
        ("local", {"labels": "a"}, "unknown log opt 'labels' for local log driver"),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "2"}, "max-file cannot be set without max-size"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2 or max-size is not set"),
        ("local", {"compress": "perhaps"}, "error parsing option compress"),
        ("json-file", {"mode": "bogus"}, "logger: logging mode not supported: bogus"),
        ("json-file", {"max-buffer-size": "1m"}, "logger: max-buffer-size option is only supported with 'mode=non-blocking'"),
        ("json-file", {"mode": "non-blocking", "max-buffer-size": "x"}, "error parsing option max-buffer-size"),
        ("json-file", {"tag": "{{.Bogus}}"}, "failed to parse log tag"),
        ("json-file", {"labels-regex": "("}, "error parsing regexp"),
        ("syslog", {"syslog-address": "ftp://x"}, 'unsupported scheme: "ftp"'),
        ("syslog", {"syslog-address": "localhost"}, "syslog-address should be in form proto://address, got localhost"),
        ("syslog", {"syslog-address": "unix:///nope"}, "stat /nope: no such file or directory"),
        ("syslog", {"syslog-facility": "bogus"}, "invalid syslog facility"),
        ("syslog", {"syslog-format": "bogus"}, "Invalid syslog format"),
    ],
)
def test_refused(driver: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        logdrivers.settings(driver, options, "json-file", {})
    assert text in str(caught.value)


def test_accepted() -> None:
    plain = logdrivers.settings("", None, "json-file", {"max-size": "1m", "max-file": "3"})
    assert (plain.driver, plain.max_size, plain.max_file, plain.compress) == ("json-file", 1 << 20, 3, False)
    local = logdrivers.settings("local", {"mode": "non-blocking", "max-buffer-size": "2m"}, "json-file", {"max-size": "1m"})
    assert (local.max_size, local.max_file, local.compress, local.readable) == (20_000_000, 5, True, True)
    assert logdrivers.settings("syslog", {}, "json-file", {}).readable
    assert not logdrivers.settings("syslog", {"cache-disabled": "true"}, "json-file", {}).readable
    assert not logdrivers.settings("none", {"whatever": "1"}, "json-file", {}).readable


def record(**options: str) -> Record:
    config = Config(image="busybox", labels={"com.a": "1", "b": "2"}, env=["A=x", "LC_ALL=C", "Z=1"])
    return Record(
        id="ab" * 32,
        name="web",
        created=0,
        image="sha256:" + "cd" * 32,
        config=config,
        host_config=HostConfig(),
        path="sh",
        args=["-c", "x"],
    )


def test_attributes_of_lines() -> None:
    chosen = logdrivers.attributes(
        record(), {"labels": "b,none", "labels-regex": "^com", "env": "A", "env-regex": "^LC_", "tag": "{{.Name}}:{{.ID}}"}
    )
    assert chosen == {"b": "2", "com.a": "1", "A": "x", "LC_ALL": "C", "tag": "web:abababababab"}


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("", b"<30>{stamp} web[7]: hello\n"),
        ("rfc3164", b"<30>{stamp} host web[7]: hello\n"),
        ("rfc5424", b"<30>1 2026-01-02T03:04:05Z host web 7 web - hello\n"),
        ("rfc5424micro", b"<30>1 2026-01-02T03:04:05.000600Z host web 7 web - hello\n"),
    ],
)
def test_syslog_messages(tmp_path: Path, style: str, expected: bytes) -> None:
    now = 1767323045_000600000
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "s"))
        server.settimeout(5)
        options = {"address": f"unixgram://{tmp_path}/s", "tag": "web", "host": "host", "pid": "7", "facility": "3", "format": style}
        log = ForwardingLog(connection("syslog", options), LocalLog(LogFile(str(tmp_path / "cache"))))
        log.write("stdout", b"hello\nrest", now)
        found = server.recv(1000)
        log.close()
        assert server.recv(1000).endswith(b"rest\n")
    at = time.localtime(now // 10**9)
    stamp = f"{time.strftime('%b', at)} {at.tm_mday:2} {time.strftime('%H:%M:%S', at)}"
    assert found == expected.replace(b"{stamp}", stamp.encode())
    assert [line.data for line in read(tmp_path / "cache", 1, "local")] == [b"hello\n", b"rest"]


def test_a_receiver_that_does_not_read_costs_only_messages(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        options = {"address": f"unix://{tmp_path}/s", "tag": "t", "host": "h", "pid": "1", "facility": "3", "queue": "20000"}
        line = connection("syslog", options)
        for _ in range(5000):
            line.send(line.encode("stdout", b"x" * 200, False, 1))
        assert line.lost > 0
        line.close()


def test_journal_messages() -> None:
    line = connection("journald", {"address": "unixgram:///x", "CONTAINER_NAME": "web", "queue": "9"})
    assert line.encode("stderr", b"text", True, 0) == b"MESSAGE=text\nPRIORITY=3\nCONTAINER_NAME=web\nCONTAINER_PARTIAL_MESSAGE=true\n"
    assert line.encode("stdout", b"a\nb", False, 0).startswith(b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=6\n")


def test_no_receiver(tmp_path: Path) -> None:
    address = {"syslog-address": "tcp://127.0.0.1:1"}
    with pytest.raises(StartFailed, match=r"failed to initialize logging driver: dial tcp 127\.0\.0\.1:1: connect: connection refused"):
        logdrivers.receiver(record(), logdrivers.settings("syslog", address, "json-file", {}))
