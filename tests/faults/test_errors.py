"""ENOSPC, EIO and EINTR at every write, sync and open of a run, which goes on in its process."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest
import runs
import tally
from cases import Cases, sample
from disturb import counted, failing, unavailable

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "openat", "pread64")
# Errors that happen once, and (+) from then on. Not EINTR+: SQLite repeats what was interrupted.
KINDS = ("ENOSPC", "EIO+", "EIO", "ENOSPC+", "EINTR")
# To SQLite a file that cannot be read is a corrupt one.
NAMED = {"pread64": {"StorageError", "CorruptError"}}
OTHERWISE = {"StorageError"}
QUICK = 5
"""Errors in each run in the quick selection."""


@pytest.mark.parametrize("name", runs.RUNS)
def test_after_an_error_of_any_system_call_the_run_goes_on(
    name: str, full: bool, tmp_path: Path
) -> None:
    cases = Cases(runs.RUNS[name], tmp_path)
    path = cases.fresh()
    ours = [f"--trace-path={path}{suffix}" for suffix in ("", "-journal", "-wal")]
    trace = f"--trace={','.join(CALLS)}"
    counts = counted(cases.begin(path, enduring=True), tmp_path / "trace", trace, *ours)
    points = [(call, n) for call in sorted(counts) for n in range(1, counts[call] + 1)]
    kinds = cycle(KINDS)
    every = [(*point, next(kinds)) for point in points]
    for call, when, kind in every if full else sample(every, QUICK):
        error, more = kind.rstrip("+"), "+" * kind.endswith("+")
        fault = failing(call, error, f"{when}{more}", tmp_path / "trace")
        outcome = cases.try_one(*fault, *ours, enduring=True)
        assert "(INJECTED)" in (tmp_path / "trace").read_text(), fault
        named = {line.split(" ")[1] for line in outcome.lines if line.startswith("note")}
        assert named <= NAMED.get(call, OTHERWISE), (fault, outcome)
        tally.count("errors")
