from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from blake3 import blake3
from drafts import CHUNK, STATISTICS, Line, blob, new_entry

from paramstore import errors
from paramstore.db.engine import Database
from paramstore.db.repository import Draft, Repository, StaleEntries
from paramstore.db.schema import blobs, chunks, param_versions, snapshot_params, snapshots
from paramstore.refs import parse_ref
from paramstore.snapshot import Snapshot, Statistics

HOSTILE = [
    "'; DROP TABLE params; --",
    'a"b',
    "%s %(x)s :name ?1 ?",
    "net$$$layer.weight",
    "..",
    "a/b\\c",
    "${HOME} $(id) `id`",
    "\x1b[31m",
    "line\nbreak",
    "ünïcödé ﷽ 🏳️‍🌈",
    " ",
    "x" * 5000,
    "NULL",
    "123",
]


def count(database: Database, table: Any) -> int:
    return len(database.fetch(table.select()))


# -- appending ---------------------------------------------------------------------


def test_a_snapshot_comes_back_as_it_was_committed(line: Line) -> None:
    before = datetime.now(UTC)
    made = line.commit(
        {"w": "abc", "b": "d"},
        step=7,
        message="first",
        metrics={"loss": 0.5, "acc": 1},
        tags=["warm", "best"],
        extras=[("extra", "epoch", "3"), ("state", "optim", "{}")],
        extra_tensors=[b"moment"],
    )
    (found,) = line.repository.log("main")
    assert found == made
    assert (found.ref, found.step, found.message, found.kind) == ("main@1", 7, "first", "commit")
    assert found.parent is None
    assert found.metrics == {"acc": 1.0, "loss": 0.5}
    assert found.tags == ("best", "warm")
    assert (found.params, found.changed) == (2, 2)
    assert found.nbytes == sum(entry.nbytes for entry in line.entries.values())
    assert found.added_nbytes == found.nbytes + blob(b"moment").nbytes
    assert timedelta(0) <= found.created_at - before < timedelta(minutes=1)
    assert found.created_at.tzinfo is UTC
    assert line.repository.head("main") == found
    assert line.repository.head_version("main") == 1
    (scope,) = line.repository.scopes()
    assert (scope.name, scope.head_version, scope.created_at) == ("main", 1, found.created_at)


def test_a_manifest_holds_every_entry_extra_and_digest(line: Line) -> None:
    extras = [("state", "optim", '{"t":0}'), ("extra", "epoch", "3")]
    made = line.commit({"w": "abc", "b": "d"}, extras=extras, extra_tensors=[b"m", b"v"])
    manifest = line.repository.manifest(made)
    assert manifest.entries == line.entries
    assert list(manifest.entries) == ["b", "w"]
    assert manifest.extras == tuple(sorted(extras))
    assert [digest for _, digest, _ in manifest.extra_blobs] == [blob("m").digest, blob("v").digest]
    entry = manifest.entries["w"]
    assert (entry.digest, entry.nbytes, entry.dtype) == (
        blob("abc").digest,
        blob("abc").nbytes,
        "U8",
    )
    assert (entry.stored_shape, entry.shape, entry.requires_grad) == ((3,), (3,), True)
    assert line.value(made, "w") == b"abc"


def test_an_unchanged_parameter_costs_one_small_row(line: Line, database: Database) -> None:
    line.commit({"w": "abc", "b": "d"})
    second = line.commit({"b": "e"})
    assert (second.params, second.changed) == (2, 1)
    assert second.added_nbytes == blob("e").nbytes
    assert count(database, param_versions) == 3
    assert count(database, snapshot_params) == 4
    entries = line.repository.manifest(second).entries
    assert (entries["w"].since_version, entries["b"].since_version) == (1, 2)
    assert line.commit().changed == 0


def test_a_parameter_can_go_and_come_back(line: Line) -> None:
    line.commit({"w": "1", "b": "1"})
    kept = line.entries
    line.commit(without=["w"])
    line.entries = kept
    line.commit()
    line.commit({"w": "2"})
    line.entries = kept
    line.commit()
    found = [(v.version, v.since_version) for v in line.repository.history("main", "w")]
    assert found == [(1, 1), (3, 1), (4, 4), (5, 1)]
    assert [v.version for v in line.repository.history("main", "b")] == [1]


