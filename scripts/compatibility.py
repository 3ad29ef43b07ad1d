#!/usr/bin/env python3
"""Write docs/compatibility.md: every command and flag of the docker CLI 28 and every endpoint of the Engine API 1.51.

    python scripts/compatibility.py            write the page
    python scripts/compatibility.py --check    say whether it is up to date (exit code 1 when not)

What docker has is in ``tests/data``. What Tare has is read from its own tables: the verbs and flags of ``tare.cli``, the routes of the
API. What backs a "works" is read from the tests: every command line in them (a line of ``cli_scenes.txt``, a call such as
``engine.tare("run", "--rm", ...)``, a list that begins with the command) is parsed with the very tables, and every path with a method
beside it is matched with the routes. What exists but is in no test is shown as "untested", never as "works".
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from tare.cli import main as cli  # noqa: E402
from tare.cli.failures import CliError  # noqa: E402
from tare.cli.flags import KINDS, Command  # noqa: E402
from tare.cli.flags import parse as parse_flags  # noqa: E402

PAGE = ROOT / "docs" / "compatibility.md"
TESTS = ROOT / "tests"
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD")
SWARM_ENDPOINTS = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")
REFUSED_FLAGS = {
    "use-api-socket": "mount the socket with -v",
    **dict.fromkeys(
        (
            "availability",
            "group",
            "limit-bytes",
            "required-bytes",
            "scope",
            "secret",
            "sharing",
            "topology-preferred",
            "topology-required",
            "type",
        ),
        "cluster volumes need Swarm",
    ),
    "cluster": "cluster volumes need Swarm",
    **dict.fromkeys(("cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"), "Windows only"),
}
REFUSED_ENDPOINTS = {"/plugins": "what Tare plugs in is built in"}
VERB_CALLS = {
    "run": "POST /containers/create,POST /containers/{id}/start,POST /containers/{id}/attach,POST /containers/{id}/wait",
    "create": "POST /containers/create", "start": "POST /containers/{id}/start", "stop": "POST /containers/{id}/stop",
    "restart": "POST /containers/{id}/restart", "kill": "POST /containers/{id}/kill", "rm": "DELETE /containers/{id}",
    "ps": "GET /containers/json", "inspect": "GET /containers/{id}/json", "logs": "GET /containers/{id}/logs",
    "attach": "POST /containers/{id}/attach", "wait": "POST /containers/{id}/wait", "top": "GET /containers/{id}/top",
    "stats": "GET /containers/{id}/stats", "pause": "POST /containers/{id}/pause", "unpause": "POST /containers/{id}/unpause",
    "rename": "POST /containers/{id}/rename", "update": "POST /containers/{id}/update", "diff": "GET /containers/{id}/changes",
    "export": "GET /containers/{id}/export", "exec": "POST /containers/{id}/exec,POST /exec/{id}/start,GET /exec/{id}/json",
    "cp": "GET /containers/{id}/archive,PUT /containers/{id}/archive,HEAD /containers/{id}/archive", "commit": "POST /commit",
    "container prune": "POST /containers/prune", "images": "GET /images/json", "image inspect": "GET /images/{name}/json",
    "pull": "POST /images/create", "import": "POST /images/create", "push": "POST /images/{name}/push", "tag": "POST /images/{name}/tag",
    "rmi": "DELETE /images/{name}", "save": "GET /images/get", "load": "POST /images/load", "history": "GET /images/{name}/history",
    "search": "GET /images/search", "image prune": "POST /images/prune", "login": "POST /auth", "version": "GET /version",
    "info": "GET /info", "events": "GET /events", "system df": "GET /system/df", "build": "POST /build",
    "system prune": "POST /build/prune", "builder prune": "POST /build/prune",
    "network ls": "GET /networks", "network create": "POST /networks/create", "network rm": "DELETE /networks/{id}",
    "network inspect": "GET /networks/{id}", "network connect": "POST /networks/{id}/connect",
    "network disconnect": "POST /networks/{id}/disconnect", "network prune": "POST /networks/prune", "volume ls": "GET /volumes",
    "volume create": "POST /volumes/create", "volume inspect": "GET /volumes/{name}", "volume rm": "DELETE /volumes/{name}",
    "volume prune": "POST /volumes/prune", "volume update": "PUT /volumes/{name}", "plugin ls": "GET /plugins",
}  # fmt: skip
"""The calls that a command cannot do without: a test of the command is one of the endpoint."""
READERS = {"fetch": "GET", "WebSocket": "GET"}
"""Functions of the tests that ask for a path without naming a method."""
SHORT_FORMS = {"ls": "ps"}  # of a container's verbs; the others are called the same


def canonical(command: str) -> str:
    """One name for the spellings of a command: ``container ls`` is ``ps``, ``image rm`` is ``rmi``."""
    group, _, verb = command.partition(" ")
    if group == "container" and verb not in ("prune", "inspect"):
        return SHORT_FORMS.get(verb, verb)
    if group == "image" and verb in ("ls", "rm", "build", "history", "import", "load", "pull", "push", "save", "tag"):
        return {"ls": "images", "rm": "rmi"}.get(verb, verb)
    if command == "builder build":
        return "build"
    if group == "system" and verb in ("events", "info"):
        return verb
    return {"container inspect": "inspect", "builder build": "build"}.get(command, command)


def entry_of(command: str) -> tuple[str, str, str] | None:
    group, _, verb = command.partition(" ")
    if verb:
        known = cli.GROUPS.get(group, {})
        return known.get(verb) or known.get(cli.SYNONYMS.get(verb, ""))
    return {**cli.COMMON, **cli.OTHER}.get(group)


class Evidence:
    """What the tests do: where each command, flag and endpoint is exercised."""

    def __init__(self) -> None:
        self.commands: dict[str, set[str]] = defaultdict(set)
        self.flags: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.endpoints: dict[str, set[str]] = defaultdict(set)

    def line(self, words: list[str], where: str) -> None:
        """A command line, without the program's name."""
        try:
            options = parse_flags(cli.GLOBAL_FLAGS, words, kind=KINDS.__getitem__, interspersed=False)
        except CliError:
            return
        if options is None or not options.operands:
            return
        rest = list(options.operands)
        name = rest.pop(0)
        if name in cli.GROUPS and rest:
            name = f"{name} {rest.pop(0)}"
        entry = entry_of(name)
        if entry is None:
            return
        command = canonical(name)
        self.commands[command].add(where)
        for call in VERB_CALLS.get(command, "").split(","):
            self.endpoints[call].add(where)
        for flag in given_flags(cli.load(entry), rest):
            self.flags[command, flag].add(where)

    def call(self, method: str, path: str, where: str, routes: list[tuple[str, str]]) -> None:
        path = re.sub(r"^/v1\.\d+", "", path.partition("?")[0])
        for known_method, known in routes:
            pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", re.escape(known))
            if known_method == method and re.fullmatch(pattern, path):
                self.endpoints[f"{known_method} {known}"].add(where)
                return


