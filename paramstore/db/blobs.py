"""The bytes of tensors: rows of 1 MiB that, joined, are a safetensors file of one tensor.

Moves bytes in both directions; must never hold more than a few of them, or look inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    LargeBinary,
    bindparam,
    cast,
    literal_column,
    select,
)

from paramstore.db.bulk import VARIABLES, batched, insert, insert_value, next_ids, select_in
from paramstore.db.engine import Database
from paramstore.db.records import NewBlob
from paramstore.db.schema import CHUNK_BITS, DEDUPLICATED_FROM, blobs, chunks
from paramstore.errors import CorruptError

CHUNK: Final = 1 << 20
"""Bytes of a tensor in one row; the first row has its header besides."""
BUFFER: Final = 8 << 20
"""Bytes bound to, or fetched by, one statement; one chunk more at most."""
_ALONE_FROM: Final = 1 << 16
"""Bytes from which a chunk is written and read by itself, without a statement's copies."""
_SHAPE: Final = re.compile(r"\[(\d{1,19}(,\d{1,19})*)?\]", re.ASCII)
_SEQS: Final = 1 << CHUNK_BITS

_values: BindParameter[Any] = bindparam("values", expanding=True)
# A literal: SQLite uses a partial index only where its condition is seen in the statement.
_BY_DIGEST = select(blobs.c.digest, blobs.c.id).where(
    blobs.c.digest.in_(_values), blobs.c.nbytes >= literal_column(str(DEDUPLICATED_FROM))
)
_DIGESTS = select(blobs.c.id, blobs.c.digest).where(blobs.c.id.in_(_values))
_SIZES = select(blobs.c.id, blobs.c.nbytes).where(blobs.c.id.in_(_values))
# The cast costs nothing: a damaged row may hold text or a number, which then has a wrong digest.
_CHUNKS = select(chunks.c.id, cast(chunks.c.data, LargeBinary)).where(chunks.c.id.in_(_values))


def put(connection: Connection, new: Iterable[NewBlob]) -> tuple[dict[bytes, int], dict[int, int]]:
    """Write blobs that are not stored yet; inside a write transaction.

    A blob of 64 KiB or more is looked for in the whole database first; one that is smaller is
    written again, unless it comes twice in ``new``.

    Returns:
        The row of every digest, and the bytes that each row added.
    """
    distinct = {blob.digest: blob for blob in new}
    large = [digest for digest, blob in distinct.items() if blob.nbytes >= DEDUPLICATED_FROM]
    found: dict[bytes, int] = dict(map(tuple, select_in(connection, _BY_DIGEST, large)))
    missing = [blob for digest, blob in distinct.items() if digest not in found]
    ids = next_ids(connection, blobs, len(missing))
    added = dict(zip(ids, missing, strict=True))
    rows = [
        (row_id, bytearray(blob.digest), blob.nbytes, blob.dtype, shape_text(blob.shape))
        for row_id, blob in added.items()
    ]
    insert(connection, blobs, rows)
    _insert_chunks(connection, added)
    found |= {blob.digest: row_id for row_id, blob in added.items()}
    return found, {row_id: blob.nbytes for row_id, blob in added.items()}


def _insert_chunks(connection: Connection, new: Mapping[int, NewBlob]) -> None:
    waiting: list[tuple[int, bytearray]] = []
    nbytes = 0
    for blob_id, blob in new.items():
        header = blob.header
        for row_id, chunk in enumerate(blob.chunks(), blob_id << CHUNK_BITS):
            if len(chunk) >= _ALONE_FROM:
                insert_value(connection, chunks, row_id, (header, chunk))
            else:
                waiting.append((row_id, bytearray(header) + chunk))
                nbytes += len(chunk)
            header = b""
            if nbytes >= BUFFER:
                insert(connection, chunks, waiting)
                waiting, nbytes = [], 0
    insert(connection, chunks, waiting)


def digests(connection: Connection, ids: Iterable[int]) -> dict[int, bytes]:
    """Return the digests of those blobs that exist."""
    return dict(tuple(row) for row in select_in(connection, _DIGESTS, ids))


def stored(database: Database, digests: Iterable[bytes]) -> set[bytes]:
    """Return those digests of large blobs that are in the database."""
    batches = batched(digests, VARIABLES)
    return {d for batch in batches for d, _ in database.fetch(_BY_DIGEST, {"values": batch})}


def read(
    database: Database, ids: Iterable[int] | Mapping[int, int]
) -> Iterator[tuple[int, int, bytes]]:
    """Yield row, place and bytes of every chunk: of one blob after the other, in order of place.

    Many small blobs come in one query, a few MiB at a time; of a large one each chunk by itself. A
    blob that does not exist yields nothing, one on a damaged page less than it should: the caller
    has its digest.

    Args:
        database: where the blobs are.
        ids: rows of blobs; with their lengths where known, which saves a query.
    """
    lengths = dict(_lengths(database, ids))
    small = {row_id: length for row_id, length in lengths.items() if length < _ALONE_FROM}
    for batch in _batches(small):
        for row_id, data in _fetch(database, batch):
            if data is not None:
                yield row_id >> CHUNK_BITS, 0, data
    for blob_id in sorted(lengths.keys() - small.keys()):
        left = lengths[blob_id]
        for seq in range(_SEQS):
            chunk = _value(database, blob_id << CHUNK_BITS | seq)
            if not chunk:
                break
            yield blob_id, seq, chunk
            left -= len(chunk)
            if left <= 0:
                break


def _fetch(database: Database, ids: list[int]) -> list[Any]:
    try:
        return database.fetch(_CHUNKS, {"values": ids})
    except CorruptError:
        # A damaged page fails the query for all of them.
        if len(ids) == 1:
            return []
        return [row for row_id in ids for row in _fetch(database, [row_id])]


def _value(database: Database, row_id: int) -> bytes | None:
    try:
        return database.read_value(chunks.name, "data", row_id)
    except CorruptError:
        return None


def _batches(lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """Cut blobs of one chunk each into batches for one query."""
    batch: list[int] = []
    nbytes = 0
    for blob_id in sorted(lengths):
        batch.append(blob_id << CHUNK_BITS)
        nbytes += lengths[blob_id]
        if nbytes >= BUFFER or len(batch) >= VARIABLES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def _lengths(
    database: Database, ids: Iterable[int] | Mapping[int, int]
) -> Iterable[tuple[int, int]]:
    if isinstance(ids, Mapping):
        return ids.items()
    fetched = (database.fetch(_SIZES, {"values": part}) for part in batched(set(ids), VARIABLES))
    return ((row_id, length) for row_id, length in chain.from_iterable(fetched))


@lru_cache(maxsize=4096)
def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as it stands in the tables: ``[3,4]``."""
    return f"[{','.join(map(str, shape))}]"


@lru_cache(maxsize=4096)
def parse_shape(text: object) -> tuple[int, ...]:
    """Return the shape that `shape_text` wrote, of a cell that may have been altered.

    Raises:
        CorruptError: it did not.
    """
    if not isinstance(text, str) or _SHAPE.fullmatch(text) is None:
        raise CorruptError(f"{text!r:.99} in the database is not a shape")
    return tuple(map(int, text[1:-1].split(","))) if text != "[]" else ()
