"""SIGKILL at every system call by which a commit comes to the disk, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import tally
from cases import Cases, sample
from disturb import WRITES, counted, killing, unavailable

from paramstore import ParamStoreError

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

QUICK = 5
"""Kills of each run in the quick selection."""


@pytest.mark.parametrize("name", runs.RUNS)
def test_a_run_killed_at_any_system_call_has_lost_nothing_that_was_confirmed(
    name: str, full: bool, tmp_path: Path
) -> None:
    cases = Cases(runs.RUNS[name], tmp_path)
    trace = f"--trace={','.join(WRITES)}"
    counts = counted(cases.begin(cases.fresh()), tmp_path / "trace", trace)
    points = [(call, n) for call in sorted(counts) for n in range(1, counts[call] + 1)]
    for call, when in points if full else sample(points, QUICK):
        assert cases.try_one(*killing(call, when)).killed, (call, when)
        tally.count("kills")


def test_a_store_without_a_journal_is_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("paramstore.db.sqlite.PRAGMAS", (("journal_mode", "OFF"),))
    cases = Cases(runs.RUNS["small change"], tmp_path)
    counts = counted(cases.begin(cases.fresh()), tmp_path / "trace", "--trace=pwrite64")
    with pytest.raises((AssertionError, ParamStoreError)):
        for when in range(2, counts["pwrite64"] + 1):
            cases.try_one(*killing("pwrite64", when))
