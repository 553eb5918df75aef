"""Forgetting snapshots: what goes, what stays, and what happens in between."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from drafts import Line, blob

from paramstore import errors
from paramstore.db.collection import collect
from paramstore.db.engine import Database
from paramstore.db.expiry import expire
from paramstore.db.repository import Repository
from paramstore.retention import KeepBest, KeepEvery, KeepLast, KeepTagged, Policy
from paramstore.snapshot import INTERRUPTED, Snapshot
from paramstore.testing import invariants


def versions(repository: Repository, scope: str = "main") -> list[int]:
    return [snapshot.version for snapshot in repository.log(scope)]


def grow(line: Line, count: int) -> None:
    for step in range(count):
        line.commit({"w": f"{line.scope} {step}"}, step=step, metrics={"loss": abs(step - 3)})


def test_what_the_policy_does_not_keep_is_gone_with_all_that_it_said(
    line: Line, database: Database
) -> None:
    extras = [("extra", "epoch", "3")]
    for step in range(4):
        line.commit({"w": str(step)}, step=step, metrics={"m": 1.0}, extras=extras)
    found = expire(database, KeepLast(2))
    assert [s.version for s in found.expired] == [2, 1]
    assert [(k.snapshot.version, k.reasons) for k in found.kept] == [
        (4, ("the head of its scope", "what resume() continues", "one of the newest 2")),
        (3, ("one of the newest 2",)),
    ]
    assert not found.dry_run
    assert versions(line.repository) == [4, 3]
    assert [line.value(s, "w") for s in line.repository.log("main")] == [b"3", b"2"]
    with pytest.raises(errors.SnapshotNotFoundError, match="expired"):
        line.repository.manifest(found.expired[0])
    with database.write() as connection:
        for table in ("snapshot_params", "metrics", "extras", "extra_blobs"):
            count = f"SELECT count(*) FROM {table} WHERE snapshot_id <= 2"
            assert connection.exec_driver_sql(count).scalar_one() == 0, table


def test_a_dry_run_changes_nothing_and_tells_the_same(line: Line, database: Database) -> None:
    grow(line, 6)
    policy = KeepLast(1) | KeepBest("loss", mode="min")
    told = expire(database, policy, dry_run=True)
    assert versions(line.repository) == [6, 5, 4, 3, 2, 1]
    done = expire(database, policy)
    assert (told.kept, told.expired, told.nbytes) == (done.kept, done.expired, done.nbytes)
    assert told.dry_run
    assert versions(line.repository) == [6, 4]


def test_a_dry_run_needs_no_permission_to_write(file: Database, path: Path) -> None:
    grow(Line(Repository(file)), 3)
    reader = Database.open(path, readonly=True)
    assert len(expire(reader, KeepLast(1), dry_run=True).expired) == 2
    with pytest.raises(errors.ReadOnlyError):
        expire(reader, KeepLast(1))
    reader.close()
    assert len(Repository(file).log("main")) == 3


def test_the_bytes_are_those_that_gc_then_frees(line: Line, database: Database) -> None:
    large = "x" * 70_000
    line.commit({"shared": large, "own": "1", "same": "s"}, extra_tensors=[b"moment 1"])
    line.commit({"own": "2"}, extra_tensors=[b"moment 2"])
    other = Line(line.repository, "other")
    other.commit({"copy": large})
    line.commit({"own": "3", "shared": "new"})
    found = expire(database, KeepLast(1))
    freed = sum(blob(v).nbytes for v in ("1", "2", "moment 1", "moment 2"))
    assert found.nbytes == freed
    assert collect(database).nbytes == freed
    assert other.value(other.repository.log("other")[0], "copy") == large.encode()
    assert expire(database, KeepLast(1)).nbytes == 0


def test_what_nobody_holds_already_is_not_counted_again(line: Line, database: Database) -> None:
    grow(line, 3)
    with line.repository.write() as transaction:
        transaction.put_blobs([blob("of a commit that failed")])
    expected = 2 * blob("main 0").nbytes
    assert expire(database, KeepLast(1)).nbytes == expected


def test_every_scope_is_looked_at_by_itself(line: Line, database: Database) -> None:
    grow(line, 4)
    other = Line(line.repository, "other")
    grow(other, 3)
    assert len(expire(database, KeepLast(2)).expired) == 3
    assert (versions(line.repository), versions(line.repository, "other")) == ([4, 3], [3, 2])
    assert [s.ref for s in expire(database, KeepLast(1), scope="other").expired] == ["other@2"]
    assert versions(line.repository) == [4, 3]


def test_a_scope_that_does_not_exist_is_named(line: Line, database: Database) -> None:
    grow(line, 2)
    with pytest.raises(errors.ScopeNotFoundError, match=r"'mian'.*did you mean 'main'"):
        expire(database, KeepLast(1), scope="mian")
    with pytest.raises(errors.InvalidNameError):
        expire(database, KeepLast(1), scope="a@b")


def test_an_empty_database_has_nothing_to_expire(database: Database) -> None:
    found = expire(database, KeepLast(1))
    assert (found.kept, found.expired, found.nbytes) == ((), (), 0)


def test_the_head_resume_and_tags_are_kept_whatever_the_policy_says(
    line: Line, database: Database
) -> None:
    line.commit({"w": "1"}, tags=["first"])
    line.commit({"w": "2"})
    line.commit({"w": "3"})
    line.commit({"w": "4"}, kind=INTERRUPTED)
    expire(database, KeepBest("no such metric"))
    assert versions(line.repository) == [4, 3, 1]
    line.repository.untag("main", "first")
    expire(database, KeepTagged())
    assert versions(line.repository) == [4, 3]


def test_what_the_caller_holds_stays_with_its_reason(line: Line, database: Database) -> None:
    first = line.commit({"w": "1"})
    line.commit({"w": "2"})
    line.commit({"w": "3"})
    found = expire(database, KeepLast(1), held={first.id: "needed here"})
    assert [k.reasons for k in found.kept if k.snapshot == first] == [("needed here",)]
    assert versions(line.repository) == [3, 1]


class After(Policy):
    """Keeps the newest one, and does something after its first look."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act: Callable[[], object] | None = act
        self.looks: list[list[int]] = []

    def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
        self.looks.append([s.version for s in snapshots])
        act, self.act = self.act, None
        if act is not None:
            act()
        return {}


