"""Shares one piece of work among threads, where it moves so much memory that this pays.

Starts threads and joins them; must never keep one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

WORTH_IT: Final = 16 << 20
"""Bytes from which threads pay: a copy of 268 MB takes 22 ms on two cores, 42 on one thread."""
LARGE: Final = 32 << 10
"""Bytes of an item, on average, from which it is its memory that takes the time; of smaller ones it
is Python, for which threads only stand in each other's way."""
THREADS: Final = 4
"""More wait for the memory. Also on fewer cores: torch's threads go on spinning there after a step,
and of what is left several threads get more than one."""
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
    if len(items) < 2 or nbytes < max(WORTH_IT, LARGE * len(items)):
        return list(work(items))
    size = max(1, len(items) // (THREADS * PARTS))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    done: list[Sequence[R]] = [()] * len(parts)
    places = iter(range(len(parts)))  # each is taken once, by whoever comes first

    def go_on() -> None:
        for place in places:
            done[place] = work(parts[place])

    with ThreadPoolExecutor(THREADS - 1) as pool:
        others = [pool.submit(go_on) for _ in range(min(THREADS, len(parts)) - 1)]
        go_on()
        for other in others:
            other.result()
    return [result for part in done for result in part]
