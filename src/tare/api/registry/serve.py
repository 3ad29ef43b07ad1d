"""The registry's process: ``python -m tare.api.registry.serve``; ``tare registry serve`` starts it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tare import daemon_log
from tare.api.registry import settings as registry_settings
from tare.api.registry.service import RegistryService
from tare.api.registry.settings import FLAGS, Settings
from tare.errors import TareError
from tare.http.listen import ListenError
from tare.linux.service_manager import notify
from tare.registry.places import open_storage
from tare.registry.upkeep import collect, scrub

SWITCHES = frozenset(("anonymous-pull", "anonymous-push", "read-only", "no-delete", "tokens", "no-page"))
LISTS = frozenset(("listen", "metrics-listen"))


def parser() -> argparse.ArgumentParser:
    """The command line of the process; the CLI passes its own options on."""
    found = argparse.ArgumentParser(prog="tare registry")
    verbs = found.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve")
    serve.add_argument("--check", action="store_true")
    serve.add_argument("--cache", action="append", default=[])
    for flag in FLAGS:
        if flag in SWITCHES:
            serve.add_argument(f"--{flag}", action="store_true", default=None)
        elif flag != "root":
            serve.add_argument(f"--{flag}", action="append" if flag in LISTS else "store", default=None)
    for each in (serve, verbs.add_parser("gc"), verbs.add_parser("scrub")):
        each.add_argument("--root")
        each.add_argument("--config", type=Path)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point. 0, or 1 with a message on standard error."""
    options = parser().parse_args(argv)
    try:
        settings = _settings(options)
        if options.verb == "serve":
            return _serve(settings, check=options.check)
        storage = open_storage(settings.root)
        try:
            return _maintain(options.verb, storage)
        finally:
            storage.close()
    except (TareError, ListenError) as error:
        print(f"tare registry: {error}", file=sys.stderr)
        return 1


def _settings(options: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {flag: getattr(options, flag.replace("-", "_"), None) for flag in FLAGS}
    flags = {flag: value for flag, value in given.items() if value is not None}
    caches = [registry_settings.cache_from_flag(text) for text in getattr(options, "cache", ())]
    return registry_settings.load(options.config, registry_settings.environment(), flags, caches)


def _maintain(verb: str, storage: Any) -> int:
    if verb == "gc":
        blobs, size = collect(storage)
        print(json.dumps({"blobs": blobs, "bytes": size}))
        return 0
    bad = [str(digest) for digest in scrub(storage)]
    print(json.dumps({"corrupt": bad}))
    return 1 if bad else 0


def _serve(settings: Settings, *, check: bool) -> int:
    daemon_log.start(settings.log.format, "warn" if settings.log.level == "warning" else settings.log.level)
    if check:
        print(registry_settings.shown(settings))
        return 0
    asyncio.run(serve(settings))
    return 0


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; transfers under way get a moment to end. SIGHUP reads files again."""
    service = RegistryService(settings)
    loop = asyncio.get_running_loop()
    async with service:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, service.stop)
        loop.add_signal_handler(signal.SIGHUP, service.reload)
        print(f"registry listens on {', '.join(service.addresses)}", flush=True)
        if service.metrics_addresses:
            print(f"metrics at {', '.join(service.metrics_addresses)}", flush=True)
        gc.collect()
        gc.freeze()  # what start-up made stays; the collector need not look at it again
        notify("READY=1")
        await service.until_stopped()
        notify("STOPPING=1")


if __name__ == "__main__":
    sys.exit(main())
