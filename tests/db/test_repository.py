from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from blake3 import blake3
from drafts import CHUNK, STATISTICS, Line, blob, gc, new_entry

from paramstore import errors
from paramstore.db.engine import Database
from paramstore.db.repository import Draft, Repository
from paramstore.db.schema import blobs, chunks, param_versions, snapshot_params, snapshots
from paramstore.refs import parse_ref
from paramstore.snapshot import Statistics

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
    assert line.repository.affected(line.entries[name].blob_id) == ["main@2"]


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
