"""Finishes commits behind the training: one thread, in the order in which they were asked for.

Knows functions and their outcomes only; must never look at a tensor or the database itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from paramstore.errors import UsageError

if TYPE_CHECKING:
    from paramstore.snapshot import Snapshot

logger = logging.getLogger("paramstore")

_inherited: list[object] = []
"""Executors that came through a fork; never emptied, so that nothing finalises them."""


class PendingCommit:
    """A commit that was asked for with ``wait=False``: its values are taken, it is being written.

    **Threads**: any may ask.

    **Durability**: only when ``result`` has returned does the snapshot survive a crash.
    """

    def __init__(self, future: Future[Snapshot], what: str, nbytes: int) -> None:
        self.nbytes = nbytes
        """Bytes of the copies it was taken into; what had not changed was not copied."""
        self._future = future
        self._what = what
        self._process = os.getpid()
        self._reported = False

    def done(self) -> bool:
        """Whether it has ended, with a snapshot or an error."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> Snapshot:
        """Wait until the snapshot is durable, and return it.

        Args:
            timeout: Seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: it is still being written; ask again.
            UsageError: this is another process than the one that commits.
            ParamStoreError: as ``commit`` says; nothing of the snapshot is visible.
        """
        if self._process != os.getpid() and not self._future.done():
            raise UsageError(
                f"{self._what} is written by the process that asked for it, not by its fork"
            )
        error = self._future.exception(timeout)
        self._reported = self._reported or error is not None
        return self._future.result()

    def __repr__(self) -> str:
        state = "pending" if not self.done() else "failed" if self._failed() else "durable"
        return f"<PendingCommit of {self._what}: {state}>"

    def _tell(self, first: PendingCommit) -> None:
        """Let the error of ``first``, which is going to be raised far from here, tell of this."""
        error, raised = self._future.exception(), first._future.exception()
        assert error is not None
        assert raised is not None
        self._reported = True
        if self is first:
            raised.add_note(f"This is about {self._what}, which was asked for with wait=False.")
        else:
            raised.add_note(f"After it {self._what} failed, too: {error}")

    def _failed(self) -> bool:
        return self._future.done() and self._future.exception() is not None

    def _is_unreported(self) -> bool:
        """Whether it ended with an error that nobody has been told."""
        return self._failed() and not self._reported


class Background:
    """The commits of one store that are still to be finished.

    **Threads**: one asks, at a time; the work runs on one thread of its own. Not at
    low priority: that took as much time from training, and a commit of 268 MB 3 s instead of 0.4.

    **Ownership**: the thread is started when first needed; at the interpreter's exit it finishes
    what is pending.

    **Durability**: an error is logged when it happens, and raised once: by the handle, or else by
    whatever is asked of the store next.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._handles: list[PendingCommit] = []

    @property
    def pending(self) -> list[PendingCommit]:
        """What has not ended yet, oldest first."""
        return [handle for handle in self._handles if not handle.done()]

    def submit(self, work: Callable[[], Snapshot], what: str, nbytes: int) -> PendingCommit:
        """Let ``work`` run after all that was submitted before.

        Args:
            work: Makes the snapshot durable.
            what: What error texts call it.
            nbytes: Bytes of memory that it holds.

        Raises:
            UsageError: there is no thread for it any more; it will not run.
        """
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "paramstore-commit")
        self._handles = [h for h in self._handles if not h.done() or h._is_unreported()]
        try:
            future = self._executor.submit(_logged, work, what)
        except RuntimeError as error:  # the interpreter is ending, or the system has no thread left
            # Dropped, or the next call would find the work in the queue and do it after all.
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
            raise UsageError(
                f"{what} cannot be finished in the background: {error}; leave out wait=False"
            ) from error
        handle = PendingCommit(future, what, nbytes)
        self._handles.append(handle)
        return handle

    def wait(self, at_most: int = 0, timeout: float | None = None) -> None:
        """Wait until no more than ``at_most`` commits are pending.

        Raises:
            TimeoutError: more are pending after ``timeout`` seconds.
        """
        pending = self.pending
        early = [handle._future for handle in pending[: len(pending) - at_most]]
        if len(pending) > at_most and wait(early, timeout).not_done:
            raise TimeoutError(f"{pending[0]._what} is still being written after {timeout} seconds")

    def raise_error(self) -> None:
        """Raise the errors that nobody has been told yet: the first, the others in its notes.

        Raises:
            ParamStoreError: with a note that says which commit it is about.
        """
        failed = [handle for handle in self._handles if handle._is_unreported()]
        for handle in failed:
            handle._tell(failed[0])
        if failed:
            failed[0].result()

    def close(self) -> None:
        """Finish what is pending, and end the thread."""
        self.wait()  # not by joining the thread: an interrupted join takes it for ended
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def after_fork_in_child(self) -> None:
        """Leave the parent's thread and its work to the parent."""
        _inherited.append(self._executor)
        self._executor, self._handles = None, []


def _logged(work: Callable[[], Snapshot], what: str) -> Snapshot:
    try:
        return work()
    except BaseException as error:
        logger.error("%s failed: %s", what, error)
        raise
