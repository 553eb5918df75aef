"""Fuzzes in a process of little memory: ``fuzz.py quick``, ``full`` or ``TARGET FIRST COUNT``.

A good outcome is a value, or an error of the library with a text that is fit for a terminal. An
input that takes memory, time or another exception ends the run, and its number makes it again.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fuzz_targets import FOLDER, TARGETS

from paramstore.errors import ParamStoreError

MEMORY = 1 << 30
"""Bytes of address space beyond what the process has when it begins."""
SECONDS = 20
"""Of the processor, for one input."""


class TooSlow(BaseException):
    """One input has taken too long."""


def run(target: str, first: int, count: int) -> Counter[str]:
    """Read that many inputs; count the outcomes by the class of the error."""
    read, *_ = TARGETS[target]
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcomes[_outcome(read, random.Random(f"{target} {number}"))] += 1
        except BaseException:
            print(f"input {number} of {target!r}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return outcomes


def _outcome(read: Callable[[random.Random], None], rng: random.Random) -> str:
    try:
        read(rng)
    except ParamStoreError as error:
        _check_text(str(error))
        _check_memory(error)
        return type(error).__name__
    return "a value"


def _check_text(text: str) -> None:
    assert text.isprintable(), text
    assert 0 < len(text) < 20_000, len(text)


def _check_memory(error: BaseException | None) -> None:
    """Refuse an error that hides that memory was asked for and not given."""
    while error is not None:
        assert not isinstance(error, MemoryError), "it asked for memory"
        assert "allocate" not in str(error), error
        error = error.__cause__ or error.__context__


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_slow(*_: object) -> None:
    raise TooSlow


def _report(target: str, first: int, count: int) -> None:
    """Run one target; print the outcomes as a line of JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = run(target, first, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row = {"target": target, "outcomes": outcomes, "kilobytes": peak}
    print(json.dumps(row), flush=True)


def main() -> None:
    """Run what the arguments say."""
    warnings.simplefilter("ignore")  # torch warns of odd arrays
    signal.signal(signal.SIGPROF, _too_slow)
    try:
        for target in TARGETS:
            run(target, 0, 3)  # makes the seeds, imports what is imported late
        _limit_memory()
        if sys.argv[1] in ("quick", "full"):
            for target, (_, quick, all_of_them) in TARGETS.items():
                _report(target, 0, quick if sys.argv[1] == "quick" else all_of_them)
        else:
            _report(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
