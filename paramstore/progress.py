"""A bar on the terminal for what takes longer than a second.

Shows nothing where nobody watches, and never decides how the work is done.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from rich.progress import Progress

AFTER: Final = 1.0
"""Seconds of work before a bar appears."""
VARIABLE: Final = "PARAMSTORE_PROGRESS"
"""The environment variable that silences every bar when it is ``0``."""

Advance = Callable[[int], None]
"""Say that so much more of the work is done."""


_terminal = threading.Lock()
"""Held by the bar that is shown; what goes on inside or beside it shows none."""


@contextmanager
def progress(
    what: str, total: int | None = None, *, unit: Literal["", "bytes"] = ""
) -> Iterator[Advance]:
    """Yield a function to be called with how much has been done since its last call.

    The bar appears on standard error after a second, if that is a terminal or a notebook, and is
    gone when the block ends; only one is shown at a time. ``PARAMSTORE_PROGRESS=0`` silences it.

    Args:
        what: What is being done, e.g. ``"reading tensors"``.
        total: How much there is to do; None where it is not known.
        unit: ``"bytes"`` shows amounts and speed in bytes.
    """
    if not _is_watched():
        yield uncounted
        return
    bar = _Bar(what, total, unit)
    try:
        yield bar.advance
    finally:
        bar.stop()


class _Bar:
    """Counts until it is worth a bar, and draws from then on; several threads may count."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._lock = threading.Lock()
        self._shown_from = time.monotonic() + AFTER
        self._drawn: Progress | None = None

    def advance(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            if self._drawn is None and self._is_due() and _terminal.acquire(blocking=False):
                self._drawn = _drawn(self._unit)
                self._drawn.add_task(self._what, total=self._total)
                self._drawn.start()
            if self._drawn is not None:
                self._drawn.update(self._drawn.task_ids[0], completed=self._done)

    def _is_due(self) -> bool:
        return time.monotonic() >= self._shown_from

    def stop(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()
            _terminal.release()


def _drawn(unit: str) -> Progress:
    # Imported for who waits, not for whom everything is quick.
    from rich import progress as rich
    from rich.console import Console

    amounts: list[rich.ProgressColumn] = (
        [rich.DownloadColumn(binary_units=True), rich.TransferSpeedColumn()]
        if unit == "bytes"
        else [rich.MofNCompleteColumn()]
    )
    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        *amounts,
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _is_watched() -> bool:
    if os.environ.get(VARIABLE) == "0":
        return False
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


def uncounted(amount: int) -> None:
    """Count nothing: nobody watches, or it is too quick for a bar."""
