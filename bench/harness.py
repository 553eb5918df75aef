"""Runs the cases of one comparison interleaved, and repeats a run on a restless disk.

Knows nothing of what it times; must never import torch or the store.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter

from bench.tables import Row

MAX_VARIATION = 2.0
_WARM = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One side of a comparison."""

    label: str
    """What it is called in the table."""
    run: Callable[[], object]
    """The timed part."""
    before: Callable[[], object] | None = None
    """Not timed: change the values, remove the old file."""
    after: Callable[[object], object] | None = None
    """Not timed: gets what ``run`` returned."""
    nbytes: int | None = None
    """Bytes that ``run`` moves."""
    loops: int = 1
    """How often ``run`` does the thing; samples are divided by it."""
    part: float = 1.0
    """What part of the thing ``run`` does, where all of it takes too long; divides, too."""
    clocked: bool = False
    """Whether ``run`` returns its own seconds: it may have run in another process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much to measure and where."""

    folder: Path
    """An empty folder on the disk under test."""
    repetitions: int = 9
    """Interleaved repetitions of every comparison."""
    runs: int = 3
    """How often a comparison is run at most until its control varies by no more than 2 ×."""
    quick: bool = False
    """Tiny sizes, to see that everything still runs."""

    def size(self, full: int, quick: int) -> int:
        """The full size, or the quick one."""
        return quick if self.quick else full


def interleave(cases: Sequence[Case], repetitions: int, *, scale: float = 1e3) -> list[Row]:
    """Time every case once per repetition, after one warm-up round that does not count.

    The order rotates, so that no case always inherits the caches of the same neighbour. Samples are
    in seconds times ``scale`` (milliseconds by default).
    """
    samples: dict[str, list[float]] = {case.label: [] for case in cases}
    gc.collect()
    gc.freeze()  # what the libraries hold is not walked again before every sample
    try:
        for repetition in range(-1, repetitions):
            turn = repetition % len(cases)
            for case in (*cases[turn:], *cases[:turn]):
                seconds = _time(case)
                if repetition >= 0:
                    samples[case.label].append(seconds * scale / case.loops / case.part)
    finally:
        gc.unfreeze()
    return [Row(label=case.label, values=samples[case.label], nbytes=case.nbytes) for case in cases]


def quiet(
    settings: Settings, measure: Callable[[], list[Row]], control: str
) -> tuple[list[Row], int]:
    """Run ``measure`` until its control varies by at most 2 ×: the quietest run, and how many."""
    best: list[Row] = []
    least = float("inf")
    for run in range(1, settings.runs + 1):
        rows = measure()
        variation = next(row.variation for row in rows if row.label == control)
        if variation < least:
            best, least = rows, variation
        if least <= MAX_VARIATION:
            break
        say(f"  run {run}: the control varied by {variation:.1f} ×")
    return best, run


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def warm_memory(nbytes: int) -> None:
    """Use twice the memory for a file that the case moves, and give it back to the kernel.

    In a virtual machine the first touch of a page makes the host find one: write + fsync of 256 MiB
    into page cache that was never used took 820 ms, into memory used before 200 ms. A peer whose
    old file is removed reuses its memory; a file that grows does not, and would pay for that. A
    file, because the kernel has larger pieces of memory for files than for processes.
    """
    if nbytes < _WARM:
        return
    piece = bytes(8 << 20)
    with TemporaryFile() as file:
        for _ in range(0, 2 * nbytes, len(piece)):
            file.write(piece)


def _time(case: Case) -> float:
    if case.before is not None:
        case.before()
    os.sync()  # an fsync also waits for what others have left to be written on that file system
    warm_memory(case.nbytes or 0)
    gc.collect()  # otherwise a collection of one side's garbage is charged to the other
    start = perf_counter()
    outcome = case.run()
    seconds = perf_counter() - start
    if case.after is not None:
        case.after(outcome)
    if case.clocked:
        assert isinstance(outcome, float)
        return outcome
    return seconds
