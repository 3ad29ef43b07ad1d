"""A registry in this process: storage, rights, faces and books put together from ``Settings``.

    async with RegistryService(Settings(root="/srv/registry", listen=("127.0.0.1:0",))) as registry:
        print(registry.addresses)
        await registry.until_stopped()

It needs an event loop and nothing else; several may run in one process. ``tare registry serve`` is one of its users.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING

from tare.api.metrics import head
from tare.api.registry.access import Access, is_loopback
from tare.api.registry.exchange import AccessLog, AuditLog, Journal, Observer
from tare.api.registry.face import RegistryFace
from tare.api.registry.measures import Health, Measures, OperationsApi, sample
from tare.api.registry.schedule import Schedule
from tare.errors import InvalidArgument
from tare.http.server import Server
from tare.http.tls import server_context
from tare.registry.places import open_storage
from tare.registry.storage import Storage

if TYPE_CHECKING:
    from tare.api.registry.settings import Settings
    from tare.api.registry.token_service import TokenService
    from tare.api.registry.webhooks import Webhooks
    from tare.registry.upstream import PullThrough

log = logging.getLogger("tare.registry")

EVICT_SECONDS = 3600.0
"""Between two looks at the size and age of what caches hold."""


class RegistryService:
    """See the module's text. ``InvalidArgument`` or ``ListenError`` from ``start`` say what is wrong."""

    def __init__(self, settings: Settings, storage: Storage | None = None) -> None:
        """``storage``: one that is open already; it stays open at the end."""
        self.settings = settings
        self.addresses: list[str] = []
        """Where clients reach it, with real ports."""
        self.metrics_addresses: list[str] = []
        self._given = storage
        self._closing = contextlib.AsyncExitStack()
        self._stopped = asyncio.Event()
        self._journals: list[Journal] = []
        self._context: ssl.SSLContext | None = None
        self._webhooks: Webhooks | None = None

    async def __aenter__(self) -> RegistryService:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen. What was begun is undone when it fails."""
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise

    async def _start(self) -> None:
        settings = self.settings
        self.storage = storage = self._given or self._closing.enter_context(contextlib.closing(open_storage(settings.root)))
        self.through = self._pull_through(storage)
        self.access = Access(settings, self.through.resolve if self.through else str)
        self._check_exposure()
        self.measures = Measures()
        self.health = Health(storage)
        eviction = {"cache": (EVICT_SECONDS, self.through.evict)} if self.through and self.through.evicts else {}
        self.schedule = Schedule(storage, settings.schedule, settings.retention, settings.state_directory, eviction)
        self.face = RegistryFace(
            storage,
            self.access,
            deletion=not settings.access.no_delete,
            quotas={name: int(size) for name, size in settings.quota.items()},
            observers=tuple(self._observers()),
            tokens=self._token_service(),
            health=self.health,
            through=self.through,
            page=not settings.page.disabled,
        )
        self._closing.callback(self.face.close)
        self.measures.sources += [self._access_lines, self.schedule.lines]
        if self.through is not None:
            self.measures.sources.append(self._cache_lines)
        await self._listen()
        self._begin(self.schedule.run())
        if self._webhooks is not None:
            self._webhooks.address = self.addresses[0].partition("://")[2]
            self.measures.sources.append(self._webhooks.lines)
            self._begin(self._webhooks.run())

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        self._closing.push_async_callback(_end, asyncio.create_task(work, name="registry:work"))

    def _pull_through(self, storage: Storage) -> PullThrough | None:
        if not self.settings.cache:
            return None
        from tare.api.registry.caches import pull_through

        through = pull_through(self.settings, storage)
        self._closing.push_async_callback(through.close)
        return through

    def _check_exposure(self) -> None:
        """Nobody writes from afar without a name, unless the settings say so."""
        if not self.access.is_open or self.access.read_only or self.settings.access.anonymous_push:
            return
        for address in self.settings.listen:
            if not address.startswith(("unix://", "/")) and not is_loopback(address.removeprefix("tcp://")):
                raise InvalidArgument(
                    f"nobody would need a password to write at {address}: "
                    "give --htpasswd FILE, --read-only, or --anonymous-push if that is meant"
                )

    def _observers(self) -> Iterator[Observer]:
        yield self.measures
        given = self.settings.log
        if given.audit:
            yield AuditLog(self._journal(given.audit), pulls=given.audit_pulls)
        if given.access:
            yield AccessLog(self._journal(given.access))
        if self.settings.webhook:
            from tare.api.registry.webhooks import Webhooks

            self._webhooks = Webhooks(self.settings.webhook, self.storage, self.settings.state_directory)
            self._closing.push_async_callback(self._webhooks.close)
            yield self._webhooks

    def _journal(self, place: str) -> Journal:
        journal = Journal(place)
        self._closing.callback(journal.close)
        self._journals.append(journal)
        return journal

    def _token_service(self) -> TokenService | None:
        if self.access.own is None:
            return None
        from tare.api.registry.token_service import TokenService

        return TokenService(self.access, self.access.own)

    async def _listen(self) -> None:
        settings = self.settings
        if settings.tls.cert is not None:
            self._context = _context(settings)
        server = Server(self.face.handle)
        self._closing.push_async_callback(self._close_server, server)
        for address in settings.listen:
            place = address if "://" in address or address.startswith("/") else f"tcp://{address}"
            self.addresses += await server.listen(place, None, self._context)
        if settings.metrics.listen:
            operations = Server(OperationsApi(self.measures, self.health))
            self._closing.push_async_callback(operations.close, 1.0)
            for address in settings.metrics.listen:
                self.metrics_addresses += await operations.listen(address if "://" in address else f"tcp://{address}")

    async def _close_server(self, server: Server) -> None:
        await server.close(timeout=float(self.settings.shutdown_timeout))

    def _access_lines(self) -> Iterator[str]:
        passwords = self.access.passwords
        failures = passwords.failures if passwords else 0
        yield from sample("tare_registry_login_failures_total", "counter", "Wrong passwords", failures)

    def _cache_lines(self) -> Iterator[str]:
        assert self.through is not None
        name = "tare_registry_cache_requests_total"
        yield from head(name, "counter", "Requests for cached repositories, by what was done for them")
        for (kind, result), number in sorted(self.through.counts.items()):
            yield f'{name}{{object="{kind}",result="{result}"}} {number}'
        yield from sample("tare_registry_cache_downloads", "gauge", "Blobs being fetched", self.through.downloading)

    def reload(self) -> None:
        """Open the journals again, read certificates, passwords and keys again. What cannot be read stays as it was; it is logged."""
        steps: list[Callable[[], object]] = [journal.reopen for journal in self._journals]
        steps.append(self.access.reload)
        if self._context is not None:
            steps.append(lambda: _load_certificate(self._context, self.settings))
        for step in steps:
            try:
                step()
            except (InvalidArgument, OSError) as error:
                log.error("reload: %s", error)

    def stop(self) -> None:
        """Let ``until_stopped`` return."""
        self._stopped.set()

    async def until_stopped(self) -> None:
        """Wait for ``stop``."""
        await self._stopped.wait()

    async def close(self) -> None:
        """Stop listening; requests under way get ``shutdown-timeout`` to end."""
        self.health.ending = True
        await self._closing.aclose()


def _context(settings: Settings) -> ssl.SSLContext:
    assert settings.tls.cert is not None and settings.tls.key is not None
    try:
        return server_context(settings.tls.cert, settings.tls.key, settings.tls.client_ca)
    except (ssl.SSLError, OSError) as error:
        raise InvalidArgument(f"cannot use the certificate {settings.tls.cert} with the key {settings.tls.key}: {error}") from None


def _load_certificate(context: ssl.SSLContext | None, settings: Settings) -> None:
    """New connections get the new certificate."""
    if context is not None and settings.tls.cert is not None:
        _context(settings)  # a pair that does not fit must not replace one that does
        context.load_cert_chain(settings.tls.cert, settings.tls.key)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
