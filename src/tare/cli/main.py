"""``tare``: find the verb, load only its module, run it, turn what went wrong into text and an exit code.

The table below is all that a call loads besides its own verb: a verb's flags, its helpers and its imports live in its module. Root help is
printed from the table alone.
"""

from __future__ import annotations

import os
import sys

from tare.cli.context import Context
from tare.cli.failures import CliError, Unreachable, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from tare.cli.flags import Command, Options, Row

COMMON = {
    "run": ("tare.cli.run", "RUN", "Create and run a new container from an image"),
    "exec": ("tare.cli.execute", "EXEC", "Execute a command in a running container"),
    "ps": ("tare.cli.ps", "PS", "List containers"),
    "pull": ("tare.cli.pull", "PULL", "Download an image from a registry"),
    "push": ("tare.cli.push", "PUSH", "Upload an image to a registry"),
    "images": ("tare.cli.images", "IMAGES", "List images"),
    "login": ("tare.cli.login", "LOGIN", "Authenticate to a registry"),
    "logout": ("tare.cli.login", "LOGOUT", "Log out from a registry"),
    "version": ("tare.cli.version", "VERSION", "Show the version of client and daemon"),
    "info": ("tare.cli.info", "INFO", "Display system-wide information"),
}
OTHER = {
    "attach": ("tare.cli.attach", "ATTACH", "Attach local standard input, output, and error streams to a running container"),
    "build": ("tare.cli.build", "BUILD", "Build an image from a Dockerfile"),
    "completion": ("tare.cli.completion", "COMPLETION", "Print the completion script for a shell"),
    "commit": ("tare.cli.imageverbs", "COMMIT", "Create a new image from a container's changes"),
    "cp": ("tare.cli.copying", "CP", "Copy files/folders between a container and the local filesystem"),
    "create": ("tare.cli.run", "CREATE", "Create a new container"),
    "diff": ("tare.cli.containerverbs", "DIFF", "Inspect changes to files or directories on a container's filesystem"),
    "events": ("tare.cli.events", "EVENTS", "Get real time events from the server"),
    "export": ("tare.cli.copying", "EXPORT", "Export a container's filesystem as a tar archive"),
    "history": ("tare.cli.imageverbs", "HISTORY", "Show the history of an image"),
    "import": ("tare.cli.imageverbs", "IMPORT", "Import the contents from a tarball to create a filesystem image"),
    "inspect": ("tare.cli.inspection", "INSPECT", "Return low-level information on containers, images, networks and volumes"),
    "kill": ("tare.cli.lifecycle", "KILL", "Kill one or more running containers"),
    "load": ("tare.cli.archive", "LOAD", "Load images from a tar archive or STDIN"),
    "logs": ("tare.cli.logs", "LOGS", "Fetch the logs of a container"),
    "pause": ("tare.cli.containerverbs", "PAUSE", "Pause all processes within one or more containers"),
    "port": ("tare.cli.containerverbs", "PORT", "List port mappings or a specific mapping for the container"),
    "rename": ("tare.cli.containerverbs", "RENAME", "Rename a container"),
    "restart": ("tare.cli.lifecycle", "RESTART", "Restart one or more containers"),
    "rm": ("tare.cli.lifecycle", "RM", "Remove one or more containers"),
    "rmi": ("tare.cli.images", "RMI", "Remove one or more images"),
    "save": ("tare.cli.archive", "SAVE", "Save one or more images to a tar archive (streamed to STDOUT by default)"),
    "search": ("tare.cli.imageverbs", "SEARCH", "Search a registry for images"),
    "start": ("tare.cli.start", "START", "Start one or more stopped containers"),
    "stats": ("tare.cli.stats", "STATS", "Display a live stream of container(s) resource usage statistics"),
    "stop": ("tare.cli.lifecycle", "STOP", "Stop one or more running containers"),
    "tag": ("tare.cli.images", "TAG", "Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE"),
    "top": ("tare.cli.top", "TOP", "Display the running processes of a container"),
    "unpause": ("tare.cli.containerverbs", "UNPAUSE", "Unpause all processes within one or more containers"),
    "update": ("tare.cli.update", "UPDATE", "Update configuration of one or more containers"),
    "wait": ("tare.cli.lifecycle", "WAIT", "Block until one or more containers stop, then print their exit codes"),
}
MANAGEMENT = {
    "builder": "Manage builds",
    "checkpoint": "Manage checkpoints",
    "container": "Manage containers",
    "context": "Manage contexts",
    "daemon": "Manage the Tare daemon on this machine",
    "image": "Manage images",
    "manifest": "Manage image manifests and manifest lists",
    "network": "Manage networks",
    "plugin": "Manage plugins",
    "registry": "Serve images to others",
    "system": "Manage Tare",
    "volume": "Manage volumes",
}
REFUSED = {
    **dict.fromkeys(
        ("config", "node", "secret", "service", "stack", "swarm"),
        "needs a Swarm cluster: Tare runs containers on one machine and is no Swarm manager",
    ),
    "trust": "is about Docker Content Trust (Notary v1), which its registries have switched off; name images by digest instead",
    "buildx": "is a plugin of the docker command; 'tare build' builds without it",
    **dict.fromkeys(
        ("plugin create", "plugin disable", "plugin enable", "plugin install", "plugin push", "plugin rm", "plugin set", "plugin upgrade"),
        "is not possible: what Tare plugs in is built in",
    ),
    "compose": "is a plugin of the docker command; docker-compose works with Tare through DOCKER_HOST",
}
"""Docker commands without a counterpart, and why."""
_CONTAINER_VERBS = (
    "attach commit cp create diff exec export kill logs pause port rename restart rm run start stats stop top unpause update wait"
)
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "builder": {
        "build": ("tare.cli.build", "BUILD", "Build an image from a Dockerfile"),
        "df": ("tare.cli.builderverbs", "DF", "Show the build cache"),
        "history": ("tare.cli.builderverbs", "HISTORY", "Show earlier builds, and what they said"),
        "prune": ("tare.cli.builderverbs", "PRUNE", "Remove build cache"),
    },
    "checkpoint": {
        "create": ("tare.cli.checkpoints", "CREATE", "Create a checkpoint from a running container"),
        "ls": ("tare.cli.checkpoints", "LS", "List checkpoints for a container"),
        "rm": ("tare.cli.checkpoints", "RM", "Remove a checkpoint"),
    },
    "container": {
        "inspect": ("tare.cli.inspection", "CONTAINER_INSPECT", "Display detailed information on one or more containers"),
        "ls": COMMON["ps"],
        "prune": ("tare.cli.prune", "CONTAINER_PRUNE", "Remove all stopped containers"),
        **{verb: (COMMON | OTHER)[verb] for verb in _CONTAINER_VERBS.split()},
    },
    "context": {
        "create": ("tare.cli.contextverbs", "CREATE", "Create a context"),
        "export": ("tare.cli.contextverbs", "EXPORT", "Export a context to a tar archive FILE or a tar stream on STDOUT"),
        "import": ("tare.cli.contextverbs", "IMPORT", "Import a context from a tar or zip file"),
        "inspect": ("tare.cli.contextverbs", "INSPECT", "Display detailed information on one or more contexts"),
        "ls": ("tare.cli.contextverbs", "LS", "List contexts"),
        "rm": ("tare.cli.contextverbs", "RM", "Remove one or more contexts"),
        "show": ("tare.cli.contextverbs", "SHOW", "Print the name of the current context"),
        "update": ("tare.cli.contextverbs", "UPDATE", "Update a context"),
        "use": ("tare.cli.contextverbs", "USE", "Set the current context"),
    },
    "image": {
        "build": ("tare.cli.build", "BUILD", "Build an image from a Dockerfile"),
        "bootstrap": ("tare.cli.bootstrap", "BOOTSTRAP", "Make a base image from this machine, without a registry"),
        "history": OTHER["history"],
        "import": OTHER["import"],
        "inspect": ("tare.cli.inspection", "IMAGE_INSPECT", "Display detailed information on one or more images"),
        "load": OTHER["load"],
        "ls": COMMON["images"],
        "prune": ("tare.cli.prune", "IMAGE_PRUNE", "Remove unused images"),
        "pull": COMMON["pull"],
        "push": COMMON["push"],
        "rm": OTHER["rmi"],
        "save": OTHER["save"],
        "tag": OTHER["tag"],
    },
    "manifest": {
        "annotate": ("tare.cli.manifest", "ANNOTATE", "Add additional information to a local image manifest"),
        "create": ("tare.cli.manifest", "CREATE", "Create a local manifest list for annotating and pushing to a registry"),
        "inspect": ("tare.cli.manifest", "INSPECT", "Display an image manifest, or manifest list"),
        "push": ("tare.cli.manifest", "PUSH", "Push a manifest list to a repository"),
        "rm": ("tare.cli.manifest", "RM", "Delete one or more manifest lists from local storage"),
    },
    "network": {
        "connect": ("tare.cli.networks", "CONNECT", "Connect a container to a network"),
        "create": ("tare.cli.networks", "CREATE", "Create a network"),
        "disconnect": ("tare.cli.networks", "DISCONNECT", "Disconnect a container from a network"),
        "inspect": ("tare.cli.networks", "INSPECT", "Display detailed information on one or more networks"),
        "ls": ("tare.cli.networks", "LS", "List networks"),
        "prune": ("tare.cli.networks", "PRUNE", "Remove all unused networks"),
        "rm": ("tare.cli.networks", "RM", "Remove one or more networks"),
    },
    "plugin": {
        "inspect": ("tare.cli.plugin", "INSPECT", "Display detailed information on one or more plugins"),
        "ls": ("tare.cli.plugin", "LS", "List plugins"),
    },
    "registry": {
        "gc": ("tare.cli.registryverbs", "GC", "Remove blobs that no manifest names (a serving registry does it by itself)"),
        "scrub": ("tare.cli.registryverbs", "SCRUB", "Verify every blob's digest"),
        "serve": ("tare.cli.registryverbs", "SERVE", "Serve images to docker, podman, skopeo and Tare (OCI distribution 1.1)"),
    },
    "system": {
        "certs": ("tare.cli.certs", "CERTS", "Make the certificates for a daemon that is reached over TCP"),
        "df": ("tare.cli.df", "DF", "Show disk usage"),
        "dial-stdio": ("tare.cli.dialstdio", "DIAL_STDIO", "Proxy the stdio stream to the daemon connection"),
        "events": OTHER["events"],
        "fsck": ("tare.cli.fsck", "FSCK", "Check blobs, layers, images and containers on the disk, and repair what can be"),
        "info": COMMON["info"],
        "migrate": ("tare.cli.migrate", "MIGRATE", "Convert an idle data root to another storage driver"),
        "prune": ("tare.cli.prune", "SYSTEM_PRUNE", "Remove unused data"),
    },
    "volume": {
        "clone": ("tare.cli.volumes", "CLONE", "Make a new volume with the content of another"),
        "create": ("tare.cli.volumes", "CREATE", "Create a volume"),
        "export": ("tare.cli.volumes", "EXPORT", "Export a volume's content as a tar archive"),
        "import": ("tare.cli.volumes", "IMPORT", "Make a new volume of a tar archive"),
        "inspect": ("tare.cli.volumes", "INSPECT", "Display detailed information on one or more volumes"),
        "ls": ("tare.cli.volumes", "LS", "List volumes"),
        "prune": ("tare.cli.volumes", "PRUNE", "Remove unused local volumes"),
        "rm": ("tare.cli.volumes", "RM", "Remove one or more volumes"),
        "snapshot": ("tare.cli.volumes", "SNAPSHOT", "Make a copy of a volume, named after it and the time"),
        "update": ("tare.cli.volumes", "UPDATE", "Update a volume's labels"),
    },
    "daemon": {
        "start": ("tare.cli.daemon", "START", "Start the daemon in the background"),
        "status": ("tare.cli.daemon", "STATUS", "Tell whether the daemon runs, and where"),
        "stop": ("tare.cli.daemon", "STOP", "Stop the daemon; containers go on"),
    },
}
_LOG_LEVELS = ("debug", "info", "warn", "error", "fatal", "panic", "trace", "warning")
SYNONYMS = {"list": "ls", "remove": "rm"}
GLOBAL_FLAGS: tuple[Row, ...] = (
    ("config", "", "string", "Location of client config files", "~/.docker"),
    (
        "context",
        "c",
        "string",
        "Name of the context to use to connect to the daemon (overrides TARE_HOST, DOCKER_HOST and 'tare context use')",
    ),
    ("debug", "D", "bool", "Show the Python traceback of unexpected errors"),
    ("host", "H", "list", "Daemon to connect to: unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST[:PORT]"),
    ("log-level", "l", "string", 'Accepted for docker\'s sake: "debug", "info", "warn", "error", "fatal"', "info"),
    ("tls", "", "bool", "Use TLS; implied by --tlsverify"),
    ("tlscacert", "", "string", "Trust certs signed only by this CA", "~/.docker/ca.pem"),
    ("tlscert", "", "string", "Path to TLS certificate file", "~/.docker/cert.pem"),
    ("tlskey", "", "string", "Path to TLS key file", "~/.docker/key.pem"),
    ("tlsverify", "", "bool", "Use TLS and verify the remote"),
    ("version", "v", "bool", "Print version information and quit"),
)


