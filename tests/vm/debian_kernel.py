"""A stock Debian kernel for the test machine, unpacked into a cache: nothing is installed on the host.

~/.cache/tare-tests/PACKAGE/      boot/vmlinuz-VERSION  lib/modules/VERSION/…  (complete once `.done` exists)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"
APT = "/usr/bin/apt-get"


class Unavailable(Exception):
    """This machine cannot run the test machine; the message says why and what would help."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path
    """The ``lib/modules/VERSION`` directory."""


def cache_root() -> Path:
    """Where kernels are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "tare-tests"


def obtain() -> Kernel:
    """The newest unpacked kernel; fetched through apt the first time."""
    root = cache_root()
    for done in sorted(root.glob("linux-image-*/.done"), reverse=True):
        return _describe(done.parent)
    return _fetch(root)


def _fetch(root: Path) -> Kernel:
    if not os.access(APT, os.X_OK):
        raise Unavailable("no kernel for the test machine: apt-get is needed to fetch one")
    listing = subprocess.run(["/usr/bin/apt-cache", "depends", META_PACKAGE], capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", listing.stdout)
    if found is None:
        raise Unavailable(f"apt knows no {META_PACKAGE}; run apt-get update")
    package = found[1]
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        fetched = subprocess.run([APT, "download", "-q", package], cwd=scratch, capture_output=True, text=True, check=False)
        archives = list(Path(scratch).glob("*.deb"))
        if fetched.returncode or not archives:
            raise Unavailable(f"apt-get download {package} failed: {fetched.stderr.strip()[-200:]}")
        tree = Path(scratch) / "tree"
        subprocess.run(["/usr/bin/dpkg-deb", "-x", str(archives[0]), str(tree)], check=True)
        (tree / ".done").touch()
        target = root / package
        try:
            tree.rename(target)
        except OSError:  # another run was faster, or an earlier one broke off
            if not (target / ".done").exists():
                shutil.rmtree(target, ignore_errors=True)
                tree.rename(target)
    return _describe(target)


def _describe(tree: Path) -> Kernel:
    return Kernel(next(tree.glob("boot/vmlinuz-*")), next(tree.glob("lib/modules/*")))


def resolve_modules(kernel: Kernel, names: list[str]) -> list[Path]:
    """Files of the named modules and of all that they depend on, in loading order; unknown names are built into the kernel.

    The package has no ``modules.dep`` before its installation, so the dependencies are read from the modules themselves.
    """
    files = {path.name[: -len(".ko")].replace("-", "_"): path for path in kernel.modules.rglob("*.ko")}
    ordered: dict[str, Path] = {}

    def visit(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path.name in ordered:
            return
        depends = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for needed in depends[1].decode().split(",") if depends and depends[1] else ():
            visit(needed)
        ordered[path.name] = path

    for name in names:
        visit(name)
    return list(ordered.values())
