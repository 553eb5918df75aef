"""Runs the migrations: of the library in its own transaction, of developers on a scratch store."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from alembic import context
from sqlalchemy import Connection

from paramstore.db.engine import Database
from paramstore.db.schema import VERSION_TABLE, metadata


def main() -> None:
    connection = context.config.attributes.get("connection")
    if connection is not None:
        run(connection)
        return
    path = context.get_x_argument(as_dictionary=True).get("path")
    if path is None or context.is_offline_mode():
        raise SystemExit(
            "name a scratch store: alembic -x path=scratch.db …; a store that you care about is "
            "upgraded, with a copy first, by: paramstore db upgrade PATH"
        )
    with (
        closing(Database(Path(path).absolute(), mode="rwc", timeout=60)) as database,
        database.write(foreign_keys=False) as connection,
    ):
        run(connection)


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=True,
        # What else stands in a shared database is not ours to drop.
        include_name=lambda name, kind, _parents: kind != "table" or name in metadata.tables,
    )
    with context.begin_transaction():
        context.run_migrations()


main()
