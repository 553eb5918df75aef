"""Runs the migrations on the connection that the library hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from paramstore.db.schema import VERSION_TABLE, metadata


def run() -> None:
    connection = context.config.attributes.get("connection")
    if connection is None:
        raise SystemExit(
            "migrations run inside the library's own transaction: paramstore db upgrade PATH"
        )
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
