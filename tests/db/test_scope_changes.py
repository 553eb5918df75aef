"""A scope gets another name, goes, or is copied: what stays, what changes, and what is refused."""

from __future__ import annotations

import operator
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drafts import Line

from paramstore import db
from paramstore.db import queries, scope_copy
from paramstore.db.collection import collect
from paramstore.db.engine import Database
from paramstore.db.expiry import expire
from paramstore.db.repository import Repository
from paramstore.db.scope_changes import children, drop_scope, rename_scope
from paramstore.db.scope_copy import copy_scope
from paramstore.db.verification import verify
from paramstore.errors import (
    ConflictError,
    CorruptError,
    ExpiredError,
    InvalidNameError,
    ReadOnlyError,
    ScopeError,
    ScopeNotFoundError,
    SnapshotNotFoundError,
)
from paramstore.refs import parse_ref
from paramstore.retention import KeepLast, KeepTagged
from paramstore.testing import invariants


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Database]:
    """Another database; its invariants hold when the test is over."""
    opened = Database.open(tmp_path / "other.db")
    yield opened
    invariants.check(opened)
    opened.close()


def told(repository: Repository, scope: str) -> list[tuple[object, ...]]:
    """All that a person sees of a scope, its name left out."""
    return [
        (s.version, s.step, s.created_at, s.message, s.kind, s.metrics, s.tags, s.params, s.changed,
         s.nbytes, s.origin)
        for s in repository.log(scope)
    ]  # fmt: skip


def histories(repository: Repository, scope: str, *names: str) -> list[tuple[object, ...]]:
    return [
        (v.name, v.version, v.since_version, v.digest, v.kind, v.constraint, v.statistics)
        for name in names
        for v in repository.history(scope, name)
    ]


def fill(line: Line) -> None:
    """Three snapshots with tags, metrics, extras, a large tensor and one that never changes."""
    line.commit({"b": b"1" * 100_000, "a": b"same"}, step=1, metrics={"loss": float("nan")})
    line.commit(
        {"b": b"2" * 100_000},
        step=2,
        tags=["warm"],
        message="second",
        extras=[("extra", "epoch", "2")],
        extra_tensors=[b"state"],
    )
    line.commit({"c": b"new"}, without=["a"], step=3)


