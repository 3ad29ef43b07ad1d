"""The pull-through cache that the settings ask for."""

from __future__ import annotations

from pathlib import Path

from tare.api.registry import manifests
from tare.api.registry.settings import Cache, Settings
from tare.distribution.auth import Credentials
from tare.errors import InvalidArgument
from tare.registry.storage import Storage
from tare.registry.upstream import PullThrough, Source


def pull_through(settings: Settings, storage: Storage) -> PullThrough:
    """``InvalidArgument`` for a password that cannot be read."""
    sources = [_source(cache) for cache in settings.cache]
    state = settings.state_directory
    spool: Path | None = None
    if not storage.local and state is not None:
        spool = state / "spool"
        spool.mkdir(0o700, parents=True, exist_ok=True)
    return PullThrough(storage, sources, settings.mirror, manifests.check, spool)


def _source(cache: Cache) -> Source:
    password = cache.password
    if cache.password_file is not None:
        try:
            password = cache.password_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"cannot read {cache.password_file}: {getattr(error, 'strerror', error)}") from None
    return Source(
        cache.prefix,
        (cache.upstream or cache.prefix).rstrip("/"),
        Credentials(cache.username, password) if cache.username else Credentials(),
        cache.insecure,
        cache.certificates,
        cache.ttl,
        cache.timeout,
        cache.keep,
        cache.size,
        cache.downloads,
    )
