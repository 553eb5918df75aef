"""SIGKILL at any moment of a run that does everything, again and again on one file."""

from __future__ import annotations

import random
from pathlib import Path

import aftermath
import pytest
import tally
from endless import one_life
from ledger import Ledger

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

QUICK, FULL = 8, 300
"""Kills in the two selections."""


@pytest.mark.parametrize("scope", ["main", "trained"])
def test_a_run_killed_at_any_moment_continues(scope: str, full: bool, tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    ledger = Ledger([])
    for _ in range((FULL if full else QUICK) // 2):
        said = one_life(path, scope, random.uniform(0.0, 0.3))
        ledger.add(said)
        try:
            aftermath.check(path, ledger, [scope])
        except Exception as error:
            error.add_note(f"last said: {said}")
            raise
        tally.count("random kills")
    assert ledger.confirmed
