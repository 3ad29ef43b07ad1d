"""The ``tare`` command in a terminal, with signals, with remote hosts and in shells."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest

from conftest import new_daemon
from engine_world import BIN, Daemon

pytestmark = [pytest.mark.root]
TARE = str(BIN / "tare")


class Terminal:
    """A program on a pseudo terminal of 30 rows and 100 columns."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        ioctl(self.fd, TIOCSWINSZ, pack("HHHH", 30, 100, 0, 0))
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, text: str, seconds: float = 20) -> None:
        """Read until ``text`` appears."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{text!r} did not appear in {self.seen!r}"
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:
                break
        assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def wait(self) -> int:
        try:
            while os.read(self.fd, 65536):
                pass
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_shell_in_a_terminal(engine: Daemon) -> None:
    terminal = Terminal(TARE, "-H", engine.host, "run", "-it", "--rm", "--name", "shell", "busybox", "sh")
    terminal.expect("# ")
    terminal.type("echo $((6*7)); tty; stty size\r")
    terminal.expect("42")
    terminal.expect("/dev/pts/0")
    terminal.expect("30 100")
    ioctl(terminal.fd, TIOCSWINSZ, pack("HHHH", 41, 117, 0, 0))
    os.kill(terminal.pid, signal.SIGWINCH)
    terminal.type("until stty size | grep '41 117'; do :; done; exit 3\r")
    terminal.expect("41 117")
    assert terminal.wait() == 3


def test_detached_by_keys_and_attached_again(engine: Daemon) -> None:
    terminal = Terminal(TARE, "-H", engine.host, "run", "-it", "--name", "keys", "--detach-keys", "ctrl-x,y", "busybox", "sh")
    terminal.expect("# ")
    terminal.type("\x18y")
    assert terminal.wait() == 0
    assert engine.tare("ps", "--filter", "name=keys", "--format", "{{.State}}").stdout == "running\n"
    terminal = Terminal(TARE, "-H", engine.host, "attach", "keys")
    terminal.type("echo $((40+2))\r")
    terminal.expect("42")
    terminal.type("\x10\x11")
    assert terminal.wait() == 0
    terminal = Terminal(TARE, "-H", engine.host, "attach", "--detach-keys", "q", "--sig-proxy=false", "keys")
    terminal.type("\recho $((30+3))\r")
    terminal.expect("33")
    terminal.type("q")
    assert terminal.wait() == 0
    terminal = Terminal(TARE, "-H", engine.host, "exec", "-it", "keys", "sh", "-c", "read x; echo got $x; exit 4")
    terminal.type("it\r")
    terminal.expect("got it")
    assert terminal.wait() == 4


@pytest.mark.parametrize(("verb", "number"), [("run", signal.SIGTERM), ("run", signal.SIGINT), ("attach", signal.SIGUSR1)])
def test_signals_are_the_containers(engine: Daemon, verb: str, number: signal.Signals) -> None:
    script = f"trap 'exit {number.value}' TERM INT USR1; echo ready; while :; do sleep 0.02; done"
    command = [TARE, "-H", engine.host, "run", "--name", "trapper", "busybox", "sh", "-c", script]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "ready\n"
        process = first
        if verb == "attach":
            process = subprocess.Popen([TARE, "-H", engine.host, "attach", "--no-stdin", "trapper"], stdout=subprocess.PIPE)
            _until(lambda: b"SIGUSR1" in _caught(process.pid))
        process.send_signal(number)
        assert process.wait(20) == number.value
    finally:
        first.wait(20)
        first.stdout.close()
        if process.stdout:
            process.stdout.close()


def _caught(pid: int) -> bytes:
    """Whether a process handles SIGUSR1 by now, in words."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return b"SIGUSR1" if int(line.split()[1], 16) & (1 << (signal.SIGUSR1 - 1)) else b""
    return b""


