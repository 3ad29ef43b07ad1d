"""The registry's process: ``python -m tare.api.registry.serve``; ``tare registry serve`` starts it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from tare.api.registry.access import Access
from tare.api.registry.face import RegistryFace
from tare.errors import InvalidArgument, TareError
from tare.http.listen import ListenError
from tare.http.server import Server
from tare.http.tls import server_context
from tare.registry.places import open_storage
from tare.registry.storage import Storage
from tare.registry.upkeep import collect, scrub

COLLECT_SECONDS = 6 * 3600.0
_LOOPBACK = ("127.", "localhost", "[::1]")


def parser() -> argparse.ArgumentParser:
    """The command line of the process; the CLI passes its own options on."""
    found = argparse.ArgumentParser(prog="tare registry")
    verbs = found.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve")
    serve.add_argument("--listen", action="append", default=[])
    serve.add_argument("--tls-cert", type=Path)
    serve.add_argument("--tls-key", type=Path)
    serve.add_argument("--htpasswd", type=Path)
    serve.add_argument("--anonymous-pull", action="store_true")
    serve.add_argument("--anonymous-push", action="store_true")
    serve.add_argument("--read-only", action="store_true")
    serve.add_argument("--no-delete", action="store_true")
    serve.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    for each in (serve, verbs.add_parser("gc"), verbs.add_parser("scrub")):
        each.add_argument("--root", required=True)
    return found


def main(argv: list[str] | None = None) -> int:
    """Entry point. 0, or 1 with a message on standard error."""
    options = parser().parse_args(argv)
    try:
        storage = open_storage(options.root)
    except InvalidArgument as error:
        return _fail(str(error))
    try:
        if options.verb == "gc":
            blobs, size = collect(storage)
            print(json.dumps({"blobs": blobs, "bytes": size}))
        elif options.verb == "scrub":
            bad = [str(digest) for digest in scrub(storage)]
            print(json.dumps({"corrupt": bad}))
            return 1 if bad else 0
        else:
            asyncio.run(serve(storage, options))
    except (TareError, ListenError) as error:
        return _fail(str(error))
    finally:
        storage.close()
    return 0


def _fail(message: str) -> int:
    print(f"tare registry: {message}", file=sys.stderr)
    return 1


async def serve(storage: Storage, options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; transfers under way get a moment to end."""
    logging.basicConfig(
        level=options.log_level.upper(), format='time="%(asctime)s" level=%(levelname)s msg="%(message)s"', stream=sys.stderr
    )
    addresses = options.listen or ["tcp://127.0.0.1:5000"]
    open_push = options.htpasswd is None and not options.read_only
    for address in addresses:
        host = address.removeprefix("tcp://")
        if open_push and not options.anonymous_push and not host.startswith(_LOOPBACK) and not address.startswith("unix://"):
            raise InvalidArgument(
                f"nobody would need a password to write at {address}: "
                "give --htpasswd FILE, --read-only, or --anonymous-push if that is meant"
            )
    access = Access(
        options.htpasswd,
        anonymous_pull=options.anonymous_pull,
        anonymous_push=options.anonymous_push or options.htpasswd is None,
        read_only=options.read_only,
    )
    context = server_context(options.tls_cert, options.tls_key) if options.tls_cert else None
    face = RegistryFace(storage, access, deletion=not options.no_delete)
    server = Server(face.handle)
    shown = []
    for address in addresses:
        shown += await server.listen(address if "://" in address else f"tcp://{address}", None, context)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(f"registry listens on {', '.join(shown)}", flush=True)
    upkeep = asyncio.create_task(_collect_now_and_then(storage))
    await stopped.wait()
    upkeep.cancel()
    await server.close(timeout=15)
    face.close()


async def _collect_now_and_then(storage: Storage) -> None:
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        await asyncio.to_thread(collect, storage)


if __name__ == "__main__":
    sys.exit(main())
