"""What a database takes on the disk, scope by scope.

Counts and never deletes; looks at every row.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select

from paramstore.db.collection import size
from paramstore.db.engine import Database
from paramstore.db.garbage import held_by_one_scope, held_by_scope
from paramstore.db.schema import blobs, params, scopes, snapshots
from paramstore.usage import ScopeUsage, Usage

_SCOPES: Final = select(scopes.c.id, scopes.c.name).order_by(scopes.c.name)
_SNAPSHOTS: Final = select(snapshots.c.scope_id, func.count()).group_by(snapshots.c.scope_id)
_PARAMS: Final = select(params.c.scope_id, func.count()).group_by(params.c.scope_id)
_TENSORS: Final = select(func.coalesce(func.sum(blobs.c.nbytes), 0))


def usage(database: Database) -> Usage:
    """Say what a database takes on the disk, and what of it every scope.

    Raises:
        StoreClosedError, StoreBusyError, DatabaseError: as ``Database.fetch``.
    """
    names = {row.id: row.name for row in database.fetch(_SCOPES)}
    counts = dict(tuple(row) for row in database.fetch(_SNAPSHOTS))
    known = dict(tuple(row) for row in database.fetch(_PARAMS))
    ((tensors,),) = database.fetch(_TENSORS)
    held = held_by_scope(database.fetch)
    own, every = held_by_one_scope(database.fetch)
    file, free = size(database)
    return Usage(
        scopes=tuple(
            ScopeUsage(
                name=name,
                snapshots=counts.get(row, 0),
                params=known.get(row, 0),
                nbytes=held.get(row, 0),
                own_nbytes=own.get(row, 0),
            )
            for row, name in names.items()
        ),
        file_nbytes=file,
        free_nbytes=free,
        tensor_nbytes=tensors,
        unused_nbytes=max(tensors - every, 0),  # a commit may have come in between
    )