def main() -> int:
    """The console script. Does not return: it leaves without taking the interpreter apart, which would cost 3 ms for nothing."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code & 0xFF)


def run(words: list[str]) -> int:
    """One call of ``tare``: its exit status."""
    debug = bool(words) and words[0] in ("-D", "--debug")
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except OSError as error:
        if debug:
            raise
        reason = (error.strerror or str(error)).lower()
        sys.stderr.write(f"open {error.filename}: {reason}\n" if error.filename else f"tare: {reason}\n")
        return 1


def _silence_stdout() -> None:
    """Keep the interpreter's last flush from complaining about a reader that has gone (``tare ps | head -1``)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def dispatch(words: list[str]) -> int:
    """Run one command line."""
    command: Command | None = None
    try:
        flags, rest = _global_flags(words)
        if not rest:
            return 0
        if rest[0] == "__complete":
            from tare.cli.completion import complete

            return complete(Context(flags), rest[1:])
        command = find(rest)
        if command is None:
            return 0
        options = command.parse(rest)
        if options is None:
            from tare.cli.flags import help_text

            sys.stdout.write(help_text(command))
            return 0
        command.check_operands(options)
        return command.run(Context(flags), options)
    except UsageError as error:
        report_usage(error, command)
        return error.code
    except CliError as error:
        if isinstance(error, Unreachable) and command is not None and command.error_prefix:
            error.code = 125
        report(error, command)
        return error.code


