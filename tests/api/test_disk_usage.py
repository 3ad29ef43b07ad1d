"""``system df``: the API's figures, our command beside docker's, and an account of the data root that adds up to what du says."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from docker_calls import Recorder
from engine_world import Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer]

_FACTS = re.compile(r"(Less than a second|About \w+ \w+|\d+ (seconds?|minutes?))( ago)?")


def _settled(text: str) -> str:
    """Output without what depends on the moment, nor on the width that this takes."""
    return re.sub(r" +", " ", _FACTS.sub("T", text))


def test_disk_usage(own_daemon: Daemon) -> None:
    daemon = own_daemon
    api = Recorder(str(daemon.socket))
    daemon.docker("tag", "busybox", "busybox:second")
    daemon.docker("volume", "create", "kept")
    daemon.docker("run", "--name", "writer", "-v", "kept:/v", "busybox", "sh", "-c", "echo 123456 > /file; echo 1234 > /v/file")
    daemon.docker("run", "-d", "--name", "sleeper", "busybox", "sleep", "1000")
    for options in ((), ("--format", "json"), ("--format", "{{.Type}} {{.Active}}/{{.TotalCount}} {{.Reclaimable}}")):
        assert daemon.tare("system", "df", *options).stdout == daemon.docker("system", "df", *options).stdout
    theirs = _settled(daemon.docker("system", "df", "-v").stdout)
    assert _settled(daemon.tare("system", "df", "-v").stdout).startswith(theirs)

    usage = api.call("", "GET", "/v1.45/system/df")
    image = usage["Images"][0]
    assert (image["Containers"], image["SharedSize"], image["Size"]) == (2, 0, usage["LayersSize"])
    by_name = {container["Names"][0]: container for container in usage["Containers"]}
    assert by_name["/writer"]["SizeRw"] == 7
    assert by_name["/writer"]["SizeRootFs"] == 7 + image["Size"]
    assert usage["Volumes"][0]["UsageData"] == {"Size": 5, "RefCount": 1}
    assert usage["BuildCache"] == []
    assert "BuilderSize" not in usage
    assert api.call("", "GET", "/v1.41/system/df?type=volume")["BuilderSize"] == 0
    only = api.call("", "GET", "/v1.45/system/df?type=volume")
    assert only["Volumes"]
    assert only["Images"] is only["Containers"] is only["BuildCache"] is None
    assert api.call("", "GET", "/v1.45/system/df?type=wrong") == {"message": "unknown object type: wrong"}

    daemon.docker("rm", "-f", "sleeper")
    root = api.call("", "GET", "/v1.45/system/df?data-root=1")["DataRoot"]
    said = subprocess.run(["du", "-sx", "-B1", root["Path"]], check=True, capture_output=True, text=True).stdout
    assert root["Size"] == sum(entry["Size"] for entry in root["Entries"]) == int(said.split()[0])
    assert "other" not in {entry["Kind"] for entry in root["Entries"]}
    layer = next(entry for entry in root["Entries"] if entry["Kind"] == "layer")
    assert layer["UsedBy"] == ["container writer", "image busybox:latest"]
    document = json.loads(daemon.tare("system", "df", "-v", "--format", "json").stdout)
    assert {"Kind": "volume", "Name": "kept", "Size": "12.29kB", "UsedBy": "container writer"} in document["DataRoot"]