def _until(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def test_without_sig_proxy_only_the_client_goes(engine: Daemon) -> None:
    client = subprocess.Popen(
        [TARE, "-H", engine.host, "run", "--sig-proxy=false", "--name", "stays", "busybox", "sh", "-c", "echo ready; sleep 60"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    client.send_signal(signal.SIGTERM)
    assert client.wait(20) != 0
    client.stdout.close()
    assert engine.tare("inspect", "-f", "{{.State.Running}}", "stays").stdout == "true\n"


# Remote hosts


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a client's certificate, named as docker names them."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-days", "2", "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=test authority")
    (directory / "names").write_text("subjectAltName=DNS:localhost\n")
    for name, cert, private in (("server", "server.pem", "server-key.pem"), ("client", "cert.pem", "key.pem")):
        openssl("req", *key, "-keyout", private, "-out", "request.pem", "-subj", f"/CN={name}")
        authority = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial")
        openssl("x509", "-req", "-in", "request.pem", *authority, "-days", "2", "-extfile", "names", "-out", cert)
    return directory


@pytest.fixture(scope="module")
def secured(certificates: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon that verifies its clients, and its address."""
    port = _free_port()
    files = ("--tlscacert", "ca.pem", "--tlscert", "server.pem", "--tlskey", "server-key.pem")
    flags = [str(certificates / word) if word.endswith(".pem") else word for word in files]
    daemon = new_daemon("-H", f"tcp://127.0.0.1:{port}", "--tlsverify", *flags)
    try:
        daemon.start()
        daemon.load_busybox()
        yield daemon, f"tcp://localhost:{port}"
    finally:
        daemon.stop()


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def tare(*arguments: str, home: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """``tare`` without anything of the tester's environment that names a daemon."""
    extra = options.pop("env", {})
    assert isinstance(extra, dict)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), **extra}
    settings: dict[str, object] = {"capture_output": True, "text": True, "timeout": 60, "env": environment, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run([TARE, *arguments], **settings)  # type: ignore[call-overload]
    return done


def test_mutual_tls(secured: tuple[Daemon, str], certificates: Path, tmp_path: Path) -> None:
    _, host = secured
    files = (
        "--tlscacert",
        str(certificates / "ca.pem"),
        "--tlscert",
        str(certificates / "cert.pem"),
        "--tlskey",
        str(certificates / "key.pem"),
    )
    flags = ("-H", host, "--tlsverify", *files)
    # Output on both streams, an exit code, and the end of input passed on while output still flows.
    done = tare(*flags, "run", "-i", "--rm", "busybox", "sh", "-c", "cat; echo err >&2; exit 9", home=tmp_path, input="x" * 3_000_000)
    assert (done.returncode, done.stdout, done.stderr) == (9, "x" * 3_000_000, "err\n")
    done = tare("ps", home=tmp_path, env={"DOCKER_HOST": host, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)})
    assert done.returncode == 0 and done.stdout.startswith("CONTAINER ID")


def test_what_tls_refuses(secured: tuple[Daemon, str], certificates: Path, tmp_path: Path) -> None:
    _, host = secured
    ca = ("--tlscacert", str(certificates / "ca.pem"))
    mine = ("--tlscert", str(certificates / "cert.pem"), "--tlskey", str(certificates / "key.pem"))

    def refusal(*flags: str, where: str = host) -> str:
        done = tare("-H", where, *flags, "ps", home=tmp_path)
        assert done.returncode == 1 and not done.stdout
        return done.stderr

    assert "Client sent an HTTP request to an HTTPS server" in refusal()
    assert "certificate required" in refusal("--tlsverify", *ca)
    assert "certificate required" in refusal("--tls")
    assert "ca.pem: no such file or directory" in refusal("--tlsverify")
    stranger = ("--tlscacert", str(certificates / "cert.pem"))
    assert "(tls: " in refusal("--tlsverify", *stranger, *mine)
    assert "127.0.0.1" in refusal("--tlsverify", *ca, *mine, where=host.replace("localhost", "127.0.0.1"))


def test_a_context_with_certificates(secured: tuple[Daemon, str], certificates: Path, tmp_path: Path) -> None:
    _, host = secured
    files = ",".join(f"{name}={certificates / file}" for name, file in (("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")))
    assert tare("context", "create", "far", "--description", "away", "--docker", f"host={host},{files}", home=tmp_path).stdout == "far\n"
    assert tare("-c", "far", "version", "-f", "{{.Server.Os}}", home=tmp_path).stdout == "linux\n"
    assert tare("context", "use", "far", home=tmp_path).returncode == 0
    assert tare("run", "--rm", "busybox", "echo", "there", home=tmp_path).stdout == "there\n"
    assert "far *" in tare("context", "ls", home=tmp_path).stdout
    # Docker's own command sees the same context.
    listed = subprocess.run(["docker", "context", "ls", "-q"], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, capture_output=True)
    assert listed.stdout == b"default\nfar\n"
    key = next((tmp_path / ".docker/contexts/tls").rglob("key.pem"))
    assert key.stat().st_mode & 0o777 == 0o600
    # Away and back through an archive.
    archive = tare("context", "export", "far", "-", home=tmp_path, text=False).stdout
    assert tare("context", "rm", "-f", "far", home=tmp_path).returncode == 0
    assert not list((tmp_path / ".docker/contexts").rglob("*.pem"))
    assert tare("context", "import", "back", "-", home=tmp_path, input=archive, text=False).returncode == 0
    assert tare("--context", "back", "ps", "-q", home=tmp_path).returncode == 0
    shown = json.loads(tare("context", "inspect", "back", home=tmp_path).stdout)
    assert shown[0]["TLSMaterial"] == {"docker": ["ca.pem", "cert.pem", "key.pem"]} and shown[0]["Metadata"] == {"Description": "away"}


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """A program in place of ssh that runs the command here, and writes down what it was told."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/told\nwhile [ "$1" != "--" ]; do shift; done; shift\n'
        '[ "$1" = nowhere ] && { echo "ssh: cannot resolve nowhere" >&2; exit 255; }\nshift; exec sh -c "$*"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("there", ["tare", "docker"])
def test_over_ssh(engine: Daemon, ssh: Path, tmp_path: Path, there: str) -> None:
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    path = {"PATH": f"{ssh.parent}:{BIN}:{usual}" if there == "tare" else f"{ssh.parent}:{usual}"}
    host = f"ssh://me@machine:2222{engine.socket}"
    done = tare("-H", host, "run", "-i", "--rm", "busybox", "sh", "-c", "cat; exit 3", home=tmp_path, input="over\n", env=path)
    assert (done.returncode, done.stdout, done.stderr) == (3, "over\n", "")
    assert "-T -l me -p 2222 -- machine sh -c" in (tmp_path / "told").read_text()
    failed = tare("-H", "ssh://nowhere", "ps", home=tmp_path, env=path)
    assert failed.returncode == 1 and "nowhere ...] has exited with exit status 255" in failed.stderr
    for bad in ("ssh://-oProxyCommand=x", "ssh://a:secret@b", "ssh://"):
        refused = tare("-H", bad, "ps", home=tmp_path, env=path)
        assert refused.returncode == 1 and "Failed to initialize" in refused.stderr and "secret" not in refused.stderr


def test_a_platform_is_pushed_only_when_it_is_the_images(engine: Daemon) -> None:
    engine.tare("tag", "busybox", "localhost:1/only")
    done = engine.tare("push", "--platform", "linux/s390x", "--disable-content-trust", "localhost:1/only", check=False)
    engine.tare("rmi", "localhost:1/only")
    assert done.returncode == 1 and "does not match the specified platform: wanted linux/s390x" in done.stderr


def test_headers_and_formats_of_the_configuration(engine: Daemon, tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(
        json.dumps({"psFormat": "{{.Names}}!", "HttpHeaders": {"X-Mine": "1", "Host": "evil"}})
    )
    engine.tare("run", "-d", "--name", "shown", "busybox", "sleep", "60")
    assert tare("-H", engine.host, "ps", home=tmp_path).stdout == "shown!\n"
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text('{"psFormat": "{{.ID}}?"}')
    assert tare("--config", str(elsewhere), "-H", engine.host, "ps", home=tmp_path).stdout.endswith("?\n")


def test_proxies_of_the_configuration(engine: Daemon, tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    known = {"default": {"httpProxy": "http://everywhere:1", "noProxy": "a,b"}, engine.host: {"httpsProxy": "http://here:2"}}
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"proxies": known}))
    shown = tare("-H", engine.host, "run", "--rm", "-e", "HTTPS_PROXY=mine", "busybox", "env", home=tmp_path).stdout.splitlines()
    assert {"HTTPS_PROXY=mine", "https_proxy=http://here:2"} <= set(shown) and not [line for line in shown if "everywhere" in line]
    shown = tare("-H", str(engine.socket), "run", "--rm", "busybox", "env", home=tmp_path).stdout.splitlines()
    assert {"https_proxy=http://here:2"} <= set(shown)
    known.pop(engine.host)
    (tmp_path / ".docker" / "config.json").write_text(json.dumps({"proxies": known}))
    shown = tare("-H", engine.host, "run", "--rm", "busybox", "env", home=tmp_path).stdout.splitlines()
    assert {"HTTP_PROXY=http://everywhere:1", "no_proxy=a,b"} <= set(shown)


def test_default_platform_and_pinned_version(engine: Daemon, tmp_path: Path) -> None:
    done = tare(
        "-H",
        engine.host,
        "run",
        "--rm",
        "--pull",
        "never",
        "busybox",
        "true",
        home=tmp_path,
        env={"DOCKER_DEFAULT_PLATFORM": "linux/s390x"},
    )
    assert done.returncode == 125 and "wanted linux/s390x" in done.stderr
    pinned = tare("-H", engine.host, "version", "-f", "{{.Client.ApiVersion}}", home=tmp_path, env={"DOCKER_API_VERSION": "1.40"})
    assert pinned.stdout == "1.40\n"
    bad = tare("-H", engine.host, "ps", home=tmp_path, env={"DOCKER_API_VERSION": "1.4/../x"})
    assert bad.returncode == 1 and "invalid DOCKER_API_VERSION" in bad.stderr


def test_help_before_and_after_the_verb(tmp_path: Path) -> None:
    pages = {
        tare(*words, home=tmp_path).stdout for words in (("ps", "--help"), ("--help", "ps"), ("help", "ps"), ("container", "ls", "-h"))
    }
    assert len(pages) == 1 and "tare ps --filter status=exited" in pages.pop()
    done = tare("--log-level", "bad", "ps", home=tmp_path)
    assert (done.returncode, done.stderr) == (1, "Unable to parse logging level: bad\n")


# Shells

BASH_DRIVER = r"""
set -f
source <("$TARE" completion bash)
PATH="$(dirname "$TARE"):$PATH"
compopt() { :; }
COMP_LINE=$LINE COMP_POINT=${#LINE} COMP_TYPE=9 COMP_WORDS=($LINE)
[[ $LINE == *' ' ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_tare
printf '%s\n' "${COMPREPLY[@]}"
"""


def bash_completes(line: str, host: str, home: Path) -> list[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "TARE": TARE, "LINE": line, "TARE_HOST": host}
    done = subprocess.run(["bash", "-c", BASH_DRIVER], env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_completion_in_bash(engine: Daemon, tmp_path: Path) -> None:
    engine.tare("run", "-d", "--name", "webserver", "busybox", "sleep", "60")
    engine.tare("create", "--name", "stopped", "busybox", "true")

    def complete(line: str) -> list[str]:
        return bash_completes(line, engine.host, tmp_path)

    assert complete("tare sto") == ["stop"]
    assert {"ls", "rm", "prune"} <= set(complete("tare container "))
    assert complete("tare run --memory-sw") == ["--memory-swap", "--memory-swappiness"]
    assert complete("tare stop we") == ["webserver"] and complete("tare stop st") == []
    assert complete("tare rm st") == ["stopped"]
    assert complete("tare rm stopped st") == []
    assert complete("tare exec -it we") == ["webserver"]
    assert complete("tare run --rm busy") == ["busybox"]
    assert complete("tare run --net no") == ["none"]
    assert complete("tare run --network=no") == ["--network=none"]
    assert complete("tare run busybox --hel") == []
    assert complete("tare cp webs") == ["webserver:"]
    assert complete("tare -H unix:///x --cont") == ["--context"]
    assert sorted(complete("tare completion ")) == ["bash", "fish", "zsh"]


def test_completion_says_nothing_when_no_daemon_answers(tmp_path: Path) -> None:
    done = tare("__complete", "stop", "", home=tmp_path, env={"TARE_HOST": f"unix://{tmp_path}/none"})
    assert (done.returncode, done.stdout, done.stderr) == (0, ":nothing\n", "")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_script_is_read_by(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = tare("completion", shell, home=tmp_path).stdout
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb"}
    if shell == "zsh":
        (tmp_path / "_tare").write_text(script)
        text = f"fpath=({tmp_path} $fpath); autoload -Uz compinit; compinit -u; "
        text += f"source {tmp_path}/_tare; whence -w _tare; print ${{_comps[tare]}}"
        done = subprocess.run(["zsh", "-f", "-c", text], env=environment, capture_output=True, text=True, timeout=30)
        assert done.stdout == "_tare: function\n_tare\n" and not done.stderr
    else:
        text = f"{script}\ncomplete -C 'tare container ren'"
        done = subprocess.run(["fish", "--no-config", "-c", text], env=environment, capture_output=True, text=True, timeout=30)
        assert done.stdout == "rename\tRename a container\n", done.stderr
