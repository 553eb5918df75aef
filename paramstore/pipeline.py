"""Runs an iterator on a thread of its own, ahead of whoever consumes it.

Knows nothing of tensors or SQL; never runs further ahead than it is allowed to.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


@contextmanager
def ahead(source: Iterator[T], weight: Callable[[T], int], limit: int) -> Iterator[Iterator[T]]:
    """Run ``source`` on a background thread while the block consumes what it yields.

    Args:
        source: Runs wholly on the background thread; its error is raised where it is consumed.
        weight: How much of ``limit`` a value holds until the consumer asks for the next one.
        limit: ``source`` is not asked for another value while more than this is held.
    """
    pipeline = _Pipeline(source, weight, limit)
    thread = threading.Thread(target=pipeline.run, name="paramstore-ahead", daemon=True)
    thread.start()
    try:
        yield pipeline.values()
    finally:
        pipeline.stop()
        thread.join()


class _Pipeline(Generic[T]):
    def __init__(self, source: Iterator[T], weight: Callable[[T], int], limit: int) -> None:
        self._source = source
        self._weight = weight
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[T] = deque()
        self._held = 0
        self._running = True
        self._stopped = False
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            while self._may_continue():
                value = next(self._source)
                with self._changed:
                    self._waiting.append(value)
                    self._held += self._weight(value)
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that consumes
            self._error = error
        with self._changed:
            self._running = False
            self._changed.notify_all()

    def _may_continue(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._held <= self._limit)
            return not self._stopped

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def values(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or not self._running)
                if not self._waiting:
                    break
                value = self._waiting.popleft()
            weight = self._weight(value)
            yield value
            with self._changed:
                self._held -= weight
                self._changed.notify_all()
        if self._error is not None:
            raise self._error