def test_a_renamed_scope_has_everything_it_had(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    before = told(repository, "main"), histories(repository, "main", "a", "b", "c")
    assert rename_scope(database, "main", "guide") == 3
    assert [scope.name for scope in repository.scopes()] == ["guide"]
    fresh = Repository(database)
    assert (told(fresh, "guide"), histories(fresh, "guide", "a", "b", "c")) == before
    assert fresh.resolve(parse_ref("guide@warm"), "guide").parent == "guide@1"
    assert verify(database).ok


def test_a_renamed_scope_is_not_found_by_who_trains_in_it(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    rename_scope(database, "main", "guide")
    with pytest.raises(ConflictError):
        line.commit({"b": b"3"})


@pytest.mark.parametrize("change", ["rename", "drop", "copy"])
def test_of_two_who_rename_a_scope_at_once_the_second_is_told(
    file: Database, other: Database, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    Line(Repository(file)).commit({"w": "1"})
    between(monkeypatch, queries._METRICS_AND_TAGS, lambda: rename_scope(file, "main", "taken"))
    changes: dict[str, Callable[[], object]] = {
        "rename": lambda: rename_scope(file, "main", "mine"),
        "drop": lambda: drop_scope(file, "main"),
        "copy": lambda: copy_scope(file, "main", other, "mine"),
    }
    with pytest.raises(ScopeNotFoundError, match="no scope 'main' any more"):
        changes[change]()
    assert [scope.name for scope in Repository(file).scopes()] == ["taken"]


def test_a_scope_that_was_made_anew_is_not_taken_for_the_one_that_was_seen(
    database: Database, repository: Repository, line: Line
) -> None:
    seen = line.commit({"w": "1"})
    rename_scope(database, "main", "first")
    Line(repository).commit({"w": "of another run"})  # main@1 again
    with pytest.raises(ConflictError, match="version 1, another snapshot than the one"):
        line.commit({"w": "2"}, seen_id=seen.id)
    assert repository.head_version("main") == 1
    assert line.commit({"w": "2"}, seen_id=seen.id, append=True).ref == "main@2"


def test_a_snapshot_of_a_scope_that_was_made_anew_gets_no_tag_that_leads_nowhere(
    database: Database, repository: Repository, line: Line
) -> None:
    seen = line.commit({"w": "1"})
    rename_scope(database, "main", "first")
    Line(repository).commit({"w": "of another run"})
    with pytest.raises(SnapshotNotFoundError, match="main@1 is gone"):
        repository.tag(seen, "warm")
    assert verify(database).ok


def test_a_scope_whose_snapshot_is_damaged_is_not_renamed(file: Database) -> None:
    line = Line(Repository(file))
    fill(line)
    connection = sqlite3.connect(str(file.path))
    connection.execute("UPDATE snapshots SET step = 7 WHERE version = 3")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptError, match="main@3 is damaged"):
        rename_scope(file, "main", "guide")
    assert [scope.name for scope in Repository(file).scopes()] == ["main"]


def test_a_dropped_scope_is_gone_and_its_bytes_are_freed(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    Line(repository, "other").commit({"b": b"kept"})
    assert drop_scope(database, "main") == 3
    assert [scope.name for scope in repository.scopes()] == ["other"]
    collect(database)
    invariants.nothing_is_left_to_collect(database)
    assert verify(database).ok


def fork(line: Line, repository: Repository, scope: str) -> Line:
    """A line that continues another one in a scope of its own."""
    forked = Line(repository, scope)
    forked.parent, forked.entries = line.parent, line.entries
    return forked


def test_what_a_fork_took_from_a_dropped_scope_stays(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    forked = fork(line, repository, "fork")
    first = forked.commit({"c": b"of the fork"})
    second = forked.commit({"c": b"again"})
    assert children(database, "main") == ["fork@1"]
    before = [row[3] for row in histories(repository, "fork", "b", "c")]

    drop_scope(database, "main")
    collect(database)

    fresh = Repository(database)
    assert [row[3] for row in histories(fresh, "fork", "b", "c")] == before
    assert [s.parent for s in fresh.log("fork")] == ["fork@1", None]
    assert forked.value(first, "b") == b"2" * 100_000
    assert forked.value(second, "c") == b"again"
    assert fresh.history("fork", "b")[0].since_version == 1
    assert children(database, "main") == []
    invariants.nothing_is_left_to_collect(database)
    assert verify(database).ok


def test_a_commit_that_continues_a_dropped_scope_has_no_parent(file: Database) -> None:
    old, run = Line(Repository(file), "old"), Line(Repository(file), "run")
    run.parent = old.commit({"w": "1"})
    drop_scope(file, "old")
    assert run.commit({"w": "2"}).parent is None
    found = verify(file)
    assert found.ok, found


@pytest.mark.parametrize("within", [True, False])
def test_a_copied_scope_has_everything_it_had(
    database: Database, repository: Repository, line: Line, other: Database, within: bool
) -> None:
    fill(line)
    target = database if within else other
    copied = copy_scope(database, "main", target, "copy")
    assert copied.snapshots == 3
    assert (copied.nbytes == 0) is within
    there = Repository(target)
    names = ("a", "b", "c")
    assert told(there, "copy") == told(repository, "main")
    assert histories(there, "copy", *names) == histories(repository, "main", *names)
    assert [s.parent for s in there.log("copy")] == ["copy@2", "copy@1", None]
    newest = there.manifest(there.log("copy")[0])
    assert Line(there).value(newest.snapshot, "b") == b"2" * 100_000
    assert there.manifest(there.log("copy")[1]).extras == (("extra", "epoch", "2"),)
    assert verify(target).ok


def test_the_copy_in_another_database_can_be_trained_on(
    database: Database, line: Line, other: Database
) -> None:
    fill(line)
    copy_scope(database, "main", other, "main")
    there = Repository(other)
    head = there.head("main")
    assert head is not None
    trained = Line(there)
    trained.head, trained.parent, trained.entries = 3, head, there.manifest(head).entries
    assert trained.commit({"b": b"4"}).ref == "main@4"
    assert [row.version for row in there.history("main", "b")] == [1, 2, 4]


def test_a_copy_shares_no_row_with_a_scope_that_is_dropped(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    wanted = [row[3] for row in histories(repository, "main", "a", "b", "c")]
    copy_scope(database, "main", database, "copy")
    drop_scope(database, "main")
    collect(database)
    fresh = Repository(database)
    assert [row[3] for row in histories(fresh, "copy", "a", "b", "c")] == wanted
    assert verify(database).ok


@pytest.mark.parametrize("within", [True, False])
def test_a_copied_fork_keeps_its_parent_only_within_its_database(
    database: Database, repository: Repository, line: Line, other: Database, within: bool
) -> None:
    fill(line)
    fork(line, repository, "fork").commit({"c": b"of the fork"})
    target = database if within else other
    copy_scope(database, "fork", target, "copy")
    assert Repository(target).log("copy")[0].parent == ("main@3" if within else None)
    assert [row.since_version for row in Repository(target).history("copy", "b")] == (
        [2] if within else [1]
    )
    assert verify(target).ok


@pytest.mark.parametrize("within", [True, False])
def test_versions_that_were_expired_are_missing_in_the_copy_too(
    database: Database, repository: Repository, line: Line, other: Database, within: bool
) -> None:
    fill(line)
    expire(database, KeepTagged())
    target = database if within else other
    copy_scope(database, "main", target, "copy")
    assert [(s.version, s.parent) for s in Repository(target).log("copy")] == [
        (3, "copy@2"),
        (2, None),
    ]
    assert verify(target).ok


def between(monkeypatch: pytest.MonkeyPatch, statement: object, then: Callable[[], object]) -> None:
    """Let another process do something once the copy has asked this for the first time."""
    original = Database.fetch
    left = [then]

    def fetch(self: Database, asked: Any, parameters: Any = None) -> list[Any]:
        found = original(self, asked, parameters)
        if asked is statement and left:
            left.pop()()
        return found

    monkeypatch.setattr(Database, "fetch", fetch)


@pytest.mark.parametrize("statement", ["scope_copy._SNAPSHOTS", "scope_copy._VERSIONS"])
def test_a_copy_is_sound_whatever_another_process_renames_and_adds_meanwhile(
    file: Database, other: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    line = Line(Repository(file))
    fill(line)

    def go_on() -> None:
        Repository(file).rename("main", "b", "z")

    between(monkeypatch, operator.attrgetter(statement)(db), go_on)
    assert copy_scope(file, "main", other, "copy").snapshots == 3
    there = Repository(other)
    assert "z" in there.manifest(there.log("copy")[0]).entries
    found = verify(other)
    assert found.ok, found


def test_a_name_that_comes_in_before_its_snapshot_is_listed_is_copied(
    file: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(Repository(file))
    fill(line)
    between(monkeypatch, scope_copy._PARAMS, lambda: line.commit({"late": b"late"}))
    assert copy_scope(file, "main", other, "copy").snapshots == 4
    assert [row.version for row in Repository(other).history("copy", "late")] == [4]
    assert verify(other).ok


@pytest.mark.parametrize("statement", ["reading._ENTRIES", "scope_copy._BLOBS", "blobs._CHUNKS"])
def test_what_is_freed_while_it_is_copied_is_no_damage_and_leaves_nothing_behind(
    file: Database, other: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    line = Line(Repository(file))
    fill(line)

    def thin() -> None:
        expire(file, KeepLast(1))
        collect(file)

    between(monkeypatch, operator.attrgetter(statement)(db), thin)
    with pytest.raises(ExpiredError, match="expired main@1 while it was copied; nothing was copie"):
        copy_scope(file, "main", other, "copy")
    assert Repository(other).scopes() == []


def test_a_copy_whose_scope_goes_meanwhile_is_no_half_copy(
    file: Database, other: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Line(Repository(file)))
    between(monkeypatch, scope_copy._SNAPSHOTS, lambda: drop_scope(file, "main"))
    with pytest.raises(ExpiredError, match="expired main@3 while it was copied"):
        copy_scope(file, "main", other, "copy")
    assert Repository(other).scopes() == []


def test_equal_tensors_of_the_target_are_not_stored_again(
    database: Database, line: Line, other: Database
) -> None:
    fill(line)
    copy_scope(database, "main", other, "one")
    assert copy_scope(database, "main", other, "two").nbytes < 1000  # the small ones only


def test_a_damaged_tensor_is_not_copied(file: Database, other: Database) -> None:
    line = Line(Repository(file))
    fill(line)
    connection = sqlite3.connect(str(file.path))
    connection.execute("UPDATE chunks SET data = zeroblob(length(data)) WHERE length(data) > 1000")
    connection.commit()
    connection.close()
    with pytest.raises(CorruptError, match=r"'b' are missing or altered.*Nothing was copied"):
        copy_scope(file, "main", other, "copy")
    assert Repository(other).scopes() == []


def test_a_name_that_is_taken_or_wrong_is_refused(
    database: Database, repository: Repository, line: Line
) -> None:
    fill(line)
    Line(repository, "other").commit({"a": b"1"})
    for new, error in (("other", ScopeError), ("main", ScopeError), ("a@b", InvalidNameError)):
        with pytest.raises(error):
            rename_scope(database, "main", new)
        with pytest.raises(error):
            copy_scope(database, "main", database, new)
    for call in (
        lambda: rename_scope(database, "nowhere", "x"),
        lambda: copy_scope(database, "nowhere", database, "x"),
        lambda: drop_scope(database, "nowhere"),
    ):
        with pytest.raises(ScopeNotFoundError, match="no scope 'nowhere'"):
            call()
    assert [scope.name for scope in repository.scopes()] == ["main", "other"]


def test_a_store_that_is_only_read_is_not_changed(file: Database) -> None:
    fill(Line(Repository(file)))
    assert file.path
    reader = Database.open(file.path, readonly=True)
    for change in (
        lambda: rename_scope(reader, "main", "x"),
        lambda: copy_scope(reader, "main", reader, "x"),
        lambda: drop_scope(reader, "main"),
    ):
        with pytest.raises(ReadOnlyError):
            change()
    reader.close()
