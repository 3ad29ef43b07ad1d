"""Steps that enter namespaces: the init's own, and for an exec those of the container."""

from __future__ import annotations

import os
from typing import NamedTuple

from tare.linux import libc, mount, namespaces, process
from tare.linux.constants import CLONE_NEWPID, CLONE_NEWUSER, NAMESPACE_FLAGS, O_PATH
from tare.runtime import messages
from tare.runtime.context import Context, SetupFailed, reason, why
from tare.runtime.plan import step


@step
class OpenNamespaces(NamedTuple):
    """Open the namespaces that will be joined before anything changes what their paths mean."""

    paths: dict[str, str]

    def describe(self) -> str:
        return "open namespaces to join: " + ", ".join(f"{kind} {path}" for kind, path in self.paths.items())

    def run(self, context: Context) -> None:
        for kind, path in self.paths.items():
            try:
                context.namespaces[kind] = namespaces.open_namespace(path)
            except OSError as error:
                raise SetupFailed(f"lstat {path}: {why(error)}") from None


@step
class OpenForeignSource(NamedTuple):
    """Clone a mount out of another container: its /dev/shm, for one that joins its IPC namespace.

    The kernel clones only mounts of the caller's own mount namespace, so we visit the other one. The path is resolved there, inside its
    root: what that container made of its files cannot lead us out of it.
    """

    destination: str
    pid: int
    path: str

    def describe(self) -> str:
        return f"open bind source /{self.path} of process {self.pid}"

    def run(self, context: Context) -> None:
        home = namespaces.open_namespace("/proc/self/ns/mnt")
        try:
            context.sources[self.destination] = self._visit(home)
        except OSError as error:
            text = f'error mounting "/{self.path}" of process {self.pid} to rootfs at "{self.destination}": {why(error)}'
            raise SetupFailed(text) from None
        finally:
            os.close(home)

    def _visit(self, home: int) -> int:
        there = namespaces.open_namespace(f"/proc/{self.pid}/ns/mnt")
        try:
            namespaces.join(there, "mnt")
        finally:
            os.close(there)
        try:
            root = os.open("/", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                place = mount.open_in_root(root, self.path, O_PATH)
            finally:
                os.close(root)
            try:
                return mount.open_tree(place, "", recursive=True)
            finally:
                os.close(place)
        finally:
            namespaces.join(home, "mnt")


@step
class OutOfMemoryScore(NamedTuple):
    """Make the kernel prefer or spare this container when memory runs out."""

    adjustment: int

    def describe(self) -> str:
        return f"set oom_score_adj to {self.adjustment}"

    def run(self, context: Context) -> None:
        try:
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"%d" % self.adjustment)
            finally:
                os.close(fd)
        except PermissionError as error:
            context.warn(f"oom_score_adj {self.adjustment}", error)


@step
class NewUserNamespace(NamedTuple):
    """Enter a new user namespace; the keeper writes its maps; become root in it."""

    def describe(self) -> str:
        return "enter a new user namespace, wait for its maps, become its root"

    def run(self, context: Context) -> None:
        libc.unshare(CLONE_NEWUSER)
        context.tell("user")
        context.wait("user")
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        try:
            os.setgroups([])
        except PermissionError as error:
            context.warn("setgroups", error)


@step
class ForkIntoPidNamespace(NamedTuple):
    """A pid namespace that belongs to the new user namespace: proc can only be mounted by root of the namespace that owns it."""

    def describe(self) -> str:
        return "enter a new pid namespace owned by the user namespace, go on as its process 1"

    def run(self, context: Context) -> None:
        libc.unshare(CLONE_NEWPID)
        pid = os.fork()
        if pid:
            messages.send(context.line, {"at": "forked", "pid": pid})
            os._exit(0)
        process.set_dumpable(False)
        os.setsid()


@step
class JoinNamespaces(NamedTuple):
    """Join namespaces opened before; the user namespace comes first because it grants the right to the others."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        return "join namespaces: " + " ".join(self.kinds)

    def run(self, context: Context) -> None:
        for kind in self.kinds:
            fd = context.namespaces.pop(kind)
            try:
                namespaces.join(fd, kind)
                if kind == "user":
                    os.setresgid(0, 0, 0)
                    os.setresuid(0, 0, 0)
            except OSError as error:
                raise SetupFailed(f"error joining {kind} namespace: {reason(error)}") from None
            finally:
                os.close(fd)


@step
class NewNamespaces(NamedTuple):
    """Enter new namespaces."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        return "enter new namespaces: " + " ".join(self.kinds)

    def run(self, context: Context) -> None:
        ready = context.prepared.namespaces if context.prepared is not None else ()
        libc.unshare(namespaces.flags_of(kind for kind in self.kinds if kind not in ready))


@step
class NamespacesReady(NamedTuple):
    """Tell the keeper that links can be made; go on meanwhile."""

    def describe(self) -> str:
        return "tell the keeper that the namespaces exist"

    def run(self, context: Context) -> None:
        context.tell("namespaces")


@step
class WaitForCgroup(NamedTuple):
    """Wait until the keeper has put us into our cgroup; then a cgroup namespace can take it as its root."""

    new_namespace: bool

    def describe(self) -> str:
        return "wait to be in the cgroup" + (", enter a new cgroup namespace" if self.new_namespace else "")

    def run(self, context: Context) -> None:
        context.wait("cgroup")
        if self.new_namespace:
            libc.unshare(NAMESPACE_FLAGS["cgroup"])


@step
class JoinContainer(NamedTuple):
    """Enter the namespaces of a running container's init (pid comes from the keeper)."""

    kinds: tuple[str, ...]

    def describe(self) -> str:
        return "join the container's namespaces: " + " ".join(self.kinds)

    def run(self, context: Context) -> None:
        namespaces.join_process(context.pidfd, self.kinds)
        if "user" in self.kinds:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
