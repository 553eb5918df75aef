"""``commit(wait=False)``: the snapshot is of the moment of the call, and nothing else differs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict
from paramstore.db.repository import Repository, StaleEntries, Transaction
from paramstore.errors import (
    ConflictError,
    ExpiredError,
    InvalidInputError,
    ReadOnlyError,
    StorageError,
    StoreBusyError,
    UnsupportedTensorError,
    UsageError,
)


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Keep the background thread from writing until the function is called, or the block ends."""
    gate = threading.Event()
    write = Repository.write

    def wait(repository: Repository) -> Any:
        if threading.current_thread().name.startswith("paramstore-commit"):
            assert gate.wait(60)
        return write(repository)

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "write", wait)
        try:
            yield gate.set
        finally:
            gate.set()


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> Any:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "append", refuse)
        yield


# -- the moment of the call ----------------------------------------------------------------------


def test_no_byte_of_a_later_step_gets_into_a_snapshot() -> None:
    store = ParamStoreDict(statistics=False)
    tensors = {f"p{n}": torch.zeros(1 << 4 * n) for n in range(4)}
    for name, tensor in tensors.items():
        store[name] = tensor
    live = dict(store.named_parameters())
    for step in range(1, 2001):
        for tensor in live.values():
            tensor.data.fill_(step)
        store.commit(step=step, wait=False)
        for tensor in live.values():
            tensor.data.fill_(-step)
    store.flush()
    assert store.last is not None
    assert store.last.version == 2000
    for version in range(1, 2001, 37):
        view = store.at(version)
        assert all(bool((view[name] == version).all()) for name in tensors), version


def test_attached_states_and_extras_are_of_the_moment_too(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.ones(5000))
    store["weight"] = weight
    optim = torch.optim.Adam([weight], lr=0.1)
    store.attach(optim=optim, rng=True)
    large = torch.zeros(5000)
    (weight.sum() * 2).backward()
    optim.step()
    moment = optim.state[weight]["exp_avg"].clone()
    generator = torch.get_rng_state()
    with held(monkeypatch):
        handle = store.commit(extras={"large": large}, wait=False)
        optim.step()
        large.fill_(7)
        torch.rand(3)
    assert torch.equal(handle.result().extras["large"], torch.zeros(5000))
    store.restore(1)
    assert torch.equal(optim.state[weight]["exp_avg"], moment)
    assert torch.equal(torch.get_rng_state(), generator)


def test_bounds_that_move_do_not_move_in_the_snapshot(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = torch.full((2000,), 1.0)
    store.setdefault("x", torch.full((2000,), 3.0), constraint=constraints.greater_than(bound))
    with held(monkeypatch):
        handle = store.commit(wait=False)
        bound.fill_(100)
    handle.result()
    assert torch.allclose(store.at(1)["x"], torch.full((2000,), 3.0))
    found = store.history("x")[0].statistics
    assert found is not None
    assert found.mean == pytest.approx(3.0)


def test_bounds_that_took_the_place_of_a_number_do_not_move_either(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = torch.full((2000,), 1.0)
    store.setdefault("x", torch.full((2000,), 3.0), constraint=constraints.positive)
    spec = {"x": constraints.greater_than(bound)}
    store.set_state({"params": {"x": torch.zeros(2000)}, "constraints": spec})
    with held(monkeypatch):
        handle = store.commit(wait=False)
        bound.fill_(100)
    handle.result()
    assert torch.equal(store.at(1)["x"], torch.full((2000,), 2.0))


def test_a_buffer_that_only_the_old_module_had_is_carried_on_as_it_was_last(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = nn.BatchNorm1d(2)
    store.module("net", old)
    store.commit()
    assert old.running_mean is not None
    old.running_mean.fill_(5)
    with held(monkeypatch) as release:
        store.commit(wait=False)
        threading.Timer(0.05, release).start()
        store.module("net", nn.BatchNorm1d(2, track_running_stats=False), strict=False)
        store.commit(wait=False)
    store.flush()
    assert store.at(3)["net$$$running_mean"].tolist() == [5, 5]


def test_buffers_strided_and_tied_tensors_come_back_as_they_were(store: ParamStoreDict) -> None:
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net = nn.Sequential(conv, nn.BatchNorm2d(4))
    store.module("net", net)
    store["tied"] = conv.weight
    net(torch.randn(2, 3, 8, 8))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    store.commit(wait=False)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    store.restore("main")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(store.at(1)["tied"], before["0.weight"])


Step = tuple[str, bool, int]


@pytest.fixture(scope="module")
def two_stores() -> tuple[ParamStoreDict, ParamStoreDict]:
    return ParamStoreDict(), ParamStoreDict()


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.booleans(), st.integers(0, 2)), max_size=12
    )
)
def test_a_run_stores_the_same_whichever_commits_wait(
    two_stores: tuple[ParamStoreDict, ParamStoreDict], steps: list[Step]
) -> None:
    # The values are few, so that they come back. Only since_version may differ: a value that is
    # back while the commit without it is pending is known to be that of the row before.
    found = []
    scope = f"run {uuid.uuid4()}"
    for number, store in enumerate(two_stores):
        with store.scope(scope, commit=False):
            for name, waits, value in steps:
                store[name] = torch.full((3,), float(value))
                if number and not waits:
                    store.commit(step=value, wait=False)
                else:
                    store.commit(step=value)
            store.flush()
            histories = {name: store.history(name) for name in store}
            versions = {n: [(v.version, v.digest) for v in h] for n, h in histories.items()}
            found.append(([snapshot.step for snapshot in store.log()], versions))
    assert found[0] == found[1]