def test_the_second_writer_of_a_scope_conflicts(line: Line, repository: Repository) -> None:
    line.commit({"w": "1"})
    other = Line(repository)
    with pytest.raises(errors.ConflictError) as caught:
        other.commit({"w": "2"})
    assert (caught.value.scope, caught.value.seen, caught.value.found) == ("main", 0, 1)
    assert [s.version for s in repository.log("main")] == [1]
    with repository.write() as transaction:
        transaction.check_head("main", 1)
        with pytest.raises(errors.ConflictError):
            transaction.check_head("main", 0)
    appended = other.commit({"w": "2"}, append=True)
    assert (appended.version, appended.parent) == (2, None)


def test_scopes_do_not_conflict_and_share_values(line: Line, repository: Repository) -> None:
    parent = line.commit({"w": "1", "b": "1"})
    fork = Line(repository, "try")
    fork.parent, fork.entries = parent, line.entries
    first = fork.commit({"b": "2"})
    assert (first.ref, first.parent, first.changed) == ("try@1", "main@1", 1)
    line.commit({"w": "3"})
    assert count(repository.database, param_versions) == 4
    shared = repository.manifest(first).entries["w"]
    assert shared == fork.entries["w"]
    assert shared.param_version_id == repository.manifest(parent).entries["w"].param_version_id
    assert shared.scope_id != repository.manifest(parent).entries["w"].scope_id
    (version,) = repository.history("try", "w")
    assert (version.scope, version.version, version.digest) == ("try", 1, blob("1").digest.hex())


def test_an_exception_in_the_block_leaves_nothing(line: Line, repository: Repository) -> None:
    line.commit({"w": "1"})
    with pytest.raises(ZeroDivisionError), repository.write() as transaction:
        transaction.put_blobs([blob("2")])
        transaction.append(Draft(scope="main", seen_head=1))
        raise ZeroDivisionError
    assert [s.version for s in repository.log("main")] == [1]
    assert count(repository.database, blobs) == 1


def test_statistics_come_back_and_may_be_absent(line: Line) -> None:
    full = Statistics(
        norm=math.inf, mean=1e-300, std=0.0, min=-2.5, max=math.pi, nan_count=3, inf_count=2,
        value="[1.0,2.0]", unconstrained=True,
    )  # fmt: skip
    empty = Statistics()
    for statistics in (full, empty, None, STATISTICS):
        line.commit({"w": repr(statistics)}, entry={"statistics": statistics})
    found = [version.statistics for version in line.repository.history("main", "w")]
    assert found == [full, empty, None, STATISTICS]


