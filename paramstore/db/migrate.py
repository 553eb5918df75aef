"""Brings a database to the schema of this version of the library, and refuses any other.

Imports alembic only when there is something to migrate; must never create a table itself.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Select, column, func, select, table, text

from paramstore.db import sqlite
from paramstore.db.engine import Database
from paramstore.db.schema import REVISION, VERSION_TABLE
from paramstore.errors import (
    ForeignDatabaseError,
    NotFoundError,
    SchemaError,
    SchemaTooNewError,
    SchemaTooOldError,
)

if TYPE_CHECKING:
    from alembic.config import Config

_TABLES: Final = text("SELECT name FROM sqlite_master WHERE type = 'table'")
_REVISION: Final[Select[Any]] = select(column("version_num")).select_from(table(VERSION_TABLE))

# Alembic keeps the running migration in module-level names, so one thread at a time.
_alembic = threading.Lock()


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
        _migrate(database, from_empty=True)
        found = _revision(database)
    if found is None:
        raise NotFoundError(f"{database.name} is empty: there is no store in it")
    if found != REVISION:
        raise _other_version(database, found)


def upgrade(where: str | os.PathLike[str], *, timeout: float = 60.0) -> str:
    """Bring the database of an older version of this library to the present schema.

    Returns:
        The revision that was found.

    Raises:
        NotFoundError: nothing to upgrade.
        SchemaTooNewError: written by a newer version.
        SchemaError: the migration lost rows; nothing was changed.
    """
    path = sqlite.locate(where)
    if path is None or not path.exists():
        raise NotFoundError(f"there is no store at {str(where)!r}")
    database = Database(path, mode="rw", timeout=timeout)
    try:
        found = _revision(database)
        if found is None:
            raise NotFoundError(f"{database.name} is empty: there is no store in it")
        if found != REVISION and not _is_known(found):
            raise _other_version(database, found)
        _migrate(database, from_empty=False)
        return found
    finally:
        database.close()


def scripts() -> Path:
    """Return the folder of the migrations: inside the installed package, or beside it."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def _revision(database: Database) -> str | None:
    """Return the revision of the tables; None where there are none."""
    tables = {name for (name,) in database.fetch(_TABLES)} - {"sqlite_sequence"}
    if not tables:
        return None
    found = database.fetch(_REVISION) if VERSION_TABLE in tables else []
    if len(found) != 1:
        raise ForeignDatabaseError(
            f"{database.name} is an SQLite database of another program (there is no revision in a "
            f"table {VERSION_TABLE!r}); give another path"
        )
    return str(found[0][0])


def _migrate(database: Database, *, from_empty: bool) -> None:
    with database.write(foreign_keys=False) as connection:
        before = _row_counts(connection)
        # Another process may have made tables while this one waited for the lock.
        if from_empty and before.keys() - {"sqlite_sequence"}:
            return
        _run(connection)
        _check(database, connection, before)


def _run(connection: Connection) -> None:
    from alembic import command

    with _alembic:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, REVISION)


def _check(database: Database, connection: Connection, before: dict[str, int]) -> None:
    after = _row_counts(connection)
    lost = [name for name, rows in before.items() if after.get(name, rows) < rows]
    dangling = connection.execute(text("PRAGMA foreign_key_check")).all()
    if lost or dangling:
        raise SchemaError(
            f"{database.name}: the migration to {REVISION} lost rows of {sorted(lost)} and left "
            f"{len(dangling)} dangling references; nothing was changed"
        )


def _row_counts(connection: Connection) -> dict[str, int]:
    names = [name for (name,) in connection.execute(_TABLES)]
    counts = {name: select(func.count()).select_from(table(name)) for name in names}
    return {name: connection.execute(count).scalar_one() for name, count in counts.items()}


def _other_version(database: Database, found: str) -> SchemaError:
    if _is_known(found):
        return SchemaTooOldError(
            f"{database.name} has revision {found!r}, this version of paramstore reads "
            f"{REVISION!r}; back the file up and run: paramstore db upgrade {database.path}"
        )
    return SchemaTooNewError(
        f"{database.name} has revision {found!r}, which is newer than {REVISION!r}, the newest "
        f"that this version of paramstore knows; upgrade paramstore"
    )


def _is_known(revision: str) -> bool:
    from alembic.script import ScriptDirectory

    known = ScriptDirectory.from_config(_config()).walk_revisions()
    return any(script.revision == revision for script in known)


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic's options go through ConfigParser, to which a percent sign is special.
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
