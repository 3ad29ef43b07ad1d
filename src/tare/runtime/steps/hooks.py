"""Steps that run the hooks of an OCI configuration: the keeper's (or the command's) turn first, then those that the init runs itself.

init → keeper   {"at": "create-hooks"}, before pivot_root: the keeper runs prestart and createRuntime hooks
keeper → init   {"go": "create-hooks", "state": {...}}: the init runs createContainer hooks
init → keeper   {"at": "start-hooks"}, just before the program
keeper → init   {"go": "start-hooks", "state": {...}}: the init runs startContainer hooks
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tare.runtime import hooks, messages
from tare.runtime.context import Context, KeeperGone, SetupFailed
from tare.runtime.plan import step


def ask_state(context: Context, what: str) -> dict[str, Any]:
    """Tell how far we are and hear the container's state as the host sees it."""
    context.tell(what)
    while True:
        message, fds = messages.receive(context.line)
        messages.close_all(fds)
        if message is None:
            raise KeeperGone
        go = str(message.get("go"))
        context.heard.add(go)
        if go == what:
            state: dict[str, Any] = message["state"]
            return state


@step
class CreateHooks(NamedTuple):
    """Let the command run the hooks in the host's namespaces, then run those for the container's."""

    awaited: int
    """Hooks that the command runs."""
    hooks: tuple[hooks.Hook, ...]

    def describe(self) -> str:
        own = "".join(f", run createContainer hook {hook[0]}" for hook in self.hooks)
        return f"wait for {self.awaited} prestart and createRuntime hooks{own}"

    def run(self, context: Context) -> None:
        run_hooks("createContainer", self.hooks, ask_state(context, "create-hooks"))


@step
class StartHooks(NamedTuple):
    """Run the hooks that precede the program, inside the container."""

    hooks: tuple[hooks.Hook, ...]

    def describe(self) -> str:
        return "run startContainer hooks: " + " ".join(hook[0] for hook in self.hooks)

    def run(self, context: Context) -> None:
        run_hooks("startContainer", self.hooks, ask_state(context, "start-hooks"))


def run_hooks(kind: str, items: tuple[hooks.Hook, ...], state: dict[str, Any]) -> None:
    try:
        hooks.run_all(kind, (hooks.Hook(*item) for item in items), state)
    except hooks.HookFailed as error:
        raise SetupFailed(str(error)) from None
