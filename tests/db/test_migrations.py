"""Upgrades and downgrades of a file: with a copy first, and whole or not at all."""

from __future__ import annotations

import lzma
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from drafts import Line
from sqlalchemy import Connection

from paramstore import errors
from paramstore.db import migrate, scripts, sqlite
from paramstore.db.backup import backup
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.db.schema import REVISION, VERSION_TABLE
from paramstore.testing import invariants

MUSEUM = Path(__file__).parents[1] / "museum"


@pytest.fixture(scope="session")
def first() -> bytes:
    """A store of the first revision."""
    return lzma.decompress((MUSEUM / "0001.db.xz").read_bytes())


@pytest.fixture
def old(path: Path, first: bytes) -> Path:
    path.write_bytes(first)
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def run(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statement)


# -- the copy ----------------------------------------------------------------------


def test_an_upgrade_copies_the_file_first(old: Path) -> None:
    before = dump(old)
    done = migrate.upgrade(old)
    assert done.backup == old.with_name("run.db.0001.bak")
    assert dump(done.backup) == before
    assert str(done) == f"{old}: 0001 → {REVISION}; as it was before: {done.backup}"
    assert list(old.parent.glob("*.bak*")) == [done.backup]


def test_the_copy_is_the_way_back(old: Path) -> None:
    done = migrate.upgrade(old)
    assert done.backup
    done.backup.replace(old)
    assert migrate.current(old) == ("0001", REVISION)
    assert migrate.upgrade(old).before == "0001"


def test_an_upgrade_without_a_copy_makes_none(old: Path) -> None:
    assert migrate.upgrade(old, backup=False).backup is None
    assert not list(old.parent.glob("*.bak*"))


def test_a_copy_that_exists_is_never_overwritten(old: Path) -> None:
    before = dump(old)
    copy = old.with_name("run.db.0001.bak")
    copy.write_text("precious")
    with pytest.raises(errors.InvalidInputError, match=r"0001\.bak' exists.*--no-backup"):
        migrate.upgrade(old)
    assert copy.read_text() == "precious"
    assert dump(old) == before


def test_where_there_is_nothing_to_do_nothing_is_copied(old: Path) -> None:
    migrate.upgrade(old, backup=False)
    done = migrate.upgrade(old)
    assert (done.before, done.after, done.backup) == (REVISION, REVISION, None)
    assert "nothing to do" in str(done)
    assert not list(old.parent.glob("*.bak*"))


def test_a_damaged_file_is_not_migrated(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'snapshot_params'"
        ).fetchone()
    with old.open("r+b") as file:
        file.seek((page - 1) * 65536 + 3)
        file.write(b"\xff\xff")  # how many rows the page has
    before = old.read_bytes()
    with pytest.raises(errors.CorruptError, match="salvage"):
        migrate.upgrade(old)
    assert old.read_bytes() == before
    assert not list(old.parent.glob("*.bak*"))


def test_a_trigger_of_a_stranger_s_does_not_act_at_an_upgrade(old: Path) -> None:
    run(old, f"CREATE TRIGGER t AFTER UPDATE ON {VERSION_TABLE} BEGIN DELETE FROM extras; END")
    before = dump(old)
    with pytest.raises(errors.SchemaError, match="trigger 't'"):
        migrate.upgrade(old)
    assert dump(old) == before
    assert not list(old.parent.glob("*.bak*"))


def test_references_that_lead_nowhere_are_damage_and_not_the_migration_s(old: Path) -> None:
    run(old, "INSERT INTO metrics VALUES (999, 'x', 1.0)")
    with pytest.raises(errors.CorruptError, match=r"references of 'metrics' lead nowhere; salvage"):
        migrate.upgrade(old)
    assert not list(old.parent.glob("*.bak*"))


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("DELETE FROM tags WHERE name = 'warm'", "rows of 'tags'"),
        ("DROP TABLE tags", "rows of 'tags'"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'blobs'", "ids of 'blobs'"),
        ("UPDATE metrics SET snapshot_id = 999 WHERE name = 'nan'", "references of 'metrics'"),
    ],
)
def test_a_migration_that_would_lose_something_is_undone(
    old: Path, monkeypatch: pytest.MonkeyPatch, statement: str, lost: str
) -> None:
    migrate_well = scripts.run

    def lose(connection: Connection, revision: str, *, down: bool = False) -> None:
        migrate_well(connection, revision, down=down)
        if connection.exec_driver_sql("SELECT 1 FROM snapshots").first():  # not the empty model
            connection.exec_driver_sql(statement)

    monkeypatch.setattr(scripts, "run", lose)
    before = dump(old)
    with pytest.raises(errors.SchemaError, match=f"'0002' would lose .*{lost}.*Nothing was"):
        migrate.upgrade(old)
    assert dump(old) == before
    assert not list(old.parent.glob("*.bak*"))


