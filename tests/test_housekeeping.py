"""expire, gc and du of a store: beside its own working sets, and beside other processes."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore import (
    CorruptError,
    ExpiredError,
    KeepLast,
    KeepTagged,
    ParamStoreDict,
    ReadOnlyError,
    SnapshotNotFoundError,
    jobs,
    writer,
)
from paramstore.db import collection, expiry
from paramstore.db.engine import Database
from paramstore.testing import invariants

# Forking with torch's threads about is what users do, and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """A store with three snapshots of a value that changes and one that does not."""
    with paramstore.open(path) as store:
        store["x"], store["frozen"] = torch.zeros(20_000), torch.full((20_000,), 7.0)
        for step in range(3):
            store["x"].data.fill_(step)
            store.commit(step=step)
        yield store
    invariants.check(path)


def thin(path: Path) -> None:
    """Keep the newest snapshot only, as another process would."""
    database = Database.open(path)
    expiry.expire(database, KeepLast(1))
    collection.collect(database)
    database.close()


def move_on(path: Path, value: float) -> None:
    """Let a rival commit, so that its snapshot is the newest."""
    with paramstore.open(path) as rival:
        for name in list(rival):
            rival[name] = torch.full((20_000,), value)
        rival.commit()


def test_a_thinned_store_keeps_its_newest_values(store: ParamStoreDict, path: Path) -> None:
    before = store.du()
    assert [s.ref for s in store.expire(KeepLast(1)).expired] == ["main@2", "main@1"]
    assert store.du().unused_nbytes > 160_000
    assert store.gc().nbytes > 160_000
    assert store.du().file_nbytes < before.file_nbytes
    assert store.at("main")["frozen"].unique().item() == 7
    store["x"].data.fill_(9)
    assert store.commit(step=3).changed == 1
    with paramstore.open(path, readonly=True) as reader:
        assert (reader["x"].unique().item(), reader["frozen"].unique().item()) == (9, 7)


def test_a_readonly_store_may_only_ask(store: ParamStoreDict, path: Path) -> None:
    with paramstore.open(path, readonly=True) as reader:
        assert len(reader.expire(KeepLast(1), dry_run=True).expired) == 2
        assert reader.gc(dry_run=True).nbytes == 0
        assert reader.du().scopes[0].snapshots == 3
        with pytest.raises(ReadOnlyError):
            reader.expire(KeepLast(1))
        with pytest.raises(ReadOnlyError):
            reader.gc()


def test_what_is_pending_is_committed_first(store: ParamStoreDict) -> None:
    store["x"].data.fill_(9)
    store.commit(step=9, wait=False)
    found = store.expire(KeepLast(1))
    assert [k.snapshot.step for k in found.kept] == [9]
    store["x"].data.fill_(10)
    store.commit(step=10, wait=False)
    assert store.du().scopes[0].snapshots == 2
    store.commit(step=11, wait=False)
    store.gc()
    assert store.commit().version == 7


def test_what_a_working_set_continues_is_not_expired_by_its_own_store(
    store: ParamStoreDict,
) -> None:
    store.restore(1)
    with store.scope("other"):
        store["y"] = torch.zeros(1)
    found = store.expire(KeepLast(1))
    assert [s.version for s in found.expired] == [2]
    reasons = {k.snapshot.ref: k.reasons for k in found.kept}
    assert reasons["main@1"] == ("scope 'main' of this store continues it",)
    store.gc()
    assert store.commit().parent == "main@1"


def test_gc_reads_first_what_a_filtered_restore_has_left_unread(path: Path) -> None:
    with paramstore.open(path) as store:
        store["a"], store["b"] = torch.zeros(9), torch.zeros(9)
        store.commit(tags=["zeros"])
        store["a"].data.fill_(1)
        store.commit()
    with paramstore.open(path) as store:
        store.restore("@zeros", include="a")
        store.untag("zeros")
        assert len(store.expire(KeepLast(1)).expired) == 1
        store.gc()
        assert store["a"].unique().item() == 0
        assert store.commit().changed == 1


def test_gc_reads_first_what_is_left_where_others_have_freed_some_of_it(path: Path) -> None:
    with paramstore.open(path) as run:
        for number in range(3):
            run["x"] = torch.full((20_000,), float(number))
            run["y"] = torch.full((20_000,), 10.0 + number)
            run.commit()
    with paramstore.open(path) as store:
        store.restore("main@1", include=["x"])
        store.restore("main@2", include=["y"])
        database = Database.open(path)
        expiry.expire(database, KeepLast(2))
        collection.collect(database)
        expiry.expire(database, KeepLast(1))
        database.close()
        store.gc()  # which would free y of main@2
        assert store["y"].unique().item() == 11
        with pytest.raises(ExpiredError, match="'x' had not been read"):
            store["x"]


def test_du_on_a_store_without_a_file_counts_its_pages() -> None:
    with ParamStoreDict() as store:
        store["x"] = torch.zeros(100_000)
        store.commit()
        store["x"].data.fill_(1)
        store.commit()
        assert store.du().tensor_nbytes > 800_000
        store.expire(KeepTagged())
        found = store.gc()
        assert found.nbytes > 400_000
        assert found.file_before - found.file_after > 300_000


# -- other processes ---------------------------------------------------------------


def test_an_unread_value_that_others_have_freed_is_a_named_error(
    store: ParamStoreDict, path: Path
) -> None:
    with paramstore.open(path) as reader:
        move_on(path, 5.0)
        thin(path)
        with pytest.raises(ExpiredError, match=r"'x' had not been read .*resume\(\)") as caught:
            reader["x"]
        assert not isinstance(caught.value, KeyError | CorruptError)
        with pytest.raises(ExpiredError, match=r"'(frozen|x)', '(frozen|x)' had not"):
            reader.load_all()
        with pytest.raises(ExpiredError, match="unread"):
            reader.commit(on_conflict="append")
        reader.resume()
        assert reader["x"].unique().item() == 5
        assert reader.commit().version == 5


def test_an_unread_value_can_be_given_up_instead(store: ParamStoreDict, path: Path) -> None:
    with paramstore.open(path) as reader:
        move_on(path, 5.0)
        thin(path)
        reader["x"] = torch.full((20_000,), 1.0)
        del reader["frozen"]
        made = reader.commit(on_conflict="append")
        assert (made.params, made.parent) == (1, None)
        assert reader.at(made)["x"].unique().item() == 1


def test_a_buffer_that_nobody_bound_is_given_up_once_others_have_freed_it(path: Path) -> None:
    with paramstore.open(path) as store:
        store.module("norm", torch.nn.BatchNorm1d(2))
        store.commit()
    with paramstore.open(path) as run:
        run.load_all()
        with paramstore.open(path) as rival:
            norm = rival.module("norm", torch.nn.BatchNorm1d(2))
            for buffer in norm.buffers():
                buffer.fill_(3)
            rival.commit()
        thin(path)
        with pytest.raises(ExpiredError, match=r"running_mean.*bind the module"):
            run.commit(on_conflict="append")
        made = run.commit(on_conflict="append")
        assert set(run.at(made)) == {"norm$$$weight", "norm$$$bias"}


def test_values_in_memory_are_written_anew_where_others_have_freed_their_rows(
    store: ParamStoreDict, path: Path
) -> None:
    """Fingerprints say that nothing changed, and the rows they are of are gone."""
    store.commit(extras={"moment": torch.arange(5000.0)})
    store.commit(extras={"moment": torch.arange(5000.0)})
    move_on(path, 5.0)
    thin(path)
    made = store.commit(on_conflict="append", extras={"moment": torch.arange(5000.0)})
    assert (made.parent, made.params) == (None, 2)
    assert made.added_nbytes > 160_000
    assert store.at(made)["frozen"].unique().item() == 7
    moment = store.at(made).extras["moment"]
    assert isinstance(moment, torch.Tensor)
    assert moment.equal(torch.arange(5000.0))


def test_a_commit_in_the_background_says_so_once(store: ParamStoreDict, path: Path) -> None:
    for _ in range(2):
        store.commit(wait=False).result()
    move_on(path, 5.0)
    thin(path)
    with pytest.raises(ExpiredError, match="commit again"):
        store.commit(wait=False, on_conflict="append").result()
    made = store.commit(wait=False, on_conflict="append").result()
    assert store.at(made)["frozen"].unique().item() == 7


def test_a_snapshot_that_is_being_looked_at_may_be_expired(
    store: ParamStoreDict, path: Path
) -> None:
    view = store.at(1)
    thin(path)
    with pytest.raises(ExpiredError, match=r"main@1 has been expired.*log\(\)"):
        view["x"]
    assert view["frozen"].unique().item() == 7  # which the newest one holds, too
    with pytest.raises(SnapshotNotFoundError, match="it has been expired"):
        store.restore(1)
    assert store["x"].unique().item() == 2


def test_damage_is_not_taken_for_expiry(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(9)
        store.commit(extras={"moment": torch.zeros(5000)})
        database = Database.open(path)
        with database.write() as connection:
            connection.exec_driver_sql("DELETE FROM chunks")
        database.close()
        with paramstore.open(path) as reader, pytest.raises(CorruptError, match="main@1"):
            reader["x"]
        with pytest.raises(CorruptError, match="missing or altered"):
            store.restore("main@1")
        with pytest.raises(CorruptError, match="the extras"):
            dict(store.log()[0].extras)


def _commit_in_parts(path: Path, written: Any, collected: Any) -> None:
    """Commit in two transactions, and wait for the other process between them."""
    writer.TRANSACTION_BYTES = 1  # type: ignore[misc]  # this process only
    torch.set_num_threads(1)
    with paramstore.open(path, scope="run") as store:
        for number in range(3):
            store[f"p{number}"] = torch.full((3 << 20,), float(number))
        store["same"] = torch.full((20_000,), 7.0)  # which an expired snapshot holds already
        write = store._session.repository.write
        first = threading.Event()

        def waiting() -> Any:
            if first.is_set():
                written.set()
                assert collected.wait(60)
            first.set()
            return write()

        store._session.repository.write = waiting  # type: ignore[method-assign]
        store.commit()


def test_gc_of_another_process_between_the_parts_of_a_commit_costs_it_nothing(
    store: ParamStoreDict, path: Path
) -> None:
    context = multiprocessing.get_context("fork")
    written, collected = context.Event(), context.Event()
    process = context.Process(target=_commit_in_parts, args=(path, written, collected), daemon=True)
    process.start()
    assert written.wait(120)
    store["frozen"] = torch.zeros(20_000)
    store.commit()
    store.expire(KeepLast(1))
    found = store.gc()
    assert found.blobs >= 2  # of the commit, whose first part is in the file
    collected.set()
    process.join(120)
    assert process.exitcode == 0
    view = store.at("run")
    assert [view[f"p{n}"].unique().item() for n in range(3)] == [0, 1, 2]
    assert view["same"].unique().item() == 7
    assert store.gc().blobs == 0
    invariants.nothing_is_left_to_collect(store._session.repository.database)


def test_a_commit_after_one_that_wrote_twice_knows_where_everything_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is written in a transaction of its own, and freed before the next."""
    monkeypatch.setattr(writer, "TRANSACTION_BYTES", 1)
    monkeypatch.setattr(jobs, "BATCH_BYTES", 1)
    moments = {"a": torch.full((20_000,), 7.0), "b": torch.full((20_000,), 8.0)}
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(20_000)
        repository = store._session.repository
        write = repository.write

        def collecting() -> Any:
            store.gc()
            return write()

        monkeypatch.setattr(repository, "write", collecting)
        store.commit(extras=moments)
        monkeypatch.undo()
        again = store.commit(extras=moments)
        assert (again.changed, again.added_nbytes) == (0, 0)
        assert store.gc().blobs == 0
    invariants.check(path)


