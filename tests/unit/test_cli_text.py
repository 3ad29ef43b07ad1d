"""Tables, times, sizes, ports, references, JSON: the text that users see."""

from __future__ import annotations

import json
import time

import pytest

from tare.cli import documents, humanize, ports, reference, tables
from tare.cli.failures import CliError


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"), (1, "1 second"),
        (59, "59 seconds"), (60, "About a minute"), (119, "About a minute"), (120, "2 minutes"),
        (3600, "About an hour"), (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"), (60 * 86400, "2 months"), (730 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert humanize.duration(seconds) == text


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (999, "999B"), (4210, "4.21kB"), (1_983_000, "1.98MB"), (2.5e9, "2.5GB")])
def test_sizes(size: float, text: str) -> None:
    assert humanize.size3(size) == text


def test_binary_sizes() -> None:
    assert [humanize.binary_size(n) for n in (0, 1024, 7.5 * 2**20, 23.54 * 2**30)] == ["0B", "1KiB", "7.5MiB", "23.54GiB"]


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-23T20:10:29.738981631Z", 1795464629738981631),
        ("2026-11-23T22:10:29.5+02:00", 1795464629500000000),
        ("2000-02-29T12:00:00Z", 951825600000000000),
        ("0001-01-01T00:00:00Z", 0),
    ],
)
def test_times(text: str, nanos: int) -> None:
    assert humanize.parse_time_ns(text) == nanos


def test_moments_for_since_and_until() -> None:
    assert humanize.moment_argument("1136073600.000000001") == "1136073600.000000001"
    assert humanize.moment_argument("2013-01-02T13:23:37Z") == "1357133017.000000000"
    assert humanize.moment_argument("2013-01-02T13:23Z") == "1357132980.000000000"
    assert abs(float(humanize.moment_argument("10m")) - (time.time() - 600)) < 5
    local = int(time.mktime((2013, 1, 2, 0, 0, 0, 0, 0, -1)))
    assert humanize.moment_argument("2013-01-02") == f"{local}.000000000"
    with pytest.raises(ValueError, match="failed to parse value"):
        humanize.moment_argument("yesterday")


def test_columns_are_ten_wide_and_three_apart() -> None:
    assert tables.align(["A\tLONGER HEADER\tC", "value\tx\tlast"]) == ["A         LONGER HEADER   C", "value     x               last"]


def test_tables_from_templates_and_json_rows() -> None:
    rows = [{"ID": "1", "Name": "a"}, {"ID": "2", "Name": "b"}]
    headers = {"ID": "ID", "Name": "NAMES"}
    assert tables.rows_text(rows, "", headers, "ID Name") == "ID        NAMES\n1         a\n2         b\n"
    assert tables.rows_text(rows, "table {{.Name}}\\t{{.ID}}", headers, "ID") == "NAMES     ID\na         1\nb         2\n"
    assert tables.rows_text(rows, "{{.Name}}={{.ID}}", headers, "ID") == "a=1\nb=2\n"
    assert tables.rows_text(rows, "json", headers, "ID") == '{"ID":"1","Name":"a"}\n{"ID":"2","Name":"b"}\n'
    with pytest.raises(CliError, match="unclosed action"):
        tables.rows_text(rows, "{{", headers, "ID")


def test_filters() -> None:
    assert json.loads(tables.filters(["name=a", "name=b", "label=x=y"])) == {"name": {"a": True, "b": True}, "label": {"x=y": True}}
    assert tables.filters([]) == ""


def test_ports_are_joined_to_ranges() -> None:
    def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, object]:
        return {"PrivatePort": private, "PublicPort": public, "IP": ip, "Type": kind}

    assert ports.display([port(80, 8080, "0.0.0.0"), port(80, 8080, "::")]) == "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
    assert ports.display([port(81), port(80), port(53, kind="udp")]) == "53/udp, 80-81/tcp"
    assert ports.display([port(90, 90, "0.0.0.0"), port(91, 91, "0.0.0.0")]) == "0.0.0.0:90-91->90-91/tcp"
    assert ports.display([]) == ""


@pytest.mark.parametrize(
    ("text", "name", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox:latest"),
        ("a/b:1", "docker.io/a/b", "a/b:1"),
        ("localhost:5000/x", "localhost:5000/x", "localhost:5000/x:latest"),
        ("docker.io/library/x:y", "docker.io/library/x", "x:y"),
        ("r.io/a/b__c-d.e@sha256:" + "0" * 64, "r.io/a/b__c-d.e", "r.io/a/b__c-d.e@sha256:" + "0" * 64),
    ],
)
def test_references(text: str, name: str, familiar: str) -> None:
    parsed = reference.parse(text)
    assert parsed is not None and parsed.name == name and reference.familiar(parsed) == familiar


@pytest.mark.parametrize("text", ["UPPER", "a:", "a:b:c", "a@sha256:1", "", "a//b", "-a", "a..b", "a_-b", "a:" + "x" * 129])
def test_bad_references(text: str) -> None:
    with pytest.raises(CliError, match="invalid reference format"):
        reference.parse(text)


def test_a_bare_id_is_no_reference() -> None:
    assert reference.parse("0" * 64) is None and reference.parse("sha256:" + "a" * 64) is None


DOCUMENTS = [
    None, True, False, 0, -5, 1.5, 1e300, "", "plain", 'quo"te \\ \n\t\r \x00 ü € 😀 \u2028', [], {}, [1, [2, {"a": None}]],
    {"a": {"b": [1.25, "x"]}, "": "", "ü": 12345678901234567890},
]  # fmt: skip


@pytest.mark.parametrize("value", DOCUMENTS)
def test_json_agrees_with_the_standard_library(value: object) -> None:
    assert json.loads(documents.encode(value)) == value
    assert json.loads(documents.pretty(value)) == value
    assert documents.decode(json.dumps(value)) == value
    assert documents._slow_reader()(json.dumps(value)) == documents._fast_reader()(json.dumps(value)) == value


@pytest.mark.parametrize("text", ["", "{", "[1,]", '{"a" 1}', "1 2", "nul", '"\\x"'])
def test_bad_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        documents.decode(text)


def test_names_that_are_no_utf8_survive_as_escapes() -> None:
    assert documents.encode(b"a\xff".decode("utf-8", "surrogateescape")) == '"a\\udcff"'
