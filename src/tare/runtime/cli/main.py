"""``tare-runtime``: an OCI runtime command line with runc's verbs and flags.

It needs no daemon and leaves no process of its own beside the container: see ``starter`` and ``steps``. A verb that enters a container
runs from the read-only interpreter (``readonly``). Until that has started nothing is imported that it will have to import again: this
module and that one live on the builtins.
"""

from __future__ import annotations

import os
import sys

ENTERING = frozenset(("create", "run", "exec"))
"""Verbs that start a process inside a container."""
_WITH_VALUE = frozenset(("root", "log", "log-format", "rootless", "criu"))


def main() -> int:
    """Entry point of the console script."""
    argv = sys.argv[1:]
    if verb(argv) in ENTERING:
        from tare.runtime.cli import readonly

        try:
            readonly.start_again(argv)
        except OSError as error:
            print(f"tare-runtime: cannot protect the interpreter from the container: {error}", file=sys.stderr)
            return 1
    return finish()


def finish() -> int:
    """Run the command line in this interpreter and end at once: there is nothing to tear down."""
    import gc

    gc.disable()
    from tare.runtime.cli.commands import invoke

    code = invoke(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or 1
    os._exit(code)


def verb(argv: list[str]) -> str:
    """The first argument that is neither a global option nor the value of one."""
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif not word.startswith("-"):
            return word
        else:
            skip = "=" not in word and word.lstrip("-") in _WITH_VALUE
    return ""
