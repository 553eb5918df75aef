"""Sessions at their edges: forks, modes, threads, scopes that are refused, states that fail."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import nn

import paramstore
from paramstore import ParamStoreDict, attached, binding, session

# Forking with torch's threads about is what users do (data loaders), and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_threads(*functions: Callable[[], object], seconds: float = 30) -> list[BaseException]:
    """Run functions at once, each on a thread; fail where one never ends, else their errors."""
    errors: list[BaseException] = []

    def guarded(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "deadlock"
    return errors


class Counting:
    """An object with a state, whose loading can be made to do something else as well."""

    def __init__(self, also: Callable[[], object] = lambda: None) -> None:
        self.count, self.also = 0, also

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.also()
        self.count = state["count"]


class Looking(Counting):
    """An object whose state depends on a parameter of the store that it is attached to."""

    def __init__(self, look: Callable[[], torch.Tensor]) -> None:
        super().__init__()
        self.look = look

    def state_dict(self) -> dict[str, int]:
        return {"count": int(self.look().item())}


def stored(path: Path, *names: str) -> None:
    with paramstore.open(path) as store:
        for number, name in enumerate(names):
            store[name] = torch.tensor(float(number))
        store.commit()


# -- forks ---------------------------------------------------------------------------------------


def test_threads_that_fork_at_the_same_time_do_not_wait_for_each_other(path: Path) -> None:
    # In an interpreter of its own: after thousands of tests, children of such forks have crashed
    # inside the interpreter's own work after a fork, before any line of Python.
    script = f"""
import os, threading, paramstore
stores = [paramstore.ParamStoreDict() for _ in range(3)] + [paramstore.open({str(path)!r})]
barrier, statuses = threading.Barrier(4), []

