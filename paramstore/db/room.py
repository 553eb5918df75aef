"""Whether what is about to be written fits on the disk, as far as the file system can tell.

Asks and never writes; must never refuse what may fit.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from typing import Final

from paramstore.db import sqlite
from paramstore.db.blobs import stored
from paramstore.db.engine import Database
from paramstore.errors import StorageError
from paramstore.listing import format_bytes

SLACK: Final = 64 << 20
"""Bytes beyond those of the tensors that the journal and the catalogue may take; rather more."""


def is_ample(database: Database, nbytes: int) -> bool:
    """Whether so many bytes fit for sure, whatever of them is stored already: 3 µs."""
    return database.path is None or _free(database) >= nbytes + SLACK


def check(database: Database, sizes: Mapping[bytes, int]) -> None:
    """Refuse what cannot fit: the bytes of blobs, by digest, that are not stored.

    Raises:
        StorageError: they are more than what is free.
        StoreClosedError, StoreBusyError, DatabaseError: as ``Database.fetch``.
    """
    if database.path is None:
        return
    known = stored(database, sizes)
    needed = sum(nbytes for digest, nbytes in sizes.items() if digest not in known)
    _, empty = database.outside_transaction(sqlite.size)
    there = _free(database) + empty
    if needed > there:
        raise StorageError(
            f"{database.name}: the commit adds {format_bytes(needed)}, and the file system has "
            f"{format_bytes(there)} left for them; nothing was written. Make room, or let "
            f"expire() and gc() make it"
        )


def _free(database: Database) -> int:
    assert database.path is not None
    try:
        return shutil.disk_usage(database.path).free
    except OSError:  # it cannot tell, and the transaction will say why
        return sys.maxsize
