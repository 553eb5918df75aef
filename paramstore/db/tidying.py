"""What is left to be done when every snapshot of a salvaged database is where it belongs.

Moves tags and heads after them, and deletes what nothing needs; must never touch a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, select

from paramstore.db import bulk
from paramstore.db.collection import delete_orphans
from paramstore.db.placeholders import STATISTICS, UNKNOWN_TIME
from paramstore.db.schema import (
    CHUNK_BITS,
    blobs,
    chunks,
    extra_blobs,
    extras,
    metrics,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
    tags,
)
from paramstore.db.soundness import NOT_WHERE_FIRST_STORED, is_time

_OWNERS = select(param_versions.c.id, param_versions.c.version, params.c.scope_id).join_from(
    param_versions, params, params.c.id == param_versions.c.param_id
)


def move_tags(connection: Connection) -> Iterator[str]:
    """Let tags follow their snapshots; say of which the snapshot is lost."""
    scope_of = {row.id: row.scope_id for row in connection.execute(select(snapshots)).all()}
    for row in connection.execute(select(tags)).all():
        scope_id = scope_of.get(row.snapshot_id)
        if scope_id == row.scope_id:
            continue
        of_name = tags.c.name == row.name
        delete(connection, tags, of_name & (tags.c.scope_id == row.scope_id))
        if scope_id is None:
            yield f"tag {row.name!r} pointed to a snapshot that is lost"
            continue
        there = of_name & (tags.c.scope_id == scope_id)
        if connection.execute(select(tags).where(there)).first() is None:
            bulk.insert(connection, tags, [(scope_id, row.name, row.snapshot_id)])


def move_heads(connection: Connection) -> None:
    """Let the head of every scope be its newest snapshot; a scope without any goes."""
    newest: dict[int, int] = {}
    for row in connection.execute(select(snapshots.c.scope_id, snapshots.c.version)).all():
        newest[row.scope_id] = max(row.version, newest.get(row.scope_id, 0))
    for row in connection.execute(select(scopes)).all():
        if row.id not in newest:
            for table in (params, tags):
                delete(connection, table, table.c.scope_id == row.id)
            delete(connection, scopes, scopes.c.id == row.id)
            continue
        created_at = row.created_at if is_time(row.created_at) else UNKNOWN_TIME
        here = scopes.update().where(scopes.c.id == row.id)
        connection.execute(here.values(head_version=newest[row.id], created_at=created_at))
    _disown(connection, newest)


def _disown(connection: Connection, newest: Mapping[int, int]) -> None:
    """Let nobody own values of versions that are lost, because those may be given again."""
    span = {"last": 0, "end": 2**63 - 1}
    lost = [row.id for row in connection.execute(NOT_WHERE_FIRST_STORED, span).all()]
    owned = connection.execute(_OWNERS).all()
    lost += [row.id for row in owned if row.version > newest.get(row.scope_id, 0)]
    for some in bulk.batched(lost, bulk.VARIABLES):
        chosen = param_versions.c.id.in_(some)
        connection.execute(param_versions.update().where(chosen).values(param_id=0))


def forget_statistics(connection: Connection, scope_ids: Iterable[int]) -> None:
    """Let values that only snapshots of some scopes hold have none, because they may be wrong."""
    here = snapshots.c.scope_id.in_(list(scope_ids))
    held = select(snapshot_params.c.param_version_id).join_from(
        snapshot_params, snapshots, snapshots.c.id == snapshot_params.c.snapshot_id
    )
    doubtful = held.where(here).except_(held.where(~here))
    chosen = param_versions.c.id.in_(doubtful)
    connection.execute(param_versions.update().where(chosen).values(**dict.fromkeys(STATISTICS)))


def clean(connection: Connection, damaged: Iterable[int]) -> None:
    """Delete what nothing refers to, what refers to nothing, and tensors that are damaged."""
    here = select(snapshots.c.id)
    for table in (snapshot_params, metrics, extras, extra_blobs):
        delete(connection, table, table.c.snapshot_id.not_in(here))
    for some in bulk.batched(damaged, bulk.VARIABLES):
        delete(connection, blobs, blobs.c.id.in_(some))
    delete_orphans(connection)
    blob_of = chunks.c.id.bitwise_rshift(CHUNK_BITS)
    delete(connection, chunks, blob_of.not_in(select(blobs.c.id)))


def delete(connection: Connection, table: Any, where: Any) -> None:
    """Delete some rows of a table."""
    connection.execute(table.delete().where(where))
