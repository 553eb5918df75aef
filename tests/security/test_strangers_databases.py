"""A database from a stranger: whatever could act in it is refused by name before a row is read."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

import paramstore
from paramstore import ParamStoreError, SchemaError, StorageError
from paramstore.db import sqlite
from paramstore.db.engine import Database


@pytest.fixture
def made(path: Path) -> Path:
    """A store of two snapshots."""
    with paramstore.open(path) as store:
        store["x"] = torch.arange(3.0)
        store.commit(tags=["first"], metrics={"loss": 1.0})
        store["x"] = torch.ones(3)
        store.commit()
    return path


def run(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def rewrite(path: Path, name: str, old: str, new: str) -> None:
    """Change the text of the schema itself, as only a hostile program does."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        done = connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = ?", (old, new, name)
        )
        assert done.rowcount == 1
        (changed,) = connection.execute(
            "SELECT instr(sql, ?) FROM sqlite_master WHERE name = ?", (new, name)
        ).fetchone()
        assert changed
        connection.commit()


def reads(path: Path) -> None:
    with paramstore.open(path, readonly=True) as store:
        assert store["x"].tolist() == [1.0] * 3


TRIGGERS = {
    "on a table": "CREATE TRIGGER evil AFTER INSERT ON snapshots BEGIN DELETE FROM chunks; END",
    "on another table": "CREATE TRIGGER evil BEFORE DELETE ON chunks BEGIN SELECT 1; END",
    "in other letters": 'CREATE TRIGGER evil AFTER UPDATE ON "SCOPES" BEGIN SELECT 1; END',
    "on a view": "CREATE TRIGGER evil INSTEAD OF UPDATE ON v_sizes BEGIN SELECT 1; END",
    "on the revision": "CREATE TRIGGER evil AFTER UPDATE ON paramstore_alembic_version "
    "BEGIN SELECT 1; END",
}


@pytest.mark.parametrize("where", TRIGGERS)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_trigger_on_our_tables_is_refused_by_name(made: Path, where: str, readonly: bool) -> None:
    run(made, TRIGGERS[where])
    with pytest.raises(SchemaError, match="'evil'"):
        paramstore.open(made, readonly=readonly)


# What is put in, and where: each makes SQLite compute, or change more than it was told to.
TABLES = {
    "CHECK": ("scopes", "name TEXT NOT NULL", "name TEXT NOT NULL CHECK (length(name) > 0)"),
    "DEFAULT": ("scopes", "name TEXT NOT NULL", "name TEXT NOT NULL DEFAULT (hex(zeroblob(9)))"),
    "GENERATED": ("blobs", "dtype TEXT NOT NULL", "dtype TEXT GENERATED ALWAYS AS ('F64')"),
    "AS": ("blobs", "dtype TEXT NOT NULL", "dtype TEXT AS (hex(zeroblob(400000000)))"),
    "COLLATE": ("params", "name TEXT NOT NULL", "name TEXT NOT NULL COLLATE NOCASE"),
    "CASCADE": ("tags", "REFERENCES scopes (id)", "REFERENCES scopes (id) ON DELETE CASCADE"),
    "REPLACE": ("scopes", "UNIQUE (name)", "UNIQUE (name) ON CONFLICT REPLACE"),
    "revision": (
        "paramstore_alembic_version",
        "version_num VARCHAR(32) NOT NULL",
        "version_num VARCHAR(32) NOT NULL, x AS (zeroblob(900000000))",
    ),
}


@pytest.mark.parametrize("what", TABLES)
def test_a_table_of_ours_that_computes_something_is_refused_by_name(made: Path, what: str) -> None:
    name, old, new = TABLES[what]
    rewrite(made, name, old, new)
    with pytest.raises(SchemaError, match=f"'{name}'"):
        paramstore.open(made)


