"""Where a registry's content lies, from the text that the user gives."""

from __future__ import annotations

from pathlib import Path

from tare.errors import InvalidArgument
from tare.registry.files import FileObjects
from tare.registry.storage import Storage


def open_storage(place: str) -> Storage:
    """A directory, or ``s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]``. ``InvalidArgument`` says what is wrong."""
    if place.startswith("s3://"):
        from tare.registry.bucket import BucketObjects  # its library takes a while to load

        return Storage(BucketObjects(place))
    try:
        return Storage(FileObjects(Path(place).absolute()))
    except OSError as error:
        raise InvalidArgument(f"cannot open {place}: {error.strerror}") from None
