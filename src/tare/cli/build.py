"""``build``: the context goes to the daemon as a tar that is made while it is sent; what the daemon says is shown as it comes.

What ``POST /build`` has no words for (secrets, agents, outputs, caches) is said in a session before it; see ``tare.builder.sessions``. A
build without any of that needs none: a parameter that other daemons do not know asks ours to tell of the steps.
"""

from __future__ import annotations

import os
import sys

from tare.cli import buildvalues
from tare.cli.failures import CliError, DaemonError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from tare.cli.buildcontext import Directory
    from tare.cli.buildsession import Agents
    from tare.cli.buildshow import Quiet
    from tare.cli.connection import Client, Response
    from tare.cli.context import Context
    from tare.cli.flags import Options

_REMOTE = ("http://", "https://", "git://", "git@", "github.com/")
_CALLS = ("build", "check", "lint", "outline", "targets")


class _Plan:
    """One call of ``build``: what the session is told, what goes up before the build, and what comes down after it."""

    def __init__(self, options: Options) -> None:
        self.outputs = buildvalues.outputs(options.items("output"), push=options.on("push"), load=options.on("load"))
        self.fetched = [output for output in self.outputs if output.fetched]
        self.agents = [buildvalues.agent(text) for text in options.items("ssh")]
        self.uploads: dict[str, str] = {}
        self.layouts: dict[str, frozenset[str]] = {}
        """Of an upload that is an OCI layout: the files that are wanted."""
        """Directories by the name under which they are uploaded."""
        self.cache_targets: list[str] = []
        """Directories that exported caches are put into, in order."""
        self.metadata: dict[str, Any] = {}
        self.document: dict[str, Any] = {
            "Secrets": {id: _base64(data) for id, data in map(buildvalues.secret, options.items("secret"))},
            "Agents": [id for id, _ in self.agents],
            "Contexts": self._contexts(options.items("build-context")),
            "Allow": [name for text in options.items("allow") for name in text.split(",")],
            "Outputs": [output.document() for output in self.outputs],
            "CacheFrom": self._cache_from(options.items("cache-from")),
            "CacheTo": self._cache_to(options.items("cache-to")),
            "Annotations": options.items("annotation"),
            "Attestations": buildvalues.attestations(options.items("attest"), options.text("sbom"), options.text("provenance")),
            "NoCacheFilter": [name for text in options.items("no-cache-filter") for name in text.split(",")],
            "Squash": options.on("squash"),
            "Call": _call(options),
            "Trace": True,
            "Source": options.operands[0],
            **({"Dockerfile": _base64(text)} if (text := _elsewhere(options)) is not None else {}),
        }

    def _contexts(self, texts: list[str]) -> dict[str, str]:
        found = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise CliError(f"invalid context value: {text}, expected key=value", 125)
            if value.startswith("oci-layout://"):
                from tare.cli import ocilayout

                directory, digest, files = ocilayout.resolve(value)
                found[name] = ocilayout.PREFIX + digest
                self.uploads[f"context-{name}"] = directory
                self.layouts[f"context-{name}"] = files
            elif "://" in value or value.startswith(_REMOTE):
                found[name] = value
            elif os.path.isdir(value):
                found[name] = ""
                self.uploads[f"context-{name}"] = value
            else:
                raise CliError(f"failed to get build context {name}: stat {value}: no such file or directory")
        return found

    def _cache_from(self, texts: list[str]) -> list[dict[str, Any]]:
        found = []
        for number, (type, attributes) in enumerate(buildvalues.caches(texts, "cache-from")):
            if type == "local":
                source = attributes.pop("src")
                if not os.path.isfile(os.path.join(source, "index.json")):
                    continue  # as buildx: a cache that is not there yet is no cache
                self.uploads[f"cache-{number}"] = source
                attributes["file"] = f"cache-{number}"
            found.append({"Type": type, "Attributes": attributes})
        return found

    def _cache_to(self, texts: list[str]) -> list[dict[str, Any]]:
        found = []
        for type, attributes in buildvalues.caches(texts, "cache-to"):
            if type == "local":
                self.cache_targets.append(attributes.pop("dest"))
            found.append({"Type": type, "Attributes": attributes})
        return found


