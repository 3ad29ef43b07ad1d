"""The content store: verification, resuming, damage, full disks, and kill -9 in the middle of an ingest."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tare.errors import Conflict, Corrupt, InvalidArgument, NotFound, ResourceExhausted
from tare.oci.digest import Digest
from tare.store.content import ContentStore

DATA = random.Random(1).randbytes(3_000_000)
DIGEST = Digest.of(DATA)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(tmp_path)


def ingest_files(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "ingest")


def test_put_and_read(store: ContentStore, tmp_path: Path) -> None:
    digest = store.put(b"manifest")
    assert store.put(b"manifest", digest) == digest
    assert store.has(digest)
    assert store.read(digest) == b"manifest"
    assert store.size(digest) == 8
    assert store.path(digest) == tmp_path / "blobs/sha256" / digest.hex
    assert list(store.walk()) == [digest]
    with store.open(digest) as blob:
        assert store.delete(digest) == 8
        assert blob.read() == b"manifest"
    assert store.delete(digest) == 0
    for call in (store.open, store.size, store.read):
        with pytest.raises(NotFound, match=str(digest)):
            call(digest)
    assert ingest_files(tmp_path) == []


def test_put_verifies(store: ContentStore) -> None:
    with pytest.raises(Corrupt, match=f"expected {DIGEST}, got {Digest.of(b'x')}"):
        store.put(b"x", DIGEST)
    assert list(store.walk()) == []


def test_read_checks_again_and_is_bounded(store: ContentStore) -> None:
    digest = store.put(b"good")
    with pytest.raises(InvalidArgument, match="larger than the limit of 3 bytes"):
        store.read(digest, 3)
    store.path(digest).unlink()
    store.path(digest).write_bytes(b"evil")
    with pytest.raises(Corrupt, match="damaged on disk"):
        store.read(digest)


def test_invisible_until_verified(store: ContentStore) -> None:
    ingest = store.ingest(DIGEST, len(DATA))
    ingest.write(DATA)
    assert not store.has(DIGEST)
    assert ingest.commit() == DIGEST
    assert store.path(DIGEST).read_bytes() == DATA
    assert store.active() == frozenset()


def test_resumes_after_a_restart(store: ContentStore, tmp_path: Path) -> None:
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:1_234_567])
    again = ContentStore(tmp_path).ingest(DIGEST, len(DATA))
    assert again.offset == 1_234_567
    again.write(memoryview(DATA)[again.offset :])
    again.commit()
    assert store.read(DIGEST) == DATA


def test_a_wrong_blob_leaves_nothing(store: ContentStore, tmp_path: Path) -> None:
    for size, data, text in (
        (None, b"wrong", f"expected {DIGEST}, got {Digest.of(b'wrong')}"),
        (len(DATA), DATA[:5], f"ended after 5 of {len(DATA)} bytes"),
    ):
        ingest = store.ingest(DIGEST, size)
        ingest.write(data)
        with pytest.raises(Corrupt, match=text):
            ingest.commit()
        assert ingest_files(tmp_path) == []
    ingest = store.ingest(DIGEST, 10)
    with pytest.raises(Corrupt, match="longer than the 10 bytes"):
        ingest.write(bytes(11))
    ingest.abort()
    assert ingest_files(tmp_path) == []
    assert list(store.walk()) == []


def test_a_damaged_partial_is_found_and_dropped(store: ContentStore, tmp_path: Path) -> None:
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:1000])
    (tmp_path / "ingest" / f"sha256-{DIGEST.hex}").write_bytes(bytes(1000))
    ingest = store.ingest(DIGEST, len(DATA))
    ingest.write(DATA[1000:])
    with pytest.raises(Corrupt, match="does not match its digest"):
        ingest.commit()
    assert store.ingest(DIGEST).offset == 0


def test_a_partial_longer_than_the_blob_is_restarted(store: ContentStore) -> None:
    with store.ingest(DIGEST) as ingest:
        ingest.write(DATA + b"more")
    ingest = store.ingest(DIGEST, len(DATA))
    assert ingest.offset == 0
    ingest.write(DATA[:10])
    ingest.restart()
    ingest.write(DATA)
    ingest.commit()


def test_one_ingest_per_digest(store: ContentStore) -> None:
    with store.ingest(DIGEST):
        with pytest.raises(Conflict, match="being received already"):
            store.ingest(DIGEST)
        assert store.active() == {DIGEST}
    store.ingest(DIGEST).abort()


def test_full_disk(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    room = [100_000]

    def write(file: int, data: bytes) -> int:
        if len(data) > room[0]:
            if room[0] == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[: room[0]]
        written = real(file, data)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)
    ingest = store.ingest(DIGEST, len(DATA))
    ingest.write(DATA[:60_000])
    with pytest.raises(ResourceExhausted, match=r"no space left on device while writing blob .*: free some space under"):
        ingest.write(memoryview(DATA)[60_000:])
    assert ingest.offset == 60_000
    monkeypatch.undo()
    ingest.write(memoryview(DATA)[60_000:])
    ingest.commit()
    assert store.read(DIGEST) == DATA


def test_old_partials_expire(store: ContentStore, tmp_path: Path) -> None:
    with store.ingest(DIGEST) as ingest:
        ingest.write(b"12345")
    assert store.expire(3600) == 0
    os.utime(tmp_path / "ingest" / f"sha256-{DIGEST.hex}", (time.time() - 7200, time.time() - 7200))
    with store.ingest(DIGEST):
        assert store.expire(3600) == 0
    assert store.expire(3600) == 5


CHILD = """
import random, sys
from pathlib import Path
from tare.oci.digest import Digest
from tare.store.content import ContentStore
data = random.Random(1).randbytes(3_000_000)
store = ContentStore(Path(sys.argv[1]))
ingest = store.ingest(Digest.of(data), len(data))
print(ingest.offset, flush=True)
while ingest.offset < len(data):
    ingest.write(data[ingest.offset : ingest.offset + 20_000])
ingest.commit()
"""


def test_kill_at_any_time(store: ContentStore, tmp_path: Path) -> None:
    offsets = []
    for round_ in range(8):
        child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE)
        assert child.stdout is not None
        offsets.append(int(child.stdout.readline()))
        time.sleep(0.0005 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if store.has(DIGEST):
            break
    assert offsets == sorted(offsets)
    if not store.has(DIGEST):
        ingest = store.ingest(DIGEST, len(DATA))
        ingest.write(memoryview(DATA)[ingest.offset :])
        ingest.commit()
    assert store.read(DIGEST) == DATA
