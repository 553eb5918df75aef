"""What is true of every database after any sequence of operations, as functions that check it.

Each reads whole tables, raises AssertionError with what is wrong, and changes nothing; works
without torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

from blake3 import blake3

from paramstore.db import schema
from paramstore.db.collection import collect, size
from paramstore.db.engine import Database
from paramstore.db.garbage import newest_blob
from paramstore.db.reading import read_rows
from paramstore.db.repository import Repository

Table = Any  # SQLAlchemy's; only paramstore.db may import it


def check(where: Database | str | os.PathLike[str]) -> None:
    """Check everything below.

    Args:
        where: an open database, or the path of one, which is opened for reading.
    """
    if isinstance(where, Database):
        for invariant in ALL:
            invariant(where)
        return
    database = Database.open(where, readonly=True)
    try:
        check(database)
    finally:
        database.close()


def versions_ascend_to_the_head(database: Database) -> None:
    """The versions of every scope ascend in the order of their rows, up to its head."""
    versions = defaultdict(list)
    for row in sorted(_all(database, schema.snapshots), key=itemgetter(0)):
        versions[row.scope_id].append(row.version)
    heads = {row.id: row.head_version for row in _all(database, schema.scopes)}
    assert versions.keys() == heads.keys(), "a scope without snapshots, or the reverse"
    for scope_id, found in versions.items():
        assert found[0] > 0, (scope_id, found)
        assert all(a < b for a, b in pairwise(found)), (scope_id, found)
        assert found[-1] == heads[scope_id], (scope_id, heads[scope_id], found)


def parents_come_earlier(database: Database) -> None:
    """Every parent was committed before; it may have been expired since."""
    for row in _all(database, schema.snapshots):
        assert row.parent_id is None or 0 < row.parent_id < row.id, row


def references_resolve(database: Database) -> None:
    """No row names another that does not exist, or one of another scope."""
    ids = {table.name: _column(database, table, "id") for table in _WITH_ID}
    for table, name, target in _REFERENCES:
        dangling = _column(database, table, name) - ids[target.name]
        assert not dangling, f"{table.name}.{name} names {sorted(dangling)[:5]} of {target.name}"
    scope_of_snapshot = {row.id: row.scope_id for row in _all(database, schema.snapshots)}
    scope_of_param = {row.id: row.scope_id for row in _all(database, schema.params)}
    for row in _all(database, schema.snapshot_params):
        assert scope_of_param[row.param_id] == scope_of_snapshot[row.snapshot_id], row
    for row in _all(database, schema.tags):
        assert scope_of_snapshot[row.snapshot_id] == row.scope_id, row


def blobs_match_their_digests(database: Database) -> None:
    """The chunks of every blob are complete, as long as it says, and have its digest."""
    blobs = {row.id: row for row in _all(database, schema.blobs)}
    lengths = {row.id: row.nbytes for row in blobs.values()}
    found = set()
    for blob_id, chunks in groupby(Repository(database).read_blobs(lengths), itemgetter(0)):
        hasher, header, nbytes = blake3(), b"", 0
        for place, (_, seq, data) in enumerate(chunks):
            assert seq == place, f"blob {blob_id} lacks chunk {place}"
            header = header or data
            nbytes += len(data)
            hasher.update(data)
        blob = blobs[blob_id]
        assert (hasher.digest(), nbytes) == (blob.digest, blob.nbytes), f"blob {blob_id} is damaged"
        assert _describes(header, blob), f"blob {blob_id} has another header: {header[:200]!r}"
        found.add(blob_id)
    assert found == blobs.keys(), f"blobs without bytes: {sorted(blobs.keys() - found)[:5]}"


def no_chunk_is_beyond_its_blob(database: Database) -> None:
    """Every chunk belongs to a blob that is long enough, or to one that ``gc`` was freeing."""
    lengths = {row.id: row.nbytes for row in _all(database, schema.blobs)}
    newest = newest_blob(database.fetch)
    for row_id in _column(database, schema.chunks, "id"):
        blob_id, seq = divmod(row_id, 1 << schema.CHUNK_BITS)
        assert blob_id in lengths or blob_id <= newest, f"chunk of blob {blob_id}, never written"
        assert seq << 20 < lengths.get(blob_id, 1 << 62), f"blob {blob_id} is too short for {seq}"


def large_blobs_are_stored_once(database: Database) -> None:
    """No two blobs of 64 KiB or more have the same digest."""
    rows = _all(database, schema.blobs)
    large = Counter(row.digest for row in rows if row.nbytes >= schema.DEDUPLICATED_FROM)
    assert set(large.values()) <= {1}, "a large blob is stored twice"


def constraints_match_their_digests(database: Database) -> None:
    """The digest of every constraint is that of its spec, which is JSON."""
    for row in _all(database, schema.constraints):
        assert blake3(row.spec.encode()).digest() == row.digest, row
        json.loads(row.spec)


def manifests_match_their_digests(database: Database) -> None:
    """The rows of every snapshot are those that were committed, and add up to what it says."""
    for row in _all(database, schema.snapshots):
        rows = read_rows(database.fetch, row.id)
        entries = rows and rows.checked()
        assert entries is not None, f"the manifest of snapshot {row.id} is damaged"
        assert len(entries) == row.params, row
        assert sum(entry.nbytes for entry in entries) == row.nbytes, row


def history_is_what_changed_between_snapshots(database: Database) -> None:
    """The history of a name has a row wherever its value differs from the snapshot before."""
    repository = Repository(database)
    for scope in repository.scopes():
        expected: dict[str, list[tuple[int, str]]] = defaultdict(list)
        before: dict[str, int] = {}
        for snapshot in reversed(repository.log(scope.name)):
            entries = repository.manifest(snapshot).entries
            for name, entry in entries.items():
                if before.get(name) != entry.param_version_id:
                    expected[name].append((snapshot.version, entry.digest.hex()))
            before = {name: entry.param_version_id for name, entry in entries.items()}
        for name, changes in expected.items():
            found = [(row.version, row.digest) for row in repository.history(scope.name, name)]
            assert found == changes, f"history of {name!r} in {scope.name!r}: {found} != {changes}"


ALL = (
    versions_ascend_to_the_head,
    parents_come_earlier,
    references_resolve,
    blobs_match_their_digests,
    no_chunk_is_beyond_its_blob,
    large_blobs_are_stored_once,
    constraints_match_their_digests,
    manifests_match_their_digests,
    history_is_what_changed_between_snapshots,
)
"""Every invariant, in the order in which `check` looks at them."""


def nothing_is_left_to_collect(database: Database) -> None:
    """After ``gc``, with no commit beside it: every row is needed, and no page is empty."""
    found = collect(database, dry_run=True)
    assert (found.blobs, found.param_versions, found.nbytes) == (0, 0, 0), found
    assert size(database).free == 0, size(database)
    ids = {table.name: _column(database, table, "id") for table in _WITH_ID}
    used = _column(database, schema.param_versions, "constraint_id")
    assert ids["constraints"] == used, "a constraint that no value has"
    known = _column(database, schema.snapshot_params, "param_id")
    known |= _column(database, schema.param_versions, "param_id")
    assert ids["params"] <= known, "a name that no snapshot has"
    chunks = _column(database, schema.chunks, "id")
    assert {row_id >> schema.CHUNK_BITS for row_id in chunks} == ids["blobs"], "orphaned chunks"


_WITH_ID = (
    schema.scopes,
    schema.snapshots,
    schema.params,
    schema.param_versions,
    schema.constraints,
    schema.blobs,
)
_REFERENCES = (
    (schema.snapshots, "scope_id", schema.scopes),
    (schema.metrics, "snapshot_id", schema.snapshots),
    (schema.tags, "snapshot_id", schema.snapshots),
    (schema.params, "scope_id", schema.scopes),
    (schema.param_versions, "blob_id", schema.blobs),
    (schema.param_versions, "constraint_id", schema.constraints),
    (schema.snapshot_params, "snapshot_id", schema.snapshots),
    (schema.snapshot_params, "param_id", schema.params),
    (schema.snapshot_params, "param_version_id", schema.param_versions),
    (schema.constraint_blobs, "constraint_id", schema.constraints),
    (schema.constraint_blobs, "blob_id", schema.blobs),
    (schema.extras, "snapshot_id", schema.snapshots),
    (schema.extra_blobs, "snapshot_id", schema.snapshots),
    (schema.extra_blobs, "blob_id", schema.blobs),
)


def _all(database: Database, table: Table) -> list[Any]:
    return database.fetch(table.select())


def _column(database: Database, table: Table, name: str) -> set[int]:
    rows: Iterable[Any] = database.fetch(table.select().with_only_columns(table.c[name]))
    return {value for (value,) in rows}


def _describes(first_chunk: bytes, blob: Any) -> bool:
    """Whether the safetensors header at the front of a blob is that of the blob's row."""
    end = 8 + int.from_bytes(first_chunk[:8], "little")
    try:
        header = json.loads(first_chunk[8:end])
        stored = header["value"]
        dtype = header.get("__metadata__", {}).get("dtype", stored["dtype"])
        return bool(dtype == blob.dtype and stored["data_offsets"] == [0, blob.nbytes - end])
    except (ValueError, KeyError, TypeError):
        return False
