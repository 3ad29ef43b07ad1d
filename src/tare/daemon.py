"""``tared``: the daemon's process. Order of its life:

    options ──► directories, pid file ──► launcher (no thread exists yet) ──► event loop ──► engine ──► listeners ──► READY
    SIGTERM, SIGINT ──► listeners closed, requests finished (bounded) ──► engine closed ──► pid file removed ──► exit 0

Containers are not stopped: they go on under their keepers, and the next daemon over the same roots takes them over. SIGHUP reads the
options again. A third signal while stopping ends the process at once. Exit codes: 0 an orderly end, 1 could not start, 130 forced.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import json
import logging
import os
import resource
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tare import daemon_log, daemon_options
from tare.config import EngineConfig
from tare.daemon_options import Settings, UsageError
from tare.errors import Conflict, TareError
from tare.http.listen import ListenError
from tare.linux.service_manager import notify

if TYPE_CHECKING:
    from tare.containers.driver import RuntimeDriver

log = logging.getLogger("tare.daemon")

FORCE_AFTER = 3


def _export_proxies(config: EngineConfig) -> None:
    """Put the configured proxies where every HTTP client of the process looks, as dockerd does."""
    for name, value in (("HTTP_PROXY", config.http_proxy), ("HTTPS_PROXY", config.https_proxy), ("NO_PROXY", config.no_proxy)):
        if value is not None:
            os.environ[name] = os.environ[name.lower()] = value


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``tared``."""
    try:
        settings = daemon_options.load(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        return daemon_options.fail(str(error))
    if settings.action == "help":
        print(daemon_options.usage())
        return 0
    if settings.action == "version":
        from tare.api.docker.versions import engine_version

        print(f"Tare version {engine_version()}")
        return 0
    if settings.action == "validate":
        print("configuration OK")
        return 0
    return _run(settings)


def _run(settings: Settings) -> int:
    config = settings.config
    _export_proxies(config)
    daemon_log.start(config.log_format, _log_level(config))
    if os.geteuid() != 0:
        print("tared needs to be started with root privileges", file=sys.stderr)
        return 1
    os.umask(0o022)
    log.info("Starting up")
    pidfile: PidFile | None = None
    try:
        _make_roots(config)
        if config.pidfile is not None:
            pidfile = PidFile(config.pidfile)
        driver = _start_driver(config)
        _raise_file_limit()
        with asyncio.Runner() as runner:
            return runner.run(Daemon(settings, driver).run())
    except (TareError, ListenError, OSError, ssl.SSLError) as error:
        log.debug("start failed", exc_info=error)
        print(f"failed to start daemon: {error}", file=sys.stderr)
        return 1
    finally:
        if pidfile is not None:
            pidfile.remove()


def _log_level(config: EngineConfig) -> str:
    return "debug" if config.debug else config.log_level


def _make_roots(config: EngineConfig) -> None:
    """State directories: passable for others where containers need it, never readable; whatever the umask."""
    for path in (config.data_root, config.exec_root):
        made = not path.exists()
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        if made:
            path.chmod(0o711)
        elif path.stat().st_mode & 0o022:
            raise Conflict(f"{path} is writable for others than its owner: refuse to keep state there (chmod go-w {path})")
    for name in ("containers",):
        for root in (config.data_root, config.exec_root):
            (root / name).mkdir(mode=0o710, exist_ok=True)
            (root / name).chmod(0o711 if root == config.data_root else 0o700)


def _start_driver(config: EngineConfig) -> RuntimeDriver:
    from tare.containers.driver import RuntimeDriver

    driver = RuntimeDriver(config.exec_root, config.cgroup_parent)
    driver.start_launcher()
    return driver


def _raise_file_limit() -> None:
    """Every connection and container costs descriptors. After the launcher has started, so that containers do not inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class PidFile:
    """The daemon's pid on disk; refuses to start beside a live daemon, replaces what a dead one left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        owner = _read_pid(path)
        if owner is not None and owner != os.getpid() and _is_daemon(owner):
            raise Conflict(f"ensure tared is not running or delete {path}: process with PID {owner} is still running")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(str(os.getpid()))
        temporary.replace(path)

    def remove(self) -> None:
        if _read_pid(self._path) == os.getpid():
            with contextlib.suppress(OSError):
                self._path.unlink()


def _read_pid(path: Path) -> int | None:
    try:
        text = path.read_text(errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isascii() and text.isdecimal() else None


def _is_daemon(pid: int) -> bool:
    """The process lives and is one of ours: after a crash the number may belong to anybody."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"tare" in command


class Daemon:
    """Engine and listeners on the event loop."""

    def __init__(self, settings: Settings, driver: RuntimeDriver) -> None:
        self._settings = settings
        self._config = settings.config
        self._driver = driver
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        from tare.api.docker.app import DockerApi, default_headers
        from tare.api.docker.system import architecture
        from tare.api.docker.versions import engine_version
        from tare.api.metrics import Metrics, MetricsApi
        from tare.engine import Engine
        from tare.http.server import Server

        config = self._config
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._terminate, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_stacks)
        context = _tls_context(config)
        engine = self._engine = Engine(config, self._driver)
        await engine.start()
        metrics = Metrics(engine_version(), architecture())
        api = DockerApi(engine, metrics=metrics)
        server = Server(api, default_headers(experimental=await engine.containers.checkpoints.criu.works()))
        metrics_server = Server(MetricsApi(metrics, engine))
        try:
            await self._listen(server, context)
            if config.metrics_addr is not None:
                for address in await metrics_server.listen(f"tcp://{config.metrics_addr}"):
                    log.info("Metrics API listening on %s", address.removeprefix("tcp://"))
            log.info("Daemon has completed initialization: storage driver %s", engine.layers.name)
            gc.collect()
            gc.freeze()  # what start-up made stays; the collector need not look at it again
            notify("READY=1")
            await self._stop.wait()
            notify("STOPPING=1")
            log.info("Stopping; running containers go on")
        finally:
            await metrics_server.close(timeout=0.0)
            limit = self._config.shutdown_timeout
            await server.close(timeout=1e9 if limit < 0 else float(limit))
            await engine.close()
        log.info("Daemon shutdown complete")
        return 0

    async def _listen(self, server: object, context: ssl.SSLContext | None) -> None:
        from tare.http.server import Server

        assert isinstance(server, Server)
        for host in self._config.hosts:
            tcp = host.startswith("tcp://")
            for address in await server.listen(host, self._config.group, context if tcp else None):
                if tcp and not self._config.tlsverify:
                    log.warning("The API is open to everybody who can reach %s; access to it is root access. Use --tlsverify", address)
                log.info("API listen on %s", address.removeprefix("unix://"))

    def _terminate(self, number: int) -> None:
        self._signals += 1
        log.info("Processing signal '%s'", signal.Signals(number).name)
        if self._signals >= FORCE_AFTER:
            log.warning("Forcing shutdown without cleanup; %d interrupts received", self._signals)
            os._exit(130)
        self._stop.set()

    def _reload(self) -> None:
        """SIGHUP: options are read again; what cannot change while running is named and left."""
        from tare.api.docker.info import engine_id

        try:
            fresh = daemon_options.load(self._settings.arguments).config
        except UsageError as error:
            log.error("configuration not reloaded: %s", error)
            return
        config, pending = daemon_options.reloaded(self._config, fresh)
        try:
            self._engine.reconfigure(config)
        except TareError as error:
            log.error("configuration not reloaded: %s", error)
            return
        self._config = config
        daemon_log.set_level(_log_level(self._config))
        if pending:
            log.warning("changes of %s take effect at the next start", ", ".join(pending))
        log.info("Reloaded configuration")
        self._engine.events.publish("daemon", "reload", engine_id(config.data_root), _reload_attributes(config))

    def _dump_stacks(self) -> None:
        """SIGUSR1: what every task and thread is doing, into a file beside the sockets; for a daemon that seems to hang."""
        path = self._config.exec_root / f"stacks-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.log"
        unfinished = path.with_suffix(".part")
        with unfinished.open("w") as file:
            os.chmod(unfinished, 0o600)
            for task in asyncio.all_tasks():
                task.print_stack(file=file)
            file.flush()
            faulthandler.dump_traceback(file=file, all_threads=True)
        unfinished.replace(path)
        log.info("stacks of tasks and threads written to %s", path)


def _reload_attributes(config: EngineConfig) -> dict[str, str]:
    """What a reload event tells: the settings in force, lists in JSON as dockerd has them."""
    return {
        "name": os.uname().nodename,
        "debug": str(config.debug).lower(),
        "labels": json.dumps(list(config.labels)),
        "registry-mirrors": json.dumps(list(config.registry_mirrors)),
        "insecure-registries": json.dumps(list(config.insecure_registries)),
        "shutdown-timeout": str(config.shutdown_timeout),
    }


def _tls_context(config: EngineConfig) -> ssl.SSLContext | None:
    if not config.tls or config.tlscert is None or config.tlskey is None:
        return None
    from tare.http.tls import server_context

    for path in (config.tlscert, config.tlskey, config.tlscacert if config.tlsverify else None):
        if path is not None and not path.is_file():
            raise Conflict(f"could not load TLS file {path}: no such file")
    return server_context(config.tlscert, config.tlskey, config.tlscacert if config.tlsverify else None)


if __name__ == "__main__":
    sys.exit(main())
