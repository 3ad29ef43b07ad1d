"""Completion in bash, zsh and fish.

``tare completion SHELL`` prints a short script that asks ``tare __complete WORD...`` on every TAB: verbs and flags come from the same
tables that parse a command line, so there is nothing to go stale, and names come from the daemon. An answer is a line per candidate,
``word<TAB>description``; the last line is ``:files``, ``:directories`` or ``:nothing`` and says what the shell should add from the file
system.
"""

from __future__ import annotations

import sys

from tare.cli.failures import CliError
from tare.cli.flags import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tare.cli.context import Context
    from tare.cli.flags import Options, Row

    Candidate = tuple[str, str]

_FLAG_VALUES = {
    "network": "networks", "net": "networks", "volumes-from": "containers", "link": "containers", "context": "contexts",
    "pid": "namespaces", "ipc": "namespaces", "restart": "restart", "pull": "pull", "signal": "signals", "type": "types",
    "log-driver": "logs", "cap-add": "capabilities", "cap-drop": "capabilities", "platform": "platforms", "attach": "streams",
    "env-file": "files", "label-file": "files", "cidfile": "files", "file": "files", "input": "files", "output": "files",
    "iidfile": "files", "tlscacert": "files", "tlscert": "files", "tlskey": "files", "config": "directories",
    "volume": "volumes", "userns": "host", "uts": "host", "cgroupns": "host", "driver": "drivers", "format": "formats",
}  # fmt: skip
"""What a flag's value may be, by the flag's name."""
_OPERANDS = {
    **dict.fromkeys(("attach", "exec", "kill", "pause", "port", "restart", "stats", "stop", "top"), "running"),
    **dict.fromkeys(("commit", "cp", "diff", "export", "inspect", "logs", "rename", "rm", "start"), "containers"),
    **dict.fromkeys(("unpause", "update", "wait"), "containers"),
    **dict.fromkeys(("create", "history", "push", "rmi", "run", "save", "tag"), "images"),
    **dict.fromkeys((f"image {verb}" for verb in ("history", "inspect", "push", "rm", "save", "tag")), "images"),
    **dict.fromkeys((f"context {verb}" for verb in ("export", "inspect", "rm", "update", "use")), "contexts"),
    **dict.fromkeys((f"volume {verb}" for verb in ("inspect", "rm", "update")), "volumes"),
    "network inspect": "networks", "network rm": "networks", "network connect": "networks", "network disconnect": "networks",
    "completion": "shells",
    "build": "directories", "image build": "directories", "builder build": "directories", "import": "files", "image import": "files",
}  # fmt: skip
"""What a command's operands are, by its name without ``container``."""
_WORDS = {
    "restart": "no on-failure unless-stopped always", "pull": "always missing never", "types": "container image network volume plugin",
    "logs": "json-file local journald syslog none", "platforms": "linux/amd64 linux/arm64", "streams": "stdin stdout stderr",
    "host": "host private", "shells": "bash zsh fish", "formats": "json table", "drivers": "bridge macvlan ipvlan local",
    "signals": "TERM KILL INT HUP QUIT USR1 USR2 STOP CONT WINCH",
    "capabilities": "ALL AUDIT_CONTROL AUDIT_WRITE CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE "
    "MKNOD NET_ADMIN NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE SYS_NICE "
    "SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM",
}  # fmt: skip
_FIRST_ONLY = ("attach", "commit", "completion", "create", "diff", "exec", "export", "logs", "port", "rename", "run", "top")
"""Only the first operand is one; what follows is a command, or nothing."""


def complete(context: Context, words: list[str]) -> int:
    """Candidates for the last of ``words`` (which may be empty), to stdout. Never fails: a shell is waiting."""
    try:
        found, rest = candidates(context, words or [""])
    except (CliError, OSError, KeyError, ValueError, TypeError):
        found, rest = [], "nothing"
    sys.stdout.write("".join(f"{word}\t{text}\n" for word, text in found) + f":{rest}\n")
    return 0


def candidates(context: Context, words: list[str]) -> tuple[list[Candidate], str]:
    """Matching candidates and what the shell should add."""
    from tare.cli.main import COMMON, GLOBAL_FLAGS, GROUPS, MANAGEMENT, OTHER, SYNONYMS, load

    *before, last = words
    position = _skip_flags(GLOBAL_FLAGS, before)
    if position > len(before):
        return _flag_value(context, GLOBAL_FLAGS, before[-1], last)
    if position == len(before):
        verbs = {name: entry[2] for name, entry in {**COMMON, **OTHER}.items()} | {
            name: text for name, text in MANAGEMENT.items() if GROUPS[name]
        }
        return _verbs_or_flags(last, GLOBAL_FLAGS, verbs)
    verb, rest = before[position], before[position + 1 :]
    if verb in GROUPS:
        if not rest:
            return _verbs_or_flags(last, (), {name: entry[2] for name, entry in GROUPS[verb].items()})
        entry = GROUPS[verb].get(rest[0]) or GROUPS[verb].get(SYNONYMS.get(rest[0], ""))
        rest = rest[1:]
    else:
        entry = {**COMMON, **OTHER}.get(verb)
    if entry is None:
        return [], "nothing"
    return _of_command(context, load(entry), rest, last)