def _global_flags(words: list[str]) -> tuple[Options | None, list[str]]:
    """The flags before the verb, if there are any, and the words from the verb on (none when the flags already were the whole job)."""
    if words and not words[0].startswith("-"):
        return None, words
    from tare.cli.flags import KINDS, parse

    options = parse(GLOBAL_FLAGS, words, kind=KINDS.__getitem__, interspersed=False)
    if options is not None and options.on("version"):
        from tare.cli.version import CLIENT_VERSION

        sys.stdout.write(f"Tare version {CLIENT_VERSION}\n")
        return None, []
    if options is None:
        topic = [word for word in words if word not in ("--help", "-h")]
        if topic and not topic[0].startswith("-"):
            return None, [*topic, "--help"]
        sys.stdout.write(root_help())
        return None, []
    if options.text("log-level") not in _LOG_LEVELS:
        raise CliError(f"Unable to parse logging level: {options.text('log-level')}")
    if not options.operands:
        sys.stderr.write(root_help())
        return None, []
    if "config" in options.given:
        # For everybody who looks for client files, in this process and in those that it starts.
        os.environ["DOCKER_CONFIG"] = options.text("config")
    return options, options.operands


def find(words: list[str]) -> Command | None:
    """The command that ``words`` begin with, which are cut off. None when help for a group was printed instead."""
    verb = words.pop(0)
    if verb == "help":
        if not words:
            sys.stdout.write(root_help())
            return None
        if words[0] not in {**COMMON, **OTHER, **GROUPS}:
            raise CliError(f"unknown help topic: {words[0]}")
        words.append("--help")
        return find(words)
    if verb in GROUPS:
        return _find_in_group(verb, words)
    entry = COMMON.get(verb) or OTHER.get(verb)
    if verb in REFUSED:
        raise UsageError(f"'{verb}' {REFUSED[verb]}", 1, usage=False)
    if entry is None:
        raise UsageError(
            f"unknown command: tare {verb}{_nearest_verb(verb, [*COMMON, *OTHER, *GROUPS])}\n\nRun 'tare --help' for more information",
            1,
            usage=False,
        )
    return load(entry)


