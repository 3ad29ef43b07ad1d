"""``image bootstrap``: base images made from this machine alone, for where no registry can be reached.

``busybox`` is the host's static busybox with a link per applet and the few files that make it a system; ``debian:SUITE`` is what mmdebstrap
puts together from the APT mirror that this host is configured for (proxies of APT and of the environment hold). Either is streamed as a tar
into ``POST /images/create?fromSrc=-``; nothing touches the disk but what mmdebstrap needs.

The busybox tar is deterministic: sorted, epoch 0, so the same binary gives the same layer.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.pull import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tare.cli.context import Context
    from tare.cli.flags import Options

_BLOCK = 512
_BUSYBOX = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox")
_PLAIN_DIRECTORIES = "dev etc home proc sys usr usr/bin usr/sbin var var/spool var/spool/mail var/www"
_DIRECTORIES = sorted([("root", 0o700), ("tmp", 0o1777), *((name, 0o755) for name in _PLAIN_DIRECTORIES.split())])
_PASSWD = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\ntty:x:5:\nusers:x:100:\nwww-data:x:33:\nnogroup:x:65534:\n"
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
_SUITE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.")


def tar_header(name: str, kind: bytes, mode: int, size: int = 0, link: str = "") -> bytes:
    """One ustar header of an entry that belongs to root."""
    path, target = name.encode(), link.encode()
    if len(path) > 100 or len(target) > 100:
        raise ValueError(f"name too long for a plain header: {name}")
    head = bytearray(_BLOCK)
    head[0 : len(path)] = path
    head[100:108] = b"%07o\0" % mode
    head[108:116] = head[116:124] = b"%07o\0" % 0
    head[124:136] = b"%011o\0" % size
    head[136:148] = b"%011o\0" % 0
    head[148:156] = b" " * 8
    head[156:157] = kind
    head[157 : 157 + len(target)] = target
    head[257:265] = b"ustar\x0000"
    head[265:269] = head[297:301] = b"root"
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _file(name: str, mode: int, content: bytes) -> bytes:
    return tar_header(name, b"0", mode, len(content)) + content + b"\0" * (-len(content) % _BLOCK)


def busybox_tar(binary: bytes, applets: Sequence[str]) -> Iterator[bytes]:
    """The layer, in pieces."""
    yield tar_header("bin/", b"5", 0o755)
    yield _file("bin/busybox", 0o755, binary)
    yield b"".join(tar_header(f"bin/{applet}", b"2", 0o777, link="busybox") for applet in sorted(set(applets)) if applet != "busybox")
    yield b"".join(tar_header(f"{name}/", b"5", mode) for name, mode in _DIRECTORIES)
    yield tar_header("usr/bin/env", b"2", 0o777, link="/bin/busybox")
    for name, content in (("etc/group", _GROUP), ("etc/nsswitch.conf", _NSSWITCH), ("etc/passwd", _PASSWD)):
        yield _file(name, 0o644, content.encode())
    yield b"\0" * (2 * _BLOCK)


def _is_static(binary: bytes) -> bool:
    """An ELF program without an interpreter segment needs nothing else in the image."""
    if binary[:4] != b"\x7fELF" or binary[4] != 2 or binary[5] != 1:
        return binary[:4] == b"\x7fELF"
    table, entry, count = (
        int.from_bytes(binary[32:40], "little"),
        int.from_bytes(binary[54:56], "little"),
        int.from_bytes(binary[56:58], "little"),
    )
    interpreter = 3
    return all(int.from_bytes(binary[table + i * entry : table + i * entry + 4], "little") != interpreter for i in range(count))


def _busybox() -> tuple[Iterator[bytes], list[str]]:
    for path in _BUSYBOX:
        if not os.access(path, os.X_OK):
            continue
        with open(path, "rb") as file:
            binary = file.read()
        if not _is_static(binary):
            continue
        applets = subprocess.run([path, "--list"], capture_output=True, text=True, check=True).stdout.split()
        return busybox_tar(binary, applets), ['CMD ["sh"]', "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    raise CliError(
        "there is no statically linked busybox on this machine; install one, on Debian and Ubuntu with: apt-get install busybox-static"
    )


def _debian(suite: str) -> tuple[Iterator[bytes], list[str]]:
    tool = next((path for path in ("/usr/bin/mmdebstrap", "/usr/local/bin/mmdebstrap") if os.access(path, os.X_OK)), "")
    if not tool:
        raise CliError("making a Debian image needs mmdebstrap; install it, on Debian and Ubuntu with: apt-get install mmdebstrap")
    mode = "root" if os.geteuid() == 0 else "unshare"
    command = [tool, "--quiet", f"--mode={mode}", "--variant=minbase", "--format=tar", "--skip=output/dev,output/mknod"]
    command += [f"--aptopt={line}" for line in _apt_proxies()]
    # What the official images leave out as well: downloaded packages and lists of them.
    command += ['--customize-hook=rm -rf "$1"/var/cache/apt/*.bin', suite, "-"]
    return _output_of(command), ['CMD ["bash"]', "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def _apt_proxies() -> Iterator[str]:
    """The proxy settings of this host's APT, which mmdebstrap does not read by itself."""
    try:
        dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return
    for line in dump.splitlines():
        if "::proxy" in line.partition(" ")[0].lower() and not line.endswith('"";'):
            yield line


