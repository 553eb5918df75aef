"""``store.autosave``: commits by steps and by time, and once more when the run is told to end."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore import ParamStoreDict, autosave
from paramstore.db.repository import Transaction
from paramstore.errors import InvalidInputError, SnapshotNotFoundError, StorageError, UsageError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParamStoreDict]:
    with paramstore.open(tmp_path / "run.db") as opened:
        opened["x"] = torch.zeros(3)
        yield opened


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(autosave.time, "monotonic", made)  # type: ignore[attr-defined]
    return made


def train(store: ParamStoreDict, step: int) -> None:
    dict(store.named_parameters())["x"].data.fill_(step)


def steps(store: ParamStoreDict) -> list[int | None]:
    return [snapshot.step for snapshot in store.log()][::-1]


# -- when ----------------------------------------------------------------------------------------


def test_it_commits_every_so_many_steps_and_at_the_end(store: ParamStoreDict) -> None:
    with store.autosave(every=3, seconds=None) as auto:
        for step in range(1, 9):
            train(store, step)
            pending = auto.step(step, loss=1 / step)
            assert (pending is not None) == (step % 3 == 0)
    assert steps(store) == [3, 6, 8]
    assert [s.metrics["loss"] for s in store.log()] == [1 / 8, 1 / 6, 1 / 3]
    assert [float(store.at(version)["x"].detach()[0]) for version in (1, 2, 3)] == [3, 6, 8]


def test_a_last_step_that_was_committed_is_not_committed_again(store: ParamStoreDict) -> None:
    with store.autosave(every=2, seconds=None) as auto:
        for step in range(1, 5):
            auto.step(step)
    assert steps(store) == [2, 4]


def test_no_step_no_commit(store: ParamStoreDict) -> None:
    with store.autosave(every=1):
        pass
    assert steps(store) == []


def test_it_commits_when_enough_time_has_passed(store: ParamStoreDict, clock: Clock) -> None:
    with store.autosave(seconds=60) as auto:
        for step in range(1, 10):
            clock.now += 25
            auto.step(step)
    assert steps(store) == [3, 6, 9]


def test_steps_or_time_whichever_comes_first(store: ParamStoreDict, clock: Clock) -> None:
    with store.autosave(every=4, seconds=60) as auto:
        for step in range(1, 10):
            clock.now += 25 if step < 5 else 1
            auto.step(step)
    assert steps(store) == [3, 7, 9]


def test_metrics_are_read_only_when_a_commit_is_due(store: ParamStoreDict) -> None:
    class Costly(torch.Tensor):
        read = 0

        def __float__(self) -> float:
            type(self).read += 1
            return 1.5

        def detach(self) -> Costly:
            return self

    loss = torch.zeros(()).as_subclass(Costly)
    with store.autosave(every=5, seconds=None) as auto:
        for step in range(10):
            auto.step(step, loss=loss)
    assert Costly.read == 2


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": -3},
        {"every": "5"},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"seconds": None},
    ],
)
def test_a_schedule_that_means_nothing_is_refused(
    store: ParamStoreDict, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError, match=r"positive number|how often"):
        store.autosave(**options)


def test_a_misspelt_on_conflict_is_refused_before_the_training(store: ParamStoreDict) -> None:
    with pytest.raises(InvalidInputError, match="on_conflict"):
        store.autosave(on_conflict="apend")  # type: ignore[arg-type]


def test_steps_are_counted_inside_the_block_only(store: ParamStoreDict) -> None:
    auto = store.autosave(every=3, seconds=None, on_exception=False)
    with pytest.raises(UsageError, match=r"with store\.autosave"):
        auto.step(1)
    with pytest.raises(ZeroDivisionError), auto:
        auto.step(2)
        auto.step(3)
        raise ZeroDivisionError
    with pytest.raises(UsageError, match=r"with store\.autosave"):
        auto.step(4)
    with auto:
        auto.step(5)
        assert steps(store) == []
    assert steps(store) == [5]


def test_another_writer_does_not_stop_a_run_that_appends(
    store: ParamStoreDict, tmp_path: Path
) -> None:
    with store.autosave(every=1, seconds=None, on_conflict="append") as auto:
        auto.step(1)
        store.flush()
        with paramstore.open(tmp_path / "run.db") as other:
            other["x"] = torch.ones(3)
            other.commit(step=100)
        auto.step(2)
    assert steps(store) == [1, 100, 2]


def fail_to_commit(store: ParamStoreDict, auto: Any, step: int) -> None:
    """Let a commit in the background fail, and nobody be told."""

    def refuse(*_: object) -> Any:
        raise StorageError("the disk is full")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "append", refuse)
        assert auto.step(step) is not None
        store._session.background.wait()


def test_a_commit_that_failed_is_raised_at_a_later_step(store: ParamStoreDict) -> None:
    with store.autosave(every=1, seconds=None, on_exception=False) as auto:
        fail_to_commit(store, auto, 1)
        with pytest.raises(StorageError, match="full"):
            auto.step(2)
        auto.step(3)
    assert steps(store) == [3]


@pytest.mark.parametrize("more", [[], [3]])
def test_a_commit_that_failed_does_not_keep_the_last_one_from_being_made(
    store: ParamStoreDict, more: list[int]
) -> None:
    with pytest.raises(StorageError, match="full"), store.autosave(every=2, seconds=None) as auto:
        auto.step(1)
        fail_to_commit(store, auto, 2)
        for step in more:
            auto.step(step)
    assert steps(store) == [2, *more][-1:]
    assert store.log()[0].kind == "commit"


# -- exceptions ----------------------------------------------------------------------------------


def fail_after(store: ParamStoreDict, good: int) -> None:
    with store.autosave(every=2, seconds=None) as auto:
        for step in range(1, good + 1):
            train(store, step)
            auto.step(step, loss=float(step))
        train(store, -1)
        raise ZeroDivisionError


def test_what_an_exception_leaves_behind_is_kept_and_chosen_by_nothing(
    store: ParamStoreDict, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(store, 5)
    assert [s.kind for s in store.log()] == ["interrupted", "commit", "commit"]
    assert store.latest is not None
    assert (store.latest.version, store.best("loss").version) == (2, 2)
    assert store.at("main").snapshot.version == 2
    assert store.at("main@latest").snapshot.version == 2
    with pytest.raises(SnapshotNotFoundError):
        store.at("main@step=5")
    assert float(store.at(3)["x"].detach()[0]) == -1
    with paramstore.open(tmp_path / "run.db") as again:
        assert float(again["x"].detach()[0]) == 4
        resumed = again.resume()
        assert resumed is not None
        assert resumed.step == 4
        committed = again.commit(step=6)
        assert (committed.version, committed.parent) == (4, "main@2")


def test_what_an_exception_left_behind_is_resumed_where_asked(store: ParamStoreDict) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(store, 3)
    resumed = store.resume(interrupted=True)
    assert resumed is not None
    assert resumed.kind == "interrupted"
    assert float(store["x"].detach()[0]) == -1


def test_the_exception_says_what_was_committed_and_how_to_continue(store: ParamStoreDict) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        fail_after(store, 3)
    (note,) = caught.value.__notes__
    assert "left behind is main@2, an interrupted snapshot" in note
    assert "resume(interrupted=True) from main@2" in note


def test_resuming_says_what_it_passes_over(
    store: ParamStoreDict, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(store, 3)
    caplog.set_level("INFO", logger="paramstore")
    caplog.clear()
    store.resume(interrupted=True)
    assert caplog.messages == []
    store.resume()
    assert caplog.messages == [
        "main@2 is what an exception left; continuing from main@1; resume(interrupted=True) "
        "takes it"
    ]
    store.commit()
    caplog.clear()
    store.resume()
    assert caplog.messages == []


def test_a_scope_with_nothing_else_says_so(
    store: ParamStoreDict, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after(store, 1)
    assert store.latest is None
    caplog.set_level("INFO", logger="paramstore")
    assert store.resume() is None
    assert "main@1 is what an exception left; there is nothing before it" in caplog.text
    with pytest.raises(SnapshotNotFoundError, match=r"exceptions left behind.*main@1"):
        store.at("main")


def test_exceptions_commit_nothing_where_not_asked(store: ParamStoreDict) -> None:
    with pytest.raises(ZeroDivisionError), store.autosave(every=9, on_exception=False) as auto:
        auto.step(1)
        raise ZeroDivisionError
    assert steps(store) == []


def test_a_rescue_that_fails_does_not_hide_the_exception(
    store: ParamStoreDict, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ZeroDivisionError), store.autosave(every=9) as auto:
        auto.step(1)
        store.close()
        raise ZeroDivisionError
    assert "could not be committed" in caplog.text


def test_a_commit_that_failed_does_not_keep_an_exception_from_being_rescued(
    store: ParamStoreDict,
) -> None:
    with pytest.raises(ZeroDivisionError), store.autosave(every=2, seconds=None) as auto:
        auto.step(1)
        fail_to_commit(store, auto, 2)
        raise ZeroDivisionError
    assert [(s.step, s.kind) for s in store.log()] == [(2, "interrupted")]


# -- signals -------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, sys, torch, paramstore
store = paramstore.open(sys.argv[1])
store["x"] = torch.zeros(3)
live = dict(store.named_parameters())["x"]
number = signal.Signals[sys.argv[2]]
if sys.argv[3] == "own":
    signal.signal(number, lambda *_: print("own handler", len(store.log()), flush=True) or exit(7))
with store.autosave(every=1000, signals=[number]) as auto:
    for step in range(1, 1000):
        live.data.fill_(step)
        if step == 5:
            os.kill(os.getpid(), number)
            live.data.fill_(step + 0.5)  # the handler only remembers
            print("still training", len(store.log()), flush=True)
            if sys.argv[3] == "twice":
                os.kill(os.getpid(), number)
        auto.step(step)
"""


