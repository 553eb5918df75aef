"""Commits by steps and by time beside a training loop, and once more when the run is told to end.

Decides when and never how; must never commit from inside a signal handler.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from paramstore.errors import InvalidInputError
from paramstore.request import Request
from paramstore.snapshot import INTERRUPTED

if TYPE_CHECKING:
    from paramstore.background import PendingCommit
    from paramstore.snapshot import Snapshot

logger = logging.getLogger("paramstore")

_Handler = Any
"""What ``signal.signal`` takes and gives back."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How often to commit.

    Raises:
        InvalidInputError: not a positive number, or neither steps nor seconds.
    """

    every: int | None
    """Steps between two commits."""
    seconds: float | None
    """Seconds between two commits."""

    def __post_init__(self) -> None:
        for name, value in (("every", self.every), ("seconds", self.seconds)):
            if value is not None and not value > 0:
                raise InvalidInputError(f"{name} is a positive number or None, got {value!r}")
        if self.every is None and self.seconds is None:
            raise InvalidInputError("say how often to commit: every=500 steps, or seconds=600")

    def is_due(self, steps: int, seconds: float) -> bool:
        """Whether that is long enough since the last commit."""
        if self.every is not None and steps >= self.every:
            return True
        return self.seconds is not None and seconds >= self.seconds


class Committer(Protocol):
    """What commits: the session of a store."""

    def commit(self, request: Request) -> Snapshot:
        """Write a snapshot and return when it is durable."""

    def commit_later(self, request: Request) -> PendingCommit:
        """Copy what changed, and write the snapshot in the background."""

    def settle(self) -> None:
        """Wait until all of them are durable."""


class Autosave:
    """Commits of one training loop; made by ``ParamStoreDict.autosave``, a context manager.

    **Threads**: the one that trains. Signals are watched on the main thread only.

    **Durability**: commits are finished in the background; the last one, at the end of the block,
    is durable when the block is left. After a signal the next ``step`` commits, waits until that is
    durable, and only then lets the signal through.
    """

    def __init__(
        self,
        committer: Committer,
        schedule: Schedule,
        signals: Iterable[signal.Signals],
        *,
        on_exception: bool,
        on_conflict: str,
    ) -> None:
        self._committer = committer
        self._schedule = schedule
        self._signals = _Signals(signals)
        self._on_exception = on_exception
        self._on_conflict = on_conflict
        self._step: int | None = None
        self._metrics: Mapping[str, Any] = {}
        self._steps = 0
        """Steps since the last commit."""
        self._since = 0.0

    def __enter__(self) -> Autosave:
        self._since = time.monotonic()
        self._signals.watch()
        return self

    def step(self, step: int | None = None, /, **metrics: Any) -> PendingCommit | None:
        """Say that a step is done; commits when it is time.

        Args:
            step: The number of the step, for the snapshot.
            **metrics: Numbers, or tensors of one element, which are read only when a commit is due.

        Returns:
            The commit that this step began; None for most steps.

        Raises:
            ParamStoreError: this commit, or an earlier one in the background, failed.
        """
        self._step, self._metrics, self._steps = step, metrics, self._steps + 1
        if self._signals.seen is not None:
            self._save()
            self._signals.let_through()
        elif self._schedule.is_due(self._steps, time.monotonic() - self._since):
            pending = self._committer.commit_later(self._request())
            self._count_anew()
            return pending
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            elif self._on_exception:
                self._rescue()
        finally:
            self._signals.unwatch()
            if self._signals.seen is not None:  # it came after the last step
                self._signals.let_through()

    def _finish(self) -> None:
        if self._steps:
            self._save()
        self._committer.settle()  # the last step's own commit may still be pending

    def _rescue(self) -> None:
        """Commit what an exception left behind; never in place of that exception."""
        try:
            self._save(kind=INTERRUPTED)
        except Exception:
            logger.exception("the state in which the run was interrupted could not be committed")

    def _save(self, kind: str = "commit") -> None:
        """Commit, and wait until that is durable."""
        self._committer.commit(self._request(kind))
        self._count_anew()

    def _request(self, kind: str = "commit") -> Request:
        conflict = self._on_conflict
        return Request.checked(self._step, None, self._metrics, (), None, conflict, kind)

    def _count_anew(self) -> None:
        self._steps, self._since = 0, time.monotonic()


class _Signals:
    """Remembers a signal until the training is between two steps; the second goes through."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._wanted = tuple(signals)
        self._before: dict[int, _Handler] = {}
        self.seen: int | None = None

    def watch(self) -> None:
        """Put a handler in place, where Python allows one and nobody else needs it."""
        if not self._wanted:
            return
        why = None
        if threading.current_thread() is not threading.main_thread():
            why = "this is not the main thread"
        elif "ipykernel" in sys.modules:
            why = "Jupyter handles signals itself"
        if why is not None:
            logger.info("autosave does not watch for signals: %s", why)
            return
        for number in self._wanted:
            self._before[number] = signal.signal(number, self._remember)

    def unwatch(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not set from Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def let_through(self) -> None:
        """Give the signal to whom it would have gone."""
        number, self.seen = self.seen, None
        self.unwatch()
        assert number is not None
        signal.raise_signal(number)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.seen is None:
            self.seen = number
            return
        self.seen = number
        self.let_through()
