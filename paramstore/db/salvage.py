"""Everything that is readable in a damaged store, written into a new one.

Reads a copy, and must never change the damaged file; what it writes verifies.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from sqlalchemy import Connection, Table, select, union

from paramstore.damage import Salvaged
from paramstore.db import blobs as blob_bytes
from paramstore.db import sqlite
from paramstore.db.bulk import batched
from paramstore.db.engine import Database, check_path, is_open_here
from paramstore.db.mending import mend
from paramstore.db.recovery import SHORTEST, Recovery
from paramstore.db.schema import (
    CHUNK_BITS,
    blobs,
    chunks,
    constraint_blobs,
    extra_blobs,
    metadata,
    param_versions,
)
from paramstore.db.stored import StoredBlob, described_by, is_described
from paramstore.errors import InvalidInputError, NotADatabaseError, NotFoundError, UsageError
from paramstore.files import copy_readable, new_file
from paramstore.progress import progress

_ROWS: Final = 10_000
"""Rows in one transaction."""
_BYTES: Final = 128 << 20
"""Bytes of tensors in one transaction."""

_ROWS_OF_BLOBS = select(blobs.c.id)
_WITHOUT_ROW = union(
    *(
        select(column).where(column.not_in(_ROWS_OF_BLOBS))
        for column in (param_versions.c.blob_id, extra_blobs.c.blob_id, constraint_blobs.c.blob_id)
    )
)


def salvage(path: str | os.PathLike[str], into: str | os.PathLike[str]) -> Salvaged:
    """Write everything that is readable in a damaged store into a new one.

    A snapshot that is whole keeps its name. Of one that lacks tensors the others are kept under its
    version in a scope of their own, ``main (salvaged)`` for ``main``. Where a snapshot's rows are
    not those that were committed, what is left of it is in ``main (doubtful)``: each tensor is one
    that was stored, maybe under another name.

    The damaged file is not changed. It is copied first, beside the new one, so that there has to be
    room for both. Nobody may be writing to it.

    Args:
        path: The damaged file.
        into: The new one.

    Raises:
        NotFoundError: there is no such file.
        NotADatabaseError: nothing in it is readable, or it never was a store.
        UsageError: this process has it open.
        InvalidInputError: the new file exists already, or is none.
        StorageError: one is no file or cannot be read at all, or the other not be written.
    """
    source, target = _located(path), _located(into)
    if not source.exists():
        raise NotFoundError(f"there is no file {str(path)!r}")
    check_path(source, create=False)
    if is_open_here(source):
        raise UsageError(f"{str(path)!r} is open in this process; close the store first")
    with (
        new_file(target) as draft,
        tempfile.TemporaryDirectory(prefix=f".{target.name[:50]}.", dir=target.parent) as folder,
    ):
        copy = Path(folder) / "damaged.db"
        notes = _copied(source, copy)
        recovery, database = Recovery(copy), Database.open(draft)
        # Others who cannot read the damaged file cannot read what is left of it, either.
        draft.chmod(draft.stat().st_mode & (source.stat().st_mode | stat.S_IRWXU))
        with closing(recovery), closing(database):
            transfer = _Transfer(recovery, database)
            damaged = transfer.run()
            if not transfer.moved:
                raise NotADatabaseError(f"{str(path)!r}: nothing of a store in it can be read")
            notes += _unreadable(recovery)
            mended = mend(database, damaged, suspicious=bool(recovery.unreadable or notes))
            notes += (f"{other} is not the store's, and was left" for other in recovery.others())
        return Salvaged(
            where=str(source),
            into=str(target),
            snapshots=mended.whole,
            tensors=mended.tensors,
            lost=tuple(mended.losses),
            notes=(*notes, *mended.notes),
        )


def _located(path: str | os.PathLike[str]) -> Path:
    found = sqlite.locate(path)
    if found is None:
        raise InvalidInputError("a file is salvaged into a file; give their paths")
    return found


def _copied(source: Path, copy: Path) -> list[str]:
    """Copy the file and its journal; say what the disk refused."""
    notes = []
    for suffix in ("", "-journal", "-wal"):
        part = source.with_name(source.name + suffix)
        if part.is_file():
            with progress(f"copying {part.name}", part.stat().st_size, unit="bytes") as advance:
                to = copy.with_name(copy.name + suffix)
                at_least = 0 if suffix else SHORTEST
                refused = copy_readable(part, to, advance, at_least=at_least)
            if refused:
                notes.append(f"the disk refused to read {refused} bytes of {part.name}")
    return notes


def _unreadable(recovery: Recovery) -> list[str]:
    notes = [f"table {name!r} cannot be read at all" for name in recovery.missing]
    for name, times in sorted(recovery.unreadable.items()):
        notes.append(f"rows of table {name!r} cannot be read, in {times} places")
    return notes


class _Transfer:
    """Rows and bytes on their way from the damaged database into the new one."""

    def __init__(self, recovery: Recovery, database: Database) -> None:
        self.moved = 0
        """Rows that could be read, those of tensors apart."""
        self._recovery = recovery
        self._database = database

    def run(self) -> set[int]:
        """Move everything; return the stored tensors whose bytes are not whole."""
        for table in metadata.sorted_tables:
            if table not in (blobs, chunks):
                for rows in batched(self._recovery.rows(table), _ROWS):
                    self.moved += len(rows)
                    with self._database.write(foreign_keys=False) as connection:
                        _insert(connection, table, rows)
        damaged: set[int] = set()
        with progress("salvaging tensors", unit="bytes") as advance:
            for some in self._blobs():
                with self._database.write(foreign_keys=False) as connection:
                    damaged |= {blob.id for blob in some if not self._move(connection, blob)}
                advance(sum(blob.nbytes for blob in some))
            for blob_id in self._without_row():
                self._rebuild(blob_id)
        return damaged

    def _without_row(self) -> list[int]:
        """Stored tensors that others name, and whose own row is lost."""
        return [blob_id for (blob_id,) in self._database.fetch(_WITHOUT_ROW)]

    def _rebuild(self, blob_id: int) -> None:
        """Make the row of a tensor from its bytes, whose header says what it is."""
        hasher, nbytes, first = blake3(), 0, b""
        for _, data in self._recovery.chunks(blob_id, 1 << CHUNK_BITS):
            first = first or data
            hasher.update(data)
            nbytes += len(data)
        described = described_by(first, nbytes)
        if described is not None:
            dtype, shape = described
            text = blob_bytes.shape_text(shape)
            blob = StoredBlob(blob_id, hasher.digest(), nbytes, dtype, text)
            with self._database.write(foreign_keys=False) as connection:
                self._move(connection, blob)

    def _blobs(self) -> Iterator[list[StoredBlob]]:
        batch: list[StoredBlob] = []
        nbytes = 0
        for row in self._recovery.rows(blobs):
            batch.append(StoredBlob(*row))
            nbytes += batch[-1].nbytes
            if nbytes >= _BYTES or len(batch) >= _ROWS:
                yield batch
                batch, nbytes = [], 0
        if batch:
            yield batch

    def _move(self, connection: Connection, blob: StoredBlob) -> bool:
        """Move one tensor; tell whether it is whole. Its row is needed in any case."""
        _insert(connection, blobs, [blob])
        hasher, nbytes, first = blake3(), 0, b""
        count = max(-(-blob.nbytes // blob_bytes.CHUNK), 1)
        moved = []
        for row_id, data in self._recovery.chunks(blob.id, count):
            first = first or data
            hasher.update(data)
            nbytes += len(data)
            moved.append(row_id)
            _insert(connection, chunks, [(row_id, data)])
        whole = hasher.digest() == blob.digest and nbytes == blob.nbytes
        if whole and is_described(first, blob):
            return True
        for row_id in moved:
            connection.execute(chunks.delete().where(chunks.c.id == row_id))
        return False


def _insert(connection: Connection, table: Table, rows: Any) -> None:
    columns = ", ".join(column.name for column in table.columns)
    marks = ", ".join("?" for _ in table.columns)
    # Of rows with the same key, which only a damaged index lets in, the first.
    statement = f"INSERT OR IGNORE INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608
    connection.exec_driver_sql(statement, [tuple(row) for row in rows])
