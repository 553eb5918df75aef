"""Frees what nothing refers to, and gives the space back to the file system.

Killed at any point it loses nothing and can be run again; must never free what a snapshot holds.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

from sqlalchemy import Connection, Delete, bindparam, delete, func, select

from paramstore.db import bulk, sqlite
from paramstore.db.engine import Database
from paramstore.db.garbage import free_blobs, free_versions, lacking
from paramstore.db.schema import (
    CHUNK_BITS,
    blobs,
    chunks,
    constraint_blobs,
    constraints,
    extra_blobs,
    param_versions,
    params,
    snapshot_params,
)
from paramstore.errors import CorruptError, StorageError
from paramstore.listing import format_bytes
from paramstore.progress import progress
from paramstore.usage import Collected

HELD: Final = 0.1
"""Seconds after which a transaction that frees bytes ends, so that commits come in between."""
_ROWS: Final = 256  # chunks deleted by one statement
_IDS: Final = 4096  # blobs looked at by one query

# In this order, what refers first. Names go last: a value keeps the name it was first stored by.
_ORPHANS: Final[dict[str, Delete]] = {
    "param_versions": delete(param_versions).where(
        param_versions.c.id.in_(
            select(param_versions.c.id).except_(select(snapshot_params.c.param_version_id))
        )
    ),
    "constraints": delete(constraints).where(
        constraints.c.id.in_(
            select(constraints.c.id).except_(select(param_versions.c.constraint_id))
        )
    ),
    "constraint_blobs": delete(constraint_blobs).where(
        constraint_blobs.c.constraint_id.in_(
            select(constraint_blobs.c.constraint_id).except_(select(constraints.c.id))
        )
    ),
    "blobs": delete(blobs).where(
        blobs.c.id.in_(
            select(blobs.c.id).except_(
                select(param_versions.c.blob_id),
                select(constraint_blobs.c.blob_id),
                select(extra_blobs.c.blob_id),
            )
        )
    ),
    "params": delete(params).where(
        params.c.id.in_(
            select(params.c.id).except_(
                select(snapshot_params.c.param_id), select(param_versions.c.param_id)
            )
        )
    ),
}
_BYTES = select(func.coalesce(func.sum(blobs.c.nbytes), 0))
_BLOBS_AFTER = (
    select(blobs.c.id)
    .where(blobs.c.id > bindparam("after"), blobs.c.id < bindparam("end"))
    .order_by(blobs.c.id)
    .limit(_IDS)
)
_DELETE_CHUNKS = delete(chunks).where(
    chunks.c.id.in_(
        select(chunks.c.id)
        .where(chunks.c.id >= bindparam("first"), chunks.c.id < bindparam("end"))
        .order_by(chunks.c.id)
        .limit(_ROWS)
    )
)


def collect(database: Database, *, dry_run: bool = False, compact: bool = False) -> Collected:
    """Free what no snapshot holds, and give the space back to the file system.

    Rows go in one transaction, the bytes of tensors in many short ones, the empty pages in others:
    a commit beside it waits for one of them. What a commit has written and not yet named may be
    freed, too; that commit then writes it again.

    Args:
        database: where it is.
        dry_run: only tell what would be freed.
        compact: rewrite the whole file, without the space inside pages that are partly full;
            nobody else can use it meanwhile.

    Raises:
        CorruptError: rows are lost or altered; nothing is changed.
        StorageError: no space to rewrite the file in; nothing is changed.
        ReadOnlyError, StoreBusyError, DatabaseError: it could not be written; run it again.
    """
    before = size(database)
    if dry_run:
        count, nbytes = free_blobs(database.fetch)
        versions = free_versions(database.fetch)
        return _collected(count, nbytes, versions, before, before, dry_run=True)
    _check_sound(database)
    if compact:
        _check_room(database, before)
    with database.write() as connection:
        nbytes = connection.execute(_BYTES).scalar_one()
        freed = delete_orphans(connection)
        nbytes -= connection.execute(_BYTES).scalar_one()
        end = bulk.next_ids(connection, blobs, 1).start
    _free_chunks(database, end)
    if compact:
        database.outside_transaction(sqlite.rewrite)
    else:
        _give_back(database)
    database.outside_transaction(sqlite.empty_log)
    after = size(database)
    return _collected(freed["blobs"], nbytes, freed["param_versions"], before, after, dry_run=False)


def delete_orphans(connection: Connection) -> dict[str, int]:
    """Delete the rows that no snapshot needs, those of bytes excepted; count them by table."""
    return {name: connection.execute(rows).rowcount for name, rows in _ORPHANS.items()}


def _collected(
    count: int, nbytes: int, versions: int, before: Size, after: Size, *, dry_run: bool
) -> Collected:
    return Collected(
        nbytes=nbytes,
        blobs=count,
        param_versions=versions,
        file_before=before.file,
        file_after=after.file,
        dry_run=dry_run,
    )


def _check_sound(database: Database) -> None:
    # What a lost row referred to looks like garbage, and salvage may still make sense of it.
    if refs := lacking(database.fetch):
        shown = ", ".join(refs[:5]) + (" …" if len(refs) > 5 else "")
        raise CorruptError(
            f"{database.name} is damaged: rows of {shown} are missing or altered, and what they "
            f"named would be taken for garbage. Nothing was freed; verify() says more, "
            f"paramstore.salvage(path, into) writes what is whole into a new file",
            snapshots=refs,
        )


# -- bytes of tensors --------------------------------------------------------------


def _free_chunks(database: Database, end: int) -> None:
    """Delete the chunks of all blobs before ``end`` that do not exist."""
    with progress("freeing tensors", end) as advance:
        for last, gaps in _gaps(database, end):
            left = gaps
            while left:
                with database.write() as connection:
                    left = _free_some(connection, left)
            advance(last)


def _gaps(database: Database, end: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yield how many rows were looked at, and the ranges of chunks between blobs that exist.

    A row once free is never given again, so a gap stays one, whatever others do meanwhile.
    """
    after = 0
    while after < end:
        found = database.fetch(_BLOBS_AFTER, {"after": after, "end": end})
        ids = [after, *(row.id for row in found)]
        if len(found) < _IDS:
            ids.append(end)
        yield (
            ids[-1] - after,
            [(a + 1 << CHUNK_BITS, b << CHUNK_BITS) for a, b in pairwise(ids) if a + 1 < b],
        )
        after = ids[-1]


