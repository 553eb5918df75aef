"""A bar for what takes long, where somebody watches, and nothing elsewhere."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Literal

import pytest

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


def test_an_error_inside_ends_the_bar_and_passes() -> None:
    terminal = Terminal()
    with pytest.raises(TypeError):
        shown(terminal, 1, "two")  # type: ignore[arg-type]
    assert terminal.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # cursor back, line erased
