"""The layering rules of docs/ARCHITECTURE.md, checked on the code as it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "tare"


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports at run time (``if TYPE_CHECKING`` apart)."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_imports_only_point_down_the_layers() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["linux", "runtime", "cli"])
def test_what_must_be_standard_library_only(package: str) -> None:
    own = {
        "linux": ("tare.linux",),
        "runtime": ("tare.linux", "tare.runtime"),
        "cli": ("tare.cli", "tare.config", "tare.errors", "tare.builder.ignore"),  # the last is pure, and of the standard library as well
    }[package]
    foreign = {
        f"{path.relative_to(SOURCE)}: {name}"
        for path in (SOURCE / package).rglob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in sys.stdlib_module_names and not name.startswith(own) and name != "tare"
    }
    assert not foreign


def test_package_inits_are_empty() -> None:
    assert [str(path) for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE and path.read_text().strip()] == []


def test_tar_archives_are_never_unpacked_by_the_library() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr in ("extractall", "extract") and "tarfile" in path.read_text()), path


def test_no_shell_is_ever_used() -> None:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                # A shell is asked for by a literal True; other values under that name are a Dockerfile's SHELL.
                asked = [keyword.value for keyword in node.keywords if keyword.arg == "shell"]
                assert not any(isinstance(value, ast.Constant) and value.value for value in asked), path
                assert not (isinstance(node.func, ast.Attribute) and node.func.attr in ("system", "popen")), path


@pytest.mark.parametrize("module", ["tare.runtime.launcher", "tare.runtime.cli.lifecycle"])
def test_what_is_forked_for_every_container_carries_no_heavy_modules(module: str) -> None:
    """Each megabyte in the launcher is page tables to copy at every fork; ``tare-runtime`` pays for each module in time."""
    heavy = {"dataclasses", "inspect", "ast", "pathlib", "ipaddress", "subprocess", "shutil", "tempfile", "argparse", "logging"}
    program = f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); import {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    assert heavy.isdisjoint(done.stdout.split())
