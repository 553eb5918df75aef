from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from drafts import Line
from sqlalchemy import create_engine

from paramstore import errors
from paramstore.db import migrate, scripts
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.db.schema import REVISION, VERSION_TABLE, metadata
from paramstore.db.views import create_views
from paramstore.testing import invariants

ROOT = Path(__file__).parents[2]
NOT_TO_BE_CREATED: list[dict[str, Any]] = [{"create": False}, {"readonly": True}]


def statements(connection: sqlite3.Connection) -> dict[str, str]:
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        name: " ".join(sql.split())  # a column that came later stands on the line of another
        for name, sql in rows
        if name not in (VERSION_TABLE, "sqlite_sequence")
    }


def test_the_migrations_make_what_the_schema_describes(file: Database) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as described:
        metadata.create_all(described)
        for view in create_views("sqlite"):
            described.exec_driver_sql(view)
        raw = described.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        expected = statements(raw)
    engine.dispose()
    assert file.outside_transaction(statements) == expected


def test_a_database_in_memory_takes_the_same_path(file: Database) -> None:
    memory = Database.memory()
    assert memory.outside_transaction(statements) == file.outside_transaction(statements)
    memory.close()


def test_a_commit_meets_no_index_that_it_does_not_append_to(file: Database) -> None:
    found = file.outside_transaction(
        lambda c: c.execute(
            "SELECT tbl_name, sql FROM sqlite_master WHERE type = 'index'"
        ).fetchall()
    )
    indexed = {name for name, _ in found}
    assert not indexed & {"param_versions", "snapshot_params", "chunks", "metrics", "extras"}
    assert [sql for name, sql in found if name == "blobs"] == [
        "CREATE UNIQUE INDEX uq_blobs_digest ON blobs (digest) WHERE nbytes >= 65536"
    ]


def test_rows_whose_ids_must_not_come_back_have_a_sequence(file: Database) -> None:
    made = file.outside_transaction(statements)
    for name in ("snapshots", "params", "param_versions", "constraints", "blobs"):
        assert "id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT" in made[name]
    assert not [name for name, sql in made.items() if "BIGINT" in sql or "CASCADE" in sql]


def in_new_process(code: str, *arguments: str) -> str:
    """Run Python code in a fresh interpreter that finds the package where this one does."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_opening_a_store_imports_neither_alembic_nor_torch(path: Path) -> None:
    code = (
        "import sys; from paramstore.db.engine import Database; Database.open(sys.argv[1]).close();"
        "print(*sorted({'alembic', 'torch', 'numpy', 'safetensors'} & sys.modules.keys()))"
    )
    assert in_new_process(code, str(path)).split() == ["alembic"]
    assert in_new_process(code, str(path)).split() == []


# -- databases that are not of this version ----------------------------------------


def set_revision(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = ?", (revision,))
        connection.commit()


@pytest.fixture
def stored(file: Database, path: Path) -> Path:
    """A store with one snapshot."""
    Line(Repository(file)).commit({"w": "1"})
    file.close()
    return path


def test_a_newer_database_is_refused_naming_both_revisions(stored: Path) -> None:
    set_revision(stored, "9999")
    for readonly in (False, True):
        with pytest.raises(errors.SchemaTooNewError, match=f"'9999'.*{REVISION!r}"):
            Database.open(stored, readonly=readonly)
    with pytest.raises(errors.SchemaTooNewError):
        migrate.upgrade(stored)


def test_an_older_database_names_the_command_to_run(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "REVISION", "0003")
    with pytest.raises(errors.SchemaTooOldError, match=f"paramstore db upgrade {stored}"):
        Database.open(stored)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE scopes (id INTEGER)",
        f"CREATE TABLE {VERSION_TABLE} (version_num TEXT)",
    ],
)
def test_a_database_of_another_program_is_refused_and_left_alone(
    path: Path, statement: str
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
    before = path.read_bytes()
    with pytest.raises(errors.ForeignDatabaseError, match=r"run\.db"):
        Database.open(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store_only_when_it_may(path: Path) -> None:
    path.touch()
    for options in NOT_TO_BE_CREATED:
        with pytest.raises(errors.NotFoundError, match="is empty"):
            Database.open(path, **options)
    with pytest.raises(errors.NotFoundError, match="is empty"):
        migrate.upgrade(path)
    Database.open(path).close()
    Database.open(path, readonly=True, create=False).close()


# -- upgrades ----------------------------------------------------------------------


def test_there_is_nothing_to_upgrade_where_there_is_no_file(path: Path) -> None:
    for where in (path, ":memory:"):
        with pytest.raises(errors.NotFoundError, match="no store"):
            migrate.upgrade(where)
    assert not path.exists()


@pytest.fixture
def next_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the next migration, whose upgrade the test writes."""
    folder = tmp_path / "100% migrations"
    shutil.copytree(scripts.folder(), folder)
    monkeypatch.setattr(scripts, "folder", lambda: folder)
    monkeypatch.setattr(migrate, "REVISION", "0003")
    return folder / "versions" / "0003_next.py"


NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

def upgrade():
    {body}
"""


def test_an_upgrade_keeps_every_row_and_then_opens(stored: Path, next_revision: Path) -> None:
    body = 'op.add_column("snapshots", sa.Column("author", sa.Text))'
    next_revision.write_text(NEXT.format(body=body))
    with pytest.raises(errors.SchemaTooOldError):
        Database.open(stored)
    assert migrate.upgrade(stored).before == "0002"
    database = Database.open(stored)
    assert Repository(database).head_version("main") == 1
    assert database.outside_transaction(lambda c: c.execute("PRAGMA foreign_keys").fetchone()) == (
        1,
    )
    database.close()
    assert migrate.upgrade(stored).before == "0003"


def test_a_batch_migration_of_a_parent_table_keeps_its_children(
    stored: Path, next_revision: Path
) -> None:
    body = (
        'for view in ("v_snapshots", "v_history", "v_sizes", "v_metrics", "v_tags"):\n'
        '        op.execute(f"DROP VIEW {view}")\n'
        '    with op.batch_alter_table("snapshots", recreate="always", '
        'table_kwargs={"sqlite_autoincrement": True}) as batch:\n'
        '        batch.add_column(sa.Column("author", sa.Text))'
    )
    next_revision.write_text(NEXT.format(body=body))
    migrate.upgrade(stored)
    database = Database.open(stored)
    repository = Repository(database)
    head = repository.head("main")
    assert head is not None
    assert list(repository.manifest(head).entries) == ["w"]
    assert "AUTOINCREMENT" in database.outside_transaction(statements)["snapshots"]
    database.close()


@pytest.mark.parametrize(
    "body",
    [
        'op.execute("DELETE FROM chunks")',
        'op.execute("UPDATE snapshots SET scope_id = 77")',
        'op.execute("DROP TABLE nothing")',
        'op.execute("DELETE FROM chunks"); raise ZeroDivisionError',
        'op.execute("DROP VIEW v_sizes"); op.execute("DROP TABLE tags")',
        "op.execute(\"UPDATE sqlite_sequence SET seq = 0 WHERE name = 'blobs'\")",
    ],
)
def test_a_migration_that_loses_something_changes_nothing(
    stored: Path, next_revision: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    next_revision.write_text(NEXT.format(body=body))
    with pytest.raises((errors.DatabaseError, ZeroDivisionError)):
        migrate.upgrade(stored)
    monkeypatch.undo()
    invariants.check(stored)


def test_a_file_of_the_future_is_refused_naming_both_revisions_and_left_alone(
    stored: Path, next_revision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        'op.add_column("snapshots", sa.Column("author", sa.Text)); op.execute("CREATE TABLE t (i)")'
    )
    next_revision.write_text(NEXT.format(body=body))
    migrate.upgrade(stored, backup=False)
    monkeypatch.undo()
    before = stored.read_bytes()
    verbs: list[Callable[[Path], object]] = [
        Database.open,
        migrate.upgrade,
        migrate.check,
        lambda path: migrate.downgrade(path, "0001"),
    ]
    for verb in verbs:
        with pytest.raises(errors.SchemaTooNewError, match=f"'0003'.*{REVISION!r}"):
            verb(stored)
    assert migrate.current(stored) == ("0003", REVISION)
    assert stored.read_bytes() == before


def test_the_migrations_are_found_beside_or_inside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (scripts.folder() / "env.py").is_file()
    package = tmp_path / "paramstore"
    (package / "db").mkdir(parents=True)
    monkeypatch.setattr(scripts, "__file__", str(package / "db" / "scripts.py"))
    assert scripts.folder() == tmp_path / "migrations"
    (package / "_migrations").mkdir()
    assert scripts.folder() == package / "_migrations"


def test_a_migration_never_imports_the_package() -> None:
    for script in (scripts.folder() / "versions").glob("*.py"):
        assert "paramstore" not in script.read_text().replace("paramstore_", "")