def _find_in_group(group: str, words: list[str]) -> Command | None:
    if not words:
        sys.stderr.write(group_help(group))  # somebody meant more than this
        return None
    if words[0] in ("--help", "-h"):
        sys.stdout.write(group_help(group))
        return None
    verb = words.pop(0)
    if verb.startswith("-"):
        shown = f"unknown flag: {verb}" if verb.startswith("--") else f"unknown shorthand flag: '{verb[1:2]}' in {verb}"
        raise UsageError(f"{shown}\n\nUsage:  tare {group}\n\nRun 'tare {group} --help' for more information", 125, usage=False)
    if f"{group} {verb}" in REFUSED:
        raise UsageError(f"'{group} {verb}' {REFUSED[f'{group} {verb}']}", 1, usage=False)
    known = GROUPS[group]
    entry = known.get(verb) or known.get(SYNONYMS.get(verb, ""))
    if entry is None:
        raise UsageError(
            f"unknown command: tare {group} {verb}{_nearest_verb(verb, known)}\n\nUsage:  tare {group}\n\n"
            f"Run 'tare {group} --help' for more information",
            1,
            usage=False,
        )
    return load(entry)


def _nearest_verb(verb: str, known: Sequence[str] | dict[str, tuple[str, str, str]]) -> str:
    from tare.cli.flags import nearest

    found = nearest(verb, known)
    return f"\n\nDid you mean '{found}'?" if found else ""


