"""Tables of one damaged file that contradict each other: found, and never taken for a new run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from drafts import Line

from paramstore import errors
from paramstore.db.engine import Database
from paramstore.db.reading import read_rows
from paramstore.db.repository import Repository
from paramstore.refs import parse_ref
from paramstore.snapshot import INTERRUPTED


def damaged(path: Path, change: Callable[[bytearray], None]) -> Repository:
    """A store of two snapshots whose file was changed while nobody had it open."""
    database = Database.open(path)
    line = Line(Repository(database), "a scope")
    line.commit({"w": "1"}, step=1)
    line.commit({"w": "2"}, step=2, metrics={"loss": 0.5})
    database.close()
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    return Repository(Database.open(path))


def in_the_index_of_names(data: bytearray) -> None:
    """Change the name where it follows the header of an index entry, not of a row."""
    (at,) = [found.start() for found in re.finditer(rb"\x03\x1b[\x01\x09]a scope", data)]
    data[at + 3 : at + 10] = b"a scopf"


def test_a_scope_that_its_index_has_lost_is_not_taken_for_a_new_one(path: Path) -> None:
    repository = damaged(path, in_the_index_of_names)
    for ask in (repository.head, repository.latest):
        with pytest.raises(errors.CorruptError, match="'a scope' cannot be found"):
            ask("a scope")
    with pytest.raises(errors.CorruptError, match="'a scope'"):
        repository.scopes()
    with pytest.raises(errors.CorruptError, match="'a scope' is there"):
        Line(repository, "a scope").commit({"w": "3"})
    assert repository.head("another") is None
    repository.database.close()


def alter(repository: Repository, statement: str) -> None:
    assert repository.database.outside_transaction(lambda c: c.execute(statement).rowcount) > 0


@pytest.mark.parametrize("version", [1, 3])
def test_a_head_that_is_not_the_newest_snapshot_is_found(line: Line, version: int) -> None:
    repository = line.repository
    line.commit({"w": "1"})
    line.commit({"w": "2"})
    alter(repository, f"UPDATE scopes SET head_version = {version}")
    for ask in (repository.head, repository.latest):
        with pytest.raises(errors.CorruptError, match="main@2, which is not its head"):
            ask("main")
    with pytest.raises(errors.CorruptError, match="'main'"):
        repository.scopes()
    alter(repository, "UPDATE scopes SET head_version = 2")


def test_a_scope_without_its_snapshots_is_not_taken_for_a_new_one(file: Database) -> None:
    repository = Repository(file)
    Line(repository).commit({"w": "1"})
    with file.write(foreign_keys=False) as connection:
        connection.exec_driver_sql("DELETE FROM snapshots")
    with pytest.raises(errors.CorruptError, match="nothing"):
        repository.latest("main")


def test_the_newest_whole_snapshot_is_found_behind_an_interrupted_one(line: Line) -> None:
    line.commit({"w": "1"})
    line.commit({"w": "2"}, kind=INTERRUPTED)
    found = line.repository.latest("main")
    assert found is not None
    assert found.version == 1


def test_a_snapshot_that_an_index_mistook_for_another_is_not_shown(line: Line) -> None:
    line.commit({"w": "1"}, step=1, metrics={"loss": 1.0, "odd": float("nan")})
    repository = line.repository
    resolved = repository.resolve(parse_ref("main@1"), "main")
    for _ in range(2):  # the second time from memory
        assert repository.manifest(resolved).snapshot is resolved
        for mistaken in (
            replace(resolved, version=2),
            replace(resolved, scope="other"),
            replace(resolved, step=2),
            replace(resolved, metrics={"loss": 1.0}),
            replace(resolved, metrics={"loss": 1.0, "odd": 2.0}),
        ):
            with pytest.raises(errors.CorruptError, match="is damaged"):
                repository.manifest(mistaken)


def test_blobs_on_a_damaged_page_leave_the_others_readable(path: Path) -> None:
    database = Database.open(path)
    line = Line(Repository(database))
    line.commit({f"w{number}": bytes([number]) * 20_000 for number in range(20)})
    ids = {entry.blob_id: name for name, entry in line.entries.items()}
    database.close()
    data = bytearray(path.read_bytes())
    at = data.find(bytes([7]) * 1000) // 65536 * 65536
    data[at] = 99  # not a page of a table
    path.write_bytes(data)
    database = Database.open(path)
    found = {ids[row] for row, _, _ in Repository(database).read_blobs(list(ids))}
    database.close()
    assert "w7" not in found
    assert len(found) > 10


def test_a_schema_of_bytes_is_a_damaged_one(path: Path) -> None:
    repository = damaged(path, lambda data: None)
    for statement in (
        "PRAGMA writable_schema=ON",
        "UPDATE sqlite_master SET sql = CAST(sql AS BLOB) WHERE name = 'tags'",
    ):
        repository.database.outside_transaction(lambda c, it=statement: c.execute(it).fetchall())  # type: ignore[misc]
    repository.database.close()
    with pytest.raises(errors.CorruptError, match="no text"):
        Database.open(path)


def test_a_parameter_that_is_neither_trained_nor_frozen_is_damaged(file: Database) -> None:
    made = Line(Repository(file)).commit({"w": "1"}, entry={"requires_grad": False})
    rows = read_rows(file.fetch, made.id)
    assert rows is not None
    assert rows.checked() is not None
    for entry in rows.entries:
        assert rows._replace(entries=[entry._replace(requires_grad=None)]).checked() is None


def test_a_column_or_table_that_has_lost_its_name_is_damage(path: Path) -> None:
    for old, new in (("message TEXT", "massage TEXT"), ("TABLE metrics", "TABLE metrixs")):
        path.unlink(missing_ok=True)

        def rename(data: bytearray, old: str = old, new: str = new) -> None:
            at = data.index(old.encode())
            data[at : at + len(old)] = new.encode()

        with pytest.raises(errors.CorruptError, match=r"no such|malformed"):
            damaged(path, rename).head("a scope")
