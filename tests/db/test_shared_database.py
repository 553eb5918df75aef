"""A store in the database of another program, which is another alembic project, too."""

from __future__ import annotations

import io
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from drafts import Line

from paramstore import errors
from paramstore.db import migrate
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.db.schema import REVISION
from paramstore.testing import invariants

DOCS = Path(__file__).parents[2] / "docs" / "upgrading.md"

ENV = """
from alembic import context
from sqlalchemy import Column, Integer, MetaData, Table, Text, create_engine, pool

target_metadata = MetaData()
Table("users", target_metadata, Column("id", Integer, primary_key=True), Column("name", Text))
options = {}
RECIPE
engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=target_metadata, **options)
    with context.begin_transaction():
        context.run_migrations()
"""
FIRST = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "aaaa", None

def upgrade():
    op.create_table("users", sa.Column("id", sa.Integer, primary_key=True))
    op.execute("INSERT INTO users (id) VALUES (1), (2)")
"""
SECOND = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "bbbb", "aaaa"

def upgrade():
    op.add_column("users", sa.Column("name", sa.Text))
"""


@pytest.fixture
def theirs(tmp_path: Path, path: Path) -> Config:
    """The alembic project of another program, at its first of two revisions."""
    versions = tmp_path / "theirs" / "versions"
    versions.mkdir(parents=True)
    (versions / "aaaa.py").write_text(FIRST)
    (versions / "bbbb.py").write_text(SECOND)
    (versions.parent / "env.py").write_text(ENV.replace("RECIPE", ""))
    config = Config(stdout=io.StringIO())
    config.set_main_option("script_location", str(versions.parent))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", f"sqlite:///{path}")
    command.upgrade(config, "aaaa")
    return config


def use_recipe(config: Config) -> None:
    """Write what the docs say into their env.py."""
    (recipe,) = re.findall(r"```python\n([^`]*def include_name[^`]*)```", DOCS.read_text())
    location = config.get_main_option("script_location")
    assert location
    given = f"{recipe}\noptions = {{'include_name': include_name}}"
    (Path(location) / "env.py").write_text(ENV.replace("RECIPE", given))


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(statement).fetchall()
        connection.commit()
    return found


def test_a_store_comes_into_the_database_of_another_program_only_when_told(
    theirs: Config, path: Path
) -> None:
    before = path.read_bytes()
    for verb in (Database.open, migrate.upgrade, migrate.current, migrate.check):
        with pytest.raises(errors.ForeignDatabaseError, match=f"upgrade --share {path}"):
            verb(path)
    assert path.read_bytes() == before
    done = migrate.upgrade(path, share=True)
    assert (done.before, done.after) == (None, REVISION)
    assert done.backup == path.with_name("run.db.no-store.bak")
    tables = rows(done.backup, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    assert tables == [("alembic_version",), ("users",)]
    assert migrate.check(path) == ()
    invariants.check(path)


def test_both_programs_go_on_by_themselves(theirs: Config, path: Path) -> None:
    migrate.upgrade(path, share=True)
    database = Database.open(path)
    line = Line(Repository(database))
    line.commit({"w": "1"})
    command.upgrade(theirs, "bbbb")
    line.commit({"w": "2"})
    database.close()
    assert rows(path, "SELECT * FROM users") == [(1, None), (2, None)]
    assert rows(path, "SELECT * FROM alembic_version") == [("bbbb",)]
    assert migrate.check(path) == ()
    invariants.check(path)


def test_their_autogenerate_leaves_a_store_alone_as_the_docs_say(
    theirs: Config, path: Path
) -> None:
    migrate.upgrade(path, share=True)
    command.upgrade(theirs, "head")
    with pytest.raises(CommandError, match="param_versions"):
        command.check(theirs)
    use_recipe(theirs)
    command.check(theirs)


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("CREATE TABLE Tags (id)", "Tags"),
        ("CREATE VIEW v_sizes AS SELECT 1", "v_sizes"),
        ("CREATE TABLE x (id); CREATE INDEX uq_blobs_digest ON x (id)", "uq_blobs_digest"),
    ],
)
def test_a_name_that_both_need_is_refused_before_anything_is_made(
    path: Path, statement: str, name: str
) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)
    before = path.read_bytes()
    with pytest.raises(errors.ForeignDatabaseError, match=f"names '{name}'.*Nothing was changed"):
        migrate.upgrade(path, share=True, backup=False)
    assert path.read_bytes() == before


def test_nothing_is_copied_for_a_database_that_cannot_be_shared(path: Path) -> None:
    rows(path, "CREATE TABLE tags (id)")
    with pytest.raises(errors.ForeignDatabaseError):
        migrate.upgrade(path, share=True)
    assert not list(path.parent.glob("*.bak*"))


def test_a_shared_store_is_upgraded_as_any_other(theirs: Config, path: Path) -> None:
    migrate.upgrade(path, share=True, backup=False)
    migrate.downgrade(path, "0001")
    assert migrate.current(path).found == "0001"
    assert migrate.upgrade(path).before == "0001"
    assert migrate.upgrade(path, share=True).before == REVISION
    assert rows(path, "SELECT count(*) FROM users") == [(2,)]


def test_references_of_theirs_that_lead_nowhere_are_their_own_affair(
    theirs: Config, path: Path
) -> None:
    rows(path, "CREATE TABLE badges (of_user INTEGER REFERENCES users (id))")
    rows(path, "INSERT INTO badges VALUES (77)")
    migrate.upgrade(path, share=True, backup=False)
    assert rows(path, "SELECT * FROM badges") == [(77,)]


def test_a_version_table_without_a_revision_is_not_shared(path: Path) -> None:
    rows(path, "CREATE TABLE paramstore_alembic_version (version_num TEXT)")
    with pytest.raises(errors.ForeignDatabaseError):
        migrate.upgrade(path, share=True)


def test_an_empty_file_can_be_a_store_before_the_other_program_comes(
    path: Path,
) -> None:
    path.touch()
    done = migrate.upgrade(path, share=True)
    assert done.before is None
    assert done.backup is not None
    assert not rows(done.backup, "SELECT * FROM sqlite_master")
    Database.open(path).close()