def _output_of(command: list[str]) -> Iterator[bytes]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        finished = False
        try:
            while piece := process.stdout.read(1 << 18):
                yield piece
            finished = True
        finally:
            if not finished:
                process.terminate()
        if process.wait() != 0:
            raise CliError(f"{os.path.basename(command[0])} failed with status {process.returncode}; what it said is above")


def _source(name: str) -> tuple[str, str, Iterator[bytes], list[str]]:
    repository, _, tag = name.partition(":")
    if repository == "busybox":
        return repository, tag or "latest", *_busybox()
    if repository == "debian":
        suite = tag.removesuffix("-slim") if tag not in ("", "latest") else "stable"
        if not suite or set(suite) - _SUITE_CHARACTERS or suite.startswith(("-", ".")):
            raise CliError(f"{tag!r} is no Debian suite; try bookworm, trixie, stable or sid")
        return repository, tag or "latest", *_debian(suite)
    raise CliError(f"there is no recipe for {name}: known are busybox and debian:SUITE (for example debian:bookworm)")


def _bootstrap(context: Context, options: Options) -> int:
    repository, tag, pieces, changes = _source(options.operands[0])
    client = context.client
    query = {
        "fromSrc": "-",
        "repo": options.text("tag") or repository,
        "tag": "" if options.text("tag") else tag,
        "message": "made by tare image bootstrap",
    }
    # The daemon takes several changes as repeated parameters.
    target = "/images/create?" + "&".join(f"changes={_quoted(change)}" for change in changes)
    response = client.upload(target, query, pieces)
    identifier = ""

    def shown() -> Iterator[dict[str, object]]:
        nonlocal identifier
        for document in response.lines():
            if str(document.get("status", "")).startswith("sha256:"):
                identifier = document["status"]
            else:
                yield document

    Progress(2).show(shown())
    name = options.text("tag") or f"{repository}:{tag}"
    sys.stdout.write(f"{identifier}\n" if options.on("quiet") else f"{name} {identifier}\n")
    return 0


def _quoted(text: str) -> str:
    from tare.cli.connection import quote

    return quote(text)


BOOTSTRAP = Command(
    "image bootstrap",
    "image bootstrap [OPTIONS] NAME",
    "Make a base image from this machine, without a registry",
    _bootstrap,
    (
        ("quiet", "q", "bool", "Only print the image ID"),
        ("tag", "t", "string", "Name of the image (default NAME)"),
    ),
    least=1,
    most=1,
    examples=(
        "tare image bootstrap busybox               from the host's static busybox",
        "tare image bootstrap debian:bookworm       through mmdebstrap, from your APT mirror",
    ),
)
