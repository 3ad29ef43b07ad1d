"""``tare-runtime`` without running anything: flags, configurations and what is refused in them, plans, documents against their schemas."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tare.linux.cgroup.detect import Hierarchy, Layout
from tare.runtime.cli import bundle, describe, lifecycle, limits, options, rendering, state, steps
from tare.runtime.cli.main import verb
from tare.runtime.cli.options import Flag, UsageError
from tare.runtime.cli.report import Report, RuntimeFailure
from tare.runtime.plan import Plan, decode_steps, encode_steps
from tare.runtime.steps import process

SCHEMAS = Path("/work/shared/specs/oci-runtime")
V2 = Layout((), Hierarchy("/sys/fs/cgroup", frozenset({"memory", "pids"}), 2))

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="needs the OCI runtime-spec's schemas")


def validate(document: Any, schema: str) -> None:
    store = {}
    for path in SCHEMAS.glob("*.json"):
        store[f"{SCHEMAS.as_uri()}/{path.name}"] = json.loads(path.read_text())
    with pytest.warns(DeprecationWarning):
        resolver = jsonschema.RefResolver(f"{SCHEMAS.as_uri()}/{schema}", store[f"{SCHEMAS.as_uri()}/{schema}"], store=store)
    jsonschema.Draft4Validator(store[f"{SCHEMAS.as_uri()}/{schema}"], resolver=resolver).validate(document)


def example(**process_fields: Any) -> dict[str, Any]:
    config = describe.example()
    config["process"] |= {"terminal": False} | process_fields
    return config


def lowered(config: dict[str, Any], **fields: Any) -> Plan:
    made = bundle.Bundle("/bundle", config, b"", tuple(bundle.check(config)))
    return bundle.lower(made, "box", "/run/box", V2, **fields)


FLAGS = (Flag("bundle b", "", "DIR"), Flag("env e", "", "X", many=True), Flag("all a", ""))


def test_flags_in_every_spelling() -> None:
    values, rest = options.parse(FLAGS, ["--bundle", "/x", "id", "-e", "A=1", "--env=B=2", "-a", "KILL"], in_order=False)
    assert values == {"bundle": "/x", "env": ["A=1", "B=2"], "all": True}
    assert rest == ["id", "KILL"]


def test_flags_end_at_the_first_argument_where_a_command_follows() -> None:
    values, rest = options.parse(FLAGS, ["-a=false", "id", "ls", "--all", "-b"], in_order=True)
    assert values == {"all": False}
    assert rest == ["id", "ls", "--all", "-b"]


def test_double_dash_ends_flags() -> None:
    assert options.parse(FLAGS, ["id", "--", "--all"], in_order=False)[1] == ["id", "--all"]


@pytest.mark.parametrize("argv", [["--nope"], ["--bundle"], ["--all=perhaps"]])
def test_wrong_flags(argv: list[str]) -> None:
    with pytest.raises(UsageError):
        options.parse(FLAGS, argv, in_order=False)


def test_the_verb_is_found_behind_global_options() -> None:
    assert verb(["--root", "run", "--log=x", "--debug", "create", "exec"]) == "create"
    assert verb(["--version"]) == ""


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (("ociVersion",), "2.0.0", "ociVersion"),
        (("root", "path"), "", "root.path"),
        (("process",), None, "process"),
        (("vm",), {"kernel": {"path": "/k"}}, "vm is not supported"),
        (("process", "selinuxLabel"), "x", "process.selinuxLabel"),
        (("process", "scheduler"), {"policy": "SCHED_FIFO"}, "process.scheduler"),
        (("linux", "intelRdt"), {"closID": "x"}, "linux.intelRdt"),
        (("linux", "mountLabel"), "x", "linux.mountLabel"),
        (("linux", "personality"), {"domain": "LINUX32"}, "linux.personality"),
        (("linux", "namespaces"), [{"type": "mount"}, {"type": "time"}], "linux.namespaces[1]"),
        (("linux", "seccomp"), {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}, "linux.seccomp.listenerPath"),
        (("mounts",), [{"destination": "/x", "uidMappings": [{}]}], "mounts[0].uidMappings"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(where: tuple[str, ...], value: Any, says: str) -> None:
    config = example()
    target = config
    for part in where[:-1]:
        target = target[part]
    target[where[-1]] = value
    with pytest.raises(ValueError, match=says.replace("[", r"\[").replace("]", r"\]")):
        bundle.check(config)


def test_unknown_fields_are_warnings() -> None:
    config = example(wisdom=1) | {"x-vendor": {}}
    assert sorted(bundle.check(config)) == ["process.wisdom: unknown, ignored", "x-vendor: unknown, ignored"]


def test_ambient_capabilities_of_a_plain_user_are_a_warning() -> None:
    config = example(user={"uid": 5, "gid": 5})
    config["process"]["capabilities"]["ambient"] = ["CAP_KILL"]
    assert "ambient" in bundle.check(config)[0]


def test_id_mapped_mounts_need_maps() -> None:
    config = example()
    config["mounts"].append({"destination": "/m", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]})
    with pytest.raises(RuntimeFailure, match="idmap"):
        lowered(config)


def test_systemd_slices_are_refused() -> None:
    config = example()
    config["linux"]["cgroupsPath"] = "system.slice:docker:abc"
    with pytest.raises(RuntimeFailure, match="systemd"):
        lowered(config)


def test_default_devices_stay_usable_when_all_are_forbidden() -> None:
    rules = lowered(example()).keeper.resources["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert {"allow": True, "type": "c", "access": "rwm", "major": 1, "minor": 3} in rules
    assert sum(not rule["allow"] for rule in rules) == 1


def test_an_init_without_keeper_waits_by_itself_and_outlives_the_command() -> None:
    names = [type(item).__name__ for item in lowered(example(), listener=7, descriptors=2).steps]
    assert "Hold" not in names
    assert names.index("DropPrivileges") + 1 == names.index("Outlive")
    assert names.index("CloseDescriptors") + 1 == names.index("KeepDescriptors")
    assert names.index("AwaitStart") < names.index("Execute")
    assert "AwaitStart" not in [type(item).__name__ for item in lowered(example()).steps]


def test_hooks_become_steps_at_their_places() -> None:
    hook = [{"path": "/h", "args": ["h", "1"], "timeout": 3}]
    config = example() | {"hooks": {"prestart": hook, "createContainer": hook, "startContainer": hook}}
    config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}]}
    names = [type(item).__name__ for item in lowered(config, listener=7).steps]
    assert names.index("CreateHooks") + 1 == names.index("PivotRoot")
    assert names[-4:] == ["AwaitStart", "StartHooks", "LoadSeccomp", "Execute"]


@pytest.mark.parametrize("hook", [{"path": "relative"}, {"path": "/x", "timeout": 0}])
def test_malformed_hooks(hook: dict[str, Any]) -> None:
    with pytest.raises(RuntimeFailure, match="hooks"):
        lowered(example() | {"hooks": {"prestart": [hook]}})


def test_our_steps_survive_a_trip_through_text() -> None:
    config = example() | {"hooks": {"startContainer": [{"path": "/h"}]}}
    config["mounts"].append({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=755"]})
    made = lowered(config, listener=7, descriptors=1)
    again = decode_steps(json.loads(json.dumps(encode_steps(made.steps))))
    assert [item.describe() for item in again] == [item.describe() for item in made.steps]
    assert any(isinstance(item, steps.FillTmpfs) for item in again)


def test_a_user_namespace_owns_the_pid_namespace() -> None:
    config = example()
    config["linux"]["namespaces"].append({"type": "user"})
    with pytest.raises(RuntimeFailure, match="uidMappings"):
        lowered(copy.deepcopy(config))
    config["linux"] |= {key: [{"containerID": 0, "hostID": 1000, "size": 10}] for key in ("uidMappings", "gidMappings")}
    made = lowered(config)
    names = [type(item).__name__ for item in made.steps]
    assert names.index("NewUserNamespace") + 1 == names.index("ForkIntoPidNamespace")
    assert made.keeper.pid_namespace == "own"


def test_a_plan_can_be_read() -> None:
    config = example() | {"hooks": {"poststart": [{"path": "/p"}]}}
    made = bundle.Bundle("/bundle", config, b"", ())
    page = rendering.render(lowered(config, listener=3), made, colour=False)
    assert "0x" not in page
    assert "  1  make cgroup /tare-runtime/box" in page
    assert "capabilities kill net_bind_service audit_write; inheritable and ambient none" in page
    assert page.endswith("run poststart hook /p")
    numbers = [int(line.split()[0]) for line in page.splitlines() if line[:4].strip().isdigit()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_plan_command_needs_no_root_file_system_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(describe.example()))
    script = "import sys; from tare.runtime.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "--root", str(tmp_path / "state")]
    done = subprocess.run([*command, "plan", "-b", str(tmp_path), "box"], capture_output=True, text=True, check=True)
    assert "execute the program" in done.stdout
    assert not (tmp_path / "state").exists()
    data = subprocess.run([*command, "plan", "-b", str(tmp_path), "--json", "box"], capture_output=True, check=True).stdout
    assert Plan.from_json(json.loads(data)).id == "box"


@needs_schemas
def test_documents_fit_their_schemas() -> None:
    validate(describe.example(), "config-schema.json")
    validate(describe.supported(), "features-schema.json")
    record = state.Record("box", "/bundle", "/bundle/rootfs", "now", 0, "1.0.2", {"a": "b"}, pid=7)
    for status in ("creating", "created", "running", "stopped"):
        validate(state.document(record, status), "state-schema.json")
    assert state.document(record, "running") == {
        "ociVersion": "1.0.2", "id": "box", "status": "running", "pid": 7, "bundle": "/bundle", "annotations": {"a": "b"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ä", "x" * 300])
def test_ids_that_would_leave_the_state_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="ID"):
        state.Store(str(tmp_path)).reserve(name)


def test_an_id_is_taken_once(tmp_path: Path) -> None:
    store = state.Store(str(tmp_path))
    store.reserve("box")
    with pytest.raises(RuntimeFailure, match="already exists"):
        store.reserve("box")
    assert os.stat(tmp_path / "box").st_mode & 0o777 == 0o700


def test_a_process_is_known_by_its_start_time() -> None:
    pid = os.getpid()
    from tare.linux.process import start_time

    record = state.Record("box", "/b", "/b", "now", 0, "1.0.2", {}, pid=pid, start_time=start_time(pid))
    assert state.alive(record)
    assert not state.alive(record._replace(start_time=record.start_time + 1))


@pytest.mark.parametrize(("text", "number"), [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)])
def test_signals(text: str, number: int) -> None:
    assert lifecycle.signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "NOPE", "SIG_DFL", "-9"])
def test_no_signals(text: str) -> None:
    with pytest.raises(RuntimeFailure):
        lifecycle.signal_number(text)


@pytest.mark.parametrize(("text", "size"), [("10", 10), ("64m", 64 << 20), ("1GiB", 1 << 30), ("2kb", 2048), ("-1", -1)])
def test_sizes(text: str, size: int) -> None:
    assert limits._size("memory", text) == size


def test_log_lines_are_those_that_engines_parse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Report(str(tmp_path / "log"), "json").error('exec: "x": not found')
    entry = json.loads((tmp_path / "log").read_text())
    assert (entry["level"], entry["msg"]) == ("error", 'exec: "x": not found')
    assert capsys.readouterr().err == 'tare-runtime: exec: "x": not found\n'


def test_no_pivot_and_systemd_are_refused() -> None:
    from tare.runtime.cli.commands import invoke

    assert invoke(["--systemd-cgroup", "list"]) == 1
    assert invoke(["create", "--no-pivot", "x"]) == 1
    assert invoke(["nonsense"]) == 1


def test_the_program_stays_last() -> None:
    assert isinstance(lowered(example()).steps[-1], process.Execute)