def _build(context: Context, options: Options) -> int:
    from tare.cli import buildshow

    progress = options.text("progress") if "progress" in options.given else os.environ.get("BUILDKIT_PROGRESS", "") or "auto"
    if progress not in ("auto", "plain", "tty", "quiet", "none", "rawjson"):
        raise CliError(f"invalid progress mode {progress}", 125)
    if not options.on("disable-content-trust"):
        raise CliError("Docker Content Trust (Notary v1) is not offered: name base images by digest instead (FROM NAME@sha256:...)")
    plan, quiet = _Plan(options), options.on("quiet")
    source, query = _context(options), _query(options)
    client = context.client
    with _agents(plan) as agents:
        session, pieces = _open(client, plan, source, compress=options.on("compress"))
        display = buildshow.chosen(progress, quiet=quiet or bool(plan.document["Call"]))
        for name, directory in plan.uploads.items():
            client.upload(f"/tare/builds/{session}/files/{name}", {}, _whole(directory, name, plan.layouts.get(name)), "PUT").read()
        wanted = {"session": session} if session else {"tare": plan.document["Source"]}
        response = client.upload("/build", query | wanted, pieces, headers=_credentials())
        try:
            image = _follow(client, response, _Follower(plan, display, agents, session, _is_ours(response)))
        finally:
            response.close()
    return _finish(options, plan, image)


class _NoAgents:
    """Nobody's agents: nothing has to be loaded for them."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _agents(plan: _Plan) -> Agents | _NoAgents:
    if not plan.agents:
        return _NoAgents()
    from tare.cli.buildsession import Agents

    return Agents(plan.agents)


def _finish(options: Options, plan: _Plan, image: str) -> int:
    """What is left when the daemon is done: files with the result, and its id where nothing else is shown."""
    if plan.document["Call"]:
        return _called(options, plan)
    if options.text("iidfile"):
        with open(options.text("iidfile"), "w", encoding="utf-8") as file:
            file.write(image)
    if options.text("metadata-file"):
        from tare.cli.documents import pretty

        with open(options.text("metadata-file"), "w", encoding="utf-8") as file:
            file.write(pretty(plan.metadata, "  ") + "\n")
    if options.on("quiet") and image:
        sys.stdout.write(f"{image}\n")
    return 0


def _called(options: Options, plan: _Plan) -> int:
    """``--check`` and its like: show what was found."""
    from tare.cli.buildcalls import show

    return show(plan.metadata.get("call") or {}, plan.document["Call"], as_json=options.text("call").endswith("format=json"))


def _open(client: Client, plan: _Plan, source: Directory | Iterator[bytes], *, compress: bool) -> tuple[str, Iterator[bytes]]:
    """The session ("" where none is needed, or the daemon has only the classic builder), and what the body of the build is."""
    from tare.cli import buildcontext

    big = isinstance(source, buildcontext.Directory) and source.big and not compress
    if isinstance(source, buildcontext.Directory) and big:
        plan.document["Context"] = buildcontext.identity(plan.document["Source"], source)
    pieces = source.tar() if isinstance(source, buildcontext.Directory) else source
    special = [name for name, value in plan.document.items() if value and name not in ("Trace", "Source", "Context")]
    if not big and not special:
        return "", buildcontext.compressed(pieces) if compress else pieces
    try:
        answer = client.call("POST", "/tare/builds", None, plan.document)
    except DaemonError as error:
        if error.status != 404:
            raise
        if special:
            raise CliError(f"the daemon at {client.host} is not Tare: it builds without {', '.join(special).lower()}") from None
        answer = {"Id": ""}
    if isinstance(source, buildcontext.Directory) and answer.get("Context") == "kept":
        pieces = iter(())
    elif isinstance(source, buildcontext.Directory) and answer.get("Context") == "listing":
        response = client.upload(f"/tare/builds/{answer['Id']}/listing", {}, iter((source.listing(),)), "PUT")
        pieces = source.contents(next(response.lines())["Needed"])
    return str(answer["Id"]), buildcontext.compressed(pieces) if compress else pieces


def _is_ours(response: Response) -> bool:
    """Whether the daemon is Tare. Another one's classic text is shown as it comes."""
    return response.headers.get("server", "").startswith("Tare/")