def test_nobody_commits_between_the_copy_and_the_upgrade(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_and_disturb(database: Database, path: Path) -> Path:
        made = backup(database, path)
        with closing(sqlite3.connect(old, timeout=0)) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("UPDATE scopes SET head_version = 77")
            assert other.execute("SELECT count(*) FROM snapshots").fetchone()[0] > 0
        return made

    monkeypatch.setattr("paramstore.db.transition.backup", copy_and_disturb)
    assert migrate.upgrade(old).backup


def test_of_many_who_upgrade_at_once_one_does_it(old: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(migrate.upgrade, [old] * 4))
    assert sorted(str(one.before) for one in done) == ["0001", *[REVISION] * 3]
    assert migrate.check(old) == ()


def test_an_upgrade_works_with_a_write_ahead_log(old: Path) -> None:
    run(old, "PRAGMA journal_mode=WAL")
    before = dump(old)
    done = migrate.upgrade(old)
    assert done.backup
    assert dump(done.backup) == before
    Database.open(old).close()


# -- there and back ----------------------------------------------------------------


def test_a_downgrade_that_would_lose_something_says_what_and_changes_nothing(old: Path) -> None:
    migrate.upgrade(old, backup=False)
    database = Database.open(old)
    Line(Repository(database), "new").commit({"w": "1"})
    database.close()
    before = dump(old)
    with pytest.raises(errors.SchemaError, match=r"'0001' has no column 'origin'.* 1 times"):
        migrate.downgrade(old, "0001")
    assert dump(old) == before
    assert {file.name for file in old.parent.iterdir()} == {"run.db", "run.db-journal"}
    run(old, "UPDATE snapshots SET origin = NULL")
    assert migrate.downgrade(old, "0001", backup=False).after == "0001"


def test_a_downgrade_copies_the_file_first(old: Path) -> None:
    migrate.upgrade(old, backup=False)
    upgraded = dump(old)
    done = migrate.downgrade(old, "0001")
    assert done.backup == old.with_name(f"run.db.{REVISION}.bak")
    assert dump(done.backup) == upgraded
    assert migrate.current(old).found == "0001"


def test_who_has_a_store_open_that_is_downgraded_is_not_told_of_damage_alone(old: Path) -> None:
    migrate.upgrade(old, backup=False)
    database = Database.open(old)
    migrate.downgrade(old, "0001", backup=False)
    with pytest.raises(errors.DatabaseError, match="another process has migrated the store"):
        Repository(database).latest("main")
    with pytest.raises(errors.DatabaseError, match="another process has migrated the store"):
        Line(Repository(database), "new").commit({"w": "1"})
    database.close()
    assert migrate.upgrade(old, backup=False).after == REVISION


def test_a_view_of_the_user_s_outlives_an_upgrade_and_a_downgrade(old: Path) -> None:
    run(old, "CREATE VIEW mine AS SELECT scope, version FROM v_snapshots")
    migrate.upgrade(old, backup=False)
    migrate.downgrade(old, "0001", backup=False)
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (
            connection.execute("SELECT count(*) FROM snapshots").fetchone()
        )


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE VIEW v_tags AS SELECT 1", "'0002': view v_tags already exists"),
        ("ALTER TABLE snapshots ADD COLUMN origin TEXT", "'0002': duplicate column name: origin"),
    ],
)
def test_what_is_in_the_way_of_an_upgrade_is_named(old: Path, statement: str, said: str) -> None:
    run(old, statement)
    before = dump(old)
    with pytest.raises(errors.SchemaError, match=f"{said}.*Drop what.*Nothing was changed"):
        migrate.upgrade(old)
    assert dump(old) == before
    assert not list(old.parent.glob("*.bak*"))


@pytest.mark.parametrize(
    "statement",
    ["CREATE INDEX mine ON snapshots (origin)", "CREATE VIEW mine AS SELECT * FROM v_metrics"],
)
def test_what_is_in_the_way_of_a_downgrade_is_named(old: Path, statement: str) -> None:
    migrate.upgrade(old, backup=False)
    run(old, statement)
    before = dump(old)
    with pytest.raises(errors.SchemaError, match=r"'0001': error in .* mine.*Nothing was changed"):
        migrate.downgrade(old, "0001", backup=False)
    assert dump(old) == before


@pytest.mark.parametrize("revision", ["9999", "base", "", "head"])
def test_a_downgrade_goes_to_an_older_revision_only(old: Path, revision: str) -> None:
    migrate.upgrade(old, backup=False)
    with pytest.raises(errors.InvalidInputError, match="'0001', '0002'"):
        migrate.downgrade(old, revision)


def test_a_downgrade_is_no_upgrade(old: Path) -> None:
    with pytest.raises(errors.InvalidInputError, match="give one of '0001'"):
        migrate.downgrade(old, REVISION)
    assert migrate.downgrade(old, "0001").backup is None


