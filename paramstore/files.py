"""New files that are there whole, or not at all.

Gives names and renames; must never open a file that is, or may become, an open database.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paramstore.errors import InvalidInputError, StorageError


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path of a draft, which gets the name ``target`` when the block ends well.

    Whatever ends the block, a file of that name is complete. Only a process that is killed leaves
    its draft behind: a hidden file in the same folder, which may be deleted. The block has to make
    the draft, and to write it to the disk.

    Raises:
        InvalidInputError: ``target`` exists already.
        StorageError: there is no such folder, or it cannot be written to.
    """
    try:
        _check_absent(target)
        if not target.parent.is_dir():
            raise StorageError(
                f"{str(target)!r} cannot be created: there is no folder {str(target.parent)!r}"
            )
        draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
        try:
            yield draft
            _publish(draft, target)
        finally:
            for left in draft.parent.glob(f"{draft.name}*"):  # its journal, too
                left.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be created: {error}") from error


def _check_absent(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise InvalidInputError(
            f"{str(target)!r} exists already; give another name, or remove it first"
        )


def _publish(draft: Path, target: Path) -> None:
    try:
        os.link(draft, target)  # a rename would replace what another process has made meanwhile
    except FileExistsError:
        _check_absent(target)
    except OSError:  # a file system without hard links
        _check_absent(target)
        draft.rename(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder to the disk: only then a new name in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