def _verbs_or_flags(last: str, rows: Iterable[Row], verbs: dict[str, str]) -> tuple[list[Candidate], str]:
    if last.startswith("-"):
        return _flags(rows, last), "nothing"
    return [(name, text) for name, text in sorted(verbs.items()) if name.startswith(last)], "nothing"


def _flags(rows: Iterable[Row], last: str) -> list[Candidate]:
    shown = [(f"--{row[0]}", row[3]) for row in rows if row[3]] + [("--help", "Print usage")]
    return [pair for pair in sorted(shown) if pair[0].startswith(last)]


def _skip_flags(rows: Iterable[Row], words: list[str]) -> int:
    """The index of the first operand; beyond the end when the last flag still lacks its value."""
    position = 0
    while position < len(words) and words[position].startswith("-") and len(words[position]) > 1:
        if words[position] == "--":
            return position + 1
        position += 2 if _wants_value(rows, words[position]) else 1
    return position


def _wants_value(rows: Iterable[Row], word: str) -> bool:
    row = _row(rows, word)
    return row is not None and row[2] != "bool" and "=" not in word and (word.startswith("--") or word[-1] == row[1])


def _row(rows: Iterable[Row], word: str) -> Row | None:
    """The row of the flag in ``word``: the first of combined short ones that takes a value, else the last."""
    if word.startswith("--"):
        from tare.cli.flags import ALIASES

        name = word[2:].partition("=")[0]
        name = ALIASES.get(name, name)
        return next((row for row in rows if row[0] == name), None)
    found = None
    for letter in word[1:]:
        found = next((row for row in rows if row[1] == letter), None)
        if found is None or found[2] != "bool":
            break
    return found


def _of_command(context: Context, command: Command, words: list[str], last: str) -> tuple[list[Candidate], str]:
    operands: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            operands += words[position + 1 :]
            break
        if not word.startswith("-") or word == "-":
            operands.append(word)
            if not command.interspersed:
                operands += words[position + 1 :]
                break
            position += 1
            continue
        position += 1
        if _wants_value(command.flags, word):
            if position == len(words):
                return _flag_value(context, command.flags, word, last)
            position += 1
    ended = "--" in words or (operands and not command.interspersed)
    if last.startswith("-") and not ended:
        name, equals, value = last.partition("=")
        if equals:
            found, rest = _flag_value(context, command.flags, name, value)
            return [(f"{name}={word}", text) for word, text in found], rest
        return _flags(command.flags, last), "nothing"
    return _operand(context, command, operands, last)


def _flag_value(context: Context, rows: Iterable[Row], flag: str, last: str) -> tuple[list[Candidate], str]:
    row = _row(rows, flag)
    kind = _FLAG_VALUES.get(row[0], "") if row is not None else ""
    if kind == "volumes" and last.startswith(("/", ".", "~")):
        return [], "directories"
    return _values(context, kind, last) if kind else ([], "files")


def _operand(context: Context, command: Command, operands: list[str], last: str) -> tuple[list[Candidate], str]:
    name = command.name.removeprefix("container ")
    if name == "cp":
        found, _ = _values(context, "containers", last) if ":" not in last else ([], "")
        return [(f"{word}:", text) for word, text in found], "files"
    if operands and name in _FIRST_ONLY:
        return [], "files" if name in ("exec", "run", "create") else "nothing"
    kind = _OPERANDS.get(name, "")
    if name.startswith("network ") and name.endswith("connect") and operands:
        kind = "containers"
    found, rest = _values(context, kind, last)
    return [pair for pair in found if pair[0] not in operands], rest


def _values(context: Context, kind: str, last: str) -> tuple[list[Candidate], str]:
    if kind in ("files", "directories"):
        return [], kind
    if kind in _WORDS:
        known = [(word, "") for word in _WORDS[kind].split()]
    elif kind == "namespaces":
        known = [("host", ""), *((f"container:{name}", text) for name, text in _names_of_containers(context, everything=False))]
    else:
        known = list(_SOURCES[kind](context)) if kind in _SOURCES else []
    return [pair for pair in known if pair[0].startswith(last)], "nothing"


