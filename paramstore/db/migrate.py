"""Brings a database to the schema of this version of the library, and refuses any other.

Imports alembic only when there is something to migrate; must never create a table itself.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Executable, Select, column, select, table, text

from paramstore.db import scripts, sqlite, strangers
from paramstore.db.drift import drift
from paramstore.db.engine import Database, check_path
from paramstore.db.schema import REVISION, VERSION_TABLE
from paramstore.db.transition import change, check_names, copied
from paramstore.errors import (
    ForeignDatabaseError,
    InvalidInputError,
    NotFoundError,
    SchemaError,
    SchemaTooNewError,
    SchemaTooOldError,
    StoreBusyError,
)
from paramstore.revisions import Migrated, Revisions

_TABLES: Final = text("SELECT name FROM sqlite_master WHERE type = 'table'")
_REVISION: Final[Select[Any]] = select(column("version_num")).select_from(table(VERSION_TABLE))


def prepare(database: Database, *, create: bool) -> None:
    """Check that a database is of this version; create the tables in an empty one.

    Raises:
        NotFoundError: no tables, and ``create`` is false.
        ForeignDatabaseError: the tables of another program.
        SchemaTooOldError, SchemaTooNewError: of another version of this library.
    """
    found = _revision(database)
    if found is None and create:
        database.outside_transaction(lambda c: sqlite.set_pragmas(c, *sqlite.NEW_FILE))
        _create(database)
    found = _existing(database)
    if found != REVISION:
        raise _other_version(database, found)


def current(where: str | os.PathLike[str], *, timeout: float = 60.0) -> Revisions:
    """Return the revision of a store and the one that this version of the library reads.

    Raises:
        NotFoundError: no store.
        ForeignDatabaseError: the tables of another program.
    """
    with _opened(where, "ro", timeout) as database:
        return Revisions(_existing(database), REVISION)


def check(where: str | os.PathLike[str], *, timeout: float = 60.0) -> tuple[str, ...]:
    """Compare the tables of a store with those that the migrations to its revision make.

    Returns:
        What differs, one line each; nothing where all is as it should be.

    Raises:
        NotFoundError: no store.
        ForeignDatabaseError: the tables of another program.
        SchemaTooNewError: written by a newer version.
    """
    with _opened(where, "ro", timeout) as database:
        made = scripts.made_by(_known(database))
        return drift([scripts.Made(*row) for row in database.fetch(scripts.MADE)], made)


def upgrade(
    where: str | os.PathLike[str],
    *,
    backup: bool = True,
    share: bool = False,
    timeout: float = 60.0,
) -> Migrated:
    """Bring the database of an older version of this library to the present schema.

    Either all of it happens or nothing, whatever ends the process.

    Args:
        where: The database.
        backup: Copy it first, to a file of its name and revision, e.g. ``run.db.0001.bak``.
        share: In the database of another program, make the tables of a store beside its own.
        timeout: Seconds to wait for a lock that another process holds.

    Raises:
        NotFoundError: nothing to upgrade.
        ForeignDatabaseError: a database of another program, and ``share`` is false, or something
            in it has a name that the store needs.
        SchemaTooNewError: written by a newer version.
        InvalidInputError: the file of the copy exists.
        StorageError: the copy cannot be made.
        CorruptError: the database is damaged.
        SchemaError: there are triggers, something has a name that the new schema needs, or the
            migration lost rows; nothing was changed.
    """
    with _opened(where, "rw", timeout) as database:
        found = _revision(database, shared=share)
        if found is None and not share:
            raise _empty(database)
        if found is not None:
            _known(database)
        return _migrate(database, found, REVISION, backup=backup)


def downgrade(
    where: str | os.PathLike[str], revision: str, *, backup: bool = True, timeout: float = 60.0
) -> Migrated:
    """Bring a database back to an older schema, for an older version of this library.

    Either all of it happens or nothing, whatever ends the process.

    Args:
        where: The database.
        revision: The one to go back to.
        backup: Copy it first, to a file of its name and revision, e.g. ``run.db.0002.bak``.
        timeout: Seconds to wait for a lock that another process holds.

    Raises:
        NotFoundError: no store.
        InvalidInputError: not an older revision, or the file of the copy exists.
        SchemaError: something would be lost, because the older schema has no place for it, or a
            view or an index of yours needs what would go; nothing was changed.
        ForeignDatabaseError, SchemaTooNewError, StorageError, CorruptError: as `upgrade`.
    """
    with _opened(where, "rw", timeout) as database:
        found = _known(database)
        known = scripts.known()
        older = known[: known.index(found) + 1]
        if revision not in older:
            raise InvalidInputError(
                f"{database.name} has revision {found!r} and cannot go back to {revision!r}; give "
                f"one of {', '.join(map(repr, older))}"
            )
        return _migrate(database, found, revision, backup=backup)


# -- which revision ----------------------------------------------------------------


@contextmanager
def _opened(where: str | os.PathLike[str], mode: sqlite.Mode, timeout: float) -> Iterator[Database]:
    path = sqlite.locate(where)
    if path is None:
        raise NotFoundError(f"there is no store at {str(where)!r}")
    check_path(path, create=False)
    database = Database(path, mode=mode, timeout=timeout)
    try:
        yield database
    finally:
        database.close()


def _revision(
    database: Database, connection: Connection | None = None, *, shared: bool = False
) -> str | None:
    """Return the revision of the tables; None where there are none.

    Args:
        database: Where to look.
        connection: The transaction to look in; None for what has been committed.
        shared: Whether there may be tables of another program.
    """

    def rows(statement: Executable) -> list[Any]:
        return list(connection.execute(statement)) if connection else database.fetch(statement)

    tables = {name for (name,) in rows(_TABLES)} - {"sqlite_sequence"}
    if not tables or (shared and VERSION_TABLE not in tables):
        return None
    found = rows(_REVISION) if VERSION_TABLE in tables else []
    if len(found) != 1:
        raise ForeignDatabaseError(
            f"{database.name} is an SQLite database of another program (there is no revision in a "
            f"table {VERSION_TABLE!r}); give another path, or have a store beside its tables: "
            f"paramstore db upgrade --share {_quoted(database)}"
        )
    return str(found[0][0])


def _existing(database: Database) -> str:
    found = _revision(database)
    if found is None:
        raise _empty(database)
    return found


def _known(database: Database) -> str:
    """Return the revision of a store; refuse one that is newer than this library."""
    found = _existing(database)
    if found not in scripts.known():
        raise _other_version(database, found)
    return found


def _empty(database: Database) -> NotFoundError:
    return NotFoundError(f"{database.name} is empty: there is no store in it")


def _other_version(database: Database, found: str) -> SchemaError:
    if found in scripts.known():
        return SchemaTooOldError(
            f"{database.name} has revision {found!r}, this version of paramstore reads "
            f"{REVISION!r}; run: paramstore db upgrade {_quoted(database)}"
        )
    return SchemaTooNewError(
        f"{database.name} has revision {found!r}, which is newer than {REVISION!r}, the newest "
        f"that this version of paramstore knows; upgrade paramstore, or let the newer one bring "
        f"the file back: paramstore db downgrade {REVISION} {_quoted(database)}"
    )


def _quoted(database: Database) -> str:
    return shlex.quote(str(database.path))


# -- migrating ---------------------------------------------------------------------


def _create(database: Database) -> None:
    with database.write(foreign_keys=False) as connection:
        # Another process may have made tables while this one waited for the lock.
        if not {name for (name,) in connection.execute(_TABLES)} - {"sqlite_sequence"}:
            scripts.run(connection, REVISION)


def _migrate(database: Database, seen: str | None, after: str, *, backup: bool) -> Migrated:
    """Copy, migrate and compare under one lock, so that the copy is what was migrated."""
    assert database.path is not None
    kept: Path | None = None
    with database.write(foreign_keys=False) as connection:
        before = _revision(database, connection, shared=seen is None)
        if before not in (seen, after):
            raise StoreBusyError(f"{database.name}: another process migrates it; try again")
        if before != after:
            # A migration changes rows, at which a trigger would act.
            strangers.check_tables(database.name, strangers.objects(database))
            if before is None:
                check_names(database, connection, after)
            # The copy gets its name when all is done but the COMMIT, and is gone where it is not.
            with copied(database, database.path, before) if backup else nullcontext() as kept:
                change(database, connection, before, after)
    return Migrated(path=database.path, before=before, after=after, backup=kept)