def given_flags(command: Command, words: list[str]) -> set[str]:
    """Flags on a command line; one that stands for a variable value counts up to there."""
    while words:
        try:
            options = command.parse(words)
            return set() if options is None else options.given
        except CliError:
            words = words[:-1]
    return set()


def strings(nodes: Iterable[ast.expr]) -> list[str]:
    """Values of an argument list; what is not known before the test runs is X."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Constant):
            found.append(str(node.value))
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values))
        elif not isinstance(node, ast.Starred):
            found.append("X")
    return found


def called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def read_tests(evidence: Evidence, routes: list[tuple[str, str]]) -> None:
    for line in (TESTS / "data" / "cli_scenes.txt").read_text().splitlines():
        if line and not line.startswith(("#", "==")):
            evidence.line(shlex.split(line.partition("<<<")[0]), "beside docker")
    for file in sorted(TESTS.rglob("*.py")):
        where = str(file.relative_to(TESTS))
        for node in ast.walk(ast.parse(file.read_text())):
            for words in command_lines(node):
                evidence.line(words, where)
            if isinstance(node, ast.Call):
                read_call(evidence, node, where, routes)
            elif isinstance(node, (ast.Tuple, ast.List)):
                pair(evidence, strings(node.elts), where, routes)
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and file.name == "test_cli_create_body_peer.py":
                for text in strings(node.value.values):
                    evidence.line(["run", *shlex.split(text)], where)


def command_lines(node: ast.AST) -> Iterator[list[str]]:
    """Calls like ``engine.docker("run", ...)`` and lists like ``[TARE, "-H", host, "run", ...]``."""
    if isinstance(node, ast.Call) and called(node) in ("docker", "tare", "either", "_tare", "Terminal"):
        words = strings(node.args)
        yield words[1:] if called(node) == "Terminal" else words
    elif isinstance(node, ast.List) and len(node.elts) > 1:
        first = node.elts[0]
        if isinstance(first, ast.Name) and first.id in ("TARE", "DOCKER"):
            yield strings(node.elts[1:])


def read_call(evidence: Evidence, node: ast.Call, where: str, routes: list[tuple[str, str]]) -> None:
    words = strings([*node.args, *(keyword.value for keyword in node.keywords)])
    pair(evidence, words, where, routes)
    name = READERS.get(called(node), called(node).upper().strip("_"))
    if name in METHODS and words:
        for word in words:
            if word.startswith("/"):
                evidence.call(name, word, where, routes)


def pair(evidence: Evidence, words: list[str], where: str, routes: list[tuple[str, str]]) -> None:
    """A method with a path behind it, also ``"GET /path"`` in one."""
    for index, word in enumerate(words):
        method, _, path = word.partition(" ")
        if method in METHODS and path.startswith("/"):
            evidence.call(method, path, where, routes)
        elif word in METHODS and index + 1 < len(words) and words[index + 1].startswith("/"):
            evidence.call(word, words[index + 1], where, routes)


def our_routes() -> set[tuple[str, str]]:
    """Method and shape of every route of the API, with parameters as ``{}``; built-in refusals left out."""
    text = "\n".join(file.read_text() for file in sorted((ROOT / "src" / "tare" / "api" / "docker").glob("*.py")))
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(text.replace("from __future__ import annotations", ""))):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple):
            for part in ast.walk(node):
                if isinstance(part, ast.Call) and called(part) == "add" and len(part.args) == 3:
                    found |= expanded(node, part)
        elif isinstance(node, ast.Call) and called(node) == "add" and len(node.args) == 3:
            method, path = strings(node.args[:2])
            if method in METHODS and "X" not in path:
                found.add((method, shape(path)))
    return found


def expanded(loop: ast.For, call: ast.Call) -> set[tuple[str, str]]:
    """Routes that a loop over names adds."""
    found = set()
    assert isinstance(loop.iter, ast.Tuple)
    for item in loop.iter.elts:
        values = strings(item.elts) if isinstance(item, ast.Tuple) else strings([item])
        targets = [part.id for part in ast.walk(loop.target) if isinstance(part, ast.Name)]
        known = dict(zip(targets, values, strict=False))
        words = [fill(argument, known) for argument in call.args[:2]]
        if words[0] in METHODS:
            found.add((words[0], shape(words[1])))
    return found


def fill(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return known.get(node.id, "X")
    if isinstance(node, ast.JoinedStr):
        return "".join(fill(part.value if isinstance(part, ast.FormattedValue) else part, known) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "X"


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def verdict(works: bool, tested: set[str]) -> str:
    return ("works" if tested else "untested") if works else "absent"


def command_table(evidence: Evidence) -> list[str]:
    docker: dict[str, list[str]] = json.loads((TESTS / "data" / "docker_cli_28.json").read_text())
    lines = ["| command | | flags that work | other flags |", "|---|---|---|---|"]
    refused = []
    for command, flags in sorted(docker.items(), key=lambda item: item[0]):
        reason = cli.REFUSED.get(command) or cli.REFUSED.get(command.partition(" ")[0])
        if reason:
            refused.append(command)
            continue
        entry = entry_of(command)
        if entry is None:
            lines.append(f"| `{command}` | absent | | {' '.join('`--' + flag.partition('/')[0] + '`' for flag in flags)} |")
            continue
        ours = {row[0] for row in cli.load(entry).flags}
        name = canonical(command)
        good, other = [], []
        for flag in (text.partition("/")[0] for text in flags):
            if flag in REFUSED_FLAGS and (flag not in ours or name in ("run", "create", "start", "volume update")):
                other.append(f"`--{flag}` refused ({REFUSED_FLAGS[flag]})")
            elif flag not in ours:
                other.append(f"`--{flag}` absent")
            elif evidence.flags.get((name, flag)) or (name == "create" and evidence.flags.get(("run", flag))):  # one table, one body
                good.append(f"`--{flag}`")
            else:
                other.append(f"`--{flag}` untested")
        lines.append(f"| `{command}` | {verdict(True, evidence.commands.get(name, set()))} | {' '.join(good)} | {', '.join(other)} |")
    lines += ["", "Refused by name, with the reason (exit code 1):", ""]
    groups: dict[str, list[str]] = defaultdict(list)
    for command in refused:
        groups[cli.REFUSED.get(command) or cli.REFUSED[command.partition(" ")[0]]].append(command)
    lines += [f"- {', '.join(f'`{command}`' for command in commands)}: {reason}" for reason, commands in groups.items()]
    return lines


def endpoint_table(evidence: Evidence, endpoints: list[tuple[str, str]]) -> list[str]:
    ours = our_routes()
    lines = ["| endpoint | |", "|---|---|"]
    for method, path in endpoints:
        family = next((name for name in SWARM_ENDPOINTS if path.startswith(name)), "")
        if family:
            state = "refused: not a swarm manager, as dockerd says it"
        elif path.startswith("/plugins") and (method, path) != ("GET", "/plugins"):
            state = f"refused: {REFUSED_ENDPOINTS['/plugins']}"
        else:
            known = any(known_method == method and route_matches(known, path) for known_method, known in ours)
            state = verdict(known, evidence.endpoints.get(f"{method} {path}", set()))
        lines.append(f"| `{method} {path}` | {state} |")
    return lines


def route_matches(known: str, path: str) -> bool:
    return known == shape(path)


def page() -> str:
    endpoints = []
    for line in (TESTS / "data" / "engine_api_1.51.txt").read_text().splitlines():
        method, _, path = line.partition(" ")
        endpoints.append((method, path))
    evidence = Evidence()
    read_tests(evidence, endpoints)
    return "\n".join(
        [
            "# Compatibility",
            "",
            "Made by `scripts/compatibility.py` from Tare's tables and tests; a unit test fails when it says more than they do.",
            "*works*: there, and a test uses it. *untested*: there, in no test. *refused*: answered with an error that names the reason.",
            "*absent*: not there; the command line calls it unknown, the API answers 404.",
            "",
            "## Commands of the docker CLI 28",
            "",
            *command_table(evidence),
            "",
            "## Endpoints of the Engine API 1.51",
            "",
            *endpoint_table(evidence, endpoints),
            "",
        ]
    )


def states(text: str) -> dict[str, str]:
    """What a page says of each command, flag and endpoint."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        name = cells[0].strip("`")
        found[name] = cells[1]
        if len(cells) < 4:
            continue
        for flag in re.findall(r"`(--[^`]+)`", cells[2]):
            found[f"{name} {flag}"] = "works"
        for flag, state in re.findall(r"`(--[^`]+)` ?(untested|absent|refused|)", cells[3]):
            found[f"{name} {flag}"] = state or "absent"
    return found


def problems(written: str, now: str) -> list[str]:
    """Where the page says other than the tables and tests do. That a test has come since is none."""
    before, after = states(written), states(now)
    found = [f"{name}: not on the page" for name in after if name not in before]
    for name, state in before.items():
        current = after.get(name, "not there")
        if current != state and (state, current) != ("untested", "works"):
            found.append(f"{name}: the page says {state}, the code and the tests say {current}")
    return found


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        found = problems(PAGE.read_text() if PAGE.exists() else "", text)
        print("\n".join([*found, "run python scripts/compatibility.py"]) if found else "docs/compatibility.md is up to date")
        return 1 if found else 0
    PAGE.write_text(text)
    counted = list(states(text).values())
    print(", ".join(f"{word}: {sum(state.startswith(word) for state in counted)}" for word in ("works", "untested", "absent", "refused")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