def _names_of_containers(context: Context, *, everything: bool) -> Iterable[Candidate]:
    for container in context.client.call("GET", "/containers/json", {"all": everything or None}) or ():
        for name in container.get("Names") or ():
            if "/" not in name[1:]:
                yield name[1:], f"{container.get('Image', '')} {container.get('Status', '')}"


def _names_of_images(context: Context) -> Iterable[Candidate]:
    for image in context.client.call("GET", "/images/json") or ():
        for tag in image.get("RepoTags") or ():
            if tag != "<none>:<none>":
                yield tag.removesuffix(":latest"), image["Id"].partition(":")[2][:12]


def _names_of_networks(context: Context) -> Iterable[Candidate]:
    return [(str(network["Name"]), str(network.get("Driver", ""))) for network in context.client.call("GET", "/networks") or ()]


def _names_of_volumes(context: Context) -> Iterable[Candidate]:
    found = context.client.call("GET", "/volumes") or {}
    return [(str(volume["Name"]), str(volume.get("Driver", ""))) for volume in found.get("Volumes") or ()]


def _names_of_contexts(context: Context) -> Iterable[Candidate]:
    from tare.cli.contexts import all_contexts, endpoint

    return [("default", ""), *((str(document["Name"]), str(endpoint(document).get("Host", ""))) for document in all_contexts())]


_SOURCES: dict[str, Callable[[Context], Iterable[Candidate]]] = {
    "containers": lambda context: _names_of_containers(context, everything=True),
    "running": lambda context: _names_of_containers(context, everything=False),
    "images": _names_of_images,
    "networks": _names_of_networks,
    "volumes": _names_of_volumes,
    "contexts": _names_of_contexts,
}

BASH = r"""# bash completion for tare: source <(tare completion bash)
_tare() {
    # Of the line up to the cursor; a colon or an equals sign ends no word here.
    local line=${COMP_LINE:0:COMP_POINT} current reply rest word cut
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    COMPREPLY=()
    # What readline itself takes for the word's beginning must not be repeated.
    cut=${current%"${COMP_WORDS[COMP_CWORD]}"}
    [[ ${COMP_WORDS[COMP_CWORD]} == [:=] ]] && cut=$current
    while IFS= read -r reply; do
        case $reply in
            :*) rest=$reply ;;
            *) word=${reply%%$'\t'*}; COMPREPLY+=("${word#"$cut"}") ;;
        esac
    done < <("${words[0]}" __complete "${words[@]:1}" 2>/dev/null)
    case $rest in
        :files) compopt -o default ;;
        :directories) compopt -o default -o dirnames ;;
    esac
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *: ]] && compopt -o nospace
}
complete -F _tare tare
"""
ZSH = r"""#compdef tare
# zsh completion for tare: source <(tare completion zsh), or put it into a file _tare on your fpath
_tare() {
    local reply word text rest
    local -a found
    for reply in "${(@f)$("${words[1]}" __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        if [[ $reply == :* ]]; then
            rest=$reply
            continue
        fi
        word=${reply%%$'\t'*}
        text=${reply#*$'\t'}
        found+=("${word//:/\\:}${text:+:$text}")
    done
    (( ${#found} )) && _describe -V 'tare' found
    case $rest in
        :files) _files ;;
        :directories) _files -/ ;;
    esac
}
if [[ $funcstack[1] == _tare ]]; then
    _tare "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u; }
    compdef _tare tare
fi
"""
FISH = r"""# fish completion for tare: tare completion fish | source
function __tare_complete
    set -l words (commandline -opc) (commandline -ct)
    set -l found ($words[1] __complete $words[2..-1] 2>/dev/null)
    test (count $found) -gt 0; or return
    if test (count $found) -gt 1
        printf '%s\n' $found[1..-2]
    end
    switch $found[-1]
        case :files
            __fish_complete_path (commandline -ct)
        case :directories
            __fish_complete_directories (commandline -ct)
    end
end
complete -c tare -f -a '(__tare_complete)'
"""
_SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def _completion(context: Context, options: Options) -> int:
    shell = options.operands[0]
    if shell not in _SCRIPTS:
        raise CliError(f"no completion for {shell}: choose one of {', '.join(_SCRIPTS)}")
    sys.stdout.write(_SCRIPTS[shell])
    return 0


COMPLETION = Command(
    "completion", "completion bash|zsh|fish", "Print the completion script for a shell", _completion, least=1, most=1,
    examples=(
        "source <(tare completion bash)                                             this shell",
        "tare completion bash > /etc/bash_completion.d/tare                         every later one",
        "tare completion zsh > /usr/local/share/zsh/site-functions/_tare",
        "tare completion fish > ~/.config/fish/completions/tare.fish",
    ),
)  # fmt: skip
