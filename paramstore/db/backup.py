"""A copy of a database while others write to it, by SQLite's own backup.

Copies pages and never looks at them; the copy gets its name when it is complete and on the disk.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import text

from paramstore.db import sqlite
from paramstore.db.border import translate
from paramstore.db.engine import PAUSE, Database
from paramstore.errors import InvalidInputError, StoreBusyError
from paramstore.files import new_file
from paramstore.progress import Advance, progress

STEP: Final = 1024
"""Pages copied at first under one lock, 64 MiB, for which a commit has to wait."""
FASTER: Final = 4
"""How many times more of them whenever a commit made the copy begin anew."""

_SIZES = text("SELECT page_count, page_size FROM pragma_page_count, pragma_page_size")
_WAITING: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_GOING_ON: Final = (sqlite3.SQLITE_OK, sqlite3.SQLITE_DONE)


def backup(database: Database, path: str | os.PathLike[str]) -> Path:
    """Copy a database into a new file while it is in use.

    A commit by another connection makes SQLite begin anew. Each time more is copied under one lock,
    and in the end everything, so that it ends whatever others do; they wait for that long.

    Returns:
        The absolute path of the copy.

    Raises:
        InvalidInputError: the file exists already, or is none.
        StorageError: it cannot be written, or the disk is full; there is no such file then.
        StoreBusyError: another process held the lock of the database for the whole timeout.
    """
    target = sqlite.locate(path)
    if target is None:
        raise InvalidInputError("a backup goes to a file; give its path")
    ((pages, page_size),) = database.fetch(_SIZES)
    with (
        new_file(target) as draft,
        progress("copying the database", pages * page_size, unit="bytes") as advance,
    ):
        watch = _Watch(database, lambda copied: advance(copied * page_size))
        with translate(f"copying {database.name} to {str(target)!r}"):
            database.outside_transaction(lambda source: _copy(source, draft, watch, database.path))
    return target


class _Restarted(Exception):  # noqa: N818 — a state of affairs
    """Somebody has written to the database since the last step."""


class _Watch:
    """Looks at each step of a backup, and ends one that begins anew."""

    def __init__(self, database: Database, advance: Advance) -> None:
        self._database = database
        self._advance = advance
        self._copied = 0
        self._deadline = 0.0
        self.begin()

    def begin(self) -> None:
        """Begin a copy."""
        self._advance(-self._copied)
        self._copied = 0
        self._wait_from_now()

    def step(self, status: int, remaining: int, total: int) -> None:
        """Take note of what one step has done."""
        if status & 0xFF in _WAITING:
            if time.monotonic() > self._deadline:
                raise StoreBusyError(
                    f"{self._database.name} was locked by another process for "
                    f"{self._database.timeout:g} seconds, so there is no copy; try again"
                )
            return
        if status not in _GOING_ON:
            return  # the driver raises it
        copied = total - remaining
        if copied <= self._copied and status != sqlite3.SQLITE_DONE:  # an empty one has no pages
            raise _Restarted
        self._advance(copied - self._copied)
        self._copied = copied
        self._wait_from_now()

    def _wait_from_now(self) -> None:
        self._deadline = time.monotonic() + self._database.timeout


def _copy(source: sqlite3.Connection, draft: Path, watch: _Watch, original: Path | None) -> None:
    target = sqlite.connect(draft, "rwc")
    try:
        if original is not None:  # others who cannot read it cannot read its copy, either
            target.execute("PRAGMA schema_version")  # makes the file
            draft.chmod(draft.stat().st_mode & (original.stat().st_mode | stat.S_IRWXU))
        # Nobody reads a draft, so its journal has only to take back a copy that begins anew.
        # SQLite syncs the file at the end all the same.
        sqlite.set_pragmas(target, ("journal_mode", "MEMORY"))
        pages = STEP
        with _one_view(source):
            while True:
                watch.begin()
                try:
                    source.backup(target, pages=pages, progress=watch.step, sleep=PAUSE)
                except _Restarted:
                    pages *= FASTER
                else:
                    return
    finally:
        target.close()


@contextmanager
def _one_view(source: sqlite3.Connection) -> Iterator[None]:
    """With a write-ahead log, copy the database as it is now, which keeps nobody from writing."""
    if source.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        yield
        return
    source.execute("BEGIN")
    try:
        source.execute("SELECT count(*) FROM sqlite_master").fetchall()
        yield
    finally:
        source.execute("ROLLBACK")
