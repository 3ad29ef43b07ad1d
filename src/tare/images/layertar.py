"""A stored layer as the tar that it came as, plain or packed again.

Where the bytes are: the layer store keeps the uncompressed tar or can make it again (``LayerDriver.tar``); for a layer that an older engine
stored, the content store still has the compressed blob that it came in. ``plain`` reads whichever there is; ``pack`` compresses it into a
blob that can be pushed. Both block: use them in worker threads. The caller pins the layer and its blob for as long as it reads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass

from tare.distribution.compress import Compression
from tare.distribution.decompress import decompress
from tare.errors import Corrupt, NotFound, ResourceExhausted
from tare.oci.digest import Digest
from tare.store.content import ContentStore
from tare.store.layers.driver import LayerDriver

CHUNK = 1 << 20


def check(layers: LayerDriver, diff_id: Digest, blob: Digest | None) -> None:
    """Raise ``NotFound`` when ``plain`` could not give this layer."""
    if layers.get(diff_id) is None:
        raise NotFound(f"layer {diff_id} is not in the {layers.name} layer store: pull its image again")
    if blob is None and not layers.has_tar(diff_id):
        raise NotFound(f"the tar of layer {diff_id} was not kept: remove its image and pull or load it again")


def plain(layers: LayerDriver, content: ContentStore, diff_id: Digest, blob: Digest | None) -> Generator[bytes, None, None]:
    """The layer's uncompressed tar, exactly ``tar_size`` bytes. ``blob`` is its compressed form if the content store has one."""
    check(layers, diff_id, blob)
    if layers.has_tar(diff_id):
        yield from layers.tar(diff_id)
        return
    layer = layers.get(diff_id)
    assert blob is not None and layer is not None
    yield from _unpacked(content, blob, layer.tar_size)


def _unpacked(content: ContentStore, blob: Digest, size: int) -> Generator[bytes, None, None]:
    with content.open(blob) as file:
        for chunk in decompress(iter(lambda: file.read(CHUNK), b""), f"layer {blob}"):
            size -= len(chunk)
            yield chunk
    if size:
        raise Corrupt(f"layer {blob} does not unpack to the length that it had: remove its image and pull it again")


class Packer:
    """Compresses a tar into a scratch file of the content store; the blob's digest is known at the end.

    End it with ``commit`` (after pinning ``digest``) or ``abort``; as a context manager it aborts when left without a commit.
    """

    def __init__(self, content: ContentStore, compression: Compression = Compression()) -> None:  # noqa: B008 - immutable
        self._content = content
        self._path = content.scratch()
        self._hasher = hashlib.sha256(usedforsecurity=False)
        self.size = 0
        self._encoder = compression.encoder()
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, chunk: bytes) -> None:
        self._put(self._encoder.write(chunk))

    def finish(self) -> Packed:
        """Everything was written: what came out."""
        self._put(self._encoder.finish())
        return Packed(Digest.sha256(self._hasher.hexdigest()), self.size, self)

    def commit(self, digest: Digest) -> None:
        """Make the blob visible."""
        if self._content.has(digest):
            self.abort()
            return
        self._close()
        self._content.adopt(self._path, digest)

    def abort(self) -> None:
        """Leave nothing. Idempotent."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file >= 0:
            self._encoder.close()
            os.close(self._file)
            self._file = -1

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        self._hasher.update(view)
        self.size += len(view)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            place = self._path.parent
            raise ResourceExhausted(f"cannot write a compressed layer: {error.strerror}: free some space under {place}") from None


@dataclass(frozen=True)
class Packed:
    """A compressed layer, complete but not yet visible."""

    digest: Digest
    size: int
    packer: Packer


def pack(
    layers: LayerDriver,
    content: ContentStore,
    diff_id: Digest,
    stopped: Callable[[], bool] = lambda: False,
    compression: Compression = Compression(),  # noqa: B008 - immutable
    blob: Digest | None = None,
) -> Packed:
    """Compress a layer's tar; ``blob`` is a form of it that the content store has. Give the result to ``Packer.commit`` or ``abort``."""
    packer = Packer(content, compression)
    try:
        for chunk in plain(layers, content, diff_id, blob):
            if stopped():
                raise InterruptedError("the push was given up")
            packer.write(chunk)
        return packer.finish()
    except BaseException:
        packer.abort()
        raise
