"""Filling a fresh volume with what the image has at the mount's destination, as Docker does on first use.

The destination is resolved inside the container's root by file descriptor (an image may have made it a link to the host's files), and the
copy goes from directory descriptor to directory descriptor without ever following a link. A volume that already holds something is left
alone. The volume directory itself takes over owner and mode of the image's directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from tare.linux.mount import open_in_root
from tare.store.treecopy import copy_tree

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_up(root: Path, destination: str, volume: Path, *, keep_owner: bool = False) -> None:
    """Copy ``destination`` of the mounted root into the empty directory ``volume``; ``keep_owner``: that one's own owner and mode stay."""
    if any(os.scandir(volume)):
        return
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            source = open_in_root(root_fd, destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return
    finally:
        os.close(root_fd)
    try:
        target = os.open(volume, _DIRECTORY)
        try:
            copy_tree(source, target, keep_owner=keep_owner)
        finally:
            os.close(target)
    finally:
        os.close(source)
