"""The migration scripts: where they are, which revisions they know, and how they are run.

Imports alembic only when it is needed; must never open a database of the user's itself.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sqlalchemy import Connection, text

from paramstore.db.engine import Database

if TYPE_CHECKING:
    from alembic.config import Config

MADE: Final = text(
    "SELECT type, name, tbl_name, sql FROM sqlite_master "
    "WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
)

# Alembic keeps the running migration in module-level names, so one thread at a time.
_alembic = threading.Lock()


class Made(NamedTuple):
    """A table, view, index or trigger of a database."""

    kind: str
    """``table``, ``view``, ``index`` or ``trigger``."""
    name: str
    """Its name."""
    of: str
    """The table that an index or a trigger belongs to; of others their own name."""
    sql: str
    """The statement that makes it."""


def folder() -> Path:
    """Return the folder of the migrations: inside the installed package, or beside it."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def known() -> tuple[str, ...]:
    """Return the revisions that there is a migration for, the oldest first."""
    from alembic.script import ScriptDirectory

    newest_first = ScriptDirectory.from_config(_config()).walk_revisions()
    return tuple(script.revision for script in newest_first)[::-1]


def run(connection: Connection, revision: str, *, down: bool = False) -> None:
    """Migrate inside the transaction of ``connection``, which should check no foreign keys.

    Raises:
        CommandError: alembic's, with what a migration says that it would lose.
    """
    from alembic import command

    with _alembic:
        config = _config()
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)


def made_by(revision: str) -> list[Made]:
    """Return what the migrations up to a revision make in an empty database."""
    database = Database(None, mode="rwc", timeout=0.0)
    try:
        with database.write(foreign_keys=False) as connection:
            run(connection, revision)
            return made_in(connection)
    finally:
        database.close()


def made_in(connection: Connection) -> list[Made]:
    """Return everything that a database has apart from what SQLite makes itself."""
    return [Made(*row) for row in connection.execute(MADE)]


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    # Alembic's options go through ConfigParser, to which a percent sign is special.
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
