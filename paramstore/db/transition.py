"""One change of the schema: with a copy of what was, and a comparison with what is.

Works inside a transaction of its caller's; must never commit it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, func, select, table, text
from sqlalchemy.exc import OperationalError

from paramstore.db import scripts
from paramstore.db.backup import backup
from paramstore.db.border import error_code
from paramstore.db.drift import clashes
from paramstore.db.engine import Database
from paramstore.errors import CorruptError, ForeignDatabaseError, InvalidInputError, SchemaError
from paramstore.files import new_file

_INTEGRITY: Final = text("PRAGMA integrity_check(1)")
_TABLES: Final = text("SELECT name FROM sqlite_master WHERE type = 'table'")
_NEWEST_IDS: Final = text("SELECT name, seq FROM sqlite_sequence")


@contextmanager
def copied(database: Database, path: Path, revision: str | None) -> Iterator[Path]:
    """Copy a database into a new file beside it, which is there when the block ends well.

    Raises:
        InvalidInputError: the file exists.
        StorageError: it cannot be written.
        CorruptError: what was copied is damaged.
    """
    target = path.with_name(f"{path.name}.{revision or 'no-store'}.bak")
    if target.exists():
        raise InvalidInputError(
            f"{str(target)!r} exists, perhaps from a migration that was interrupted: move it away, "
            f"or keep it as the backup and pass backup=False (--no-backup). Nothing was changed"
        )
    with new_file(target) as draft:
        _check_copy(database, backup(database, draft))
        yield target


def _check_copy(database: Database, path: Path) -> None:
    copied = Database(path, mode="rw", timeout=database.timeout)
    try:
        problems = [line for (line,) in copied.fetch(_INTEGRITY) if line != "ok"]
    finally:
        copied.close()
    if problems:
        raise CorruptError(
            f"{database.name} is damaged: {problems[0]}; salvage it before you migrate. Nothing "
            f"was changed"
        )


def check_names(database: Database, connection: Connection, revision: str) -> None:
    """Refuse a database in which something of another program has a name that a store needs.

    Raises:
        ForeignDatabaseError: names all of it.
    """
    if taken := clashes(scripts.made_in(connection), scripts.made_by(revision)):
        raise ForeignDatabaseError(
            f"{database.name} cannot hold a store beside its own tables: it has something of the "
            f"names {', '.join(map(repr, taken))}, which the store needs. Nothing was changed"
        )


def change(database: Database, connection: Connection, before: str | None, after: str) -> None:
    """Migrate, and compare what is there with what was.

    Raises:
        SchemaError: something would be lost, or was; the transaction has to be rolled back.
    """
    made, wanted = scripts.made_by(before) if before else [], scripts.made_by(after)
    tables = [thing.name for thing in made if thing.kind == "table"]
    contents = _contents(connection, tables)
    _run(database, connection, before, after)
    now = _contents(connection, tables)
    lost = sorted(name for name, count in contents.items() if now.get(name, -1) < count)
    wanted = [thing for thing in wanted if thing.kind == "table"]
    dangling = [row for thing in wanted for row in _dangling(connection, thing)]
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
    except OperationalError as error:
        if error_code(error) != sqlite3.SQLITE_ERROR:
            raise
        raise SchemaError(
            f"{database.name} cannot be migrated to {after!r}: {error.orig}. Drop what is in the "
            f"way, or does not work, and make it again after that. Nothing was changed"
        ) from error


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