def test_a_downgrade_of_a_newer_file_is_the_newer_version_s(old: Path) -> None:
    run(old, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    for verb in (migrate.upgrade, migrate.check, lambda p: migrate.downgrade(p, "0001")):
        with pytest.raises(
            errors.SchemaTooNewError, match=f"'9999'.*{REVISION!r}.*downgrade {REVISION} {old}"
        ):
            verb(old)
    assert migrate.current(old) == ("9999", REVISION)
    assert "9999" in str(migrate.current(old))


# -- drift -------------------------------------------------------------------------

ALTERATIONS = {
    "DROP VIEW v_tags": "view 'v_tags' is missing",
    "DROP TABLE extras": "table 'extras' is missing",
    "DROP INDEX uq_blobs_digest": "index 'uq_blobs_digest' is missing",
    "CREATE INDEX fast ON param_versions (param_id)": "index 'fast' on 'param_versions' has been",
    "CREATE TRIGGER t AFTER INSERT ON tags BEGIN SELECT 1; END": "trigger 't' on 'tags' has been",
    "ALTER TABLE tags ADD COLUMN why TEXT": "table 'tags' has been altered: CREATE TABLE tags",
    "DROP VIEW v_sizes; CREATE VIEW v_sizes AS SELECT 1": "view 'v_sizes' has been altered",
}


@pytest.mark.parametrize("statement", ALTERATIONS)
def test_a_check_names_what_the_migrations_do_not_make(old: Path, statement: str) -> None:
    migrate.upgrade(old, backup=False)
    run(old, statement)
    (found,) = migrate.check(old)
    assert found.startswith(ALTERATIONS[statement])


def test_a_check_leaves_tables_and_views_of_others_alone(old: Path) -> None:
    run(old, "CREATE TABLE mine (id); CREATE INDEX i ON mine (id); CREATE VIEW v AS SELECT 1")
    assert migrate.check(old) == ()


def test_neither_current_nor_check_writes(old: Path, first: bytes) -> None:
    old.chmod(0o444)
    old.parent.chmod(0o555)
    try:
        assert migrate.current(old).found == "0001"
        assert migrate.check(old) == ()
    finally:
        old.parent.chmod(0o755)
    assert old.read_bytes() == first


@pytest.mark.parametrize("verb", [migrate.current, migrate.check, migrate.upgrade])
def test_what_is_no_store_is_refused(path: Path, verb: Callable[[Path], object]) -> None:
    with pytest.raises(errors.NotFoundError):
        verb(path)
    path.touch()
    with pytest.raises(errors.NotFoundError):
        verb(path)
    path.write_text("not a database, and long enough for nobody to take it for one " * 9)
    with pytest.raises(errors.NotADatabaseError):
        verb(path)


# -- killed ------------------------------------------------------------------------


def killed_at(statement: int, work: Callable[[], object]) -> bool:
    """Do it in a fork that is killed before that statement; whether it had one so late."""
    child = os.fork()
    if child == 0:
        os._exit(_work_until(statement, work))
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _work_until(statement: int, work: Callable[[], object]) -> int:
    left = statement
    connect = sqlite.connect

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(path: Path | None, mode: sqlite.Mode) -> sqlite3.Connection:
        connection = connect(path, mode)
        if path is not None:
            connection.set_trace_callback(count)
        return connection

    sqlite.connect = watched
    try:
        work()
    except BaseException:  # noqa: BLE001  # nothing may leave the fork
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def test_an_upgrade_that_is_killed_leaves_the_old_store_or_the_new_one(
    path: Path, first: bytes, full: bool
) -> None:
    path.write_bytes(first)
    before = dump(path)
    migrate.upgrade(path, backup=False)
    after = dump(path)
    copy = path.with_name("run.db.0001.bak")
    outcomes = set()
    step, statement = 1 if full else 13, 1
    while True:
        path.write_bytes(first)
        copy.unlink(missing_ok=True)
        if not killed_at(statement, lambda: migrate.upgrade(path)):
            break
        found = dump(path)
        assert found in (before, after), statement
        outcomes.add((found == before, copy.exists()))
        assert not copy.exists() or dump(copy) == before, statement
        copy.unlink(missing_ok=True)
        done = migrate.upgrade(path)
        assert (done.before == "0001") == (found == before)
        assert dump(path) == after
        statement += step
    # The copy gets its name last; tests/faults/test_killed_migrations.py hits that, too.
    assert (True, False) in outcomes
    assert statement > 50
    invariants.check(path)


def test_a_downgrade_that_is_killed_leaves_the_new_store_or_the_old_one(
    path: Path, first: bytes, full: bool
) -> None:
    path.write_bytes(first)
    old = dump(path)
    migrate.upgrade(path, backup=False)
    upgraded, new = path.read_bytes(), dump(path)
    step, statement = 1 if full else 17, 1
    while killed_at(statement, lambda: migrate.downgrade(path, "0001", backup=False)):
        assert sorted(dump(path)) in (sorted(new), sorted(old)), statement
        path.write_bytes(upgraded)
        statement += step
    assert sorted(dump(path)) == sorted(old)
    assert statement > 30
