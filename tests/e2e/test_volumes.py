"""Volumes through docker's command and ours: mounted volumes and their end, mounts that must not escape, transfers, crashes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]


def _mounts(daemon: Daemon) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4] for line in lines if line.split()[4].startswith(f"{daemon.root}/data/volumes")]


def _mounted_volume(daemon: Daemon, name: str) -> None:
    daemon.docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=64k", name)


def test_a_mounted_volume_lives_as_long_as_its_last_user(engine: Daemon) -> None:
    _mounted_volume(engine, "ram")
    engine.docker("run", "-d", "--name", "ram1", "-v", "ram:/d", "busybox", "sh", "-c", "echo x > /d/f; sleep 1000")
    engine.docker("run", "-d", "--name", "ram2", "-v", "ram:/d", "busybox", "sleep", "1000")
    assert engine.docker("exec", "ram2", "df", "-k", "/d").stdout.split()[8] == "64"
    assert len(_mounts(engine)) == 1
    used = engine.docker("volume", "rm", "ram", check=False)
    assert "remove ram: volume is in use - [" in used.stderr
    engine.docker("rm", "-f", "ram1")
    assert len(_mounts(engine)) == 1
    engine.docker("rm", "-f", "ram2")
    assert _mounts(engine) == []
    engine.docker("volume", "rm", "ram")


def test_a_refused_mount_says_what_the_kernel_said(engine: Daemon) -> None:
    engine.docker("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/no/such", "lost")
    failed = engine.docker("run", "--rm", "-v", "lost:/d", "busybox", "true", check=False)
    assert "failed to mount local volume: mount /no/such:" in failed.stderr
    assert "flags: 0x1000: no such file or directory" in failed.stderr and _mounts(engine) == []
    engine.docker("volume", "rm", "lost")


def test_anonymous_volumes_go_with_rm_v_and_named_ones_stay(engine: Daemon) -> None:
    before = set(engine.docker("volume", "ls", "-q").stdout.split())
    engine.docker("run", "--rm", "-v", "/a", "-v", "keep:/b", "busybox", "true")
    assert set(engine.docker("volume", "ls", "-q").stdout.split()) - before == {"keep"}
    engine.docker("create", "--name", "anon", "-v", "/a", "busybox", "true")
    engine.docker("rm", "anon")
    left = set(engine.docker("volume", "ls", "-q").stdout.split()) - before - {"keep"}
    assert len(left) == 1
    pruned = engine.docker("volume", "prune", "-f").stdout
    assert left.pop() in pruned and "keep" not in pruned
    assert "keep" in engine.docker("volume", "prune", "-af").stdout


def test_a_failed_creation_leaves_no_volume(engine: Daemon) -> None:
    before = engine.docker("volume", "ls", "-q").stdout
    command = ["create", "-v", "fresh:/a", "--mount", "type=volume,source=other,target=/b,volume-opt=odd=1", "busybox", "true"]
    assert 'create other: invalid option: "odd"' in engine.docker(*command, check=False).stderr
    assert engine.docker("volume", "ls", "-q").stdout == before


def test_content_of_the_image_fills_a_volume_with_its_owners(engine: Daemon, tmp_path: Path) -> None:
    engine.docker(
        "run", "--name", "fill", "busybox", "sh", "-c", "mkdir /w; echo t > /w/f; chown 33:29 /w /w/f; chmod 2750 /w; ln -s /etc /esc"
    )
    archive = tmp_path / "image.tar"
    with archive.open("wb") as output:
        engine.docker("export", "fill", text=False, stdout=output, capture_output=False)
    engine.docker("import", str(archive), "filled")
    show = ("filled", "stat", "-c", "%u:%g:%a", "/w")
    assert engine.docker("run", "--rm", "-v", "/w", *show).stdout.strip() == "33:29:2750"
    assert engine.docker("run", "--rm", "-v", "v1:/w:nocopy", "filled", "ls", "/w").stdout == ""
    engine.tare("volume", "create", "--uid", "7", "--gid", "8", "--mode", "700", "own")
    assert engine.docker("run", "--rm", "-v", "own:/w", *show).stdout.strip() == "7:8:700"
    host = sorted(os.listdir("/etc"))
    engine.docker("run", "--rm", "-v", "v2:/esc/made-by-a-test", "filled", "true")
    assert sorted(os.listdir("/etc")) == host
    # the image's link leads to its own /etc, never to the host's (CVE-2022-23648)
    own = engine.docker("run", "--rm", "filled", "ls", "/etc").stdout.split()
    engine.docker("run", "--rm", "-v", "v3:/esc", "filled", "true")
    copied = engine.docker("run", "--rm", "-v", "v3:/d", "filled", "ls", "/d").stdout.split()
    assert "not-executable" in copied and set(copied) <= {*own, "made-by-a-test"} and "debian_version" not in copied
    engine.docker("volume", "rm", "v1", "v2", "v3", "own")
    engine.docker("rmi", "filled")


def test_subpaths_cannot_leave_the_volume(engine: Daemon) -> None:
    engine.docker("run", "--rm", "-v", "sub:/a", "busybox", "sh", "-c", "mkdir -p /a/in; echo y > /a/in/f; ln -s /etc /a/out")
    mount = "type=volume,source=sub,target=/d,volume-subpath="
    assert engine.docker("run", "--rm", "--mount", mount + "in", "busybox", "cat", "/d/f").stdout == "y\n"
    for path, text in (("out", "it leads out of the volume"), ("none", "no such file or directory")):
        assert text in engine.docker("run", "--rm", "--mount", mount + path, "busybox", "true", check=False).stderr
    engine.docker("volume", "rm", "sub")


def test_a_path_in_a_volume_that_changes_all_the_time_leads_nowhere_else(engine: Daemon) -> None:
    """CVE-2021-30465 for subpaths: a container swaps a directory and a link to the host's /etc while others mount it."""
    swap = (
        "mkdir -p /d/a /d/b; echo mine > /d/a/debian_version; ln -s /etc /d/b/l; mv /d/a /d/in; while :; do mv /d/in /d/x; mv /d/b/l /d/in;"
    )
    swap += " mv /d/in /d/b/l; mv /d/x /d/in; done"
    engine.docker("run", "-d", "--name", "swapper", "-v", "swapped:/d", "busybox", "sh", "-c", swap)
    for _ in range(8):
        mount = "type=volume,source=swapped,target=/m,volume-subpath=in"
        read = engine.docker("run", "--rm", "--mount", mount, "busybox", "cat", "/m/debian_version", check=False)
        assert read.stdout in ("", "mine\n")
    archive = engine.tare("volume", "export", "swapped", text=False).stdout
    assert Path("/etc/debian_version").read_bytes() not in archive
    engine.docker("rm", "-f", "swapper")
    engine.docker("volume", "rm", "swapped")