def _train(path: Path, number: int, stop: Any) -> None:
    torch.set_num_threads(1)
    writer.TRANSACTION_BYTES = 1 << 20  # type: ignore[misc]  # this process only
    with paramstore.open(path, scope=f"run {number}") as store:
        store["x"], store["frozen"] = torch.zeros(400_000), torch.full((30_000,), float(number))
        step = 0
        while not stop.is_set():
            store["x"].data.fill_(step)
            if step % 2:
                store.commit(step=step, wait=False)
            else:
                store.commit(step=step)
            step += 1
        store.flush()
        assert store.commit(step=step).step == step


def test_thinning_beside_runs_loses_nothing(path: Path) -> None:
    paramstore.open(path).close()
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    runs = [context.Process(target=_train, args=(path, n, stop), daemon=True) for n in range(2)]
    for run in runs:
        run.start()
    with paramstore.open(path) as store:
        while len(store.scopes()) < 2 or min(s.head_version for s in store.scopes()) < 3:
            assert all(run.is_alive() for run in runs)
            time.sleep(0.001)
        for _ in range(8):
            store.expire(KeepLast(2))
            store.gc()
        stop.set()
        for run in runs:
            run.join(120)
        assert [run.exitcode for run in runs] == [0, 0]
        for number, info in enumerate(store.scopes()):
            for snapshot in store.log(info.name):
                view = store.at(snapshot)
                assert view["frozen"].unique().item() == number
                assert len(view["x"].unique()) == 1
    invariants.check(path)
