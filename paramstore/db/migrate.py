"""Brings a database to the schema of this version of the library, and refuses any other.

Imports alembic only when there is something to migrate; must never create a table itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Executable, Select, column, func, select, table, text

from paramstore.db import scripts, sqlite, strangers
from paramstore.db.backup import backup as back_up
from paramstore.db.drift import clashes, drift
from paramstore.db.engine import Database
from paramstore.db.schema import REVISION, VERSION_TABLE
from paramstore.errors import (
    CorruptError,
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
_INTEGRITY: Final = text("PRAGMA integrity_check(1)")
_NEWEST_IDS: Final = text("SELECT name, seq FROM sqlite_sequence")


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
        SchemaError: there are triggers, or the migration lost rows; nothing was changed.
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
        SchemaError: something would be lost, because the older schema has no place for it; nothing
            was changed.
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
    if path is None or not path.exists():
        raise NotFoundError(f"there is no store at {str(where)!r}")
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
            f"paramstore db upgrade --share {database.path}"
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
            f"{REVISION!r}; run: paramstore db upgrade {database.path}"
        )
    return SchemaTooNewError(
        f"{database.name} has revision {found!r}, which is newer than {REVISION!r}, the newest "
        f"that this version of paramstore knows; upgrade paramstore, or let the newer one bring "
        f"the file back: paramstore db downgrade {database.path} {REVISION}"
    )


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
            kept = _copy(database, database.path, before) if backup else None
            _change(database, connection, before, after)
    return Migrated(path=database.path, before=before, after=after, backup=kept)


def _copy(database: Database, path: Path, revision: str | None) -> Path:
    target = path.with_name(f"{path.name}.{revision or 'no-store'}.bak")
    if target.exists():
        raise InvalidInputError(
            f"{str(target)!r} exists, perhaps from a migration that was interrupted: move it away, "
            f"or keep it as the backup and pass backup=False (--no-backup). Nothing was changed"
        )
    back_up(database, target)
    copied = Database(target, mode="rw", timeout=database.timeout)
    try:
        problems = [line for (line,) in copied.fetch(_INTEGRITY) if line != "ok"]
    finally:
        copied.close()
    if problems:
        raise CorruptError(
            f"{database.name} is damaged: {problems[0]}. Its copy {str(target)!r} stays; salvage "
            f"one of them before you migrate. Nothing was changed"
        )
    return target


def _change(database: Database, connection: Connection, before: str | None, after: str) -> None:
    made, wanted = scripts.made_by(before) if before else [], scripts.made_by(after)
    if before is None and (taken := clashes(scripts.made_in(connection), wanted)):
        raise ForeignDatabaseError(
            f"{database.name} cannot hold a store beside its own tables: it has something of the "
            f"names {', '.join(map(repr, taken))}, which the store needs. Nothing was changed"
        )
    tables = [thing.name for thing in made if thing.kind == "table"]
    contents = _contents(connection, tables)
    _run(database, connection, before, after)
    now = _contents(connection, tables)
    lost = sorted(name for name, count in contents.items() if now.get(name, -1) < count)
    dangling = [
        row for made in wanted if made.kind == "table" for row in _dangling(connection, made)
    ]
    if lost or dangling:
        raise SchemaError(
            f"{database.name}: the migration to {after!r} lost rows of {lost} and left "
            f"{len(dangling)} dangling references; nothing was changed"
        )


def _run(database: Database, connection: Connection, before: str | None, after: str) -> None:
    from alembic.util import CommandError

    known = scripts.known()
    down = before is not None and known.index(after) < known.index(before)
    try:
        scripts.run(connection, after, down=down)
    except CommandError as error:
        raise SchemaError(f"{database.name}: {error}. Nothing was changed") from error


def _contents(connection: Connection, tables: list[str]) -> dict[str, int]:
    """Count the rows of tables that exist, and tell the newest id that each has ever had."""
    existing = {name for (name,) in connection.execute(_TABLES)}.intersection(tables)
    counts = {name: select(func.count()).select_from(table(name)) for name in existing}
    found = {name: connection.execute(count).scalar_one() for name, count in counts.items()}
    if existing:
        newest = connection.execute(_NEWEST_IDS).all()
        found |= {f"ids of {name}": seq for name, seq in newest if name in existing}
    return found


def _dangling(connection: Connection, made: scripts.Made) -> list[Any]:
    return list(connection.execute(text(f'PRAGMA foreign_key_check("{made.name}")')))
