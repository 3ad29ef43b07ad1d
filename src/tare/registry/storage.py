"""A registry's content on a file system.

    ROOT/blobs/ALG/HEX                      every blob once, whatever repositories have it; manifests are blobs, too
    ROOT/uploads/UUID/{data,repository}     an upload under way: its offset is the size of ``data``
    ROOT/repositories/NAME/_oci/            the repository as an OCI image layout, for other tools to read:
        oci-layout, index.json, blobs       blobs is a link to ROOT/blobs
    ROOT/repositories/NAME/_blobs/ALG/HEX       (empty) the repository has this blob
    ROOT/repositories/NAME/_manifests/ALG/HEX   {"mediaType", "size", "subject"}
    ROOT/repositories/NAME/_tags/TAG            the digest
    ROOT/repositories/NAME/_referrers/ALG/HEX/DIGEST    the referrer's descriptor

Invariants. A link (in _blobs, _manifests, _tags) is made after what it names is durable, and removed before; so whatever a kill
leaves is at worst a blob or an upload that nobody names, which ``collect`` removes. Names in the tree come from validated names, tags
and digests only; a repository's name cannot begin with an underscore, so that repositories nest. ``_linking`` is held while a blob
gets its first link and while blobs are collected. All methods block (files); callers run the long ones in threads.
One process writes to a root: it holds the lock on ROOT/.lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tare.oci.digest import Digest, Hasher
from tare.registry.errors import RegistryError
from tare.store.durability import make_directory, replace_file, sync_directory, write_all

UPLOAD_HOURS = 168.0
"""Uploads untouched for so long are given up."""


class Manifest(NamedTuple):
    """A stored manifest."""

    digest: Digest
    media_type: str
    size: int


def named_by(document: dict[str, Any]) -> list[str]:
    """Digests of the blobs and manifests that a manifest or index names."""
    parts = [document.get("config"), *(document.get("layers") or ()), *(document.get("blobs") or ()), *(document.get("manifests") or ())]
    return [str(part["digest"]) for part in parts if isinstance(part, dict) and "digest" in part]


class FileStorage:
    """See the module's text."""

    def __init__(self, root: Path) -> None:
        """Open (or make) the root. ``BlockingIOError`` when another process has it."""
        self.root = root
        for name in ("blobs", "uploads", "repositories"):
            make_directory(root / name, 0o755)
        self._lock = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise
        self._hashers: dict[tuple[str, str], tuple[int, Hasher]] = {}
        """By upload and algorithm: (bytes hashed so far, hasher). Only a help: after a restart the file is read again."""
        self._linking = threading.Lock()

    def close(self) -> None:
        os.close(self._lock)

    # Paths

    def _blob(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest.algorithm / digest.hex

    def _repository(self, name: str) -> Path:
        return self.root / "repositories" / name

    def _link(self, name: str, kind: str, digest: Digest) -> Path:
        return self._repository(name) / kind / digest.algorithm / digest.hex

    # Blobs

    def size(self, name: str, digest: Digest) -> int:
        """Size of a repository's blob. ``BLOB_UNKNOWN``."""
        if not self._link(name, "_blobs", digest).exists() and not self._link(name, "_manifests", digest).exists():
            raise RegistryError("BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest})
        try:
            return self._blob(digest).stat().st_size
        except FileNotFoundError:
            raise RegistryError("BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest}) from None

    def open(self, digest: Digest) -> BinaryIO:
        return self._blob(digest).open("rb")

    def link_blob(self, name: str, digest: Digest) -> None:
        """Make a stored blob a repository's own. ``BLOB_UNKNOWN`` when it is not stored."""
        with self._linking:
            if not self._blob(digest).exists():
                raise RegistryError("BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest})
            self._touch(self._link(name, "_blobs", digest))

    def delete_blob(self, name: str, digest: Digest) -> None:
        """Take a blob from a repository; its bytes go with the next collection. ``BLOB_UNKNOWN``."""
        try:
            self._link(name, "_blobs", digest).unlink()
        except FileNotFoundError:
            raise RegistryError("BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest}) from None

    def holders(self, digest: Digest) -> Iterator[str]:
        """Repositories that have a blob (for mounts without a source)."""
        for name in self.repositories():
            if self._link(name, "_blobs", digest).exists():
                yield name

    # Uploads

    def start_upload(self, name: str) -> str:
        """A new upload; returns its id."""
        identifier = str(uuid.uuid4())
        directory = self.root / "uploads" / identifier
        make_directory(directory, 0o700)
        (directory / "data").touch()
        replace_file(directory / "repository", name.encode(), durable=False)
        return identifier

    def _upload(self, name: str, identifier: str) -> Path:
        directory = self.root / "uploads" / identifier
        try:
            if str(uuid.UUID(identifier)) == identifier and (directory / "repository").read_text() == name:
                return directory / "data"
        except (ValueError, OSError):
            pass
        raise RegistryError("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry", {"upload": identifier})

    def offset(self, name: str, identifier: str) -> int:
        """How many bytes an upload has. ``BLOB_UPLOAD_UNKNOWN``."""
        return self._upload(name, identifier).stat().st_size

    def append(self, name: str, identifier: str, offset: int, data: bytes) -> int:
        """Write behind ``offset``; returns the new offset."""
        path = self._upload(name, identifier)
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            write_all(file, data)
        except OSError:
            os.ftruncate(file, offset)
            raise
        finally:
            os.close(file)
        key = (identifier, "sha256")
        hashed, hasher = self._hashers.get(key) or (0, Digest.of(b"").hasher())
        if hashed == offset:
            hasher.update(data)
            self._hashers[key] = (offset + len(data), hasher)
        return offset + len(data)

    def finish_upload(self, name: str, identifier: str, digest: Digest) -> None:
        """Verify, make durable, link. ``DIGEST_INVALID`` leaves the upload as it is."""
        path = self._upload(name, identifier)
        size = path.stat().st_size
        hashed, hasher = self._hashers.get((identifier, digest.algorithm)) or (0, digest.hasher())
        with path.open("rb") as file:
            if hashed != size:
                hasher = digest.hasher()
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
            if not digest.matches(hasher):
                raise RegistryError("DIGEST_INVALID", "provided digest did not match uploaded content", {"digest": digest})
            os.fsync(file.fileno())
        target = self._blob(digest)
        make_directory(target.parent, 0o755)
        os.chmod(path, 0o644)
        with self._linking:
            path.rename(target)
            sync_directory(target.parent)
            self._touch(self._link(name, "_blobs", digest))
        self._forget(identifier)

    def cancel_upload(self, name: str, identifier: str) -> None:
        """``BLOB_UPLOAD_UNKNOWN``."""
        self._upload(name, identifier)
        self._forget(identifier)

    def _forget(self, identifier: str) -> None:
        self._hashers = {key: value for key, value in self._hashers.items() if key[0] != identifier}
        shutil.rmtree(self.root / "uploads" / identifier, ignore_errors=True)

    # Manifests and tags

    def put_manifest(self, name: str, data: bytes, digest: Digest, media_type: str, subject: dict[str, Any] | None, tag: str) -> None:
        """Store a manifest, and tag it when ``tag`` is not empty. ``subject``: {"digest", "descriptor" of the referrer}."""
        blob = self._blob(digest)
        record = {"mediaType": media_type, "size": len(data), "subject": subject["digest"] if subject else ""}
        with self._linking:
            if not blob.exists():
                make_directory(blob.parent, 0o755)
                replace_file(blob, data, mode=0o644)
            self._write(self._link(name, "_manifests", digest), json.dumps(record).encode())
        if subject is not None:
            directory = self._link(name, "_referrers", Digest.parse(subject["digest"]))
            self._write(directory / digest.replace(":", "-"), json.dumps(subject["descriptor"]).encode())
        if tag:
            self._write(self._repository(name) / "_tags" / tag, digest.encode())
        self._write_layout(name)

    def manifest(self, name: str, reference: str) -> Manifest:
        """By tag or digest. ``NAME_UNKNOWN`` or ``MANIFEST_UNKNOWN``."""
        digest = self._resolve(name, reference)
        try:
            record = json.loads(self._link(name, "_manifests", digest).read_bytes())
        except FileNotFoundError:
            raise self._unknown(name, reference) from None
        return Manifest(digest, record["mediaType"], record["size"])

    def _resolve(self, name: str, reference: str) -> Digest:
        if ":" in reference:
            return Digest.parse(reference)
        try:
            return Digest.parse((self._repository(name) / "_tags" / reference).read_text())
        except FileNotFoundError:
            raise self._unknown(name, reference) from None

    def _unknown(self, name: str, reference: str) -> RegistryError:
        if not (self._repository(name) / "_manifests").is_dir():
            return RegistryError("NAME_UNKNOWN", "repository name not known to registry", {"name": name})
        detail = {"digest": reference} if ":" in reference else {"tag": reference}
        return RegistryError("MANIFEST_UNKNOWN", "manifest unknown", detail)

    def delete_manifest(self, name: str, digest: Digest) -> None:
        """With the tags that name it. ``MANIFEST_UNKNOWN``."""
        link = self._link(name, "_manifests", digest)
        try:
            record = json.loads(link.read_bytes())
        except FileNotFoundError:
            raise self._unknown(name, digest) from None
        for tag in self.tags(name):
            if (self._repository(name) / "_tags" / tag).read_text() == digest:
                (self._repository(name) / "_tags" / tag).unlink()
        if record.get("subject"):
            referrer = self._link(name, "_referrers", Digest.parse(record["subject"])) / digest.replace(":", "-")
            referrer.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        self._write_layout(name)

    def delete_tag(self, name: str, tag: str) -> None:
        """``MANIFEST_UNKNOWN``."""
        try:
            (self._repository(name) / "_tags" / tag).unlink()
        except FileNotFoundError:
            raise self._unknown(name, tag) from None
        self._write_layout(name)

    def tags(self, name: str) -> list[str]:
        """All tags in order."""
        return self._names(self._repository(name) / "_tags")

    def has_repository(self, name: str) -> bool:
        return (self._repository(name) / "_manifests").is_dir()

    def referrers(self, name: str, digest: Digest) -> list[dict[str, Any]]:
        """Descriptors of the manifests that name ``digest`` as their subject."""
        directory = self._link(name, "_referrers", digest)
        return [json.loads((directory / entry).read_bytes()) for entry in self._names(directory)]

    def repositories(self) -> list[str]:
        """Names of all repositories that have (or had) a manifest or a blob, in order."""
        top = self.root / "repositories"
        found = []
        for directory, names, _ in os.walk(top):
            if "_manifests" in names or "_blobs" in names:
                found.append(os.path.relpath(directory, top))
            names[:] = [name for name in names if not name.startswith("_")]
        return sorted(found)

    # Upkeep

    def collect(self, grace: float = 24 * 3600.0) -> tuple[int, int]:
        """Take blobs from repositories whose manifests do not name them (uploaded ``grace`` seconds ago or earlier), then remove what no
        repository has, and old uploads. Safe beside pushes. Returns (blobs, bytes) removed."""
        blobs = size = 0
        with self._linking:
            for name in self.repositories():
                self._unlink_unused(name, time.time() - grace)
            named = {
                digest
                for name in self.repositories()
                for kind in ("_blobs", "_manifests")
                for digest in self._digests(self._repository(name) / kind)
            }
            for digest in self._digests(self.root / "blobs"):
                if digest not in named:
                    size += self._blob(digest).stat().st_size
                    self._blob(digest).unlink(missing_ok=True)
                    blobs += 1
        for identifier in self._names(self.root / "uploads"):
            data = self.root / "uploads" / identifier / "data"
            if not data.exists() or time.time() - data.stat().st_mtime > UPLOAD_HOURS * 3600:
                self._forget(identifier)
        return blobs, size

    def _unlink_unused(self, name: str, before: float) -> None:
        used: set[str] = set()
        for digest in self._digests(self._repository(name) / "_manifests"):
            try:
                used.update(named_by(json.loads(self._blob(digest).read_bytes())))
            except (OSError, ValueError):
                continue
        for digest in self._digests(self._repository(name) / "_blobs"):
            link = self._link(name, "_blobs", digest)
            if digest not in used and link.stat().st_mtime <= before:
                link.unlink(missing_ok=True)

    def _digests(self, top: Path) -> list[Digest]:
        return [Digest.parse(f"{algorithm}:{entry}") for algorithm in self._names(top) for entry in self._names(top / algorithm)]

    def scrub(self) -> list[str]:
        """Verify every blob; returns the digests of those whose bytes do not match."""
        bad = []
        for digest in self._digests(self.root / "blobs"):
            hasher = digest.hasher()
            with self.open(digest) as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
            if not digest.matches(hasher):
                bad.append(str(digest))
        return bad

    # Files

    @staticmethod
    def _names(directory: Path) -> list[str]:
        try:
            return sorted(name for name in os.listdir(directory) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        make_directory(path.parent, 0o755)
        replace_file(path, data, mode=0o644)

    def _touch(self, path: Path) -> None:
        if not path.exists():
            self._write(path, b"")

    def _write_layout(self, name: str) -> None:
        """The repository's index.json: one entry for each tag, and one for each manifest without."""
        directory = self._repository(name) / "_oci"
        if not (directory / "oci-layout").exists():
            make_directory(directory, 0o755)
            if not (directory / "blobs").is_symlink():
                (directory / "blobs").symlink_to(os.path.relpath(self.root / "blobs", directory))
            replace_file(directory / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', mode=0o644)
        tags: dict[str, list[str]] = {}
        for tag in self.tags(name):
            tags.setdefault((self._repository(name) / "_tags" / tag).read_text(), []).append(tag)
        entries: list[dict[str, Any]] = []
        top = self._repository(name) / "_manifests"
        for algorithm in self._names(top):
            for entry in self._names(top / algorithm):
                record = json.loads((top / algorithm / entry).read_bytes())
                digest = f"{algorithm}:{entry}"
                descriptor = {"mediaType": record["mediaType"], "digest": digest, "size": record["size"]}
                annotated = [descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags.get(digest, ())]
                entries.extend(annotated or [descriptor])
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
        replace_file(directory / "index.json", json.dumps(index, indent=1).encode(), durable=False, mode=0o644)
