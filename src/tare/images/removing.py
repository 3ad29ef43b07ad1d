"""Removing images: what ``removal`` decides, done. Names first, then the record, then the event, and the bytes last.

A name stands for all images of its index (``siblings``): those that nothing else names go with it, but for one that a container uses, which
stays as a dangling image. One platform can be taken away alone: then a sibling inherits the names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tare.images.garbage import Garbage
from tare.images.image import Image, ImageRecord, Removal
from tare.images.records import Records
from tare.images.removal import Situation, check_delete, check_untag, is_single, untagged_with
from tare.oci.digest import Digest
from tare.oci.image import chain_ids
from tare.oci.platform import Platform, choose, host
from tare.oci.reference import Reference

Publish = Callable[[str, str, str, Mapping[str, str]], None]


class Remover:
    """Removes images of one engine. ``users_of`` gives the containers made of an image: their ids, and whether they run."""

    def __init__(self, records: Records, garbage: Garbage, users_of: Callable[[str], Sequence[tuple[str, bool]]], publish: Publish) -> None:
        self._records = records
        self._names = records.names
        self._siblings = records.siblings
        self._garbage = garbage
        self._users_of = users_of
        self._publish = publish

    async def delete(self, name: str, force: bool, prune: bool, platforms: Sequence[Platform]) -> list[Removal]:
        """Remove a name, and the image with its last one; or, given an id, the image with its names; or only some ``platforms`` of it.

        ``prune`` also removes parents that nothing names or needs any more. Raises ``Conflict`` with Docker's texts.
        """
        image_id = self._records.resolve(name)
        removals: list[Removal] = []
        if platforms and self._siblings.of(image_id):
            chosen = dict.fromkeys(self._records.variant(self._records.image(image_id), each, name).id for each in platforms)
            for each in chosen:
                await self._delete_one(each, force, prune, removals)
            return removals
        for platform in platforms:
            self._records.variant(self._records.image(image_id), platform, name)
        orphans = self._siblings.orphans(image_id)
        situation = self._situation(image_id, orphans)
        if Digest.parse(image_id).hex.startswith(name.removeprefix("sha256:")):
            check_delete(situation, force, references_count=not is_single(situation.references))
            self._untag(image_id, situation.references, removals)
        else:
            check_untag(situation, name, force)
            reference = Reference.parse(name).with_default_tag()
            if reference.digest:
                reference = reference.with_digest(reference.digest)
            remaining = [other for other in situation.references if other != reference]
            self._untag(image_id, [reference, *untagged_with(reference, remaining)], removals)
            for sibling in self._siblings.of(image_id):  # that were pushed to the repository alone
                named = self._names.of(sibling)
                self._untag(sibling, [each for each in untagged_with(reference, [*remaining, *named]) if each in named], removals)
            orphans = self._siblings.orphans(image_id)
            if self._names.of(image_id):
                return removals
        for each in (image_id, *orphans):
            if self._records.find(each) is not None and self._deletable(each, force):
                await self._delete(each, prune, removals)
        return removals

    def remove_unused(self, images: Iterable[Image]) -> list[Removal]:
        """Forget these images and the siblings that go with them, but for those that are in use. The bytes are the collector's."""
        removals: list[Removal] = []
        siblings = self._siblings.every()
        for image in images:
            family = (image.id, *siblings.get(image.id, ()))
            if self._records.find(image.id) is None or any(self._users_of(each) for each in family):
                continue
            orphans = self._siblings.orphans(image.id) if len(family) > 1 else []
            if any(self._has_children(each) for each in (image.id, *orphans)):
                continue
            self._untag(image.id, self._names.of(image.id), removals)
            for each in (image.id, *orphans):
                self._forget(each, removals)
        return removals

    async def _delete_one(self, image_id: str, force: bool, prune: bool, removals: list[Removal]) -> None:
        """Remove one platform's image; its names go to a sibling, that for this machine if there is one."""
        check_delete(self._situation(image_id), force, references_count=False)
        references, heirs = self._names.of(image_id), self._siblings.of(image_id)
        if references and heirs:
            best = choose(host(), [self._records.image(heir).platform() for heir in heirs])
            self._records.move_names(references, heirs[best or 0])
        else:
            self._untag(image_id, references, removals)
        await self._delete(image_id, prune, removals)

    def _deletable(self, image_id: str, force: bool) -> bool:
        situation = self._situation(image_id)
        hard = situation.has_children or any(running for _, running in situation.users)
        return not situation.references and not hard and (force or not situation.users)

    def _untag(self, image_id: str, references: Iterable[Reference], removals: list[Removal]) -> None:
        gone = list(references)
        if not gone:
            return
        labels = self._records.image(image_id).labels
        self._records.remove_names(gone)
        removals += [Removal("Untagged", reference.familiar()) for reference in gone]
        self._publish("untag", image_id, image_id, labels)

    async def _delete(self, image_id: str, prune: bool, removals: list[Removal]) -> None:
        while image_id:
            record = self._forget(image_id, removals)
            freed = await self._garbage.collect([image_id, *record.kept()], record.diff_ids)
            chain = chain_ids([Digest.parse(diff_id) for diff_id in record.diff_ids])
            for diff_id, chain_id in reversed(list(zip(record.diff_ids, chain, strict=True))):
                if diff_id in freed.layers:
                    removals.append(Removal("Deleted", chain_id))
            parent = record.parent if prune else ""
            keep = not parent or self._records.find(parent) is None or not self._deletable(parent, force=False)
            image_id = "" if keep else parent

    def _forget(self, image_id: str, removals: list[Removal]) -> ImageRecord:
        """Take the record away: from here on the image does not exist."""
        labels = self._records.image(image_id).labels
        record = self._records.need(image_id)
        self._records.delete(image_id)
        removals.append(Removal("Deleted", image_id))
        self._publish("delete", image_id, image_id, labels)
        return record

    def _situation(self, image_id: str, others: Sequence[str] = ()) -> Situation:
        users = [user for each in (image_id, *others) for user in self._users_of(each)]
        return Situation(image_id, tuple(self._names.of(image_id)), users, self._has_children(image_id))

    def _has_children(self, image_id: str) -> bool:
        return any(record.parent == image_id for _, record in self._records.all())