@pytest.mark.parametrize(
    "kind",
    [
        "CREATE VIEW scopes AS SELECT 1 AS id, 'main' AS name, 9 AS head_version, '' AS created_at",
        "CREATE VIRTUAL TABLE scopes USING fts5(id, name, head_version, created_at)",
        "CREATE VIEW paramstore_alembic_version AS WITH RECURSIVE r(version_num) AS (SELECT 1 "
        "UNION ALL SELECT version_num + 1 FROM r) SELECT version_num FROM r",
    ],
)
def test_a_view_or_virtual_table_in_the_place_of_a_table_is_refused(path: Path, kind: str) -> None:
    run(path, kind)
    for readonly in (False, True):
        with pytest.raises((SchemaError, paramstore.NotFoundError)):
            paramstore.open(path, readonly=readonly)


@pytest.mark.parametrize("name", ["v_history", "v_snapshots", "v_sizes"])
def test_an_altered_view_is_refused_by_name(made: Path, name: str) -> None:
    run(
        made,
        f"DROP VIEW {name}",
        f"CREATE VIEW {name} AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) "
        "SELECT x AS scope, x AS name, x AS version FROM r",
    )
    with pytest.raises(SchemaError, match=name):
        paramstore.open(made)


@pytest.mark.parametrize(
    "index",
    [
        "CREATE INDEX evil ON blobs (hex(digest))",
        "CREATE INDEX evil ON blobs (nbytes + 1)",
        "CREATE INDEX evil ON blobs (nbytes) WHERE nbytes > 3",
        "CREATE UNIQUE INDEX evil ON snapshots (kind, id)",
        "CREATE INDEX evil ON params (name COLLATE NOCASE)",
    ],
)
def test_an_index_that_computes_something_is_refused_by_name(made: Path, index: str) -> None:
    run(made, index)
    with pytest.raises(SchemaError, match="'evil'"):
        paramstore.open(made)


def test_an_altered_index_of_ours_is_refused(made: Path) -> None:
    rewrite(made, "uq_blobs_digest", "nbytes >= 65536", "length(zeroblob(9)) > 3")
    with pytest.raises(SchemaError, match="uq_blobs_digest"):
        paramstore.open(made)


def test_tables_triggers_and_views_of_another_program_may_stand_beside_ours(made: Path) -> None:
    run(
        made,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL DEFAULT 'x')",
        "CREATE TABLE runs (id INTEGER PRIMARY KEY, who TEXT CHECK (who <> ''), n AS (id + 1))",
        "CREATE TRIGGER theirs AFTER INSERT ON runs BEGIN DELETE FROM runs; END",
        "CREATE INDEX upper_who ON runs (upper(who))",
        "CREATE VIEW losses AS SELECT value FROM metrics",
        "CREATE INDEX faster ON snapshots (step, created_at DESC)",
    )
    reads(made)
    with paramstore.open(made) as store:
        assert store.commit().version == 3


def test_a_trigger_that_a_deletion_of_ours_would_reach_is_refused(made: Path) -> None:
    notes = "CREATE TABLE notes (snapshot INTEGER REFERENCES snapshots (id) ON DELETE CASCADE)"
    run(made, notes)
    reads(made)
    run(made, "CREATE TRIGGER evil AFTER DELETE ON notes BEGIN DELETE FROM scopes; END")
    with pytest.raises(SchemaError, match="'evil'"):
        paramstore.open(made)


def test_names_that_act_on_a_terminal_are_escaped_in_the_refusal(made: Path) -> None:
    run(made, 'CREATE TRIGGER "\x1b[2J\n\u202eevil" AFTER INSERT ON tags BEGIN SELECT 1; END')
    with pytest.raises(SchemaError, match="evil") as caught:
        paramstore.open(made)
    assert str(caught.value).isprintable()


# -- SQLite's own doors ----------------------------------------------------------------------------


def test_no_connection_loads_extensions_or_trusts_the_schema(made: Path) -> None:
    modes: tuple[sqlite.Mode, ...] = ("ro", "rw", "rwc")
    for mode in modes:
        with closing(sqlite.connect(made, mode)) as connection:
            assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
            assert connection.execute("PRAGMA writable_schema").fetchone() == (0,)
            with pytest.raises(sqlite3.OperationalError, match="not authorized"):
                connection.execute("SELECT load_extension('nothing')")


