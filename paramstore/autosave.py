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
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from paramstore.errors import InvalidInputError, ParamStoreError, UsageError
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
        given: dict[str, object] = {"every": self.every, "seconds": self.seconds}
        for name, value in given.items():
            if value is not None and not (isinstance(value, Real) and float(value) > 0):
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
        self._inside = False
        self._handed_over = False
        """Whether everything is saved and a signal is with whom it would have gone."""
        self._request()  # an on_conflict that means nothing is refused now, not in an hour

    def __enter__(self) -> Autosave:
        if self._inside:
            raise UsageError("this autosave is active already; make another with store.autosave(…)")
        self._signals.watch()
        self._inside = True
        self._step, self._metrics = None, {}
        self._count_anew()
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
            UsageError: the block has not been entered, or has been left.
        """
        if not self._inside:
            raise UsageError(
                "step() is called inside the block: with store.autosave(…) as auto: … auto.step(…)"
            )
        self._step, self._metrics, self._steps = step, metrics, self._steps + 1
        self._handed_over = False
        if self._signals.seen:
            self._save()
            self._handed_over = True  # what it raises leaves nothing half done behind
            self._signals.let_through()
            self._handed_over = False
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
            if error is None:
                self._save()
            elif self._on_exception and not self._handed_over:
                self._rescue(error)
        finally:
            self._inside = self._handed_over = False
            self._signals.let_through()  # those that came after the last step

    def _save(self) -> None:
        """Make everything until here durable, also where an earlier commit failed."""
        try:
            self._committer.settle()
        except ParamStoreError:
            self._commit()  # complete in itself; only then may that error end the run
            raise
        if self._steps:
            self._commit()

    def _rescue(self, error: BaseException) -> None:
        """Commit what an exception left behind, and note it there; never in its place."""
        try:
            with suppress(ParamStoreError):  # of an earlier commit, which has been logged
                self._committer.settle()
            left = self._commit(INTERRUPTED).ref
            error.add_note(
                f"paramstore: what this left behind is {left}, an interrupted snapshot; resume() "
                f"continues from the newest that is none, resume(interrupted=True) from {left}"
            )
        except Exception:
            logger.exception("the state in which the run was interrupted could not be committed")

    def _commit(self, kind: str = "commit") -> Snapshot:
        made = self._committer.commit(self._request(kind))
        self._count_anew()
        return made

    def _request(self, kind: str = "commit") -> Request:
        conflict = self._on_conflict
        return Request.checked(self._step, None, self._metrics, (), None, conflict, kind)

    def _count_anew(self) -> None:
        self._steps, self._since = 0, time.monotonic()


class _Signals:
    """Remembers a signal until the training is between two steps; a second lets both through."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        if isinstance(signals, int | str):
            raise InvalidInputError(f"signals is a list; write signals=[…], got {signals!r}")
        self._wanted = tuple(dict.fromkeys(signals))
        self._before: dict[int, _Handler] = {}
        self.seen: list[int] = []

    def watch(self) -> None:
        """Put a handler in place, where Python allows one and nobody else needs it.

        Raises:
            InvalidInputError: something that is no signal, or that no program may handle.
        """
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
            try:
                self._before[number] = signal.signal(number, self._remember)
            except (OSError, TypeError, ValueError) as error:
                self.unwatch()
                raise InvalidInputError(
                    f"signals: {number!r} cannot be waited for ({error}); give such as "
                    f"signal.SIGTERM, or signals=() for none"
                ) from error

    def unwatch(self) -> None:
        """Put the handlers back that were there before."""
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not set from Python, and cannot be put back by it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def let_through(self) -> None:
        """Watch no longer, and give what was seen to whom it would have gone."""
        self.unwatch()
        seen, self.seen = self.seen, []
        for number in seen:
            signal.raise_signal(number)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.seen.append(number)
        if len(self.seen) > 1:
            self.let_through()
