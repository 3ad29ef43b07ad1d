"""What the interpreter does once it is inside a container's root: nothing there is imported, compiled or loaded (CVE-2019-14271).

The launcher runs with an audit hook (PEP 578) that reports, from the moment on that ``/`` is another one. Its own reports of a user
looked up in the root prove that it sees what happens there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tare
from tare.containers.task import ExecLaunch, Stdio
from tare.runtime import spawn

sys.path.insert(0, str(Path(__file__).parent))
from runtime_world import World, pair, process

pytestmark = pytest.mark.root

HOOKED = """
import json, mmap, os, sys, time
sys.path.insert(0, sys.argv[1])
home = os.stat("/").st_dev, os.stat("/").st_ino
with open({report!r}, "r+b") as file:
    report = mmap.mmap(file.fileno(), 0)  # forks close descriptors that they do not know; memory stays shared

def hook(event, arguments):
    if event in ("import", "compile", "exec", "open") or event.startswith(("ctypes.dlopen", "subprocess", "os.posix_spawn", "os.exec")):
        root = os.stat("/")
        if (root.st_dev, root.st_ino) != home:
            place = time.monotonic_ns() // 100 % 4096 * 256  # process ids say nothing: many are 1
            line = (event + " " + repr(arguments)).encode()[:255]
            report[place : place + 256] = line.ljust(256, b"\\0")

sys.addaudithook(hook)
from tare.runtime.launcher import main
main(json.loads(sys.argv[2]))
"""


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hook has seen, one event per line; from now on launchers have it."""
    source = Path(tare.__file__).parent
    package = tmp_path / "hooked" / "tare"
    (package / "runtime").mkdir(parents=True)
    for name in ("__init__.py", "linux"):
        (package / name).symlink_to(source / name)
    for path in (source / "runtime").iterdir():
        (package / "runtime" / path.name).symlink_to(path)
    (package / "runtime" / "launcher_main.py").unlink()
    report = tmp_path / "report"
    report.write_bytes(bytes(64 * 64 * 256))
    (package / "runtime" / "launcher_main.py").write_text(HOOKED.format(report=str(report)))
    monkeypatch.setattr(spawn, "__file__", str(package / "runtime" / "spawn.py"))
    return report


async def test_nothing_of_the_root_is_loaded(report: Path, tmp_path: Path, busybox: Path) -> None:
    world = World(tmp_path, busybox)
    try:
        for more in ({}, {"init": "built-in"}):
            await world.sh("true", user="bob", additional_groups=("wheel",), **more)
        task = await world.start(world.launch(["sleep", "100"]))

        ours, client = pair()
        child = await task.exec(ExecLaunch("1", process(["true"]), Stdio(), user="bob", attachments=[client]))
        await child.wait()
        ours.close()
    finally:
        await world.close()
    events = {event.decode() for event in report.read_bytes().split(b"\0") if event}
    executed = {event.partition(", [")[0] for event in events if event.startswith("os.exec ")}
    opened = {event.partition(",")[0] for event in events if event.startswith("open ")}
    assert executed == {"os.exec ('/bin/sh'", "os.exec ('/bin/sleep'", "os.exec ('/bin/true'"}
    assert opened == {"open ('/etc/passwd'", "open ('/etc/group'"}
    assert len([event for event in events if event.startswith(("os.exec ", "open "))]) == len(events), events
