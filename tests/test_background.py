"""Work behind the training is done in order, and no error of it is lost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from paramstore.background import Background
from paramstore.errors import StorageError, UsageError


@pytest.fixture
def background() -> Any:
    made = Background()
    yield made
    made.close()


def submit(background: Background, work: Any, what: str = "it") -> Any:
    """Let anything be the work: what a snapshot is does not matter here."""
    return background.submit(work, what, 0)


def fail() -> Any:
    raise StorageError("the disk is full")


def test_work_is_done_in_the_order_in_which_it_was_asked_for(background: Background) -> None:
    done: list[int] = []
    handles = [submit(background, lambda n=n: done.append(n), f"{n}") for n in range(50)]
    background.wait()
    assert done == list(range(50))
    assert all(handle.done() for handle in handles)


def test_waiting_for_room_waits_for_the_oldest_only(background: Background) -> None:
    gates = [threading.Event(), threading.Event()]
    for gate in gates:
        submit(background, gate.wait)
    with pytest.raises(TimeoutError, match="it is still being written"):
        background.wait(1, timeout=0.01)
    gates[0].set()
    background.wait(1)
    assert len(background.pending) == 1
    gates[1].set()


def test_an_error_is_raised_by_the_handle_and_by_nobody_else(background: Background) -> None:
    handle = submit(background, fail, "the commit of step 3")
    with pytest.raises(StorageError):
        handle.result()
    background.raise_error()
    assert repr(handle) == "<PendingCommit of the commit of step 3: failed>"


def test_an_error_nobody_asked_for_is_raised_once_and_says_what_it_is_about(
    background: Background, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "paramstore"):
        submit(background, fail, "the commit of step 3")
        submit(background, lambda: None, "the commit of step 4")
        background.wait()
    with pytest.raises(StorageError) as caught:
        background.raise_error()
    assert "the commit of step 3" in caught.value.__notes__[0]
    background.raise_error()
    assert "the commit of step 3 failed: the disk is full" in caplog.text


def test_errors_of_several_are_raised_at_once(background: Background) -> None:
    for step in (3, 4):
        submit(background, fail, f"the commit of step {step}")
    background.wait()
    with pytest.raises(StorageError) as caught:
        background.raise_error()
    about, other = caught.value.__notes__
    assert "the commit of step 3" in about
    assert other == "After it the commit of step 4 failed, too: the disk is full"
    background.raise_error()


def test_errors_that_were_reported_are_not_kept(background: Background) -> None:
    for _ in range(5):
        with pytest.raises(StorageError):
            submit(background, fail).result()
    assert len(background._handles) <= 1


def test_closing_finishes_what_is_pending(background: Background) -> None:
    gate = threading.Event()
    handle = submit(background, lambda: gate.wait(0.05))
    background.close()
    assert handle.done()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_leaves_pending_work_to_its_parent(background: Background) -> None:
    gate = threading.Event()
    handle = submit(background, gate.wait, "the commit of step 3")
    child = os.fork()
    if not child:
        try:
            background.after_fork_in_child()
            assert background.pending == []
            with pytest.raises(UsageError, match="not by its fork"):
                handle.result()
            assert submit(background, lambda: 7).result() == 7
            os._exit(0)
        finally:
            os._exit(1)
    gate.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert handle.result()


def test_the_interpreter_finishes_what_is_pending_before_it_exits() -> None:
    script = (
        "import time; from paramstore.background import Background\n"
        "b = Background()\n"
        "for n in range(3): b.submit(lambda n=n: (time.sleep(0.05), print(n)), str(n), 0)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == ["0", "1", "2"]
