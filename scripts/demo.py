"""``make demo``: the engine's main job on real input, from an empty folder to nothing left behind.

A private daemon under ``.demo/`` makes a Debian image, puts it into a registry (``tare registry serve``: our own, a process of its own that
asks for a password), forgets it, pulls it back and runs it as an isolated, limited container. Each step prints the command that a user
would type and what came out of it.
Everything that was made is removed at the end, also when a step fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import bcrypt

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".demo"
BIN = Path(sys.executable).parent
SOCKET = HOME / "tare.sock"
LIMIT = "64m"

_bold, _dim, _green, _red, _plain = ("\033[1m", "\033[2m", "\033[32m", "\033[31m", "\033[0m") if sys.stdout.isatty() else ("",) * 5


class DemoError(Exception):
    """A step did not show what it had to show."""


def say(text: str) -> None:
    print(f"\n{_bold}{text}{_plain}", flush=True)


def note(text: str) -> None:
    print(f"  {_green}{text}{_plain}", flush=True)


def tare(*arguments: str, quiet: bool = False, expect: int | None = 0, timeout: float = 300, stdin: str = "") -> str:
    """Run one ``tare`` command, showing it and what it prints; returns its standard output."""
    shown = " ".join(f"'{a}'" if " " in a or not a else a for a in arguments)
    print(f"  {_dim}$ tare {shown if len(shown) < 110 else shown[:109] + '…'}{_plain}", flush=True)
    done = subprocess.run(
        [BIN / "tare", "-H", f"unix://{SOCKET}", *arguments],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={**os.environ, "DOCKER_CONFIG": str(HOME / "client")},
    )
    output = done.stdout.rstrip()
    if output and not quiet:
        print("\n".join(f"    {line}" for line in output.splitlines()[-16:]), flush=True)
    if expect is not None and done.returncode != expect:
        raise DemoError(f"tare {shown}: exit code {done.returncode}, expected {expect}\n{output}")
    return output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(condition: bool, claim: str) -> None:
    if not condition:
        raise DemoError(f"not so: {claim}")
    note(f"✓ {claim}")


class Demo:
    def __init__(self) -> None:
        self.daemon: subprocess.Popen[bytes] | None = None
        self.registry: subprocess.Popen[bytes] | None = None
        self.registry_port = free_port()
        self.password = secrets.token_urlsafe(12)
        self.web_port = free_port()
        self.image = f"localhost:{self.registry_port}/debian:bookworm"

    def start_daemon(self) -> None:
        log = (HOME / "tared.log").open("wb")
        arguments = ["-H", f"unix://{SOCKET}", "--data-root", HOME / "data", "--exec-root", HOME / "run"]
        arguments += ["--pidfile", HOME / "tared.pid", "--cgroup-parent", f"/tare-demo-{os.getpid()}"]
        self.daemon = subprocess.Popen([BIN / "tared", *arguments], stdout=log, stderr=log)
        for _ in range(200):
            if self.daemon.poll() is not None:
                raise DemoError(f"tared did not start:\n{(HOME / 'tared.log').read_text()[-2000:]}")
            if SOCKET.exists():
                return
            time.sleep(0.05)
        raise DemoError("tared did not open its socket in ten seconds")

    def start_registry(self) -> None:
        """Our own: over HTTP on loopback, whoever writes gives a password."""
        users = HOME / "registry.users"
        users.write_text(f"demo:{bcrypt.hashpw(self.password.encode(), bcrypt.gensalt(10)).decode()}\n")
        command = ["registry", "serve", "--root", str(HOME / "registry"), "--listen", f"127.0.0.1:{self.registry_port}"]
        command += ["--htpasswd", str(users), "--anonymous-pull"]
        print(f"  {_dim}$ tare {' '.join(command)} &{_plain}", flush=True)
        log = (HOME / "registry.log").open("wb")
        started = time.perf_counter()
        self.registry = subprocess.Popen([BIN / "tare", *command], stdout=log, stderr=log)
        for _ in range(1000):
            if self.registry.poll() is not None:
                raise DemoError(f"the registry did not start:\n{(HOME / 'registry.log').read_text()[-2000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.registry_port)) == 0:
                    note(f"Tare's own registry answers after {(time.perf_counter() - started) * 1000:.0f} ms")
                    return
            time.sleep(0.01)
        raise DemoError("the registry did not open its port in ten seconds")

    def image_through_registry(self) -> None:
        say("1. An image, made here and carried through a registry: Tare's own")
        tare("image", "bootstrap", "debian:bookworm", quiet=True)
        self.start_registry()
        tare("tag", "debian:bookworm", self.image)
        refused = tare("push", self.image, quiet=True, expect=1)
        check(
            "denied" in refused or "no basic auth credentials" in refused or "unauthorized" in refused, "nobody writes without a password"
        )
        tare("login", "-u", "demo", "--password-stdin", f"localhost:{self.registry_port}", stdin=self.password)
        tare("push", self.image, quiet=True)
        tare("logout", f"localhost:{self.registry_port}", quiet=True)
        tare("rmi", self.image, "debian:bookworm", quiet=True)
        started = time.perf_counter()
        tare("pull", self.image)
        note(f"pulled, verified and ready to run in {time.perf_counter() - started:.2f} s")
        tare("images")

    def what_it_sees(self) -> None:
        say("2. What a container sees")
        script = (
            "echo pid $$; echo host name $(hostname); . /etc/os-release; echo $PRETTY_NAME; "
            "echo links $(ls /sys/class/net | tr '\\n' ' '); echo processes $(ls -d /proc/[0-9]* | wc -l);"
            "touch /only-here; ls -d /only-here"
        )
        output = tare("run", "--rm", "--hostname", "scale", self.image, "sh", "-c", script)
        check("pid 1" in output and "host name scale" in output, "its own process 1 and host name")
        check("links eth0 lo" in output, "its own network")
        check(not Path("/only-here").exists(), "its own files: what it wrote is not on the host")

    def what_it_may_use(self) -> None:
        say("3. What a container may use")
        hog = "tail -c 500m /dev/zero | tail -c 400m >/dev/null; echo survived"
        tare("run", "--name", "hog", "-m", LIMIT, "--memory-swap", LIMIT, self.image, "sh", "-c", f"exec sh -c '{hog}'", expect=None)
        state = tare("inspect", "--format", "{{.State.OOMKilled}} {{.HostConfig.Memory}}", "hog")
        check(state.startswith("true"), f"a process that wants 400 MB is stopped at {LIMIT}")
        tare("rm", "hog")
        spin = "i=0; end=$(($(date +%s)+2)); while [ $(date +%s) -lt $end ]; do i=$((i+1)); done; cat /proc/self/cgroup >/dev/null; times"
        started = time.perf_counter()
        output = tare("run", "--rm", "--cpus", "0.25", self.image, "bash", "-c", spin)
        share = sum(_seconds(word) for word in output.split() if word.endswith("s") and "m" in word) / (time.perf_counter() - started)
        check(share < 0.40, f"with --cpus 0.25 a busy loop gets {share:.0%} of a processor")

    def web_server(self) -> None:
        say("4. A service on a published port")
        serve = (
            "use IO::Socket::INET; $|=1; my $s=IO::Socket::INET->new(LocalPort=>80,Listen=>5,ReuseAddr=>1) or die $!;"
            "print qq(listening\\n); while(my $c=$s->accept){ my $l=<$c>;"
            " print $l; print $c qq(HTTP/1.0 200 OK\\r\\n\\r\\nhello from a container\\n); close $c }"
        )
        tare("run", "-d", "--name", "web", "-p", f"{self.web_port}:80", self.image, "perl", "-e", serve)
        answer = _get(f"http://127.0.0.1:{self.web_port}/greeting")
        print(f"  {_dim}$ curl http://127.0.0.1:{self.web_port}/greeting{_plain}\n    {answer}")
        check(answer == "hello from a container", "the container answers on the host's port")
        tare("ps")
        check("GET /greeting" in tare("logs", "web"), "its output is in the log")
        tare("exec", "web", "sh", "-c", "echo also here as pid $$; cat /etc/hostname")
        tare("stop", "-t", "1", "web")
        tare("rm", "web")
        check(tare("ps", "-aq") == "", "nothing runs, nothing is left in the list")

    def cost(self) -> None:
        say("5. What it costs")
        times = []
        for _ in range(10):
            started = time.perf_counter()
            subprocess.run([BIN / "tare", "-H", f"unix://{SOCKET}", "run", "--rm", self.image, "true"], check=True)
            times.append(time.perf_counter() - started)
        note(f"tare run --rm … true: {sorted(times)[5] * 1000:.0f} ms from the prompt and back (median of 10)")

    def run(self) -> None:
        started = time.perf_counter()
        self.start_daemon()
        tare("version", "--format", "client {{.Client.Version}}, server {{.Server.Version}}, API {{.Server.APIVersion}}")
        self.image_through_registry()
        self.what_it_sees()
        self.what_it_may_use()
        self.web_server()
        self.cost()
        say(f"Done in {time.perf_counter() - started:.0f} s.")

    def clean(self) -> None:
        """Stop and remove whatever this demo made; raise ``DemoError`` for what would not go."""
        if SOCKET.exists() and self.daemon is not None and self.daemon.poll() is None:
            listed = subprocess.run(
                [BIN / "tare", "-H", f"unix://{SOCKET}", "ps", "-aq"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            if listed.stdout.split():
                subprocess.run(
                    [BIN / "tare", "-H", f"unix://{SOCKET}", "rm", "-f", *listed.stdout.split()], stdout=subprocess.DEVNULL, timeout=60
                )
        for process in (self.daemon, self.registry):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        left = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(HOME) in line.split()[4]]
        if left:
            raise DemoError(f"mounts left behind: {', '.join(left)}")
        shutil.rmtree(HOME, ignore_errors=False)


def _seconds(text: str) -> float:
    """``0m0.512s``, as the shell's ``times`` prints it."""
    minutes, _, seconds = text.rstrip("s").partition("m")
    return float(minutes) * 60 + float(seconds)


def _get(url: str) -> str:
    for attempt in range(50):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode().strip())
        except OSError:
            if attempt == 49:
                raise
            time.sleep(0.1)
    raise AssertionError("unreachable")


def main() -> int:
    if os.geteuid() != 0:
        print("the demo needs root: namespaces, mounts and a bridge are made for real", file=sys.stderr)
        return 1
    if HOME.exists():
        shutil.rmtree(HOME)
    HOME.mkdir(mode=0o700)
    demo = Demo()
    failure = 0
    try:
        demo.run()
    except (DemoError, subprocess.SubprocessError, OSError) as error:
        print(f"\n{_red}demo failed: {error}{_plain}", file=sys.stderr)
        failure = 1
        if (HOME / "tared.log").exists():
            print((HOME / "tared.log").read_text()[-3000:], file=sys.stderr)
    finally:
        try:
            demo.clean()
            print("Nothing is left behind: no process, no mount, no file.")
        except DemoError as error:
            print(f"{_red}{error}{_plain}", file=sys.stderr)
            failure = 1
    return failure


if __name__ == "__main__":
    sys.exit(main())