class _Follower:
    """What a build's messages do on this side."""

    def __init__(self, plan: _Plan, display: Quiet, agents: Agents | None, session: str, ours: bool) -> None:
        self.plan = plan
        self.display = display
        self.agents = agents
        self.session = session
        self.ours = ours
        self.image = ""
        self.place: dict[str, Any] | None = None
        self.fetched = 0

    def take(self, client: Client, document: dict[str, Any]) -> None:
        """One message. Raises CliError with the build's error."""
        if "trace" in document:
            self.display.show(document["trace"])
        elif "tare" in document:
            self._own(client, document["tare"])
        elif document.get("errorDetail") or document.get("error"):
            raise CliError(str((document.get("errorDetail") or {}).get("message") or document["error"]))
        elif document.get("aux"):
            self.image = str(document["aux"].get("ID") or self.image)
        elif "stream" in document and not self.ours:
            sys.stdout.write(str(document["stream"]))
            sys.stdout.flush()

    def _own(self, client: Client, document: dict[str, Any]) -> None:
        if "agent" in document:
            assert self.agents is not None
            self.agents.join(client, self.session, str(document["agent"]), int(document["connection"]))
        elif "export" in document:
            from tare.cli.buildsession import fetch, unpack_into

            number, self.fetched = self.fetched, self.fetched + 1
            if number < len(self.plan.fetched):
                fetch(client, self.session, int(document["export"]), self.plan.fetched[number])
            else:
                chunks = client.another().stream("GET", f"/tare/builds/{self.session}/exports/{document['export']}").chunks()
                unpack_into(chunks, self.plan.cache_targets[number - len(self.plan.fetched)])
        elif "failure" in document:
            self.place = document["failure"]
        elif "metadata" in document:
            self.plan.metadata |= document["metadata"]
            self.image = self.image or str(document["metadata"].get("containerimage.config.digest") or "")
        elif "call" in document:
            self.plan.metadata["call"] = document["call"]


def _ticking(documents: Iterator[Any], tick: Callable[[], None]) -> Iterator[Any]:
    """The documents as they come; ``tick`` is called while none does."""
    import queue
    import threading

    waiting: queue.Queue[Any] = queue.Queue(maxsize=1000)
    end = object()

    def read() -> None:
        try:
            for document in documents:
                waiting.put(document)
            waiting.put(end)
        except (CliError, OSError) as error:
            waiting.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            document = waiting.get(timeout=0.1)
        except queue.Empty:
            tick()
            continue
        if document is end:
            return
        if isinstance(document, Exception):
            raise CliError(str(document)) from None
        yield document


def _follow(client: Client, response: Response, follower: _Follower) -> str:
    """Show the build to its end; returns the image's id. A display that lives is redrawn while nothing comes."""
    display = follower.display
    try:
        for document in _ticking(response.lines(), display.tick) if display.lives else response.lines():
            follower.take(client, document)
    except CliError as error:
        from tare.cli.buildshow import failure

        follower.display.close()
        sys.stderr.write(failure(follower.display.board, follower.place))
        raise CliError(f"ERROR: failed to build: {error}", error.code) from None
    follower.display.close()
    _tell_warnings(follower)
    return follower.image


def _tell_warnings(follower: _Follower) -> None:
    """What the checks of the Dockerfile found, as buildx sums it up."""
    warnings = follower.display.board.warnings
    if warnings and not isinstance(follower.display, _silent()):
        sys.stderr.write(f"\n {len(warnings)} warning{'s' if len(warnings) > 1 else ''} found (use 'tare build --check' to expand):\n")
        for warning in warnings:
            sys.stderr.write(f" - {warning['short']}\n")


def _silent() -> tuple[type, ...]:
    from tare.cli.buildshow import Raw

    return (Raw,)


def _query(options: Options) -> dict[str, Any]:
    from tare.cli.documents import encode
    from tare.cli.hosts import proxies

    arguments = {**proxies(""), **_arguments(options.items("build-arg"))}
    if "SOURCE_DATE_EPOCH" in os.environ:
        arguments.setdefault("SOURCE_DATE_EPOCH", os.environ["SOURCE_DATE_EPOCH"])
    labels, limits = _labels(options.items("label")), [_ulimit(text) for text in options.items("ulimit")]
    dockerfile = options.text("file") or "Dockerfile"
    query: dict[str, Any] = {
        "t": options.items("tag") or None,
        "dockerfile": _inside(options.operands[0], dockerfile) or dockerfile,
        "target": options.text("target") or None,
        "nocache": "1" if options.on("no-cache") else None,
        "pull": "1" if options.on("pull") else None,
        "rm": "1" if options.on("rm") else "0",
        "forcerm": "1" if options.on("force-rm") else None,
        "isolation": options.text("isolation") or None,
        "securityopt": encode(options.items("security-opt")) if options.items("security-opt") else None,
        "networkmode": options.text("network") or None,
        "extrahosts": [text.replace("=", ":", 1) if ":" not in text.partition("=")[0] else text for text in options.items("add-host")]
        or None,
        "platform": ",".join(options.items("platform")) or os.environ.get("DOCKER_DEFAULT_PLATFORM") or None,
        "buildargs": encode(arguments) if arguments else None,
        "labels": encode(labels) if labels else None,
        "ulimits": encode(limits) if limits else None,
        "cgroupparent": options.text("cgroup-parent") or None,
        "cpusetcpus": options.text("cpuset-cpus") or None,
        "cpusetmems": options.text("cpuset-mems") or None,
    }
    numbers = {"memory": "memory", "memory-swap": "memswap", "cpu-shares": "cpushares", "cpu-quota": "cpuquota", "cpu-period": "cpuperiod"}
    query |= {key: options.number(flag) or None for flag, key in {**numbers, "shm-size": "shmsize"}.items()}
    if options.operands[0].startswith(_REMOTE) or options.operands[0].endswith(".git"):
        query["remote"] = options.operands[0]
    return query


