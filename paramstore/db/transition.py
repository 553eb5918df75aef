"""One change of the schema: with a copy of what was, and a comparison with what is.

Works inside a transaction of its caller's; must never commit it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

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
        CorruptError: references led nowhere before.
        SchemaError: something would be lost, or was; the transaction has to be rolled back.
    """
    made, wanted = _tables(before), _tables(after)
    if astray := _astray(connection, made):
        raise CorruptError(
            f"{database.name} is damaged: {', '.join(astray)} lead nowhere; salvage it before you "
            f"migrate. Nothing was changed"
        )
    contents = _contents(connection, made)
    _run(database, connection, before, after)
    now = _contents(connection, made)
    lost = sorted(what for what, count in contents.items() if now.get(what, -1) < count)
    if lost := lost or _astray(connection, wanted):
        raise SchemaError(
            f"{database.name}: the migration to {after!r} would lose {', '.join(lost)}. Nothing "
            f"was changed"
        )


def _tables(revision: str | None) -> list[str]:
    made = scripts.made_by(revision) if revision else []
    return [thing.name for thing in made if thing.kind == "table"]


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
    found = {f"rows of {n!r}": connection.execute(c).scalar_one() for n, c in counts.items()}
    if existing:
        newest = connection.execute(_NEWEST_IDS).all()
        found |= {f"ids of {name!r}": seq for name, seq in newest if name in existing}
    return found


def _astray(connection: Connection, tables: list[str]) -> list[str]:
    """Name the tables that refer to rows that do not exist."""
    checks = {name: text(f'PRAGMA foreign_key_check("{name}")') for name in tables}
    return [f"references of {n!r}" for n, c in checks.items() if connection.execute(c).first()]
