"""A bar for what takes long, where somebody watches, and nothing elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from pathlib import Path
from typing import Literal

import pytest
import torch

import paramstore
from paramstore import progress as module
from paramstore.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARAMSTORE_PROGRESS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "AFTER", 0.0)


def shown(to: io.StringIO, *amounts: int, unit: Literal["", "bytes"] = "") -> str:
    """What some work prints to standard error."""
    with redirect_stderr(to), progress("counting [sheep]", 10, unit=unit) as advance:
        for amount in amounts:
            advance(amount)
    return to.getvalue()


def shown_as(what: str, to: io.StringIO) -> str:
    with redirect_stderr(to), progress(what, 1) as advance:
        advance(1)
    return to.getvalue()


def test_long_work_draws_a_bar_that_says_what_is_done() -> None:
    text = shown(Terminal(), 3, 4)
    assert "counting [sheep]" in text
    assert "7/10" in text


def test_bytes_are_shown_as_such() -> None:
    assert "7/10 bytes" in shown(Terminal(), 3, 4, unit="bytes")


def test_quick_work_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFTER", 60.0)
    assert shown(Terminal(), 3, 4) == ""


def test_a_variable_silences_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMSTORE_PROGRESS", "0")
    assert shown(Terminal(), 3, 4) == ""


def test_a_pipe_gets_nothing() -> None:
    assert shown(io.StringIO(), 3, 4) == ""


def test_work_inside_other_work_shows_one_bar() -> None:
    terminal = Terminal()
    with redirect_stderr(terminal), progress("outer", 2) as outer:
        outer(1)
        with progress("inner", 2) as inner:
            inner(1)
        outer(1)
    assert "outer" in terminal.getvalue()
    assert "inner" not in terminal.getvalue()
    assert "inner" in shown_as("inner", Terminal())


def test_several_threads_count_together() -> None:
    terminal = Terminal()
    with redirect_stderr(terminal), progress("counting", 4000) as advance:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(lambda: [advance(1) for _ in range(1000)])
        advance(0)
    assert "4000/4000" in terminal.getvalue()


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        (lambda store: store.load_all(), "reading tensors"),
        (lambda store: store.restore(1), "checking tensors"),
        (lambda store: store.diff(1, 2), "comparing parameters"),
        (lambda store: store.commit(), "writing tensors"),
    ],
)
def test_what_goes_through_tensors_shows_a_bar(
    path: Path, verb: Callable[[paramstore.ParamStoreDict], object], what: str
) -> None:
    with paramstore.open(path) as store:
        for value in (0.0, 1.0):
            store["w"] = torch.full((3_000_000,), value)
            store.commit()
    terminal = Terminal()
    with paramstore.open(path) as store, redirect_stderr(terminal):
        store["new"] = torch.ones(3_000_000)
        verb(store)
    assert what in terminal.getvalue()


def test_a_commit_in_the_background_shows_none(path: Path) -> None:
    terminal = Terminal()
    with redirect_stderr(terminal), paramstore.open(path) as store:
        store["w"] = torch.zeros(3_000_000)
        store.commit(wait=False).result()
    assert terminal.getvalue() == ""


def test_an_error_inside_ends_the_bar_and_passes() -> None:
    terminal = Terminal()
    with pytest.raises(TypeError):
        shown(terminal, 1, "two")  # type: ignore[arg-type]
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # cursor back, line erased
