"""A container's start as data: what the keeper sets up around it and the steps that its init goes through.

A ``Plan`` is made by a pure function (``runtime.lowering``), travels as JSON to the launcher, and is run by keeper
and init. Being data it can be printed before anything runs, compared in tests and explained to its user.

A *step* is a NamedTuple with ``describe()`` (one line for humans) and ``run(context)`` (the system calls). Its JSON
form is ``["StepName", {field: value}]``. The names live in one registry, filled by the modules of ``runtime.steps``;
decoding turns JSON arrays into tuples, so that a decoded plan equals the one that was encoded.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from tare.runtime.context import Context


class Step(Protocol):
    """One operation of the init."""

    def describe(self) -> str: ...

    def run(self, context: Context, /) -> None: ...

    def _asdict(self) -> dict[str, Any]: ...


StepType = TypeVar("StepType", bound=type)
_REGISTRY: dict[str, Any] = {}


def step(cls: StepType) -> StepType:
    """Class decorator: make a step known to the decoder."""
    _REGISTRY[cls.__name__] = cls
    return cls


def known_steps() -> dict[str, Any]:
    """All step classes by name."""
    return dict(_REGISTRY)


def freeze(value: Any) -> Any:
    """JSON arrays as tuples, all the way down."""
    if isinstance(value, list):
        return tuple(freeze(item) for item in value)
    if isinstance(value, dict):
        return {key: freeze(item) for key, item in value.items()}
    return value


def encode_steps(steps: tuple[Step, ...]) -> list[list[Any]]:
    """The JSON form of steps."""
    return [[type(item).__name__, item._asdict()] for item in steps]


def decode_steps(data: list[list[Any]]) -> tuple[Step, ...]:
    """Steps from their JSON form. KeyError names an unknown step."""
    return tuple(_REGISTRY[name](**{key: freeze(value) for key, value in fields.items()}) for name, fields in data)


class StdioPlan(NamedTuple):
    """How standard input and output are connected."""

    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    rows: int = 0
    columns: int = 0
    inherit: bool = False
    """No pipes and no log: the process gets three descriptors that come with the request (after the control connection) or, with ``tty``,
    the terminal's master is sent to the one connected console socket that comes with it (runc's ``--console-socket``)."""


class LogPlan(NamedTuple):
    """Where output is logged; driver ``json-file``, ``local``, ``syslog``, ``journald`` or ``none``."""

    driver: str = "none"
    path: str = ""
    max_size: int = 0
    max_file: int = 1
    attributes: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default; never written to
    compress: bool = False
    options: dict[str, str] = {}  # noqa: RUF012
    """What a driver that sends output away needs to know (``runtime.forwardlog``)."""


class LinkPlan(NamedTuple):
    """One network link of the container, made by the keeper: a veth pair of which the peer appears in the container's network namespace,
    or a link on a parent."""

    host_name: str
    bridge: str
    """The bridge, or the parent link of a ``macvlan`` or ``ipvlan``."""
    name: str
    mac: str
    mtu: int
    kind: str = "veth"
    mode: str = ""

    def describe(self) -> str:
        if self.kind != "veth":
            return f"make {self.kind} {self.name} on {self.bridge} in the container"
        return f"make veth {self.host_name} on bridge {self.bridge}, its peer {self.name} in the container"


class UserMap(NamedTuple):
    """One line of a uid_map or gid_map."""

    container: int
    host: int
    size: int


class KeeperPlan(NamedTuple):
    """What the keeper does: everything that outlives the init's own set-up or must happen outside the container."""

    stdio: StdioPlan = StdioPlan()
    log: LogPlan = LogPlan()
    run_dir: str = ""
    cgroup: str = ""
    resources: dict[str, Any] = {}  # noqa: RUF012
    pid_namespace: str = "new"
    """``new``, ``host``, the path of a pid namespace to join, or ``own``: the init makes it in its user namespace and goes on as a fork."""
    links: tuple[LinkPlan, ...] = ()
    name_server: str = ""
    """Socket of the name server that is to answer in the container's network namespace; empty for none."""
    uid_map: tuple[UserMap, ...] = ()
    gid_map: tuple[UserMap, ...] = ()
    hold: bool = False
    """Wait, after set-up, for the control operation ``go`` before the program is executed (``create`` and ``start`` of an OCI runtime)."""
    kill_rest: bool = False
    """When init ends, kill what it left in the cgroup (it had no pid namespace of its own)."""
    hooks: dict[str, Any] = {}  # noqa: RUF012
    """Hooks of the OCI configuration that run in the host's namespaces, by kind, and ``state``: what all hooks are told
    (``runtime.keeperhooks``). Empty without any."""

    def describe(self) -> list[str]:
        lines = [f"make cgroup {self.cgroup}" + (f" with {json.dumps(self.resources, sort_keys=True)}" if self.resources else "")]
        if self.pid_namespace == "new":
            lines.append("enter a new pid namespace and fork the init as its process 1")
        elif self.pid_namespace == "host":
            lines.append("fork the init in the host's pid namespace")
        elif self.pid_namespace == "own":
            lines.append("fork the init, which makes its pid namespace itself")
        else:
            lines.append(f"join the pid namespace {self.pid_namespace} and fork the init")
        if self.uid_map:
            lines.append(f"map user ids {[tuple(m) for m in self.uid_map]}, group ids {[tuple(m) for m in self.gid_map]}")
        lines.extend(link.describe() for link in self.links)
        if self.name_server:
            lines.append(f"have {self.name_server} answer DNS in the container")
        lines.extend(f"run {kind} hook {hook[0]}" for kind, found in self.hooks.items() if kind != "state" for hook in found)
        if self.log.driver != "none":
            lines.append(f"log output as {self.log.driver} to {self.log.path}")
        return lines

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KeeperPlan:
        """From the form that ``Plan.to_json`` gives it."""
        fields = dict(data)
        fields["stdio"] = StdioPlan(**fields["stdio"])
        fields["log"] = LogPlan(**fields["log"])
        fields["links"] = tuple(LinkPlan(**link) for link in fields["links"])
        fields["uid_map"] = tuple(UserMap(*line) for line in fields["uid_map"])
        fields["gid_map"] = tuple(UserMap(*line) for line in fields["gid_map"])
        return cls(**fields)


