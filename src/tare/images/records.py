"""The records of images, read: from a name to an ``Image``, with its config, its names and what its siblings say about it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from tare.errors import InvalidArgument, NotFound
from tare.images.image import Image, ImageRecord, platform_mismatch
from tare.images.names import Names, digests_of, tags_of
from tare.images.siblings import Siblings
from tare.oci.digest import Digest
from tare.oci.image import ImageConfig, parse_config
from tare.oci.platform import Platform, choose
from tare.oci.reference import Reference, parse_any
from tare.store.content import ContentStore
from tare.store.metadata import Metadata

_CONFIG_CACHE = 128


class Records:
    """The table ``images`` of one engine, with what belongs to it."""

    def __init__(self, content: ContentStore, metadata: Metadata, names: Names) -> None:
        self._content = content
        self._metadata = metadata
        self._table = metadata.images
        self._configs: OrderedDict[str, ImageConfig] = OrderedDict()
        self.names = names
        self.siblings = Siblings(content, metadata, names)

    def find(self, image_id: str) -> ImageRecord | None:
        document = self._table.get(str(image_id))
        return None if document is None else msgspec.json.decode(document, type=ImageRecord)

    def need(self, image_id: str) -> ImageRecord:
        """Raises ``NotFound``."""
        record = self.find(image_id)
        if record is None:
            raise NotFound(f"No such image: {image_id}")
        return record

    def all(self) -> Iterator[tuple[str, ImageRecord]]:
        """Every record with its image's id."""
        return ((image_id, msgspec.json.decode(document, type=ImageRecord)) for image_id, _, document in self._table.all())

    def count(self) -> int:
        return self._table.count()

    def put(self, image_id: str, record: ImageRecord) -> None:
        self._table.put(image_id, None, msgspec.json.encode(record))

    def delete(self, image_id: str) -> None:
        """From here on the image does not exist."""
        self._table.delete(image_id)
        self._configs.pop(image_id, None)

    def remove_names(self, references: Iterable[Reference]) -> None:
        """All of them at once."""
        with self._metadata.transaction():
            self.names.remove(references)

    def move_names(self, references: Iterable[Reference], image_id: str) -> None:
        """Let all of these name another image from now on."""
        with self._metadata.transaction():
            for reference in references:
                self.names.set(reference, image_id)

    def forget_all(self) -> None:
        """Somebody else has changed the stores."""
        self._configs.clear()

    # --- images

    def resolve(self, name: str) -> str:
        """The id of the image that ``name`` means; a name wins over the beginning of an id.

        Raises ``NotFound`` ("No such image: x"), ``InvalidArgument`` for what can be no name.
        """
        found = parse_any(name)
        if isinstance(found, Digest):
            if self.find(found) is None:
                raise NotFound(f"No such image: {name}")
            return str(found)
        image_id = self.names.find(found)
        if image_id is not None:
            return image_id
        prefix = name.removeprefix("sha256:")
        if prefix and all(character in "0123456789abcdef" for character in prefix):
            matches = self._table.by_prefix(f"sha256:{prefix}")
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise InvalidArgument(f"image id {name} is ambiguous: give more digits")
        raise NotFound(f"No such image: {found.with_default_tag().familiar()}")

    def image(self, image_id: str) -> Image:
        """Raises ``NotFound``."""
        record, references = self.need(image_id), self.names.of(image_id)
        if any(reference.tag for reference in references):
            return self._build(image_id, record, references)
        return self._held(image_id, record, references, [self.names.of(other) for other in self.siblings.of(image_id)])

    def images(self) -> list[Image]:
        """All of them."""
        names, siblings = self.names.by_image(), self.siblings.every()
        found = []
        for image_id, record in self.all():
            others = [names[other] for other in siblings.get(image_id, ()) if other in names]
            found.append(self._held(image_id, record, names.get(image_id, []), others))
        return found

    def variant(self, image: Image, platform: Platform, name: str) -> Image:
        """The image, or the one of its siblings, that runs on ``platform`` best. Raises ``NotFound``."""
        found = [image, *(self.image(other) for other in self.siblings.of(image.id))]
        position = choose(platform, [each.platform() for each in found])
        if position is None:
            raise NotFound(platform_mismatch(name, platform, image.platform()))
        return found[position]

    def config(self, image_id: str) -> ImageConfig:
        config = self._configs.get(image_id)
        if config is None:
            config = parse_config(self._content.read(Digest.parse(image_id)))
            self._configs[image_id] = config
            if len(self._configs) > _CONFIG_CACHE:
                self._configs.popitem(last=False)
        return config

    def _held(self, image_id: str, record: ImageRecord, references: Sequence[Reference], others: Sequence[Sequence[Reference]]) -> Image:
        """The image; ``others`` are the names of its siblings. It is held by one with a tag if it has none, by any if it has no name."""
        tagged = any(reference.tag for reference in references)
        held = not tagged and any(not references or any(each.tag for each in named) for named in others if named)
        return self._build(image_id, record, [*references, *_common(record, others)] if held else references, held)

    def _build(self, image_id: str, record: ImageRecord, references: Sequence[Reference], held: bool = False) -> Image:
        config = self.config(image_id)
        return Image(
            id=str(image_id),
            config=config,
            diff_ids=config.diff_ids,
            tags=tags_of(references),
            repo_digests=digests_of(references),
            size=record.size,
            created=record.created,
            manifest_digest=Digest.parse(record.manifest) if record.manifest else None,
            parent=record.parent,
            tagged=self.names.tagged(image_id) if references else 0.0,
            used=record.used,
            held=held,
        )


def _common(record: ImageRecord, named: Iterable[Sequence[Reference]]) -> list[Reference]:
    """Those digests of siblings that are digests of this image as well: of an index that leads to it."""
    documents = set(record.documents)
    return [reference for references in named for reference in references if reference.digest and str(reference.digest) in documents]