def run(path: Path, number: str, how: str) -> tuple[int, str]:
    command = [sys.executable, "-c", SCRIPT, str(path), number, how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_signal_commits_at_the_end_of_the_step_and_then_ends_the_run(tmp_path: Path) -> None:
    code, printed = run(tmp_path / "run.db", "SIGTERM", "once")
    assert (code, printed) == (-signal.SIGTERM, "still training 0\n")
    with paramstore.open(tmp_path / "run.db") as store:
        assert steps(store) == [5]
        assert store.log()[0].kind == "commit"
        assert float(store["x"].detach()[0]) == 5.5


def test_the_handler_that_was_there_before_gets_the_signal(tmp_path: Path) -> None:
    code, printed = run(tmp_path / "run.db", "SIGUSR1", "own")
    assert (code, printed) == (7, "still training 0\nown handler 1\n")


def test_a_second_signal_goes_straight_through(tmp_path: Path) -> None:
    code, _ = run(tmp_path / "run.db", "SIGTERM", "twice")
    assert code == -signal.SIGTERM
    with paramstore.open(tmp_path / "run.db") as store:
        assert steps(store) == []


def test_handlers_are_put_back(store: ParamStoreDict) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with store.autosave(every=1):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def got() -> Iterator[list[int]]:
    """The signals that the program's own handlers were given."""
    made: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(n, lambda number, _: made.append(number)) for n in numbers]
    yield made
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