def _free_some(connection: Connection, gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Delete chunks for as long as a commit may be kept waiting; return the gaps that are left."""
    until = time.monotonic() + HELD
    for done, (first, end) in enumerate(gaps, 1):
        gap = {"first": first, "end": end}
        while connection.execute(_DELETE_CHUNKS, gap).rowcount == _ROWS:
            if time.monotonic() > until:
                return gaps[done - 1 :]
        if time.monotonic() > until:
            return gaps[done:]
    return []


# -- space -------------------------------------------------------------------------


class Size(NamedTuple):
    """Bytes of a database."""

    file: int
    """All of its pages."""
    free: int
    """Those that are empty."""


def size(database: Database) -> Size:
    """Return how large a database is."""
    return database.outside_transaction(lambda connection: Size(*sqlite.size(connection)))


def _give_back(database: Database) -> None:
    """Cut the empty pages off the file, some at a time."""
    _, free = size(database)
    with progress("giving space back", free, unit="bytes") as advance:
        while free:
            database.outside_transaction(sqlite.give_back)
            _, left = size(database)
            if left >= free:  # commits fill them, or the file is of a kind that cannot shrink
                return
            advance(free - left)
            free = left


def _check_room(database: Database, before: Size) -> None:
    """Refuse to rewrite a file where the file system says that it will not fit.

    SQLite writes the new content into a temporary file, and keeps the old in its journal.

    Raises:
        StorageError: too little space.
    """
    if database.path is None:
        return
    needs: dict[int, int] = defaultdict(int)
    folders = {}
    places = ((database.path.parent, before.file), (_temporary(), before.file - before.free))
    for folder, nbytes in places:
        device = folder.stat().st_dev
        needs[device] += nbytes
        folders[device] = folder
    for device, folder in folders.items():
        there = shutil.disk_usage(folder).free
        if there < needs[device]:
            raise StorageError(
                f"{database.name} cannot be rewritten: that takes {format_bytes(needs[device])} "
                f"in {str(folder)!r}, where {format_bytes(there)} are free. Make room, let "
                f"SQLITE_TMPDIR name another folder, or collect without compact"
            )


def _temporary() -> Path:
    """The folder of SQLite's temporary files, https://sqlite.org/tempfiles.html."""
    named = [os.environ.get(name) for name in ("SQLITE_TMPDIR", "TMPDIR")]
    for folder in (*named, "/var/tmp", "/usr/tmp", "/tmp"):  # noqa: S108  # SQLite's own list
        if folder and os.access(folder, os.W_OK | os.X_OK) and Path(folder).is_dir():
            return Path(folder)
    return Path()
