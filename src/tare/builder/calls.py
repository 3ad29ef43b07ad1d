"""``build --call``: what a Dockerfile says of itself, without building it (BuildKit's subrequests lint, outline and targets)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tare.builder import instructions as ins
from tare.builder.checkrules import RULES
from tare.builder.checks import Finding
from tare.builder.expand import expand
from tare.builder.stages import BuildGraph
from tare.errors import InvalidArgument


def lint(findings: Sequence[Finding], text: bytes, name: str, error: Exception | None) -> dict[str, Any]:
    """The document of ``--check``."""
    document: dict[str, Any] = {"warnings": [_warning(finding) for finding in findings]}
    document["sources"] = [{"filename": name, "language": "Dockerfile", "data": base64.b64encode(text).decode()}]
    if error is not None:
        line = getattr(error, "line", 0)
        document["buildError"] = {"message": str(error), "location": _location(line, line)}
    return document


def _warning(finding: Finding) -> dict[str, Any]:
    rule = RULES[finding.rule]
    return {
        "ruleName": rule.name,
        "description": rule.description,
        "url": rule.url,
        "detail": finding.detail,
        "location": _location(finding.line, finding.end),
    }


def _location(line: int, end: int) -> dict[str, Any]:
    return {"sourceIndex": 0, "ranges": [{"start": {"line": line}, "end": {"line": end}}] if line else []}


def short(finding: Finding) -> str:
    """One line, as BuildKit puts it among a build's warnings."""
    return f"{finding.rule}: {finding.detail} (line {finding.line})"


def targets(dockerfile: ins.Dockerfile, text: str) -> dict[str, Any]:
    """The document of ``--call=targets``."""
    lines = text.splitlines()
    opened = [each for each in dockerfile.instructions if isinstance(each, ins.From)]
    found = []
    for number, each in enumerate(opened):
        target = {"name": each.name, "base": each.image, "description": _described(lines, each.line, each.name)}
        found.append({key: value for key, value in target.items() if value} | ({"default": True} if number == len(opened) - 1 else {}))
    return {"targets": found}


def outline(graph: BuildGraph, text: str, build_args: Mapping[str, str]) -> dict[str, Any]:
    """The document of ``--call=outline``: the target's arguments, secrets and agents."""
    lines = text.splitlines()
    arguments: dict[str, dict[str, Any]] = {}
    secrets: dict[str, dict[str, Any]] = {}
    agents: dict[str, dict[str, Any]] = {}
    beginning = []
    for each in graph.dockerfile.instructions:
        if not isinstance(each, ins.Arg):
            break
        beginning.append(each)
    for each in (*beginning, *(one for stage in graph.stages for one in stage.instructions)):
        if isinstance(each, ins.Arg):
            for name, default in each.pairs:
                value = build_args.get(name, graph.global_args.get(name) if default is None else _value(default, graph))
                found = {"name": name, "value": value, "description": _described(lines, each.line, name)}
                arguments.setdefault(name, {key: value for key, value in found.items() if value})
        elif isinstance(each, ins.Run):
            for mount in each.mounts:
                table = secrets if mount.type == "secret" else agents if mount.type == "ssh" else None
                if table is not None:
                    id = mount.id or ("default" if mount.type == "ssh" else mount.target.rpartition("/")[2])
                    table.setdefault(id, {"name": id, **({"required": True} if mount.required else {})})
    target = graph.target
    head = {"name": target.name, "description": _described(lines, target.from_.line, target.name)}
    tables = {"args": list(arguments.values()), "secrets": list(secrets.values()), "ssh": list(agents.values())}
    return {key: value for key, value in (head | tables).items() if value}


def _value(word: str, graph: BuildGraph) -> str:
    try:
        return expand(word, {**graph.platform_args, **graph.global_args}.get, graph.dockerfile.escape)
    except InvalidArgument:
        return word


def _described(lines: Sequence[str], line: int, name: str) -> str:
    """The comment right above that begins with the name."""
    above = lines[line - 2].strip() if line > 1 else ""
    match = re.fullmatch(r"#\s*(\S+)\s+(.+)", above)
    return match[2] if match and name and match[1].lower() == name.lower() else ""