# -- blobs -------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 12 * CHUNK + 5])
def test_bytes_are_cut_into_chunks_and_come_back(line: Line, size: int) -> None:
    data = blake3(b"seed").digest(length=size)
    made = line.commit({"w": data, "other": "x"})
    assert line.value(made, "w") == data
    entry = line.entries["w"]
    read = list(line.repository.read_blobs({entry.blob_id: entry.nbytes}))
    assert [seq for _, seq, _ in read] == list(range(max(1, -(-size // CHUNK))))
    assert max(len(chunk) for _, _, chunk in read) <= CHUNK + 200


def test_many_blobs_are_read_in_the_order_of_their_rows(line: Line) -> None:
    line.commit({f"p{i}": bytes([i % 251]) * (i * 37) for i in range(700)})
    ids = [entry.blob_id for entry in line.entries.values()]
    read = list(line.repository.read_blobs([*reversed(ids), 10**9]))
    assert [blob_id for blob_id, _, _ in read] == sorted(ids)
    data = {blob_id: chunk for blob_id, _, chunk in read}
    for entry in line.entries.values():
        assert blake3(data[entry.blob_id]).digest() == entry.digest


def test_a_blob_that_does_not_exist_yields_nothing(repository: Repository) -> None:
    assert list(repository.read_blobs([1, 2])) == []
    assert list(repository.read_blobs({1: 2**62})) == []
    assert list(repository.read_blobs([])) == []


def test_large_equal_blobs_are_stored_once_in_the_whole_database(
    line: Line, repository: Repository
) -> None:
    large, small = b"x" * 65536, b"x" * 1000
    line.commit({"a": large, "b": large, "c": small, "d": small})
    assert count(repository.database, blobs) == 2
    second = line.commit({"e": large, "f": small})
    assert count(repository.database, blobs) == 3
    assert line.entries["e"].blob_id == line.entries["a"].blob_id
    assert second.added_nbytes == blob(small).nbytes


def test_put_blobs_returns_one_row_for_each_in_order(repository: Repository) -> None:
    with repository.write() as transaction:
        ids = transaction.put_blobs([blob("a"), blob("b"), blob("a")])
        assert ids[0] == ids[2] != ids[1]
        assert transaction.put_blobs([blob("b"), blob("c")])[0] == ids[1]
        assert transaction.put_blobs([]) == []


def test_ids_are_never_used_again(line: Line, database: Database) -> None:
    line.commit({"w": "1"})
    before = line.entries["w"]
    with database.write() as connection:
        connection.execute(blobs.delete())
        connection.execute(chunks.delete())
        connection.execute(param_versions.delete())
        connection.execute(snapshot_params.delete())
        connection.execute(snapshots.delete())
        connection.exec_driver_sql("DELETE FROM params")
        connection.exec_driver_sql("DELETE FROM scopes")
    line.head, line.parent, line.entries = 0, None, {}
    line.commit({"w": "2"})
    after = line.entries["w"]
    assert after.blob_id > before.blob_id
    assert after.param_version_id > before.param_version_id
    assert after.param_id > before.param_id


def gc(database: Database, *ids: int) -> None:
    """Free blobs and the values made of them, as another process may between two transactions."""
    with database.write() as connection:
        for row_id in ids:
            connection.execute(blobs.delete().where(blobs.c.id == row_id))
            connection.execute(
                chunks.delete().where(chunks.c.id.between(row_id << 20, (row_id + 1 << 20) - 1))
            )
            connection.execute(param_versions.delete().where(param_versions.c.blob_id == row_id))


def test_blobs_of_an_earlier_transaction_that_were_freed_are_written_again(
    repository: Repository,
) -> None:
    values = {"w": blob(b"w" * 100_000), "b": blob("b"), "m": blob("m")}
    with repository.write() as transaction:
        w, b = transaction.put_blobs([values["w"], values["b"]])
    with repository.write() as transaction:
        (m,) = transaction.put_blobs([values["m"]])
    gc(repository.database, w, m)
    with repository.write() as transaction:
        snapshot, entries = transaction.append(
            Draft(
                scope="main",
                seen_head=0,
                entries={n: new_entry(n, i, values[n]) for n, i in {"w": w, "b": b}.items()},
                extras=[("extra", "x", "0")],
                extra_blobs=[(m, values["m"].digest)],
                blobs_written={w: values["w"], b: values["b"], m: values["m"]},
            )
        )
    assert entries["w"].blob_id > m
    assert entries["b"].blob_id == b
    assert repository.manifest(snapshot).entries == entries
    assert snapshot.added_nbytes == sum(value.nbytes for value in values.values())
    line = Line(repository, "other")
    assert line.commit({"x": b"w" * 100_000}).added_nbytes == 0


def test_a_row_that_was_given_to_other_bytes_is_not_trusted(repository: Repository) -> None:
    ours, theirs = blob("ours"), blob("theirs")
    with repository.write() as transaction:
        (row,) = transaction.put_blobs([theirs])
    with repository.write() as transaction:
        draft = Draft(
            scope="main",
            seen_head=0,
            entries={"w": new_entry("w", row, ours)},
            blobs_written={row: ours},
        )
        _, entries = transaction.append(draft)
    assert entries["w"].blob_id != row


# -- rows that another process took away -------------------------------------------


def expire(database: Database, snapshot: Snapshot) -> None:
    with database.write() as connection:
        for table in ("snapshot_params", "metrics", "extras", "extra_blobs"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE snapshot_id = {snapshot.id}")
        connection.exec_driver_sql(f"DELETE FROM snapshots WHERE id = {snapshot.id}")


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


# -- constraints -------------------------------------------------------------------


def test_equal_specs_share_a_row_and_keep_their_tensors(line: Line, repository: Repository) -> None:
    bound = blob(b"b" * 70_000)
    spec = json.dumps({"kind": "greater_than", "lower_bound": bound.digest.hex()})
    with repository.write() as transaction:
        (row,) = transaction.put_blobs([bound])
    for value in ("1", "2"):
        line.commit({"w": value, "b": value}, entry={"spec": spec, "spec_blobs": (row,)})
    entry = line.entries["w"]
    assert entry.spec == spec
    assert entry.constraint_id == line.entries["b"].constraint_id
    found = repository.constraint_blob(entry.constraint_id, bound.digest.hex())
    assert blake3(found).digest() == bound.digest
    for digest in ("00" * 32, "no digest", "../x"):
        with pytest.raises(errors.CorruptError):
            repository.constraint_blob(entry.constraint_id, digest)


# -- names and numbers -------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_parameter_names_are_only_names(line: Line, name: str) -> None:
    made = line.commit({name: "1", "other": "1"}, metrics={name: 1.0}, message=name)
    line.commit({name: "2"})
    assert list(line.repository.manifest(made).entries) == sorted([name, "other"])
    assert [v.version for v in line.repository.history("main", name)] == [1, 2]
    assert line.repository.best("main", name).metrics == {name: 1.0}
    line.repository.rename("main", name, name + "'")
    assert [v.name for v in line.repository.history("main", name + "'")] == [name + "'"] * 2
    assert line.repository.affected(line.entries[name].blob_id) == ([name + "'"], ["main@2"])


@pytest.mark.parametrize("name", [n for n in HOSTILE if n == n.strip() and len(n) <= 200])
def test_hostile_scope_and_tag_names_are_only_names(repository: Repository, name: str) -> None:
    if "\n" in name or "\x1b" in name:
        for call in (repository.head, repository.log, repository.head_version):
            with pytest.raises(errors.InvalidNameError):
                call(name)
        return
    tag = f"x{name}".replace("=", "-")
    line = Line(repository, name)
    made = line.commit({"w": "1"}, tags=[tag])
    assert repository.resolve(parse_ref(f"{name}@{tag}"), "main") == made
    assert repository.resolve(parse_ref(made), "main") == made
    repository.untag(name, tag)
    assert repository.log(name) == [replace(made, tags=())]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"entries": {"": None}}, errors.InvalidNameError),
        ({"entries": {"a\0": None}}, errors.InvalidNameError),
        ({"entries": {"\ud800": None}}, errors.InvalidNameError),
        ({"scope": "a@b"}, errors.InvalidNameError),
        ({"tags": ["latest"]}, errors.InvalidNameError),
        ({"metrics": {"": 1.0}}, errors.InvalidNameError),
        ({"metrics": {"\ud800": 1.0}}, errors.InvalidNameError),
        ({"metrics": {3: 1.0}}, errors.InvalidNameError),
        ({"metrics": {"x": "fast"}}, errors.InvalidInputError),
        ({"metrics": {"x": None}}, errors.InvalidInputError),
        ({"metrics": {"x": 10**400}}, errors.InvalidInputError),
        ({"extras": [("extra", "\0", "1")]}, errors.InvalidNameError),
        ({"step": 2**63}, errors.InvalidInputError),
        ({"step": -(2**63) - 1}, errors.InvalidInputError),
        ({"message": "\ud800"}, errors.InvalidInputError),
        ({"message": "a\0b"}, errors.InvalidInputError),
    ],
    ids=str,
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(
    repository: Repository, fields: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind), repository.write() as transaction:
        (row,) = transaction.put_blobs([blob("1")])
        given: dict[str, Any] = {"scope": "main", "seen_head": 0, "entries": {"w": None}} | fields
        given["entries"] = {name: new_entry(name, row, blob("1")) for name in given["entries"]}
        transaction.append(Draft(**given))
    assert repository.scopes() == []
    assert count(repository.database, blobs) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.5, 7, True])
def test_any_number_can_be_a_metric(line: Line, value: float) -> None:
    made = line.commit({"w": "1"}, metrics={"m": value})
    (found,) = line.repository.log("main")
    for metrics in (found.metrics, made.metrics):
        assert metrics["m"] == value or math.isnan(metrics["m"])
    line.repository.manifest(made)


@pytest.mark.parametrize("step", [0, -1, 2**63 - 1, -(2**63), None])
def test_any_step_of_64_bits_comes_back(line: Line, step: int | None) -> None:
    made = line.commit({"w": "1"}, step=step)
    assert line.repository.log("main") == [made]
    line.repository.manifest(made)


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


# -- damage ------------------------------------------------------------------------


def test_the_owners_of_a_blob_are_named(line: Line, repository: Repository) -> None:
    line.commit({"w": "1", "b": "2"}, extras=[("extra", "x", "0")], extra_tensors=[b"1"])
    line.commit({"b": "3"})
    assert repository.affected(line.entries["w"].blob_id) == (["w"], ["main@1", "main@2"])
    assert repository.affected(10**6) == ([], [])


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
