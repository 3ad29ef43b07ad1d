"""Records: names, owners, transactions, threads, migrations, damage and kill -9."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tare.errors import Conflict, Corrupt, Unsupported
from tare.store.metadata import KINDS, MIGRATIONS, Metadata


@pytest.fixture
def metadata(tmp_path: Path) -> Iterator[Metadata]:
    opened = Metadata(tmp_path / "metadata.db")
    yield opened
    opened.close()


def test_records(metadata: Metadata) -> None:
    records = metadata.containers
    records.put("id1", "web", b"one")
    records.put("id2", None, b"two", owner="o")
    records.put("id3", None, b"three", owner="o")
    assert records.get("id1") == b"one"
    assert records.get("none") is None
    assert records.by_name("web") == ("id1", b"one")
    assert records.by_name("none") is None
    assert records.owned("o") == [("id2", b"two"), ("id3", b"three")]
    assert records.by_prefix("id") == ["id1", "id2"]
    assert records.by_prefix("id3") == ["id3"]
    records.put("id1", "renamed", b"new")
    assert records.by_name("web") is None
    assert records.all() == [("id1", "renamed", b"new"), ("id2", None, b"two"), ("id3", None, b"three")]
    assert records.count() == 3
    assert records.delete("id1")
    assert not records.delete("id1")
    assert metadata.networks.all() == []


def test_a_name_is_taken_once(metadata: Metadata) -> None:
    metadata.volumes.put("a", "name", b"")
    with pytest.raises(Conflict, match="the name 'name' is in use by volume a"):
        metadata.volumes.put("b", "name", b"")
    metadata.networks.put("b", "name", b"")


def test_every_kind_is_there(metadata: Metadata) -> None:
    for kind in KINDS:
        getattr(metadata, kind).put("x", None, b"y")
        assert getattr(metadata, kind).get("x") == b"y"
    metadata.settings.set("k", b"v")
    metadata.settings.set("k", b"w")
    assert metadata.settings.get("k") == b"w"
    metadata.settings.delete("k")
    assert metadata.settings.get("k") is None


def test_transactions(metadata: Metadata) -> None:
    with metadata.transaction():
        metadata.tags.put("a", None, b"1")
        with metadata.transaction():
            metadata.tags.put("b", None, b"2")
    with pytest.raises(RuntimeError), metadata.transaction():
        metadata.tags.delete("a")
        with metadata.transaction():
            metadata.tags.put("c", None, b"3")
        raise RuntimeError
    assert [id for id, _, _ in metadata.tags.all()] == ["a", "b"]
    with metadata.transaction():
        metadata.tags.put("n", "name", b"")
        with pytest.raises(Conflict):
            metadata.tags.put("m", "name", b"")
        metadata.tags.put("o", None, b"")
    assert metadata.tags.get("n") is not None
    assert metadata.tags.get("o") is not None


def test_threads_do_not_mix_transactions(metadata: Metadata) -> None:
    def work(number: int) -> None:
        for index in range(100):
            try:
                with metadata.transaction():
                    metadata.images.put(f"{number}-{index}", None, b"x")
                    if index % 2:
                        raise RuntimeError
            except RuntimeError:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metadata.images.count() == 200


def test_checkpoints_happen_in_the_background(metadata: Metadata, tmp_path: Path) -> None:
    for index in range(3000):
        metadata.images.put(str(index), None, bytes(200))
    metadata.checkpoint()
    metadata.close()
    assert (tmp_path / "metadata.db").stat().st_size > 3000 * 200
    reopened = Metadata(tmp_path / "metadata.db")
    assert reopened.images.count() == 3000
    reopened.close()


def test_private_file(metadata: Metadata, tmp_path: Path) -> None:
    metadata.images.put("a", None, b"")
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_damaged_database_names_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(Corrupt, match=r"metadata.db is damaged .*: restore it from a backup, or move it and its -wal file away"):
        Metadata(path)
    path.unlink()
    first = Metadata(path)
    for index in range(500):
        first.images.put(str(index), None, bytes(500))
    first.close()
    data = bytearray(path.read_bytes())
    for page in range(3, len(data) // 4096, 2):
        data[page * 4096 : page * 4096 + 200] = b"\xa5" * 200
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="restore it from a backup"):
        Metadata(path)


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    Metadata(path).close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Unsupported, match="version 99, this engine knows up to"):
        Metadata(path)


CHILD = """
import sys
from pathlib import Path
from tare.store.metadata import Metadata
metadata = Metadata(Path(sys.argv[1]))
start = metadata.containers.count()
for index in range(start, start + 100000):
    with metadata.transaction():
        metadata.containers.put(f"{index:06}", f"name{index}", bytes(300))
        metadata.networks.put(f"{index:06}", None, b"")
    print(index, flush=True)
"""


def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    total = 0
    for round_ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(200 + 400 * round_):
            total = int(child.stdout.readline()) + 1
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split(b"\n")[:-1]
        total += len(rest)
        child.wait()
        child.stdout.close()
        metadata = Metadata(path)
        count = metadata.containers.count()
        assert total <= count <= total + 1
        assert metadata.networks.count() == count
        metadata.close()
        total = count


def test_a_stamp_changes_with_every_change(tmp_path: Path) -> None:
    metadata = Metadata(tmp_path / "m.db")
    stamps = [metadata.stamp]
    metadata.images.put("a", None, b"{}")
    stamps.append(metadata.stamp)
    metadata.images.delete("a")
    stamps.append(metadata.stamp)
    with metadata.transaction():
        metadata.images.put("a", None, b"{}")
        assert metadata.stamp is None
    stamps.append(metadata.stamp)
    assert len(set(stamps)) == 4 and metadata.stamp == stamps[-1]
    metadata.close()
