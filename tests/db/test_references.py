from __future__ import annotations

import math
from dataclasses import replace

import pytest
from drafts import Line, expire

from paramstore import errors
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.refs import parse_ref

# -- references --------------------------------------------------------------------


@pytest.fixture
def history(line: Line) -> Line:
    for version in range(1, 6):
        line.commit(
            {"w": str(version)},
            step=version // 2 * 10,
            tags=["warm"] if version == 2 else [],
            metrics={"loss": abs(version - 3.0), "nan": math.nan},
        )
    return line


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("main", 5),
        ("main@latest", 5),
        ("@latest", 5),
        ("main@3", 3),
        ("@3", 3),
        (3, 3),
        ("main@warm", 2),
        ("main@step=10", 3),
        ("@step=20", 5),
        ("@step=0", 1),
    ],
)
def test_a_reference_names_one_snapshot(history: Line, reference: int | str, version: int) -> None:
    assert history.repository.resolve(parse_ref(reference), "main").version == version


@pytest.mark.parametrize(
    ("reference", "kind", "text"),
    [
        ("mian", errors.ScopeNotFoundError, "did you mean 'main'"),
        ("warm", errors.ScopeNotFoundError, "write '@warm'"),
        ("other@3", errors.ScopeNotFoundError, "its scopes: 'main'"),
        ("@warn", errors.TagNotFoundError, "did you mean 'warm'"),
        ("@cold", errors.TagNotFoundError, "its tags: 'warm'"),
        ("@6", errors.SnapshotNotFoundError, "newest is main@5"),
        ("@step=7", errors.SnapshotNotFoundError, "step 7"),
        (f"@{2**63 - 1}", errors.SnapshotNotFoundError, "newest is main@5"),
    ],
)
def test_a_reference_to_nothing_says_what_there_is(
    history: Line, reference: str, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text.replace("(", r"\(")) as caught:
        history.repository.resolve(parse_ref(reference), "main")
    assert isinstance(caught.value, KeyError)


def test_a_log_is_limited_from_the_newest(history: Line) -> None:
    log = history.repository.log
    assert [s.version for s in log("main")] == [5, 4, 3, 2, 1]
    assert [s.version for s in log("main", 2)] == [5, 4]
    assert log("main", 0) == []
    assert len(log("main", 10**30)) == 5
    assert [s.parent for s in log("main", 2)] == ["main@4", "main@3"]
    assert all(math.isnan(s.metrics["nan"]) for s in log("main"))
    with pytest.raises(errors.InvalidInputError):
        log("main", -1)
    with pytest.raises(errors.ScopeNotFoundError, match="did you mean 'main'"):
        log("maim")


def test_a_history_is_oldest_first_and_limited_from_the_newest(history: Line) -> None:
    find = history.repository.history
    assert [v.version for v in find("main", "w")] == [1, 2, 3, 4, 5]
    assert [v.version for v in find("main", "w", 2)] == [4, 5]
    assert find("main", "w", 0) == []
    with pytest.raises(errors.ParamNotFoundError, match="did you mean 'w'"):
        find("main", "ww")
    with pytest.raises(errors.ScopeNotFoundError):
        find("other", "w")


def test_the_best_snapshot_has_the_extreme_metric_and_is_the_newest_of_equals(
    history: Line,
) -> None:
    best = history.repository.best
    assert best("main", "loss").version == 3
    assert best("main", "loss", "max").version == 5
    for metric in ("nan", "los", "x"):
        with pytest.raises(errors.SnapshotNotFoundError, match="'loss', 'nan'"):
            best("main", metric)
    with pytest.raises(errors.InvalidInputError):
        best("main", "loss", "least")
    with pytest.raises(errors.ScopeNotFoundError):
        best("other", "loss")


# -- tags and names ----------------------------------------------------------------


def test_a_tag_moves_only_when_told_to(history: Line) -> None:
    repository = history.repository
    newest = repository.head("main")
    assert newest is not None
    with pytest.raises(errors.InvalidNameError, match=r"main@2.*move=True"):
        repository.tag(newest, "warm")
    repository.tag(newest, "warm", move=True)
    repository.tag(newest, "warm")
    assert repository.resolve(parse_ref("@warm"), "main").version == 5
    repository.untag("main", "warm")
    with pytest.raises(errors.TagNotFoundError):
        repository.untag("main", "warm")
    with pytest.raises(errors.ScopeNotFoundError):
        repository.untag("other", "warm")
    with pytest.raises(errors.SnapshotNotFoundError):
        repository.tag(replace(newest, id=10**6), "x")


def test_a_tag_of_a_commit_moves_to_it(history: Line) -> None:
    history.commit({"w": "6"}, tags=["warm"])
    assert history.repository.resolve(parse_ref("@warm"), "main").version == 6
    assert [s.tags for s in history.repository.log("main")] == [("warm",), *[()] * 5]


def test_a_renamed_parameter_keeps_its_history(history: Line) -> None:
    repository = history.repository
    history.commit({"b": "1"})
    fork = Line(repository, "try")
    fork.parent, fork.entries = history.parent, history.entries
    forked = fork.commit()
    repository.rename("main", "w", "weight")
    assert len(repository.history("main", "weight")) == 5
    with pytest.raises(errors.ParamNotFoundError):
        repository.history("main", "w")
    assert list(repository.manifest(forked).entries) == ["b", "w"]
    # A writer that has not heard of it goes on under the old name.
    after = history.commit()
    assert list(repository.manifest(after).entries) == ["b", "w"]
    with pytest.raises(errors.InvalidNameError, match="already"):
        repository.rename("main", "w", "weight")
    with pytest.raises(errors.ParamNotFoundError, match="did you mean 'weight'"):
        repository.rename("main", "weigth", "x")
    repository.rename("main", "b", "b")


def test_a_snapshot_that_was_read_before_has_the_names_that_others_gave_it(
    database: Database, repository: Repository, line: Line
) -> None:
    made = line.commit({"a": "1"})
    assert list(repository.manifest(made).entries) == ["a"]
    Repository(database).rename("main", "a", "z")
    assert list(repository.manifest(made).entries) == ["z"]


def test_a_name_that_no_snapshot_has_any_more_can_be_taken(file: Database) -> None:
    line = Line(Repository(file))
    first = line.commit({"old": "1", "w": "1"})
    line.commit(without=["old"])
    expire(file, first)
    line.repository.rename("main", "w", "old")
    assert [v.version for v in line.repository.history("main", "old")] == [2]


def test_a_rename_of_a_damaged_snapshot_changes_nothing(file: Database) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1", "b": "1"})
    line.commit({"w": "2"})
    with file.write() as connection:
        connection.exec_driver_sql("UPDATE snapshots SET step = 5 WHERE version = 2")
    with pytest.raises(errors.CorruptError, match="main@2"):
        line.repository.rename("main", "w", "x")
    assert len(line.repository.history("main", "w")) == 2
