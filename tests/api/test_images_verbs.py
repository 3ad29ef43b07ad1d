"""Image verbs against a running daemon: search, import from the web, history, versions of the API, prune, and dockerd's refusals."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from debian_registry import docker_registry
from docker_calls import UnixConnection
from engine_world import Daemon, busybox_tar

pytestmark = [pytest.mark.root, pytest.mark.peer]


@pytest.fixture
def child(engine: Daemon) -> Iterator[str]:
    """An image made of busybox by a commit, with a label."""
    engine.docker("create", "--name", "for-child", "--network", "none", "busybox", "true")
    engine.docker("commit", "-c", "LABEL kind=child", "-m", "grown", "for-child", "child.example/c:1")
    engine.docker("rm", "for-child")
    yield "child.example/c:1"
    engine.docker("rmi", "-f", "child.example/c:1", check=False)


def ask(engine: Daemon, path: str) -> tuple[int, Any]:
    connection = UnixConnection(str(engine.socket))
    try:
        connection.request("GET", quote(path, safe="/?&="))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def get(engine: Daemon, path: str) -> Any:
    status, document = ask(engine, path)
    assert status == 200, document
    return document


def test_search_of_a_registry_that_lists_its_repositories(engine: Daemon, tmp_path: Path) -> None:
    with docker_registry(tmp_path, closed=False) as address:
        for name in ("team/web", "other"):
            engine.docker("tag", "busybox", f"{address}/{name}:1")
            engine.docker("push", "-q", f"{address}/{name}:1")
            engine.docker("rmi", f"{address}/{name}:1")
        for client in (engine.docker, engine.tare):
            assert client("search", "--format", "{{.Name}}", f"{address}/web").stdout == f"{address}/team/web\n"
            assert client("search", "--format", "{{.Name}}", "-f", "stars=1", f"{address}/web").stdout == ""
        assert engine.tare("search", f"{address}/web").stdout == engine.docker("search", f"{address}/web").stdout


def test_search_says_why_it_cannot(engine: Daemon, tmp_path: Path) -> None:
    with docker_registry(tmp_path, closed=True) as address:
        assert "no basic auth credentials" in engine.docker("search", f"{address}/web", check=False).stderr


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "root.tar").write_bytes(busybox_tar())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_import_from_the_web(engine: Daemon, web: str) -> None:
    for client in (engine.docker, engine.tare):
        told = client("import", f"{web}/root.tar", "web.example/x:1").stdout.splitlines()
        assert told[0] == f"Downloading from {web}/root.tar" and told[1].startswith("sha256:")
        assert engine.docker("history", "--format", "{{.Comment}}", "web.example/x:1").stdout == f"Imported from {web}/root.tar\n"
        assert "404" in client("import", f"{web}/nothing", check=False).stderr
        engine.docker("rmi", "web.example/x:1")


def test_history_goes_up_through_parents(engine: Daemon, child: str) -> None:
    steps = get(engine, f"/v1.41/images/{child}/history")
    parent = get(engine, "/v1.41/images/busybox/json")["Id"]
    assert steps[0]["Tags"] == [child] and steps[1]["Id"] == parent
    ours = engine.tare("history", "--format", "{{.ID}} {{.Size}} {{.Comment}}", child).stdout
    assert ours == engine.docker("history", "--format", "{{.ID}} {{.Size}} {{.Comment}}", child).stdout
    assert engine.tare("history", "-q", "--no-trunc", child).stdout == engine.docker("history", "-q", "--no-trunc", child).stdout


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ("1.41", {"VirtualSize", "Container", "ContainerConfig"}, {"Manifests"}),
        ("1.44", {"Container", "ContainerConfig"}, {"VirtualSize"}),
        ("1.45", set(), {"Container", "ContainerConfig", "VirtualSize"}),
        ("1.51", set(), {"Container", "ContainerConfig", "VirtualSize"}),
    ],
)
def test_inspect_differs_by_version(engine: Daemon, version: str, has: set[str], lacks: set[str]) -> None:
    found = get(engine, f"/v{version}/images/busybox/json")
    assert has <= found.keys() and not lacks & found.keys()
    assert ("Hostname" in found["Config"]) == (version < "1.50")
    assert {"User", "Env", "Cmd", "Entrypoint", "WorkingDir", "Labels", "Volumes", "OnBuild"} <= found["Config"].keys()


def test_manifests_and_shared_sizes(engine: Daemon, child: str) -> None:
    listed = {tag: image for image in get(engine, "/v1.47/images/json?manifests=1&shared-size=1") for tag in image["RepoTags"]}
    image = listed[child]
    assert image["SharedSize"] == image["Size"] == listed["busybox:latest"]["SharedSize"]
    (manifest,) = image["Manifests"]
    assert manifest["Kind"] == "image" and manifest["Available"] and manifest["ImageData"]["Platform"]["os"] == "linux"
    assert "Manifests" in get(engine, f"/v1.48/images/{child}/json?manifests=1")
    assert get(engine, "/v1.41/images/json?shared-size=1")[0]["SharedSize"] == -1
    status, answer = ask(engine, f'/v1.49/images/{child}/json?manifests=1&platform={{"os":"linux","architecture":"amd64"}}')
    assert status == 400 and "conflicting options" in answer["message"]


def test_prune_by_label_and_age(engine: Daemon, child: str) -> None:
    names = ["--format", "{{.Repository}}:{{.Tag}}"]
    for keep in (["label=kind=other"], ["label!=kind=child"], ["until=24h", "label=kind=child"], ["keep-last=1", "label=kind=child"]):
        engine.docker("image", "prune", "-af", *(word for text in keep for word in ("--filter", text)))
        if keep[0] != "label!=kind=child":
            assert child in engine.docker("images", *names).stdout.split(), keep
        else:
            engine.load_busybox()
    engine.docker("image", "prune", "-af", "--filter", "label=kind=child")
    assert child not in engine.docker("images", *names).stdout.split()
    assert "busybox:latest" in engine.docker("images", *names).stdout.split()
    refused = engine.docker("image", "prune", "-f", "--filter", "bogus=1", check=False)
    assert "invalid filter 'bogus'" in refused.stderr


def test_labels_of_an_image_configure_nothing(engine: Daemon) -> None:
    """A label is what an image's author says about it; settings are the user's. Both containers are the same but for the labels."""
    labels = [
        *(
            f"{prefix}.{name}=true"
            for prefix in ("tare", "com.docker", "io.podman.annotations", "run.oci")
            for name in ("privileged", "init")
        ),
        "io.podman.annotations.autoremove=TRUE",
        "com.docker.network.bridge.name=evil",
        "tare.restart-on-unhealthy=true",
        "io.kubernetes.cri.seccomp=unconfined",
        "run.oci.hooks.stdout=/etc/passwd",
        'annotations={"a":"b"}',
    ]
    changes = [part for label in labels for part in ("-c", "LABEL " + label.replace('"', "'"))]
    engine.docker("create", "--name", "labelled-source", "--network", "none", "busybox", "true")
    engine.docker("commit", *changes, "labelled-source", "labelled.example/x:1")
    try:
        found = []
        for name in ("busybox", "labelled.example/x:1"):
            engine.docker("create", "--name", "subject", name, "true")
            document = json.loads(engine.docker("inspect", "subject").stdout)[0]
            engine.docker("rm", "subject")
            found.append({key: document[key] for key in ("HostConfig", "Mounts", "RestartCount", "AppArmorProfile")})
        assert found[0] == found[1]
    finally:
        engine.docker("rm", "labelled-source")
        engine.docker("rmi", "labelled.example/x:1")
