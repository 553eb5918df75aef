"""Shares one piece of work among threads, where it moves so much memory that this pays.

Starts threads and joins them; must never keep one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

WORTH_IT: Final = 16 << 20
"""Bytes from which threads pay: a copy of 268 MB takes 22 ms on two of them, 42 on one."""
MOST: Final = 4
"""Threads; more are waiting for the memory, and somebody else may need the cores."""

T = TypeVar("T")
R = TypeVar("R")


def share(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], nbytes: int) -> list[R]:
    """Call ``work`` with parts of ``items``, on the calling thread and on others.

    Args:
        work: Gives a result for each item that it gets; has to leave the interpreter's lock alone
            most of the time.
        items: What there is to do.
        nbytes: How many bytes that moves.

    Returns:
        The results, in the order of the items.
    """
    threads = min(MOST, _cores(), len(items)) if nbytes >= WORTH_IT else 1
    if threads < 2:
        return list(work(items))
    parts = [items[first::threads] for first in range(threads)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, part) for part in parts[1:]]
        done = [work(parts[0]), *(other.result() for other in others)]
    return [done[place % threads][place // threads] for place in range(len(items))]


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