def load(entry: tuple[str, str, str]) -> Command:
    """Import the module of a table entry and give back its command."""
    module, name, _ = entry
    __import__(module)
    command: Command = getattr(sys.modules[module], name)
    return command


def report_usage(error: UsageError, command: Command | None) -> None:
    """Say what is wrong with the command line, and where to read on."""
    sys.stdout.flush()
    text = str(error)
    if not error.usage:
        sys.stderr.write(f"{'tare: ' if error.code == 1 else ''}{text}\n")
        return
    name = f"tare {command.name}" if command else "tare"
    usage = command.usage if command else "[OPTIONS] COMMAND [ARG...]"
    prefix = "tare: " if error.code == 1 else ""
    verb = "See" if error.see else "Run"
    sys.stderr.write(f"{prefix}{text}\n\nUsage:  tare {usage}\n\n{verb} '{name} --help' for more information\n")


def report(error: CliError, command: Command | None) -> None:
    """Say what went wrong; ``run`` names itself first, as docker's does."""
    sys.stdout.flush()
    text = str(error)
    if not text:
        return
    if error.code in (125, 126, 127) and command is not None and command.error_prefix:
        text = f"{command.error_prefix}: {text}\n\nRun 'tare {command.name} --help' for more information"
    sys.stderr.write(text + "\n")


def root_help() -> str:
    """What ``tare`` and ``tare --help`` print."""
    from tare.cli.flags import KINDS, flag_lines

    def section(title: str, rows: dict[str, str]) -> str:
        return f"{title}:\n" + "\n".join(f"  {name.ljust(11)} {text}" for name, text in rows.items())

    return "\n\n".join(
        (
            "Usage:  tare [OPTIONS] COMMAND",
            "A container engine in Python that speaks Docker",
            "Start here:\n"
            "  tare image bootstrap busybox        a first image, made from this machine\n"
            "  tare run --rm busybox echo hello    a first container",
            section("Common Commands", {name: entry[2] for name, entry in COMMON.items()}),
            section("Management Commands", {name: text for name, text in MANAGEMENT.items() if GROUPS[name]}),
            section("Commands", {name: entry[2] for name, entry in OTHER.items()}),
            "Global Options:\n" + flag_lines(GLOBAL_FLAGS, KINDS.__getitem__),
            "Run 'tare COMMAND --help' for more information on a command.\n",
        )
    )


def group_help(group: str) -> str:
    rows = "\n".join(f"  {name.ljust(11)} {entry[2]}" for name, entry in sorted(GROUPS[group].items()))
    return (
        f"Usage:  tare {group} COMMAND\n\n{MANAGEMENT[group]}\n\nCommands:\n{rows}\n\n"
        f"Run 'tare {group} COMMAND --help' for more information on a command.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