# -- what is copied ------------------------------------------------------------------------------


def test_what_has_not_changed_twice_is_not_copied(store: ParamStoreDict) -> None:
    store["base"], store["head"] = torch.zeros(10_000), torch.zeros(10)
    copied = []
    for step in range(4):
        store["head"].unconstrained().data.fill_(step + 1)  # type: ignore[attr-defined]
        handle = store.commit(wait=False)
        copied.append(handle.nbytes)
        handle.result()
    assert copied == [40_040, 40_040, 40, 40]
    assert [snapshot.changed for snapshot in store.log()] == [1, 1, 1, 2]


def test_a_change_that_no_flag_shows_is_seen(store: ParamStoreDict) -> None:
    store["base"] = torch.zeros(10)
    for _ in range(3):
        store.commit(wait=False).result()
    array = dict(store.named_parameters())["base"].detach().numpy()
    array[3] = 1
    store.commit(wait=False).result()
    assert store.at(4)["base"][3] == 1


def test_memory_for_copies_is_bounded(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(1000)
    for step in range(10):
        dict(store.named_parameters())["x"].data.fill_(step)
        store.commit(wait=False, max_pending=3)
    store.flush()
    assert 0 < store._session._staging.nbytes <= 3 * 4000


def test_a_value_that_returns_while_another_commit_is_pending_is_stored(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(10)
    live = dict(store.named_parameters())["x"]
    for _ in range(2):
        store.commit(wait=False).result()
    with held(monkeypatch):
        live.data.fill_(1)
        store.commit(wait=False)
        live.data.fill_(0)
        handle = store.commit(wait=False)
        assert handle.nbytes == 0
    handle.result()
    assert [float(store.at(version)["x"][0]) for version in (1, 2, 3, 4)] == [0, 0, 1, 0]
    assert [v.version for v in store.history("x")] == [1, 3, 4]


def test_memory_for_copies_is_freed_when_the_store_is_closed(store: ParamStoreDict) -> None:
    store["x"] = torch.zeros(1000)
    store.commit(wait=False)
    store.close()
    assert store._session._staging.nbytes == 0


def test_a_commit_that_cannot_be_begun_keeps_no_memory(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.setdefault("x", torch.ones(10), constraint=constraints.greater_than(torch.zeros(10)))

    def refuse(*_: object) -> Any:
        raise RuntimeError("can't start new thread")

    for place in ("paramstore.capture.from_spec", "threading.Thread.start"):
        with monkeypatch.context() as patch:
            patch.setattr(place, refuse)
            for _ in range(3):
                with pytest.raises((RuntimeError, UsageError), match="can't start new thread"):
                    store.commit(step=1, wait=False)
    assert store._session._staging.nbytes == 40
    store.commit(step=2, wait=False).result()
    assert [snapshot.step for snapshot in store.log()] == [2]


# -- the queue -----------------------------------------------------------------------------------


def test_commits_are_made_in_the_order_of_the_calls(store: ParamStoreDict) -> None:
    store["x"] = torch.zeros(10)
    handles = [store.commit(step=step, wait=False) for step in range(20)]
    assert [handle.result().step for handle in handles] == list(range(20))
    assert [snapshot.step for snapshot in store.log()] == list(range(19, -1, -1))


def test_a_full_queue_refuses_where_asked_to(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(10)
    with held(monkeypatch):
        store.commit(wait=False, max_pending=1)
        with pytest.raises(StoreBusyError, match=r"1 commits are pending .* store.flush\(\)"):
            store.commit(wait=False, max_pending=1, on_full="raise")
        with pytest.raises(TimeoutError, match="still being written"):
            store.flush(timeout=0.01)
    store.flush()
    assert len(store.log()) == 1


def test_a_full_queue_blocks_until_the_oldest_is_durable(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(10)
    with held(monkeypatch) as release:
        first = store.commit(wait=False, max_pending=1)
        threading.Timer(0.05, release).start()
        second = store.commit(wait=False, max_pending=1)
        assert first.done()
    assert second.result().version == 2


@pytest.mark.parametrize("options", [{"max_pending": 0}, {"on_full": "drop"}])
def test_options_that_mean_nothing_are_refused(
    store: ParamStoreDict, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=r"max_pending is 1 or more|on_full is"):
        store.commit(wait=False, **options)


def test_what_cannot_be_stored_is_refused_by_the_call_itself(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(10)
        store.commit()
        with pytest.raises(UnsupportedTensorError, match="'x'"):
            dict(store.named_parameters())["x"].untyped_storage().resize_(0)
            store.commit(wait=False)
    with paramstore.open(path, readonly=True) as store, pytest.raises(ReadOnlyError):
        store.commit(wait=False)


# -- errors --------------------------------------------------------------------------------------


def test_an_error_reaches_the_handle_and_the_next_commit_is_complete(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"], store["y"] = torch.zeros(10), torch.zeros(20)
    with full_disk(monkeypatch):
        handle = store.commit(wait=False)
        with pytest.raises(StorageError, match="full"):
            handle.result()
    assert store.commit(wait=False).result().changed == 2
    assert torch.equal(store.at(1)["x"], torch.zeros(10))


@pytest.mark.parametrize(
    "verb",
    [
        pytest.param(lambda store: store.commit(), id="commit"),
        pytest.param(lambda store: store.commit(wait=False), id="commit(wait=False)"),
        pytest.param(lambda store: store.flush(), id="flush"),
        pytest.param(lambda store: store.resume(), id="resume"),
        pytest.param(lambda store: store.close(), id="close"),
    ],
)
def test_an_error_nobody_asked_for_reaches_the_next_call(
    path: Path, monkeypatch: pytest.MonkeyPatch, verb: Callable[[ParamStoreDict], object]
) -> None:
    store = paramstore.open(path)
    store["x"] = torch.zeros(10)
    with full_disk(monkeypatch):
        store.commit(step=3, wait=False)
        store._session.background.wait()
    with pytest.raises(StorageError, match="full") as caught:
        verb(store)
    assert "the commit of step 3" in caught.value.__notes__[0]
    store.close()


def test_closing_that_was_interrupted_can_be_done_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = paramstore.open(path)
    store["x"] = torch.zeros(10)
    with held(monkeypatch) as release:
        store.commit(wait=False)
        me = threading.get_ident()
        threading.Timer(0.1, signal.pthread_kill, [me, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            store.close()
        release()
        assert store.commit(wait=False).result().version == 2
        store.close()
    with paramstore.open(path) as again:
        assert len(again.log()) == 2


def test_leaving_the_block_by_an_exception_shows_that_exception(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError), full_disk(monkeypatch), paramstore.open(path) as store:
        store["x"] = torch.zeros(10)
        store.commit(wait=False)
        raise ZeroDivisionError


def test_a_conflict_is_found_in_the_background(path: Path, store: ParamStoreDict) -> None:
    store["x"] = torch.zeros(10)
    with paramstore.open(path) as other:
        other["x"] = torch.ones(10)
        other.commit()
    handle = store.commit(wait=False)
    with pytest.raises(ConflictError):
        handle.result()
    assert store.commit(wait=False, on_conflict="append").result().version == 2


def test_history_that_is_gone_is_an_error_once_and_written_anew_then(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(10)
    for _ in range(2):
        store.commit(wait=False).result()

    def stale(*_: object) -> Any:
        raise StaleEntries(["x"])

    with monkeypatch.context() as patch:
        patch.setattr(Transaction, "append", stale)
        with pytest.raises(ExpiredError, match=r"expired the history.*commit again"):
            store.commit(wait=False).result()
    handle = store.commit(wait=False)
    assert handle.nbytes == 40
    assert handle.result().version == 3


# -- other verbs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        pytest.param(lambda s: s.commit().version, 2, id="commit"),
        pytest.param(lambda s: s.restore("main").version, 1, id="restore"),
        pytest.param(lambda s: s.resume().version, 1, id="resume"),
        pytest.param(lambda s: s.changed(), (), id="changed"),
        pytest.param(lambda s: s.tag("here") or s.at("@here").snapshot.version, 1, id="tag"),
        pytest.param(lambda s: s.untag("first") or s.log()[0].tags, (), id="untag"),
        pytest.param(lambda s: s.fork("branch") or s.commit().parent, "main@1", id="fork"),
        pytest.param(lambda s: s.rename("x", "y") or len(s.history("y")), 1, id="rename"),
        pytest.param(lambda s: s.clear() or (s.resume() and s["x"].shape[0]), 10, id="clear"),
    ],
)
def test_verbs_that_need_the_snapshot_wait_for_it(
    store: ParamStoreDict,
    monkeypatch: pytest.MonkeyPatch,
    verb: Callable[[ParamStoreDict], object],
    expected: object,
) -> None:
    store["x"] = torch.zeros(10)
    with held(monkeypatch) as release:
        store.commit(wait=False, tags=["first"])
        threading.Timer(0.05, release).start()
        assert verb(store) == expected


def test_two_scopes_may_be_pending_at_once(store: ParamStoreDict) -> None:
    for value in range(5):
        for name in ("one", "two"):
            with store.scope(name, commit=False):
                store["x"] = torch.full((3,), float(value))
                store.commit(wait=False)
    store.flush()
    assert {scope.name: scope.head_version for scope in store.scopes()} == {"one": 5, "two": 5}


def test_training_reads_and_sets_parameters_while_a_commit_is_pending(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["x"] = torch.zeros(10)
    with held(monkeypatch):
        handle = store.commit(wait=False)
        store["x"] = torch.ones(10)
        assert store.setdefault("new", torch.zeros(1)).shape == (1,)
        assert not handle.done()
    handle.result()
    assert store.changed() == ("new", "x")


# -- ends ----------------------------------------------------------------------------------------


def test_closing_makes_pending_commits_durable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(monkeypatch) as release, paramstore.open(path) as store:
        store["x"] = torch.zeros(10)
        store.commit(wait=False)
        threading.Timer(0.05, release).start()
    with paramstore.open(path) as store:
        assert store.last is not None
        assert store.last.version == 1


SCRIPT = """
import sys, torch, paramstore
store = paramstore.open(sys.argv[1])
store["x"] = torch.zeros(1 << 20)
live = dict(store.named_parameters())["x"]
for step in range(1, int(sys.argv[2]) + 1):
    live.data.fill_(step)
    handle = store.commit(step=step, wait=False)
    if sys.argv[3] == "confirm":
        print(handle.result().version, flush=True)
"""


def run(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(path), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_the_end_of_the_script_makes_pending_commits_durable(path: Path) -> None:
    with run(path, "5", "leave") as process:
        assert process.wait() == 0
    with paramstore.open(path) as store:
        assert len(store.log()) == 5


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_keeps_what_was_confirmed_and_shows_nothing_half_done(
    path: Path, number: signal.Signals
) -> None:
    with run(path, "100000", "confirm") as process:
        assert process.stdout is not None
        confirmed = [int(process.stdout.readline()) for _ in range(7)]
        process.send_signal(number)
        confirmed += map(int, process.stdout.read().split())
        assert process.wait() == -number
    with paramstore.open(path) as store:
        assert len(store.log()) in (len(confirmed), len(confirmed) + 1)
        for snapshot in store.log():
            assert torch.equal(
                store.at(snapshot)["x"], torch.full((1 << 20,), snapshot.step or 0.0)
            )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_a_commit_leaves_it_to_the_parent(
    store: ParamStoreDict, path: Path
) -> None:
    store["x"] = torch.zeros(1 << 20)
    handles = [store.commit(step=step, wait=False) for step in range(2)]
    child = os.fork()
    if not child:
        try:
            assert store._session.background.pending == []
            assert store["x"].shape == (1 << 20,)
            assert store._session._staging.nbytes == 0  # its lock may be the parent's for ever
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [handle.result().version for handle in handles] == [1, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_gpu_are_of_the_moment_of_the_call(store: ParamStoreDict) -> None:
    live = torch.zeros(1 << 20, device="cuda")
    store["x"] = live
    for step in range(1, 201):
        live.fill_(step)
        store.commit(step=step, wait=False)
        live.fill_(-step)
    store.flush()
    for version in range(1, 201, 13):
        assert bool((store.at(version)["x"] == version).all())
