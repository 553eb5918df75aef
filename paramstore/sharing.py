"""Shares one piece of work among threads, where it moves so much memory that this pays.

Starts threads and joins them; must never keep one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

WORTH_IT: Final = 8 << 20
"""Bytes from which threads pay: a copy of 268 MB takes 22 ms on two cores, 42 on one."""
LARGE: Final = 32 << 10
"""Bytes of an item, on average, from which it is its memory that takes the time; of smaller ones it
is Python, for which threads only stand in each other's way."""
MOST: Final = 4
"""Threads, one per core: more wait for the memory. One is added where torch has several of its own,
which spin for a while after a step: two get more of such a core than one."""
PARTS: Final = 16
"""Into so many per thread the work is cut: who shares a core with somebody else takes fewer."""

T = TypeVar("T")
R = TypeVar("R")


def share(work: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], nbytes: int) -> list[R]:
    """Call ``work`` with parts of ``items``, on the calling thread and on others as they get on.

    Args:
        work: Gives a result for each item that it gets; has to leave the interpreter's lock alone
            most of the time.
        items: What there is to do.
        nbytes: How many bytes that moves.

    Returns:
        The results, in the order of the items.
    """
    threads = min(MOST, _cores()) + (torch.get_num_threads() > 1)
    if min(threads, len(items)) < 2 or nbytes < max(WORTH_IT, LARGE * len(items)):
        return list(work(items))
    size = max(1, len(items) // (threads * PARTS))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    done: list[Sequence[R]] = [()] * len(parts)
    places = iter(range(len(parts)))  # each is taken once, by whoever comes first

    def go_on() -> None:
        for place in places:
            done[place] = work(parts[place])

    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(go_on) for _ in range(min(threads, len(parts)) - 1)]
        go_on()
        for other in others:
            other.result()
    return [result for part in done for result in part]


def _cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
