"""What storing a layer costs: our drivers against GNU tar and Python's tarfile, on the tar of a real Debian root file system.

    bench/layer_index.py [LAYER.tar]        (root; makes /tmp/tare/debian.tar with mmdebstrap when no layer is given)

Every run starts from the tar in the page cache and ends when the result is usable; ours includes hashing, verification and making it
durable, the others' do not. Prints the median of the rounds. Then what a snapshot and a metadata put cost.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tare.oci.digest import Digest
from tare.store.layers import erofs_image
from tare.store.layers.choice import DRIVERS
from tare.store.layers.tree import Tree
from tare.store.metadata import Metadata
from tare.store.snapshots import Snapshots
from tare.store.tar.entry import Entry
from tare.store.tar.reader import Parser

ROUNDS = 3
CHUNK = 1 << 20


def debian() -> Path:
    path = Path("/tmp/tare/debian.tar")
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        subprocess.run(["mmdebstrap", "--variant=minbase", "bookworm", str(path)], check=True)
    return path


def timed(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def show(what: str, seconds: float) -> None:
    print(f"{what:58} {seconds * 1000:9.2f} ms")


def index_only(tar: Path) -> bytes:
    """Parse and index, without copying or hashing: what the format itself costs."""
    parser, tree = Parser(bodies=False), Tree()
    with open(tar, "rb") as file:
        while chunk := file.read(CHUNK):
            for entry in parser.feed(chunk):
                if isinstance(entry, Entry):
                    tree.add(entry)
    parser.close()
    return erofs_image.build(tree, tar.stat().st_size, b"")


def layers(tar: Path, base: Path, digest: Digest) -> None:
    for name, kind in DRIVERS.items():
        driver = kind(base / "data", base / "exec")

        def write(driver: object = driver) -> None:
            with driver.writer() as layer, open(tar, "rb") as file:  # type: ignore[attr-defined]
                while chunk := file.read(CHUNK):
                    layer.write(chunk)
                layer.commit(digest)

        times = []
        for round_ in range(ROUNDS):
            times.append(timed(write, 1))
            if round_ < ROUNDS - 1:
                driver.remove(digest)
        show(f"{name}: store, hash, verify, index or extract, sync", statistics.median(times))
        show(f"{name}: acquire (first: mount)", timed(lambda driver=driver: driver.acquire([digest]), 1))  # type: ignore[misc]
        snapshots = Snapshots(base / "data", driver)
        numbers = iter(range(1000))
        show(f"{name}: prepare a snapshot", timed(lambda s=snapshots, n=numbers: s.prepare(f"{name}{next(n)}", [digest]), 200))  # type: ignore[misc] # noqa: B023
        numbers = iter(range(1000))
        show(f"{name}: rootfs of a snapshot", timed(lambda s=snapshots, n=numbers: s.rootfs(f"{name}{next(n)}"), 200))  # type: ignore[misc] # noqa: B023
        driver.close()


def main() -> None:
    tar = Path(sys.argv[1]) if len(sys.argv) > 1 else debian()
    base = Path(tempfile.mkdtemp(prefix="tare-bench-", dir="/var/tmp"))
    try:
        data = tar.read_bytes()
        digest = Digest.of(data)
        print(f"{tar}: {len(data) / 1e6:.0f} MB")
        del data
        show("EROFS index alone (parse, tree, image)", timed(lambda: index_only(tar)))
        layers(tar, base, digest)

        def extract(command: Callable[[Path], object]) -> float:
            times = []
            for _ in range(ROUNDS):
                target = base / "peer"
                target.mkdir()
                times.append(timed(lambda target=target: command(target), 1))  # type: ignore[misc]
                shutil.rmtree(target)
            return statistics.median(times)

        show("GNU tar -x", extract(lambda target: subprocess.run(["tar", "-C", target, "-xpf", tar], check=True)))

        def python(target: Path) -> None:
            with tarfile.open(tar) as archive:
                archive.extractall(target, numeric_owner=True, filter="fully_trusted")

        show("Python tarfile", extract(python))
        metadata = Metadata(base / "metadata.db")
        numbers = iter(range(10_000))
        show("metadata: put of 2 KB", timed(lambda: metadata.containers.put(str(next(numbers)), None, bytes(2000)), 3000))
        metadata.close()
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