def _inside(source: str, dockerfile: str) -> str:
    """The Dockerfile's path in the context, "" when it lies elsewhere."""
    if dockerfile == "-":
        return ""
    if not os.path.isdir(source):
        return dockerfile
    path = dockerfile if os.path.isabs(dockerfile) or os.path.lexists(dockerfile) else os.path.join(source, dockerfile)
    found = os.path.relpath(path, source)
    if found.startswith(".."):
        return ""
    return found if os.path.lexists(os.path.join(source, found)) else dockerfile


def _elsewhere(options: Options) -> bytes | None:
    """The Dockerfile itself, when it does not lie in the context."""
    source, dockerfile = options.operands[0], options.text("file") or "Dockerfile"
    if source == "-" and dockerfile == "-":
        raise CliError("invalid argument: can't use stdin for both build context and dockerfile")
    if dockerfile == "-":
        return sys.stdin.buffer.read()
    if _inside(source, dockerfile):
        return None
    try:
        with open(dockerfile, "rb") as file:
            return file.read()
    except OSError as error:
        raise CliError(f"unable to prepare context: cannot read {dockerfile}: {(error.strerror or '').lower()}") from None


def _context(options: Options) -> Directory | Iterator[bytes]:
    from tare.cli import buildcontext

    source, dockerfile = options.operands[0], options.text("file") or "Dockerfile"
    if source.startswith(_REMOTE) or source.endswith(".git"):
        return iter(())
    if source == "-":
        return buildcontext.standard_input(dockerfile)
    if not os.path.isdir(source):
        raise CliError(f"unable to prepare context: path {source!r} not found")
    inside = _inside(source, dockerfile)
    return buildcontext.directory(source, inside, "" if inside else dockerfile)


def _whole(directory: str, name: str, chosen: frozenset[str] | None = None) -> Iterator[bytes]:
    """A named context without what its ``.dockerignore`` leaves out, the chosen files of a layout, or a cache as it lies there."""
    from tare.cli import buildcontext

    if chosen is not None:
        above = {os.path.dirname(file) for file in chosen} | {"blobs"}

        def verdict(path: str) -> str:
            return buildcontext.KEEP if path in chosen else buildcontext.LOOK if path in above else buildcontext.LEAVE

        return buildcontext.Directory(directory, verdict).tar()
    files = buildcontext.directory(directory, "") if name.startswith("context-") else buildcontext.Directory(directory)
    return files.tar()


def _credentials() -> Mapping[str, str]:
    from tare.cli.credentials import every

    return every()


def _base64(data: bytes) -> str:
    from binascii import b2a_base64

    return b2a_base64(data, newline=False).decode()


def _call(options: Options) -> str:
    wanted = "check" if options.on("check") else options.text("call").partition(",")[0] or "build"
    if wanted not in _CALLS:
        raise CliError(f"invalid call {wanted!r}: {', '.join(_CALLS)} are offered", 125)
    return "" if wanted == "build" else "check" if wanted == "lint" else wanted


def _ulimit(text: str) -> dict[str, Any]:
    name, _, values = text.partition("=")
    soft, _, hard = values.partition(":")
    try:
        return {"Name": name, "Soft": int(soft), "Hard": int(hard or soft)}
    except ValueError:
        raise CliError(f'invalid argument "{text}" for "--ulimit" flag: invalid ulimit argument: {text}', 125) from None


def _arguments(items: list[str]) -> dict[str, str | None]:
    """A name without a value takes it from the environment, and none when it is not set there."""
    pairs: dict[str, str | None] = {}
    for item in items:
        name, equals, value = item.partition("=")
        pairs[name] = value if equals else os.environ.get(name)
    return pairs


