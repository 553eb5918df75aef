from __future__ import annotations

from typing import Any

import pytest
from drafts import Line, expire, gc

from paramstore import errors
from paramstore.db.engine import Database
from paramstore.db.repository import Repository, StaleEntries
from paramstore.db.schema import DEDUPLICATED_FROM
from paramstore.refs import parse_ref

# -- rows that another process took away -------------------------------------------


def test_an_unchanged_value_that_is_gone_is_reported_by_name(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"w": "1", "b": "0"})
    stale = line.entries
    line.commit({"w": "2"})
    expire(file, first)
    gc(file, stale["w"].blob_id)
    line.parent, line.entries = first, stale
    with pytest.raises(StaleEntries) as caught:
        line.commit()
    assert caught.value.names == {"w"}
    made = line.commit({"w": "1"})
    assert (made.version, made.parent) == (3, None)


def test_a_value_of_another_snapshot_than_the_parent_is_checked_too(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"w": "1", "b": "0"})
    mixed = {"w": line.entries["w"]}
    line.commit({"w": "2"})
    line.entries = line.entries | mixed
    expire(file, first)
    gc(file, mixed["w"].blob_id)
    with pytest.raises(StaleEntries) as caught:
        line.commit()
    assert caught.value.names == {"w"}


def test_a_parent_that_is_gone_is_no_obstacle(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"w": "1"})
    line.commit({"w": "2"})
    parent = line.parent
    expire(file, first)
    assert parent is not None
    expire(file, parent)
    made = line.commit({"b": "1"})
    assert (made.version, made.parent, made.changed) == (3, None, 1)


def test_a_tensor_of_the_extras_that_is_gone_is_reported_by_row(file: Database) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1"}, extras=[("extra", "m", "0")], extra_tensors=[b"m"])
    assert line.parent is not None
    ((row, digest, _),) = line.repository.manifest(line.parent).extra_blobs
    gc(file, row)
    with pytest.raises(StaleEntries) as caught:
        line.commit(extras=[("extra", "m", "0")], extra_blobs=[(row, digest)])
    assert caught.value.names == frozenset()
    assert caught.value.blobs == {row}


# -- damage ------------------------------------------------------------------------


def test_the_owners_of_a_blob_are_named(line: Line, repository: Repository) -> None:
    line.commit({"w": "1", "b": "2"}, extras=[("extra", "x", "0")], extra_tensors=[b"1"])
    line.commit({"b": "3"})
    assert repository.affected(line.entries["w"].blob_id) == ["main@1", "main@2"]
    assert repository.affected(10**6) == []


def test_a_scope_whose_name_is_no_text_does_not_hide_what_is_damaged(file: Database) -> None:
    repository = Repository(file)
    large = "1" * DEDUPLICATED_FROM
    line = Line(repository)
    line.commit({"w": large})
    Line(repository, "other").commit({"w": large})
    with file.write() as connection:
        connection.exec_driver_sql("UPDATE scopes SET name = x'80' WHERE name = 'other'")
    assert repository.affected(line.entries["w"].blob_id) == ["main@1", "b'\\x80'@1"]


def test_a_snapshot_that_is_gone_is_not_called_damaged(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"w": "1"})
    line.commit({"w": "2"})
    expire(file, first)
    with pytest.raises(errors.SnapshotNotFoundError, match="main@1 is gone"):
        line.repository.manifest(first)
    with pytest.raises(errors.SnapshotNotFoundError, match="expired"):
        line.repository.resolve(parse_ref("@1"), "main")


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("UPDATE snapshot_params SET param_version_id = 2 WHERE param_id = 1", {"w"}),
        ("DELETE FROM param_versions WHERE id = 1", {"w"}),
        ("DELETE FROM blobs WHERE id = 1", {"w"}),
        ("DELETE FROM params WHERE id = 1", {"a parameter without a name"}),
        ("UPDATE constraints SET spec = '{}'", {"w", "b"}),
        ("UPDATE param_versions SET shape = '[x]' WHERE id = 1", set()),
        ("UPDATE blobs SET nbytes = nbytes + 1 WHERE id = 1", set()),
        ("UPDATE blobs SET nbytes = 'many' WHERE id = 1", set()),
        ("UPDATE params SET name = x'ff' WHERE id = 1", set()),
        ("UPDATE params SET name = CAST(x'ff' AS TEXT) WHERE id = 1", set()),
        ("UPDATE param_versions SET blob_id = 2 WHERE id = 1", set()),
        ("DELETE FROM snapshot_params WHERE param_id = 1", set()),
        ("UPDATE snapshots SET params = 3", set()),
        ("UPDATE metrics SET value = NULL", set()),
    ],
)
def test_rows_that_are_not_those_that_were_committed_are_found(
    file: Database, statement: str, names: set[str]
) -> None:
    Line(Repository(file)).commit({"w": "1", "b": "2"}, metrics={"m": 1.0})

    def alter(connection: Any) -> int:
        connection.execute("PRAGMA foreign_keys=OFF")
        return int(connection.execute(statement).rowcount)

    assert file.outside_transaction(alter) > 0
    repository = Repository(file)
    head = repository.head("main")
    assert head is not None
    with pytest.raises(errors.CorruptError) as caught:
        repository.manifest(head)
    assert set(caught.value.params) >= names
    assert caught.value.snapshots == ("main@1",) or "UTF-8" in str(caught.value)


@pytest.mark.parametrize("column", ["scopes.created_at", "snapshots.created_at"])
def test_a_time_that_is_none_is_a_damaged_database(file: Database, column: str) -> None:
    Line(Repository(file)).commit({"w": "1"})
    table, name = column.split(".")
    file.outside_transaction(lambda c: c.execute(f"UPDATE {table} SET {name} = 'yesterday'"))
    repository = Repository(file)
    with pytest.raises(errors.CorruptError, match="yesterday"):
        repository.scopes() if table == "scopes" else repository.log("main")
