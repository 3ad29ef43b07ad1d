"""The rules by which the build cache keeps itself small, and the settings that change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tare.builder.collection import rules_of, wanted
from tare.builder.service import CacheEntry
from tare.builder_options import parse
from tare.config import BuilderConfig, CacheRule
from tare.daemon_options import UsageError, load

GIB = 1 << 30


def entry(type: str = "regular", used: float = 100.0, **changes: Any) -> CacheEntry:
    fields = {"id": "abc", "description": "RUN x", "in_use": False, "shared": False, "size": 1, "made": 1.0, "count": 1}
    return CacheEntry(type=type, used=used, **(fields | changes))


def test_the_default_rules_are_parts_of_the_disk() -> None:
    first, second, third = rules_of(BuilderConfig(), 100 * GIB)
    assert (third.reserved, third.most, third.free) == (11 * 10**9, 81 * 10**9, 21 * 10**9)
    assert second == CacheRule(unused_for=60 * 86400.0, reserved=third.reserved, most=third.most, free=third.free)
    assert (first.unused_for, first.most) == (2 * 86400.0, round(11e9 * 0.138))
    assert [wanted(dict(name_values(first)))(entry(type)) for type in ("regular", "source.local", "exec.cachemount")] == [False, True, True]
    assert rules_of(BuilderConfig(), 0)[2] == CacheRule(reserved=2 * 10**9)
    assert rules_of(BuilderConfig(reserved=5 * GIB), 100 * GIB)[2] == CacheRule(reserved=5 * GIB)


def name_values(rule: CacheRule) -> dict[str, list[str]]:
    return {name: [value] for name, value in rule.filters}


def test_settings_as_dockerd_reads_them(tmp_path: Path) -> None:
    document = {
        "GC": {
            "Enabled": True,
            "defaultKeepStorage": "20GB",
            "policy": [
                {"keepStorage": "512MB", "filter": ["unused-for=48h", "type=source.local,type==exec.cachemount"]},
                {"maxUsedSpace": "1.5g", "minFreeSpace": 10, "filter": {"unused-for": {"1440h": True}}, "all": True},
                {"reservedSpace": "1g", "keepDuration": "1h30m"},
            ],
        },
        "entitlements": {"security-insecure": False, "network-host": True},
        "history": {"maxAge": "48h", "maxEntries": 5},
    }
    found = parse(document)
    assert found.collect and found.reserved == 20 * GIB and found.refused == {"security.insecure"}
    assert (found.history_age, found.history_entries) == (48 * 3600.0, 5)
    assert found.rules == (
        CacheRule((("type", "source.local,type==exec.cachemount"),), 48 * 3600.0, 512 << 20),
        CacheRule((), 1440 * 3600.0, 0, 3 * GIB // 2, 10),
        CacheRule((), 5400.0, GIB),
    )
    assert wanted(name_values(found.rules[0]), [99.0])(entry("source.local", 98.0))
    assert not wanted(name_values(found.rules[0]), [99.0])(entry("exec.cachemount", 100.0))
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"builder": document}))
    assert load(["--config-file", str(file)]).config.builder == load(["--builder", json.dumps(document)]).config.builder == found
    assert rules_of(found, GIB) == found.rules
    assert not parse({"gc": {"enabled": False}}).collect


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"gcc": {}}, "builder: unknown key 'gcc': gc, entitlements, history are offered"),
        ({"gc": []}, "builder.gc: an object is expected"),
        ({"gc": {"enabled": "yes"}}, "builder.gc.enabled: true or false is expected"),
        ({"gc": {"defaultKeepStorage": "much"}}, 'builder.gc.defaultKeepStorage: a size such as "20GB" is expected'),
        ({"gc": {"policy": [{"filter": ["colour=red"]}]}}, "builder.gc.policy[0].filter: unknown filter 'colour'"),
        ({"gc": {"policy": [{"filter": ["unused-for=soon"]}]}}, 'a duration such as "48h" is expected'),
        ({"history": {"maxEntries": 0}}, "a positive number is expected"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, document: dict[str, Any], text: str) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(json.dumps({"builder": document}))
    with pytest.raises(UsageError) as caught:
        load(["--config-file", str(file)])
    assert text in str(caught.value) and str(file) in str(caught.value)