def _labels(items: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (item.partition("=") for item in items)}


BUILD = Command(
    "build",
    "build [OPTIONS] PATH | URL | -",
    "Build an image from a Dockerfile",
    _build,
    (
        ("add-host", "", "list", 'Add a custom host-to-IP mapping ("host:ip")'),
        ("allow", "", "list", 'Allow extra privileged entitlement ("network.host", "security.insecure", "device[=NAME]")'),
        ("annotation", "", "list", "Add annotation to the image"),
        ("attest", "", "list", 'Attestation parameters ("type=sbom,generator=image")'),
        ("build-arg", "", "list", "Set build-time variables"),
        ("build-context", "", "list", "Additional build contexts (name=path)"),
        ("cache-from", "", "list", 'External cache sources ("user/app:cache", "type=local,src=path/to/dir")'),
        ("cache-to", "", "list", 'Cache export destinations ("user/app:cache", "type=local,dest=path/to/dir")'),
        ("call", "", "string", 'Set method for evaluating build ("check", "outline", "targets")'),
        ("cgroup-parent", "", "string", "Set the parent cgroup for the RUN instructions during build"),
        ("check", "", "bool", "Shorthand for --call=check"),
        ("compress", "", "bool", "Compress the build context using gzip"),
        ("cpu-period", "", "int", "Limit the CPU CFS (Completely Fair Scheduler) period"),
        ("cpu-quota", "", "int", "Limit the CPU CFS (Completely Fair Scheduler) quota"),
        ("cpu-shares", "c", "int", "CPU shares (relative weight)"),
        ("cpuset-cpus", "", "string", "CPUs in which to allow execution (0-3, 0,1)"),
        ("cpuset-mems", "", "string", "MEMs in which to allow execution (0-3, 0,1)"),
        ("disable-content-trust", "", "bool", "Skip image verification", True),
        ("file", "f", "string", 'Name of the Dockerfile (default: "PATH/Dockerfile")'),
        ("force-rm", "", "bool", "Always remove intermediate containers (none is ever left)"),
        ("iidfile", "", "string", "Write the image ID to a file"),
        ("isolation", "", "string", "Container isolation technology"),
        ("label", "", "list", "Set metadata for an image"),
        ("load", "", "bool", 'Shorthand for "--output=type=docker"'),
        ("memory", "m", "bytes", "Memory limit"),
        ("memory-swap", "", "swap", "Swap limit equal to memory plus swap: -1 to enable unlimited swap"),
        ("metadata-file", "", "string", "Write build result metadata to a file"),
        ("network", "", "string", "Set the networking mode for the RUN instructions during build"),
        ("no-cache", "", "bool", "Do not use cache when building the image"),
        ("no-cache-filter", "", "list", "Do not cache specified stages"),
        ("output", "o", "list", 'Output destination ("type=local,dest=path")'),
        ("platform", "", "list", "Set target platform for build"),
        ("progress", "", "string", 'Set type of progress output ("auto", "plain", "tty", "quiet", "rawjson")', "auto"),
        ("provenance", "", "string", 'Shorthand for "--attest=type=provenance"'),
        ("pull", "", "bool", "Always attempt to pull all referenced images"),
        ("push", "", "bool", 'Shorthand for "--output=type=registry"'),
        ("quiet", "q", "bool", "Suppress the build output and print image ID on success"),
        ("rm", "", "bool", "Remove intermediate containers after a successful build (none is ever left)", True),
        ("sbom", "", "string", 'Shorthand for "--attest=type=sbom"'),
        ("secret", "", "list", 'Secret to expose to the build ("id=mysecret[,src=/local/secret]")'),
        ("security-opt", "", "list", "Security options"),
        ("shm-size", "", "bytes", "Shared memory size for build containers"),
        ("squash", "", "bool", "Squash newly built layers into a single new layer"),
        ("ssh", "", "list", 'SSH agent socket or keys to expose to the build ("default|<id>[=<socket>|<key>[,<key>]]")'),
        ("tag", "t", "list", 'Image identifier ("[registry/]repository[:tag]")'),
        ("target", "", "string", "Set the target build stage to build"),
        ("ulimit", "", "list", "Ulimit options"),
    ),
    least=1,
    most=1,
    aliases=("image build", "builder build", "build"),
    examples=(
        "tare build -t app .",
        "tare build -t app --build-arg VERSION=2 --target test .",
        "tare build -t app - < context.tar.gz",
        "tare build --secret id=token,env=TOKEN -o out .",
        "tare build --check .",
    ),
)