def test_a_snapshot_that_comes_in_between_counts(file: Database) -> None:
    line = Line(Repository(file))
    grow(line, 3)
    policy = After(lambda: line.commit({"w": "newer"}))
    found = expire(file, policy)
    assert policy.looks == [[3, 2, 1], [4, 3, 2, 1]]
    assert [s.version for s in found.expired] == [3, 2, 1]
    assert found.nbytes == 3 * blob("main 0").nbytes
    assert versions(line.repository) == [4]
    invariants.check(file)


def test_a_tag_that_is_set_in_between_keeps_its_snapshot(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"w": "1"})
    grow(line, 2)
    found = expire(file, After(lambda: line.repository.tag(first, "precious")))
    assert [s.version for s in found.expired] == [2]
    assert versions(line.repository) == [3, 1]


def test_a_policy_that_fails_leaves_everything(line: Line, database: Database) -> None:
    grow(line, 3)

    def fail() -> None:
        raise ZeroDivisionError

    class Late(After):
        def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
            if self.looks:
                fail()
            return super().keep(snapshots)

    with pytest.raises(ZeroDivisionError):
        expire(database, Late(lambda: None))
    assert versions(line.repository) == [3, 2, 1]


def test_something_that_is_no_policy_is_refused(line: Line, database: Database) -> None:
    grow(line, 2)
    with pytest.raises(errors.InvalidInputError, match="KeepLast"):
        expire(database, KeepTagged)  # type: ignore[arg-type]
    assert versions(line.repository) == [2, 1]


def test_history_is_of_what_is_left(line: Line, database: Database) -> None:
    for value in ("1", "2", "2", "1", "1", "3"):
        line.commit({"w": value} if line.head != 2 and line.head != 4 else {})
    before = [(v.version, v.since_version) for v in line.repository.history("main", "w")]
    assert before == [(1, 1), (2, 2), (4, 4), (6, 6)]
    for first in line.repository.log("main")[-1:]:
        line.repository.tag(first, "first")
    expire(database, KeepEvery(steps=1) | KeepLast(3))
    collect(database)
    after = [(v.version, v.digest) for v in line.repository.history("main", "w")]
    assert after == [(v, blob(x).digest.hex()) for v, x in ((1, "1"), (4, "1"), (6, "3"))]


def test_the_parent_of_a_snapshot_may_be_gone(line: Line, database: Database) -> None:
    grow(line, 3)
    expire(database, KeepLast(1))
    (kept,) = line.repository.log("main")
    assert (kept.version, kept.parent) == (3, None)
    assert line.repository.manifest(kept).entries["w"].since_version == 3
    assert line.commit({"w": "4"}).parent == "main@3"


def test_a_writer_whose_parent_is_gone_goes_on(line: Line, database: Database) -> None:
    line.commit({"w": "1", "b": "kept"})
    other = Line(line.repository)
    other.head, other.parent, other.entries = line.head, line.parent, line.entries
    line.commit({"w": "2", "b": "changed"})
    expire(database, KeepLast(1))
    made = other.commit({"w": "3"}, append=True)  # what it kept is still there
    assert (made.version, made.parent) == (3, None)
    other.parent = line.parent
    collect(database)
    assert other.value(made, "b") == b"kept"


def test_more_snapshots_go_at_once_than_a_statement_may_have_values() -> None:
    database = Database.memory()
    line = Line(Repository(database))
    limit = sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER
    database.outside_transaction(lambda connection: connection.setlimit(limit, 999))
    grow(line, 1)
    with database.write() as connection:
        connection.exec_driver_sql(
            "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
            "INSERT INTO snapshots (id, scope_id, version, created_at, kind, params, changed, "
            "nbytes, added_nbytes, digest) SELECT i, 1, i, '2026-01-01T00:00:00.000000Z', "
            "'commit', 0, 0, 0, 0, zeroblob(32) FROM n"
        )
        connection.exec_driver_sql("UPDATE scopes SET head_version = 2000")
    assert len(expire(database, KeepLast(1)).expired) == 1_999
    line.head = 2_000
    line.commit({"w": "after"}, append=True)
    expire(database, KeepLast(1))
    invariants.check(database)
    database.close()
