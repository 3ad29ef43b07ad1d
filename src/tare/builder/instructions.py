"""The instructions of a Dockerfile as typed values: what was written, before any variable is expanded.

Reference: docs.docker.com, "Dockerfile reference". Everything here is pure data; ``parser`` makes it, the solver reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A here-document: the lines between ``<<NAME`` and ``NAME``."""

    name: str
    content: str
    """With its final newline, tabs already stripped for ``<<-``."""
    expand: bool
    """Whether variables are expanded in it (its name was not quoted)."""
    descriptor: int = 0
    """The number before ``<<`` in a shell command, 0 when there was none."""


@dataclass(frozen=True, slots=True)
class Command:
    """What RUN, CMD, ENTRYPOINT and a health check execute."""

    shell: bool
    """Shell form: ``words`` is one text for the SHELL in force. Exec form otherwise."""
    words: tuple[str, ...]
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class RunMount:
    """One ``RUN --mount``. Sizes in bytes; ``mode`` -1 and ids "" when not given."""

    type: str = "bind"
    target: str = ""
    source: str = ""
    from_: str = ""
    readonly: bool | None = None
    """None: the type's default (bind: read-only, cache and tmpfs: writable)."""
    id: str = ""
    sharing: str = "shared"
    mode: int = -1
    uid: str = ""
    gid: str = ""
    required: bool = False
    size: int = 0
    env: str = ""
    text: str = ""
    """The flag's value as it was written, when there are variables in it: what they make of it is known at the RUN's place only."""


@dataclass(frozen=True, slots=True)
class RunDevice:
    """One ``RUN --device``: a device of the Container Device Interface, or a kind of them."""

    name: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """What all have in common: the lines they come from."""

    line: int
    end: int
    text: str
    """The source, continuation lines joined as Docker shows it ("RUN apt-get update && …")."""

    @property
    def keyword(self) -> str:
        """Its name in capitals."""
        return type(self).__name__.upper()


@dataclass(frozen=True, slots=True)
class From(Instruction):
    image: str
    platform: str
    name: str
    """After AS, in lower case; "" without."""


@dataclass(frozen=True, slots=True)
class Run(Instruction):
    command: Command
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[RunDevice, ...] = ()


@dataclass(frozen=True, slots=True)
class Copy(Instruction):
    sources: tuple[str, ...]
    """Paths and globs; here-documents are in ``heredocs`` and not repeated here."""
    destination: str
    from_: str = ""
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    exclude: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()


@dataclass(frozen=True, slots=True)
class Add(Copy):
    checksum: str = ""
    keep_git_dir: bool = False
    unpack: bool | None = None


@dataclass(frozen=True, slots=True)
class Cmd(Instruction):
    command: Command


@dataclass(frozen=True, slots=True)
class Entrypoint(Instruction):
    command: Command


@dataclass(frozen=True, slots=True)
class Env(Instruction):
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Arg(Instruction):
    pairs: tuple[tuple[str, str | None], ...]
    """None: declared without a default."""


@dataclass(frozen=True, slots=True)
class Label(Instruction):
    pairs: Pairs


@dataclass(frozen=True, slots=True)
class Expose(Instruction):
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Workdir(Instruction):
    path: str


@dataclass(frozen=True, slots=True)
class User(Instruction):
    user: str


@dataclass(frozen=True, slots=True)
class Volume(Instruction):
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StopSignal(Instruction):
    signal: str


@dataclass(frozen=True, slots=True)
class Healthcheck(Instruction):
    """Durations in nanoseconds, 0 when not given."""

    none: bool
    command: Command | None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Shell(Instruction):
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Onbuild(Instruction):
    trigger: str
    """The instruction's text, as the image keeps it."""
    instruction: Instruction


@dataclass(frozen=True, slots=True)
class Maintainer(Instruction):
    name: str


@dataclass(frozen=True, slots=True)
class Warning:
    """Something that works but is probably not what was meant. Names are those of BuildKit's checks."""

    rule: str
    message: str
    line: int


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed file."""

    name: str
    directives: dict[str, str]
    """``syntax``, ``escape``, ``check``: in lower case, as far as given."""
    instructions: tuple[Instruction, ...]
    warnings: tuple[Warning, ...] = ()

    @property
    def escape(self) -> str:
        return self.directives.get("escape", "\\")
