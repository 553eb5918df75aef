"""New files that are there whole, or not at all; and copies of damaged ones.

Must never open a file that this process has open as a database: who calls makes sure of that.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from paramstore.errors import InvalidInputError, StorageError

BLOCK: Final = 1 << 16
"""Bytes read at a time of a file whose disk may refuse some."""


def path_text(path: object) -> str:
    """Return a path as text, with the ``~`` at its beginning spelt out.

    Raises:
        InvalidInputError: it is no path.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InvalidInputError(f"{path!r} is no path; give text or a pathlib.Path")
    return os.path.expanduser(text)  # noqa: PTH111  # of an unknown user, Path's raises


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path of a draft, which gets the name ``target`` when the block ends well.

    Whatever ends the block, a file of that name is complete. Only a process that is killed leaves
    its draft behind: a hidden file in the same folder, which may be deleted. The block has to make
    the draft, and to write it to the disk.

    Raises:
        InvalidInputError: ``target`` exists already, or a journal that SQLite would take for its.
        StorageError: there is no such folder, or it cannot be written to.
    """
    try:
        _check_absent(target)
        if not target.parent.is_dir():
            raise StorageError(
                f"{str(target)!r} cannot be created: there is no folder {str(target.parent)!r}"
            )
        # A character may have four bytes, and a name no more than 255; SQLite adds some.
        draft = target.with_name(f".{target.name[:50]}.{secrets.token_hex(8)}.tmp")
        try:
            yield draft
            _publish(draft, target)
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                draft.with_name(draft.name + suffix).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{str(target)!r} cannot be created: {error}") from error


def _check_absent(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise _taken(target)
    for suffix in ("-journal", "-wal"):
        left = target.with_name(target.name + suffix)
        if _size(left):
            raise InvalidInputError(
                f"{str(left)!r} is left of another database of that name, and SQLite would write "
                f"it into the new one; give another name, or move it away first"
            )
        database = target.with_name(target.name.removesuffix(suffix) or target.name)
        if database != target and _size(database):
            raise InvalidInputError(
                f"{str(target)!r} is where SQLite keeps the journal of {str(database)!r}, and "
                f"would be deleted; give another name"
            )


def _taken(target: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{str(target)!r} exists already; give another name, or remove it first"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # nothing is there, or can be: a file may have a name that leaves no room
        return 0


def _publish(draft: Path, target: Path) -> None:
    _check_absent(target)
    try:
        os.link(draft, target)  # a rename would replace what another process has made meanwhile
    except FileExistsError as error:
        raise _taken(target) from error
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


def copy_readable(
    source: Path, target: Path, advance: Callable[[int], None], *, at_least: int = 0
) -> int:
    """Copy what can be read of a file that this process has not open; zeros stand for the rest.

    Args:
        source: what to read, a block at a time.
        target: a new file.
        advance: is told how many bytes have been dealt with.
        at_least: bytes that the copy has in any case, with zeros at its end.

    Returns:
        How many bytes the disk refused.

    Raises:
        StorageError: no permission, or no room.
    """
    refused = 0
    try:
        handle = os.open(source, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            with target.open("xb") as file:
                for at in range(0, size, BLOCK):
                    length = min(BLOCK, size - at)
                    data = _read_block(handle, at, length)
                    refused += length if data is None else 0
                    file.write(data or bytes(length))
                    advance(length)
                file.truncate(max(size, at_least))
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(f"{str(source)!r} cannot be copied: {error}") from error
    return refused


def _read_block(handle: int, at: int, length: int) -> bytes | None:
    try:
        return os.pread(handle, length, at)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None


def read_start(path: Path, length: int) -> bytes:
    """Return the first bytes of a file that no process has open."""
    with path.open("rb") as file:
        return file.read(length)


def write_start(path: Path, data: bytes) -> None:
    """Put other bytes at the beginning of a file that no process has open."""
    with path.open("r+b") as file:
        file.write(data)