def test_statistics_for_the_planner_that_lie_are_harmless(made: Path) -> None:
    lies = [("snapshot_params", None, "-1 0 99999999999999999999"), ("chunks", "x\x1b", "1 " * 999)]
    with closing(sqlite3.connect(made)) as connection:
        connection.execute("ANALYZE")
        connection.executemany("INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", lies)
        connection.commit()
    reads(made)
    with paramstore.open(made) as store:
        assert len(store.history("x")) == 2


def test_counters_that_have_run_out_are_an_error_and_not_a_reused_row(made: Path) -> None:
    run(made, f"UPDATE sqlite_sequence SET seq = {2**63 - 1}")
    with paramstore.open(made) as store:
        store["x"] = torch.zeros(3)
        with pytest.raises(ParamStoreError):
            store.commit()
        assert store.at(2)["x"].tolist() == [1.0] * 3


def test_a_schema_that_sqlite_cannot_parse_is_a_printable_error(made: Path) -> None:
    rewrite(made, "scopes", "CREATE TABLE scopes", "CREATE TABLE \x1b[2Jscopes")
    with pytest.raises(ParamStoreError) as caught:
        paramstore.open(made)
    assert str(caught.value).isprintable()


# -- what is no file -------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Paths that exist and hold no database."""
    found = {name: tmp_path / name for name in ("pipe", "folder", "loop", "socket", "dangling")}
    os.mkfifo(found["pipe"])
    found["folder"].mkdir()
    found["loop"].symlink_to(found["loop"])
    found["dangling"].symlink_to(tmp_path / "no" / "such")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(found["socket"]))
        yield found | {"zero": Path("/dev/zero"), "null": Path("/dev/null")}


ODD = ["pipe", "folder", "loop", "socket", "zero", "null", "dangling"]


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_file_is_refused_as_a_store(odd: dict[str, Path], what: str) -> None:
    for readonly in (False, True):
        with pytest.raises(ParamStoreError, match=Path(os.path.realpath(odd[what])).name) as caught:
            Database.open(odd[what], readonly=readonly)
        assert isinstance(caught.value, StorageError | paramstore.NotFoundError)


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_file_is_refused_as_a_parameter_file(odd: dict[str, Path], what: str) -> None:
    with pytest.raises(ParamStoreError, match=what):
        paramstore.ParamStoreDict().load(str(odd[what]))


@pytest.mark.parametrize("what", ["pipe", "folder", "socket", "zero", "null"])
def test_what_is_no_file_is_not_replaced_by_a_parameter_file(
    odd: dict[str, Path], what: str
) -> None:
    kind = odd[what].stat().st_mode
    store = paramstore.ParamStoreDict()
    store["x"] = torch.zeros(1)
    with pytest.raises(ParamStoreError, match=what):
        store.save(str(odd[what]))
    assert odd[what].stat().st_mode == kind


def test_an_empty_file_becomes_a_store_only_where_that_was_asked_for(path: Path) -> None:
    path.touch()
    for ask in ({"readonly": True}, {"create": False}):
        with pytest.raises(paramstore.NotFoundError):
            paramstore.open(path, **ask)  # type: ignore[arg-type]
    assert path.stat().st_size == 0
    paramstore.open(path).close()
    assert path.stat().st_size > 0


def test_a_huge_sparse_file_is_refused_at_once(tmp_path: Path, made: Path) -> None:
    empty, padded = tmp_path / "empty.db", tmp_path / "padded.db"
    empty.touch()
    shutil.copy(made, padded)
    for file in (empty, padded):
        os.truncate(file, 1 << 40)
    with pytest.raises(ParamStoreError):
        paramstore.open(empty)
    with pytest.raises(ParamStoreError):
        paramstore.ParamStoreDict().load(str(empty))
    reads(padded)  # SQLite leaves what lies behind its last page alone