def fork():
    for _ in range(15):
        barrier.wait(20)
        child = os.fork()
        if child == 0:
            os._exit(0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

threads = [threading.Thread(target=fork) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert statuses == [0] * 60, statuses
for store in stores:
    store.clear()  # waits for ever where a lock was left behind
    store.close()
"""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_locks_that_one_fork_took_are_never_released_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ParamStoreDict()
    entered = threading.Event()

    class Slow:
        """A session's lock whose release lets another forking thread in at once."""

        def __init__(self) -> None:
            self.lock = threading.RLock()

        def acquire(self) -> None:
            self.lock.acquire()
            entered.set()

        def release(self) -> None:
            entered.clear()
            self.lock.release()
            entered.wait(0.05)

    other = ParamStoreDict()
    for one in (store, other):
        monkeypatch.setattr(one._session, "lock", Slow())

    def fork() -> None:
        for _ in range(10):
            session._before_fork()
            session._after_fork()

    assert in_threads(fork, fork, seconds=20) == []
    assert session._held_for_fork == []


# -- modes ---------------------------------------------------------------------------------------


def test_a_commit_in_inference_mode_lets_attached_objects_read_the_store(path: Path) -> None:
    stored(path, "x", "y")
    store = paramstore.open(path)
    store.attach(looking=Looking(lambda: store["y"]))

    def commit() -> None:
        with torch.inference_mode():
            store.commit()

    assert in_threads(commit) == []
    assert store.at("@latest").state("looking") == {"count": 1}
    store.close()


def test_an_attached_object_may_read_the_store_in_a_mode_of_its_own(path: Path) -> None:
    stored(path, "x", "y")
    store = paramstore.open(path)

    def look() -> torch.Tensor:
        with torch.inference_mode():
            return store["y"]

    store.attach(looking=Looking(look))
    assert in_threads(store.commit) == []
    assert store.at("@latest").state("looking") == {"count": 1}
    store.close()


class Hooked(nn.Module):
    """A module whose state is asked for through the store."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

        def hook(*_: object) -> None:
            look()

        self.register_state_dict_post_hook(hook)  # type: ignore[no-untyped-call]  # torch's own


@pytest.mark.parametrize("verb", ["bind", "resume", "restore", "rename", "changed", "scope"])
def test_every_verb_in_inference_mode_lets_the_hooks_of_a_module_read_the_store(
    path: Path, verb: str
) -> None:
    stored(path, "x", "y")
    store = paramstore.open(path)

    def scope() -> None:
        with store.scope("main2"):
            store["y"] = torch.zeros(1)
            store.module("net", Hooked(lambda: store["y"]))

    calls: dict[str, Callable[[], object]] = {
        "bind": lambda: None,
        "resume": lambda: store.resume(strict=False),
        "restore": lambda: store.restore(1, strict=False),
        "rename": lambda: store.rename("x", "z"),
        "changed": store.changed,
        "scope": scope,
    }

    def call() -> None:
        with torch.inference_mode():
            store.module("net", Hooked(lambda: store["y"]), strict=False)
            calls[verb]()

    assert in_threads(call) == []
    store.close()


def test_saving_in_inference_mode_reads_what_nobody_has_read(path: Path, tmp_path: Path) -> None:
    stored(path, "x", "y")
    store, again = paramstore.open(path), ParamStoreDict()

    def save() -> None:
        with torch.inference_mode():
            store.save(tmp_path / "saved")

    assert in_threads(save) == []
    again.load(tmp_path / "saved")
    assert again["y"].item() == 1.0
    store.close()


# -- scopes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, "named", "plain"])
def test_no_kind_of_scope_can_be_entered_while_another_thread_is_inside_one(state: Any) -> None:
    store = ParamStoreDict()
    store["x"] = torch.tensor(5.0)
    entered, may_leave = threading.Event(), threading.Event()
    given = {"params": {}, "constraints": {}} if state == "plain" else state

    def inside() -> None:
        with store.scope({"params": {}, "constraints": {}}):
            store["x"] = torch.tensor(6.0)
            entered.set()
            assert may_leave.wait(20)

    def outside() -> None:
        try:
            assert entered.wait(20)
            with pytest.raises(paramstore.ScopeError, match="another thread"), store.scope(given):
                pass
            assert store["x"].item() == 6.0
        finally:
            may_leave.set()

    assert in_threads(inside, outside) == []
    assert store["x"].item() == 5.0
    assert [info.name for info in store.scopes()] == []
    with store.scope(given):
        assert not store


def test_threads_that_enter_scopes_at_once_take_turns_or_are_refused(path: Path) -> None:
    store = paramstore.open(path)
    store["x"] = torch.tensor(0.0)
    barrier, wrong = threading.Barrier(4), []

    def enter(number: int) -> None:
        for turn in range(20):
            barrier.wait(20)
            try:
                with store.scope(f"scope {number}-{turn % 2}", commit=False):
                    store["x"] = torch.tensor(float(number))
                    if store["x"].item() != number:
                        wrong.append(number)
            except paramstore.ScopeError:
                pass

    assert in_threads(*[lambda n=n: enter(n) for n in range(1, 5)], seconds=60) == []
    assert wrong == []
    assert store["x"].item() == 0.0
    assert store._current is store._session.current
    store.close()


def test_a_scope_that_was_refused_is_not_kept(path: Path) -> None:
    store = paramstore.open(path)
    with store.scope("inner"):

        def enter() -> None:
            with store.scope("other"):
                pass

        errors = in_threads(enter)
    assert [type(error) for error in errors] == [paramstore.ScopeError]
    assert store._session.scopes.known("other") is None
    store.close()


def test_the_state_of_an_unnamed_scope_in_memory_is_a_plain_one() -> None:
    store = ParamStoreDict()
    with store.scope() as state:
        store["x"] = torch.zeros(1)
    assert type(state) is dict
    with store.scope(state), store.scope(state):
        assert list(store) == ["x"]


def test_a_state_that_cannot_be_written_to_is_refused_before_the_scope_is_entered() -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    state: Any = MappingProxyType(store.get_state())
    with pytest.raises(paramstore.InvalidInputError, match="dict"), store.scope(state):
        del store["x"]
    assert list(store) == ["x"]


# -- generators and attached objects -------------------------------------------------------------


def broken_generators(monkeypatch: pytest.MonkeyPatch, store: ParamStoreDict) -> None:
    """Let the next commit store a state of the generators that torch refuses."""
    found = attached.capture_generators() | {"torch": torch.zeros(3, dtype=torch.uint8)}
    with monkeypatch.context() as patch:
        patch.setattr(attached, "capture_generators", lambda: found)
        store.commit()


def test_generators_that_refuse_their_state_leave_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, counting = ParamStoreDict(), Counting()
    store["x"] = torch.tensor(1.0)
    store.attach(rng=True, counting=counting)
    store.commit()
    store["x"].data.fill_(2.0)
    broken_generators(monkeypatch, store)
    store.restore(1)
    store["x"].data.fill_(3.0)
    counting.count = 4
    state = random.getstate(), torch.get_rng_state()
    with pytest.raises(paramstore.MismatchError, match=r"'rng'.*Nothing has been changed"):
        store.restore(2)
    assert (store["x"].item(), counting.count) == (3.0, 4)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert store.commit().parent == "main@1"


def test_objects_that_draw_while_they_load_do_not_move_the_generators() -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    store.attach(rng=True, drawing=Counting(lambda: torch.rand(3)))
    store.commit()
    wanted = torch.rand(3).tolist()
    store.resume()
    assert torch.rand(3).tolist() == wanted


def test_an_object_that_refuses_puts_the_generators_back_as_well() -> None:
    def refuse() -> None:
        torch.rand(3)
        raise OSError("no")

    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    store.attach(rng=True, refusing=Counting(refuse))
    store.commit()
    before = torch.rand(1), torch.get_rng_state()
    with pytest.raises(paramstore.MismatchError, match="'refusing' refused its state: no"):
        store.resume()
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_filled_snapshot_is_the_parent_although_settling_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, counting = ParamStoreDict(), Counting()
    store["x"] = torch.tensor(1.0)
    store.attach(counting=counting)
    store.commit()
    store["x"].data.fill_(2.0)
    store.commit()

    def fail(obj: object, state: object) -> None:
        raise OSError("unsettled")

    with monkeypatch.context() as patch:
        patch.setattr(attached, "settle", fail)
        with pytest.raises(OSError, match="unsettled"):
            store.restore(1)
    assert store["x"].item() == 1.0
    assert store.commit().parent == "main@1"


def test_restore_leaves_states_alone_that_nothing_is_attached_for_and_resume_refuses_them(
    path: Path,
) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(1)
        store.attach(one=Counting(), two=Counting())
        store.commit()
    with paramstore.open(path) as store:
        store.restore(1)
        store.attach(one=Counting())
        store.restore(1)
        with pytest.raises(paramstore.MismatchError, match="'two'"):
            store.resume()
        store.attach(three=Counting())
        with pytest.raises(paramstore.MismatchError, match="'three'") as caught:
            store.restore(1)
        assert "'two'" not in str(caught.value)
        store.restore(1, include="x")


def test_an_object_that_fails_to_give_its_state_is_named_when_it_is_put_back() -> None:
    class Silent(Counting):
        def state_dict(self) -> dict[str, int]:
            if self.count:
                raise OSError("no state")
            return super().state_dict()

    store, silent = ParamStoreDict(), Silent()
    store["x"] = torch.zeros(1)
    store.attach(silent=silent)
    store.commit()
    silent.count = 1
    with pytest.raises(paramstore.MismatchError, match="'silent' does not give its state"):
        store.restore(1)


def test_an_object_cannot_be_attached_under_the_name_of_the_generators() -> None:
    store: Any = ParamStoreDict()
    with pytest.raises(paramstore.InvalidInputError, match="another name"):
        store.attach(rng=torch.Generator(), counting=Counting())
    assert not store._current.attached


# -- first reads ---------------------------------------------------------------------------------


def test_a_tensor_that_another_thread_has_just_read_is_not_replaced_by_an_offered_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stored(path, "x", "y")
    store = paramstore.open(path)
    offered, seen = nn.Parameter(torch.tensor(9.0)), []
    offer = store._session.offer

    def late(name: str, held: torch.Tensor, tensor: object) -> None:
        seen.append(store["y"])  # as another thread would, between the look and the lock
        offer(name, held, tensor)

    monkeypatch.setattr(store._session, "offer", late)
    with caplog.at_level(logging.INFO, logger="paramstore"):
        assert store.setdefault("y", offered) is seen[0]
    assert (seen[0].item(), offered.item()) == (1.0, 9.0)
    assert store.param_name(seen[0]) == "y"
    assert any("store.module" in record.getMessage() for record in caplog.records)
    store.close()


def test_each_scope_says_once_that_a_parameter_is_not_adopted_and_again_after_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ParamStoreDict()
    said: list[str] = []
    monkeypatch.setattr(binding, "warn_not_adopted", said.append)

    def offer() -> None:
        store["x"] = torch.zeros(1)
        for _ in range(2):
            store.setdefault("x", nn.Parameter(torch.zeros(1)))

    offer()
    assert said == ["x"]
    with store.scope("other", commit=False):
        offer()
    assert said == ["x"] * 2
    offer()
    assert said == ["x"] * 2
    store.clear()
    offer()
    assert said == ["x"] * 3


def test_a_damaged_tensor_does_not_name_a_snapshot_that_never_held_it(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"], store["y"] = torch.tensor(1.0), torch.tensor(1.0)
        store.commit()
        store["x"], store["y"] = torch.tensor(2.0), torch.tensor(2.0)
        store.commit()
    with paramstore.open(path) as store:
        store.restore(1, include="x", verify=False)  # the parent stays main@2
        with store._session.backend.database.write() as connection:
            entry = store._current.stored["x"].entry
            connection.exec_driver_sql("DELETE FROM chunks WHERE id >> 20 = ?", (entry.blob_id,))
        with pytest.raises(paramstore.CorruptError) as caught:
            store["x"]
    assert caught.value.snapshots == ("main@1",)


# -- names and arguments -------------------------------------------------------------------------


def test_a_parameter_cannot_take_the_name_of_a_bound_buffer() -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    store.module("norm", nn.BatchNorm1d(2))
    with pytest.raises(paramstore.InvalidNameError, match="running_mean"):
        store.rename("x", "norm$$$running_mean")
    assert "x" in store


@pytest.mark.parametrize(
    "given", [{"start": "main@1"}, {"readonly": True}, {"create": False}, {"journal": "wal"}]
)
def test_arguments_about_a_database_are_refused_without_one(given: dict[str, Any]) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="path"):
        ParamStoreDict(**given)


def test_an_empty_scope_name_is_not_taken_for_the_current_scope() -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    store.commit(tags=["warm"])
    with pytest.raises(paramstore.InvalidNameError):
        store.log("")
    with pytest.raises(paramstore.InvalidNameError):
        store.history("x", scope="")
    with pytest.raises(paramstore.InvalidNameError):
        store.untag("warm", scope="")
    assert store.log()[0].tags == ("warm",)


def test_the_last_snapshot_after_a_commit_has_its_extras() -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    store.commit(extras={"epoch": 3})
    assert store.last is not None
    assert store.last.extras == {"epoch": 3}
