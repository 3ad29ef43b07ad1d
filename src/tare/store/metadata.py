"""The engine's records in SQLite: what exists, never how it runs.

One table per kind of record, all of one shape. The document is opaque here (the service that owns the kind encodes it), what must be unique
or looked up is a column:

    containers, networks, volumes, images, tags, endpoints, leases, builds
    ┌────────────────┬──────────────────────┬─────────────────────┬────────────────┐
    │ id  TEXT  PK   │ name  TEXT UNIQUE ?  │ owner  TEXT index ? │ document  BLOB │
    └────────────────┴──────────────────────┴─────────────────────┴────────────────┘
      endpoints: id = endpoint id, owner = network id        leases: id = "NETWORK/ADDRESS", owner = network id
      tags: id = full reference, owner = image id            images: id = config digest
    settings
    ┌────────────────┬────────────────┐
    │ key  TEXT  PK  │ value  BLOB    │
    └────────────────┴────────────────┘
    user_version = number of MIGRATIONS applied; a database from a newer engine is refused.

Durability. WAL with ``synchronous=NORMAL``: a commit is a write without fsync (tens of microseconds), so a put is cheap enough for an event
loop. A killed process loses nothing, because the page cache holds the log; a power cut may lose the last moments, never the order or the
file's integrity. Checkpoints (the only fsyncs) run in a thread of their own, so that no put ever waits for the disk.

Threads. One connection under one lock, usable from any thread. ``transaction`` holds that lock: keep it short, and never await inside it
(another coroutine of the same thread would write into it).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tare.errors import Conflict, Corrupt, ResourceExhausted, TareError, Unsupported
from tare.store.durability import make_directory

KINDS = ("containers", "networks", "volumes", "images", "tags", "endpoints", "leases", "builds")


def _create_records(kinds: tuple[str, ...]) -> str:
    return "".join(
        f"CREATE TABLE {kind} (id TEXT PRIMARY KEY, name TEXT UNIQUE, owner TEXT, document BLOB NOT NULL);"
        f"CREATE INDEX {kind}_owner ON {kind} (owner) WHERE owner IS NOT NULL;"
        for kind in kinds
    )


MIGRATIONS: tuple[str, ...] = (_create_records(KINDS) + "CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",)
"""Scripts by version: script N brings a database from version N to N+1. Never edit one that was released; append."""

_CHECKPOINT_AFTER = 512


class Records:
    """The records of one kind."""

    def __init__(self, metadata: Metadata, kind: str) -> None:
        self._metadata = metadata
        self._kind = kind
        self._put = (
            f"INSERT INTO {kind} (id, name, owner, document) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, owner = excluded.owner, document = excluded.document"
        )

    def put(self, id: str, name: str | None, document: bytes, owner: str | None = None) -> None:
        """Insert or replace. ``Conflict`` when another record of this kind has the name."""
        try:
            self._metadata.write(self._put, (id, name, owner, document))
        except sqlite3.IntegrityError:
            holder = self.by_name(name) if name is not None else None
            raise Conflict(f"the name {name!r} is in use by {self._kind[:-1]} {holder[0] if holder else 'another record'}") from None

    def get(self, id: str) -> bytes | None:
        row = self._metadata.row(f"SELECT document FROM {self._kind} WHERE id = ?", (id,))
        return None if row is None else row[0]

    def by_name(self, name: str) -> tuple[str, bytes] | None:
        row = self._metadata.row(f"SELECT id, document FROM {self._kind} WHERE name = ?", (name,))
        return None if row is None else (row[0], row[1])

    def by_prefix(self, prefix: str, limit: int = 2) -> list[str]:
        """Up to ``limit`` ids that begin with ``prefix``: two tell "ambiguous" from "found"."""
        rows = self._metadata.rows(f"SELECT id FROM {self._kind} WHERE id >= ? AND id < ? LIMIT ?", (prefix, prefix + "\U0010ffff", limit))
        return [row[0] for row in rows]

    def owned(self, owner: str) -> list[tuple[str, bytes]]:
        """Ids and documents of the records that belong to ``owner``."""
        rows = self._metadata.rows(f"SELECT id, document FROM {self._kind} WHERE owner = ? ORDER BY id", (owner,))
        return [(row[0], row[1]) for row in rows]

    def delete(self, id: str) -> bool:
        """Delete; whether there was one."""
        return self._metadata.write(f"DELETE FROM {self._kind} WHERE id = ?", (id,)) > 0

    def all(self) -> list[tuple[str, str | None, bytes]]:
        """Every record: id, name, document, in the order of their ids."""
        rows = self._metadata.rows(f"SELECT id, name, document FROM {self._kind} ORDER BY id", ())
        return [(row[0], row[1], row[2]) for row in rows]

    def count(self) -> int:
        row = self._metadata.row(f"SELECT count(*) FROM {self._kind}", ())
        return 0 if row is None else int(row[0])


class Settings:
    """Single values by key."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def get(self, key: str) -> bytes | None:
        row = self._metadata.row("SELECT value FROM settings WHERE key = ?", (key,))
        return None if row is None else row[0]

    def set(self, key: str, value: bytes) -> None:
        self._metadata.write("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))

    def delete(self, key: str) -> None:
        self._metadata.write("DELETE FROM settings WHERE key = ?", (key,))


class Metadata:
    """The open database. ``containers``, ``networks`` and so on are its ``Records``; ``settings`` holds single values."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._depth = 0
        self._writes = 0
        self._checkpointing: threading.Thread | None = None
        make_directory(path.parent, 0o711)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10, cached_statements=256)
        self._connection = connection
        try:
            path.chmod(0o600)
            self._open()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise self._translate(error) from error
        except BaseException:
            connection.close()
            raise
        self.containers = Records(self, "containers")
        self.networks = Records(self, "networks")
        self.volumes = Records(self, "volumes")
        self.images = Records(self, "images")
        self.tags = Records(self, "tags")
        self.endpoints = Records(self, "endpoints")
        self.leases = Records(self, "leases")
        self.builds = Records(self, "builds")
        self.settings = Settings(self)

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA wal_autocheckpoint = 0")
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(problem)
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise Unsupported(
                f"metadata database {self.path} is of version {version}, this engine knows up to {len(MIGRATIONS)}: run the newer engine"
            )
        for number in range(version, len(MIGRATIONS)):
            self._connection.executescript(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;")

    def _translate(self, error: sqlite3.Error) -> TareError:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return ResourceExhausted(f"no space left on device while writing {self.path}: free some space under {self.path.parent}")
        if isinstance(error, sqlite3.OperationalError):
            return Conflict(f"metadata database {self.path} cannot be used ({error}): is another engine using {self.path.parent}?")
        return Corrupt(
            f"metadata database {self.path} is damaged ({error}): restore it from a backup, or move it and its -wal file away "
            "to start empty (the records of containers are lost then)"
        )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside happen together or not at all. Nests: an inner transaction is part of the outer one."""
        with self._lock:
            if self._depth == 0:
                self._execute("BEGIN IMMEDIATE", ())
            self._depth += 1
            try:
                yield
            except BaseException:
                self._depth -= 1
                if self._depth == 0 and self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            self._depth -= 1
            if self._depth == 0:
                try:
                    self._execute("COMMIT", ())
                except TareError:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise

    @property
    def stamp(self) -> int | None:
        """A number that is another one after any change; ``None`` inside a transaction, which may yet be undone."""
        with self._lock:
            return None if self._depth else self._connection.total_changes

    def _execute(self, statement: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._translate(error) from error

    def write(self, statement: str, values: tuple[object, ...]) -> int:
        """Run one writing statement; returns the number of rows changed."""
        with self._lock:
            try:
                changed = self._execute(statement, values).rowcount
            except ResourceExhausted:
                if self._depth:
                    raise
                # The log cannot grow. Once folded into the database it starts again at its beginning, where it has its space already.
                self.checkpoint()
                changed = self._execute(statement, values).rowcount
            self._writes += 1
            if self._writes >= _CHECKPOINT_AFTER and self._depth == 0:
                self._begin_checkpoint()
            return changed

    def row(self, statement: str, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        """The first row of a query."""
        with self._lock:
            row: tuple[Any, ...] | None = self._execute(statement, values).fetchone()
            return row

    def rows(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self._lock:
            return self._execute(statement, values).fetchall()

    def _begin_checkpoint(self) -> None:
        if self._checkpointing is not None and self._checkpointing.is_alive():
            return
        self._writes = 0
        self._checkpointing = threading.Thread(target=self.checkpoint, name="metadata-checkpoint", daemon=True)
        self._checkpointing.start()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database, on a connection of its own and without stopping writers."""
        try:
            connection = sqlite3.connect(self.path, isolation_level=None)
        except sqlite3.Error:
            return
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error:
            pass  # the log stays; the next checkpoint or opening takes it over
        finally:
            connection.close()

    def close(self) -> None:
        """Close; the log is folded into the database. Idempotent."""
        thread = self._checkpointing
        if thread is not None:
            thread.join()
        with self._lock:
            self._connection.close()