def test_an_imported_archive_stays_in_its_volume(engine: Daemon, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile: list[list[tuple[str, bytes, str]]] = [
        [("../../evil", tarfile.REGTYPE, "")],
        [("l", tarfile.SYMTYPE, str(outside)), ("l/evil", tarfile.REGTYPE, "")],
        [("h", tarfile.LNKTYPE, "../../../../../../../../etc/passwd")],
        [(f"{outside}/evil", tarfile.REGTYPE, "")],
        [("a", tarfile.SYMTYPE, "."), ("a/../../../evil", tarfile.REGTYPE, "")],
    ]
    passwd = Path("/etc/passwd").read_bytes()
    for number, entries in enumerate(hostile):
        archive = tmp_path / f"{number}.tar"
        with tarfile.open(archive, "w") as tar:
            for name, kind, target in entries:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                tar.addfile(entry, io.BytesIO())
        engine.tare("volume", "import", f"hostile{number}", str(archive), check=False)
    assert list(outside.iterdir()) == [] and Path("/etc/passwd").read_bytes() == passwd
    assert all("/data/volumes/hostile" in str(path) for path in engine.root.rglob("evil*"))
    engine.docker("volume", "prune", "-af")


def test_what_a_mount_may_do(engine: Daemon, tmp_path: Path) -> None:
    """Read-only throughout, not recursive, propagated, made or demanded, inherited: as docker's flags say."""
    (tmp_path / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tare-test", tmp_path], check=True)
    try:
        (tmp_path / "sub").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tare-test", tmp_path / "sub"], check=True)
        subprocess.run(["mount", "--make-rshared", tmp_path], check=True)
        script = "touch /m/x && echo out; touch /m/sub/x && echo in; grep -c ' /m/sub ' /proc/mounts; grep ' /m ' /proc/self/mountinfo"

        def shown(options: str) -> str:
            mount = f"type=bind,source={tmp_path},target=/m{options}"
            return engine.docker("run", "--rm", "--mount", mount, "busybox", "sh", "-c", script, check=False).stdout

        assert shown("").startswith("out\nin\n1\n") and "shared:" not in shown("")
        assert shown(",readonly").startswith("1\n")
        assert shown(",readonly,bind-recursive=readonly,bind-propagation=rprivate").startswith("1\n")
        assert shown(",readonly,bind-recursive=writable").startswith("in\n1\n")
        assert shown(",bind-recursive=disabled").startswith("out\nin\n0\n")
        assert "shared:" in shown(",bind-propagation=rshared") and "master:" in shown(",bind-propagation=rslave")
        engine.docker("create", "--name", "lender", "-v", f"{tmp_path}:/m:ro,z", "-v", "lent:/v", "--tmpfs", "/t", "busybox", "true")
        lent = engine.docker("run", "--rm", "--volumes-from", "lender:ro", "busybox", "sh", "-c", "touch /v/x /m/x; ls -d /t", check=False)
        assert lent.stderr.count("Read-only file system") == 2 and "/t: No such file" in lent.stderr
        engine.docker("run", "--rm", "-v", f"{tmp_path}/new:/m", "busybox", "true")
        assert (tmp_path / "new").is_dir()
        demanded = engine.docker("run", "--rm", "--mount", f"type=bind,source={tmp_path}/none,target=/m", "busybox", "true", check=False)
        assert "bind source path does not exist" in demanded.stderr and not (tmp_path / "none").exists()
    finally:
        engine.docker("rm", "-f", "lender", check=False)
        engine.docker("volume", "rm", "lent", check=False)
        subprocess.run(["umount", "-R", "-l", tmp_path], check=True)


def test_outer_mounts_come_first_and_the_engines_files_stay_visible(engine: Daemon) -> None:
    run = ["run", "--rm", "--tmpfs", "/a/b/c", "-v", "in:/a/b", "-v", "out:/a", "-v", "etc:/etc", "busybox"]
    shown = engine.docker(*run, "sh", "-c", "echo 1 > /a/1; echo 2 > /a/b/2; ls /a /a/b; wc -l < /etc/hosts").stdout.split()
    assert shown[:4] == ["/a:", "1", "b", "/a/b:"] and "2" in shown and int(shown[-1]) > 3
    engine.docker("volume", "rm", "in", "out", "etc")


def test_a_volume_goes_out_and_comes_back_whole(engine: Daemon, tmp_path: Path) -> None:
    engine.tare("volume", "create", "--uid", "33", "--mode", "2770", "--label", "a=b", "orig")
    engine.docker(
        "run", "--rm", "-v", "orig:/d", "busybox", "sh", "-c", "mkdir /d/s; echo hi > /d/s/f; ln /d/s/f /d/h; ln -s /etc/passwd /d/l"
    )
    engine.tare("volume", "export", "-o", str(tmp_path / "v.tar"), "orig")
    engine.tare("volume", "import", "back", str(tmp_path / "v.tar"))
    engine.tare("volume", "clone", "orig", "twin")
    snapshot = engine.tare("volume", "snapshot", "orig").stdout.strip()
    look = ("busybox", "sh", "-c", "cd /d; stat -c '%n %u %g %a %h %F %s' . s s/f h l | sort")
    shown = [engine.docker("run", "--rm", "-v", f"{name}:/d", *look).stdout for name in ("orig", "back", "twin", snapshot)]
    assert len(set(shown)) == 1 and "h 0 0 644 2 regular file 3" in shown[0]
    labels = json.loads(engine.docker("volume", "inspect", snapshot).stdout)[0]["Labels"]
    assert labels == {"a": "b", "tare.snapshot.of": "orig"}
    (tmp_path / "junk").write_bytes(b"junk" * 500)
    assert engine.tare("volume", "import", "bad", str(tmp_path / "junk"), check=False).returncode == 1
    assert "must be unique" in engine.tare("volume", "import", "twin", str(tmp_path / "v.tar"), check=False).stderr
    names = engine.docker("volume", "ls", "-q").stdout.split()
    assert "bad" not in names
    engine.docker("volume", "rm", "orig", "back", "twin", snapshot)
    assert not [name for name in os.listdir(engine.root / "data/volumes") if name.startswith(".")]


def test_a_killed_daemon_finds_its_mounted_volumes_again(own_daemon: Daemon) -> None:
    _mounted_volume(own_daemon, "used")
    _mounted_volume(own_daemon, "idle")
    own_daemon.docker("run", "-d", "--name", "stays", "-v", "used:/d", "busybox", "sh", "-c", "echo x > /d/f; sleep 1000")
    own_daemon.docker("run", "-d", "--name", "gone", "-v", "idle:/d", "busybox", "sleep", "1000")
    pid = own_daemon.docker("inspect", "-f", "{{.State.Pid}}", "gone").stdout.strip()
    own_daemon.kill()
    os.kill(int(pid), 9)
    own_daemon.start()
    assert [path.split("/")[-2] for path in _mounts(own_daemon)] == ["used"]
    assert own_daemon.docker("run", "--rm", "-v", "used:/d", "busybox", "cat", "/d/f").stdout == "x\n"
    assert len(_mounts(own_daemon)) == 1
    own_daemon.docker("rm", "-f", "stays", "gone")
    assert _mounts(own_daemon) == []


def test_many_volumes_leave_nothing(engine: Daemon) -> None:
    rounds = int(os.environ.get("TARE_VOLUME_ROUNDS", "10"))
    before = sorted(os.listdir(engine.root / "data/volumes")), len(os.listdir(f"/proc/{engine.process.pid}/fd"))  # type: ignore[union-attr]
    for number in range(rounds):
        engine.docker("volume", "create", f"round{number}")
        engine.docker("volume", "rm", f"round{number}")
    after = sorted(os.listdir(engine.root / "data/volumes")), len(os.listdir(f"/proc/{engine.process.pid}/fd"))  # type: ignore[union-attr]
    assert after[0] == before[0] and after[1] <= before[1] + 2
