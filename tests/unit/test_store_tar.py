"""The tar parser and encoder against Python's tarfile and GNU tar, and against archives that no honest program writes."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tare.errors import Corrupt, InvalidArgument
from tare.store.tar import numbers, writer
from tare.store.tar.entry import Entry, Kind, Limits, affordable
from tare.store.tar.reader import Parser

KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.LINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}


def parse(data: bytes, chunk: int = 1 << 20, limits: Limits | None = None) -> list[tuple[Entry, bytes]]:
    parser = Parser(limits or Limits())
    found: list[tuple[Entry, bytearray]] = []
    for start in range(0, len(data), chunk):
        for item in parser.feed(data[start : start + chunk]):
            if isinstance(item, Entry):
                found.append((item, bytearray()))
            else:
                found[-1][1].extend(item)
    parser.close()
    for entry, body in found:
        assert data[entry.offset : entry.offset + entry.stored] == body
    return [(entry, bytes(body)) for entry, body in found]


component = st.binary(min_size=1, max_size=110).filter(lambda b: b"\0" not in b and b"/" not in b and b not in (b".", b".."))
path = st.lists(component, min_size=1, max_size=4).map(b"/".join)
entries = st.builds(
    lambda name, kind, body, mode, uid, gid, mtime, link, device, xattrs: (
        Entry(
            name,
            kind,
            mode,
            uid,
            gid,
            len(body) if kind is Kind.FILE else 0,
            mtime,
            link if kind in (Kind.LINK, Kind.SYMLINK) else b"",
            *(device if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0)),
            xattrs,
        ),
        body if kind is Kind.FILE else b"",
    ),
    path,
    st.sampled_from(list(Kind)),
    st.binary(max_size=1200),
    st.integers(0, 0o7777),
    st.integers(0, 0xFFFFFFFE),
    st.integers(0, 0xFFFFFFFE),
    st.integers(-(10**18), 10**19),
    path,
    st.tuples(st.integers(0, 4095), st.integers(0, 0o7777777)),
    st.dictionaries(component.filter(lambda b: b"=" not in b), st.binary(max_size=40), max_size=3),
)


@given(st.lists(entries, max_size=4), st.integers(1, 1500))
@settings(max_examples=150, deadline=None)
def test_what_we_write_we_read(items: list[tuple[Entry, bytes]], chunk: int) -> None:
    data = b"".join(writer.header(entry) + body + writer.padding(len(body)) for entry, body in items) + writer.END
    read = parse(data, chunk)
    for (entry, body), (got, got_body) in zip(items, read, strict=True):
        expected = entry.name + b"/" if entry.kind is Kind.DIRECTORY else entry.name
        assert (got.name, got.kind, got.mode, got.uid, got.gid, got.size) == (
            expected, entry.kind, entry.mode, entry.uid, entry.gid, entry.size
        )  # fmt: skip
        assert (got.mtime_ns, got.linkname, got.major, got.minor) == (entry.mtime_ns, entry.linkname, entry.major, entry.minor)
        assert (got.xattrs, got_body) == (entry.xattrs, body)


@given(st.lists(entries, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_tarfile_reads_what_we_write(items: list[tuple[Entry, bytes]]) -> None:
    data = b"".join(writer.header(entry) + body + writer.padding(len(body)) for entry, body in items) + writer.END
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        for (entry, body), info in zip(items, archive.getmembers(), strict=True):
            assert os.fsencode(info.name) == entry.name.rstrip(b"/")
            assert (KINDS[info.type], info.mode, info.uid, info.gid) == (entry.kind, entry.mode, entry.uid, entry.gid)
            if entry.kind is Kind.FILE:
                extracted = archive.extractfile(info)
                assert extracted is not None
                assert extracted.read() == body


text = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=120).filter(lambda t: t not in (".", ".."))


@given(
    st.lists(st.tuples(st.lists(text, min_size=1, max_size=4).map("/".join), st.binary(max_size=1500)), max_size=4),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.integers(0, 2**40),
    st.integers(0, 2**31),
    st.integers(1, 2000),
)
@settings(max_examples=150, deadline=None)
def test_we_read_what_tarfile_writes(items: list[tuple[str, bytes]], dialect: int, mtime: int, uid: int, chunk: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for name, body in items:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid = len(body), mtime, uid
            archive.addfile(info, io.BytesIO(body))
            link = tarfile.TarInfo(name + "l")
            link.type, link.linkname = tarfile.SYMTYPE, name
            archive.addfile(link)
    read = parse(buffer.getvalue(), chunk)
    assert len(read) == 2 * len(items)
    for (name, body), (entry, got), (link_entry, _) in zip(items, read[::2], read[1::2], strict=True):
        assert (entry.name, entry.uid, entry.mtime_ns, got) == (name.encode(), uid, mtime * 10**9, body)
        assert (link_entry.kind, link_entry.linkname) == (Kind.SYMLINK, name.encode())


@given(st.binary(max_size=3000), st.integers(0, 3), st.integers(0, 2000), st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_damaged_archives_never_crash(noise: bytes, copies: int, at: int, patch: bytes) -> None:
    entry = Entry(b"n" * 150, Kind.FILE, size=600, xattrs={b"user.x": b"y"})
    good = (writer.header(entry) + bytes(600) + writer.padding(600)) * copies
    data = bytearray(good + noise)
    data[at : at + len(patch)] = patch
    try:
        parse(bytes(data), 700)
    except (Corrupt, InvalidArgument):
        pass


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_dialects(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / ("f" * 60)).write_bytes(b"x" * 700)
    (tree / "s").symlink_to("d")
    os.link(tree / "d" / ("f" * 60), tree / "zhard")
    if form not in ("v7", "ustar"):
        (tree / "d" / ("g" * 250)).write_bytes(b"long")
        (tree / "long").symlink_to("t" * 200)
    subprocess.run(["tar", "-C", tree, "--sort=name", f"--format={form}", "-cf", tmp_path / "t.tar", "."], check=True)
    read = {entry.name.removeprefix(b"./"): (entry, body) for entry, body in parse((tmp_path / "t.tar").read_bytes(), 300)}
    assert read[b"d/"][0].kind is Kind.DIRECTORY
    assert read[b"d/" + b"f" * 60][1] == b"x" * 700
    assert read[b"zhard"][0].linkname == b"./d/" + b"f" * 60
    if form not in ("v7", "ustar"):
        assert read[b"d/" + b"g" * 250][1] == b"long"
        assert read[b"long"][0].linkname == b"t" * 200


def test_large_sizes_in_both_encodings() -> None:
    for form in ("gnu", "pax"):
        info = tarfile.TarInfo("big")
        info.size = 20 << 30
        header = info.tobuf(tarfile.GNU_FORMAT if form == "gnu" else tarfile.PAX_FORMAT)
        (entry,) = (item for item in Parser(bodies=False).feed(header) if isinstance(item, Entry))
        assert entry.size == 20 << 30


def test_numbers() -> None:
    assert numbers.number(b"0000644\0") == 0o644
    assert numbers.number(b" 644 \0\0\0") == 0o644
    assert numbers.number(b"\0" * 8) == 0
    assert numbers.number(b"\xff" * 12) == -1
    assert numbers.number(b"\x80" + bytes(10) + b"\x05") == 5
    for bad in (b"0x44\0\0\0\0", b"1_0\0\0\0\0\0", b"-4\0\0\0\0\0\0", b"9\0\0\0\0\0\0\0"):
        with pytest.raises(ValueError):
            numbers.number(bad)
    assert numbers.time_ns(b"1.5") == 1_500_000_000
    assert numbers.time_ns(b"-1.000000001") == -1_000_000_001
    assert numbers.time_ns(b"12.") == 12_000_000_000


@pytest.mark.parametrize(
    ("records", "text"),
    [
        (b"5 a=b\n", "PAX record"),
        (b"99 path=x\n", "PAX record"),
        (b"junk", "PAX record"),
        (b"7 =abc\n", "PAX record"),
        (b"12 size=-10\n", "not decimal"),
        (b"16 mtime=potato\n", "not decimal"),
        (b"22 GNU.sparse.map=0,5\n", "sparse map"),
        (b"22 uid=99999999999999\n", "out of range"),
        (b"9 path=\0\n", "NUL in a name"),
        (b"27 mtime=999999999999999999\n", "PAX record"),
    ],
)
def test_bad_pax_headers_name_the_place(records: bytes, text: str) -> None:
    carrier = tarfile.TarInfo("p")
    carrier.type, carrier.size = b"x", len(records)
    data = carrier.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + writer.header(Entry(b"f", Kind.FILE)) + writer.END
    with pytest.raises(Corrupt, match=f"invalid tar header at byte .*{text}"):
        parse(data)


def test_global_headers_and_what_follows_the_end_are_ignored() -> None:
    carrier = tarfile.TarInfo("g")
    records = b"15 path=global\n"
    carrier.type, carrier.size = b"g", len(records)
    head = carrier.tobuf(tarfile.USTAR_FORMAT) + records.ljust(512, b"\0")
    data = head + writer.header(Entry(b"f", Kind.FILE)) + writer.END + b"junk" * 500
    assert [entry.name for entry, _ in parse(data, 100)] == [b"f"]


def test_impossible_times_and_owners_are_refused() -> None:
    for start, text in ((136, "time is out of range"), (108, "owner .* is out of range")):
        block = bytearray(writer.header(Entry(b"f", Kind.FILE)))
        block[start : start + 8] = b"\x80\x7f" + bytes(6)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        with pytest.raises(Corrupt, match=text):
            parse(bytes(block))


def test_data_after_one_zero_block_is_refused() -> None:
    with pytest.raises(Corrupt, match="after a zero block"):
        parse(bytes(512) + writer.header(Entry(b"f", Kind.FILE)))


def test_bodies_can_be_stepped_over() -> None:
    data = b"".join(writer.header(Entry(b"f%d" % n, Kind.FILE, size=1000)) + bytes(1024) for n in range(5)) + writer.END
    parser = Parser(bodies=False)
    items = [item for start in range(0, len(data), 700) for item in parser.feed(data[start : start + 700])]
    assert [item.name for item in items if isinstance(item, Entry)] == [b"f0", b"f1", b"f2", b"f3", b"f4"]
    assert len(items) == 5
    parser.close()
    assert parser.ended
    assert parser.position == len(data)


def test_entries_follow_the_memory() -> None:
    assert [affordable(gigabytes << 30).entries for gigabytes in (0, 1, 64)] == [200_000, (1 << 28) // 640, 4_000_000]