class Plan(NamedTuple):
    """The whole start of one container."""

    id: str
    keeper: KeeperPlan
    steps: tuple[Step, ...]
    exec_defaults: dict[str, Any] = {}  # noqa: RUF012
    """What a later exec needs to know of the container (namespaces to join)."""

    def describe(self) -> list[str]:
        """One line per operation, in order."""
        return [*(f"keeper: {line}" for line in self.keeper.describe()), *(f"init: {item.describe()}" for item in self.steps)]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        keeper = self.keeper._asdict()
        keeper["stdio"] = self.keeper.stdio._asdict()
        keeper["log"] = self.keeper.log._asdict()
        keeper["links"] = [link._asdict() for link in self.keeper.links]
        return {"id": self.id, "keeper": keeper, "steps": encode_steps(self.steps), "exec_defaults": self.exec_defaults}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The inverse of ``to_json``, also after a trip through text."""
        return cls(data["id"], KeeperPlan.from_json(data["keeper"]), decode_steps(data["steps"]), freeze(data["exec_defaults"]))


class ExecPlan(NamedTuple):
    """A further process in a running container."""

    id: str
    stdio: StdioPlan
    steps: tuple[Step, ...]

    def describe(self) -> list[str]:
        """One line per operation, in order."""
        return [item.describe() for item in self.steps]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {"id": self.id, "stdio": self.stdio._asdict(), "steps": encode_steps(self.steps)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ExecPlan:
        """The inverse of ``to_json``."""
        return cls(data["id"], StdioPlan(**data["stdio"]), decode_steps(data["steps"]))