BOTH = (signal.SIGUSR1, signal.SIGUSR2)


def test_no_signal_is_lost_to_another(store: ParamStoreDict, got: list[int]) -> None:
    with store.autosave(every=9, signals=BOTH):
        signal.raise_signal(signal.SIGUSR1)
        assert got == []
        signal.raise_signal(signal.SIGUSR2)
        assert got == [*BOTH]


def test_a_second_signal_while_the_first_is_obeyed_is_no_error(
    store: ParamStoreDict, got: list[int]
) -> None:
    class Impatient:
        def state_dict(self) -> dict[str, object]:
            signal.raise_signal(signal.SIGUSR1)
            return {}

        def load_state_dict(self, _: object) -> None:
            pass

    with store.autosave(every=9, signals=BOTH) as auto:
        store.attach(impatient=Impatient())
        signal.raise_signal(signal.SIGUSR1)
        auto.step(1)
    assert steps(store) == [1]
    assert got[:2] == [signal.SIGUSR1] * 2


def test_a_handler_that_raises_leaves_no_second_snapshot(store: ParamStoreDict) -> None:
    with pytest.raises(KeyboardInterrupt), store.autosave(every=9, signals=[signal.SIGINT]) as auto:
        signal.raise_signal(signal.SIGINT)
        auto.step(1)
    assert [(s.step, s.kind) for s in store.log()] == [(1, "commit")]


def test_an_autosave_is_entered_once_at_a_time(store: ParamStoreDict) -> None:
    before = signal.getsignal(signal.SIGTERM)
    auto = store.autosave(every=1)
    with auto, pytest.raises(UsageError, match="active already"), auto:
        pass
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGKILL], ["SIGTERM"], [1000]])
def test_what_cannot_be_waited_for_is_refused_and_changes_no_handler(
    store: ParamStoreDict, signals: list[Any]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InvalidInputError, match="cannot be waited for"):
        store.autosave(signals=signals).__enter__()
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_signal_is_no_list_of_signals(store: ParamStoreDict) -> None:
    with pytest.raises(InvalidInputError, match="signals is a list"):
        store.autosave(signals=signal.SIGTERM)  # type: ignore[arg-type]


def test_a_signal_that_is_named_twice_is_put_back(store: ParamStoreDict) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with store.autosave(signals=[signal.SIGTERM, signal.SIGTERM]):
        pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_off_the_main_thread_there_is_no_handler_and_one_line_says_so(
    store: ParamStoreDict, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with store.autosave(every=1) as auto:
            seen.append(signal.getsignal(signal.SIGTERM))
            auto.step(1)

    with caplog.at_level(logging.INFO, "paramstore"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [before]
    assert steps(store) == [1]
    lines = [record.message for record in caplog.records if "signals" in record.message]
    assert lines == ["autosave does not watch for signals: this is not the main thread"]


def test_in_jupyter_there_is_no_handler(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with caplog.at_level(logging.INFO, "paramstore"), store.autosave(every=1):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "Jupyter" in caplog.text
