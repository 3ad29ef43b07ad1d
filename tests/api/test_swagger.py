"""Live answers against the Engine API's own description (swagger 1.51): every path is answered, every answer has the fields and types.

Swagger 2.0 knows no null, where Go writes one for an empty list, map or pointer: nulls are taken out before validation.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from docker_calls import Recorder, filters
from engine_world import Daemon
from swagger_world import SWAGGER, VERSION, description, faults

pytestmark = [pytest.mark.root, pytest.mark.skipif(not SWAGGER.exists(), reason="needs the Engine API's swagger file")]

INPUT = {"Image": "busybox", "Cmd": ["sh", "-c", "echo hello; sleep 1000"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}}
HEALTH = {"Test": ["CMD", "true"], "Interval": 10**9}
HOST = {"PortBindings": {"80/tcp": [{"HostPort": ""}]}, "Binds": ["swagger:/data"], "Memory": 64 << 20}

CALLS = (
    ("GET", "/info", "/info", None),
    ("GET", "/version", "/version", None),
    ("POST", "/volumes/create", "/volumes/create", {"Name": "swagger", "Labels": {"a": "b"}}),
    ("GET", "/volumes", "/volumes", None),
    ("GET", "/volumes/{name}", "/volumes/swagger", None),
    ("POST", "/networks/create", "/networks/create", {"Name": "swagger"}),
    ("GET", "/networks", "/networks", None),
    ("GET", "/networks/{id}", "/networks/swagger", None),
    ("POST", "/containers/create", "/containers/create?name=swagger", {**INPUT, "Healthcheck": HEALTH, "HostConfig": HOST}),
    ("GET", "/containers/{id}/json", "/containers/swagger/json", None),
    ("POST", "/containers/{id}/start", "/containers/swagger/start", None),
    ("GET", "/containers/json", "/containers/json?size=1", None),
    ("GET", "/containers/{id}/json", "/containers/swagger/json?size=1", None),
    ("GET", "/containers/{id}/top", "/containers/swagger/top", None),
    ("GET", "/containers/{id}/changes", "/containers/swagger/changes", None),
    ("GET", "/containers/{id}/stats", "/containers/swagger/stats?stream=0", None),
    ("POST", "/containers/{id}/update", "/containers/swagger/update", {"CpuShares": 512}),
    ("POST", "/containers/{id}/exec", "/containers/swagger/exec", {"Cmd": ["true"]}),
    ("GET", "/networks/{id}", "/networks/bridge", None),
    ("GET", "/system/df", "/system/df", None),
    ("GET", "/images/json", "/images/json", None),
    ("GET", "/images/{name}/json", "/images/busybox/json", None),
    ("GET", "/images/{name}/history", "/images/busybox/history", None),
    ("GET", "/containers/{id}/json", "/containers/nobody/json", None),
    ("POST", "/containers/create", "/containers/create?name=swagger", INPUT),
    ("GET", "/swarm", "/swarm", None),
    ("GET", "/plugins", "/plugins", None),
    ("POST", "/containers/{id}/stop", "/containers/swagger/stop?t=0", None),
    ("POST", "/containers/{id}/wait", "/containers/swagger/wait", None),
    ("DELETE", "/containers/{id}", "/containers/swagger", None),
    ("POST", "/containers/prune", f"/containers/prune?{filters(label=['none'])}", None),
    ("POST", "/networks/prune", f"/networks/prune?{filters(label=['none'])}", None),
    ("POST", "/volumes/prune", f"/volumes/prune?{filters(label=['none'])}", None),
    ("POST", "/images/prune", f"/images/prune?{filters(label=['none'])}", None),
    ("DELETE", "/networks/{id}", "/networks/swagger", None),
    ("DELETE", "/volumes/{name}", "/volumes/swagger", None),
)

NEEDS_A_REGISTRY = ("/auth", "/images/search", "/images/create", "/distribution/{name}/json")
"""Without one, dockerd answers 500 too."""


@pytest.fixture(scope="module")
def swagger() -> Any:
    return description()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_answers_are_as_described(engine: Daemon, swagger: Any) -> None:
    recorder = Recorder(str(engine.socket))
    wrong: list[str] = []
    for number, (method, template, path, body) in enumerate(CALLS):
        document = recorder.call(f"{number}", method, VERSION + path, body)
        status = recorder.answers[f"{number}"].status
        described = {str(key): value for key, value in swagger["paths"][template][method.lower()]["responses"].items()}
        label = f"{method} {path} ({status})"
        schema = described.get(str(status), {}).get("schema")
        if str(status) not in described:
            wrong.append(f"{label}: status is not described: {json.dumps(document)[:200]}")
        elif schema is not None:
            wrong += [f"{label}{fault}" for fault in faults(swagger, schema, document)]
    assert not wrong, "\n".join(wrong)


def test_every_path_is_answered(engine: Daemon, swagger: Any) -> None:
    """No endpoint of the description is a page not found."""
    recorder = Recorder(str(engine.socket))
    silent = []
    for template, methods in swagger["paths"].items():
        for method in methods:
            if method.upper() not in ("GET", "POST", "PUT", "DELETE", "HEAD") or template == "/events":
                continue
            label = f"{method.upper()} {template}"
            path = re.sub(r"\{\w+\}", "no-such-thing", template)
            if template in ("/containers/prune", "/images/prune", "/networks/prune", "/volumes/prune", "/build/prune", "/images/get"):
                path += f"?{filters(nonsense=['x'])}"
            document = recorder.call(label, method.upper(), VERSION + path)
            answer = recorder.answers[label]
            if answer.status == 404 and (document or {}).get("message") == "page not found":
                silent.append(label)
            assert answer.status != 500 or template in NEEDS_A_REGISTRY, (label, document)
    assert not silent, silent


def test_old_names_of_versions_are_refused(engine: Daemon) -> None:
    done = subprocess.run(
        ["curl", "-s", "--unix-socket", engine.socket, "http://d/v1.23/info"], capture_output=True, text=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["message"].startswith("client version 1.23 is too old. Minimum supported API version is 1.24")
