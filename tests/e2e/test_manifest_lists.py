"""``manifest`` beside docker's own: two platforms under one name, annotated, looked at, pushed; both tools push the same bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from debian_registry import docker_registry
from engine_world import Daemon, busybox_tar

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists under work are kept below the user's own directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)


@pytest.mark.usefixtures("home")
def test_a_list_of_two_platforms(engine: Daemon, registry: str) -> None:
    names = [f"{registry}/many:{arch}" for arch in ("amd64", "arm64")]
    for name in names:
        engine.docker("import", "--platform", f"linux/{name.rpartition(':')[2]}", "-", name, input=busybox_tar(), text=False)
        engine.docker("push", "-q", name)
    target, second = f"{registry}/many:all", names[1]
    pushed = []
    for either in (engine.docker, engine.tare):
        said = [either("manifest", "create", "--insecure", target, second, check=False)]
        said.append(either("manifest", "create", "--insecure", target, names[0], check=False))  # exists already
        said.append(either("manifest", "create", "--insecure", "--amend", target, names[0], check=False))
        said.append(
            either("manifest", "annotate", target, second, "--variant", "v8", "--os-version", "5", "--os-features", "a,b", check=False)
        )
        said.append(either("manifest", "annotate", target, f"{registry}/many:other", "--arch", "arm", check=False))
        said.append(either("manifest", "annotate", target, second, "--arch", "nothing", "--os", "linux", check=False))
        said.append(either("manifest", "annotate", target, second, "--arch", "arm64", "--os", "linux", check=False))
        said.append(either("manifest", "inspect", "--insecure", target, check=False))
        said.append(either("manifest", "push", "--insecure", "--purge", target, check=False))
        said.append(either("manifest", "rm", target, check=False))  # purged already
        said.append(either("manifest", "inspect", "--insecure", "--verbose", names[0], check=False))
        either("manifest", "create", "--insecure", target, names[0])
        said.append(either("manifest", "rm", target, check=False))
        pushed.append([(done.returncode, done.stdout, re.sub("docker|tare", "", done.stderr)) for done in said])
    for theirs, ours in zip(*pushed, strict=True):
        assert ours == theirs, "\n".join(map(str, (theirs, ours)))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", pushed[1][8][1])
    document = json.loads(pushed[1][7][1])
    assert [each["platform"]["architecture"] for each in document["manifests"]] == ["amd64", "arm64"]
    assert document["manifests"][1]["platform"] == {
        "architecture": "arm64", "os": "linux", "variant": "v8", "os.version": "5", "os.features": ["a", "b"],
    }  # fmt: skip
    engine.docker("rmi", *names)
    engine.docker("pull", "-q", target)
    assert engine.docker("image", "inspect", "-f", "{{.Architecture}}", target).stdout == "amd64\n"
    engine.docker("rmi", target)


@pytest.mark.parametrize("flag", [("--arch", "s390x"), ("--os", "plan9")])
@pytest.mark.usefixtures("home")
def test_annotating_what_is_not_there(engine: Daemon, flag: tuple[str, str]) -> None:
    for either in (engine.docker, engine.tare):
        done = either("manifest", "annotate", "127.0.0.1:1/none:1", "127.0.0.1:1/image:1", *flag, check=False)
        assert done.returncode == 1 and done.stderr.strip()
