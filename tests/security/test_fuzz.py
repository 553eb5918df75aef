"""Fuzzing: hostile inputs give a right value or a named error, in little memory and time.

``PARAMSTORE_FAULTS=full pytest tests/security`` reads 108,000 of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_targets import TARGETS

FUZZ = Path(__file__).with_name("fuzz.py")
KILOBYTES = 256 << 10  # by which a process may grow that reads thousands of small inputs


@pytest.fixture(scope="module")
def fuzzed(full: bool) -> dict[str, dict[str, Any]]:
    """What came of each target; empty from one that failed on."""
    done = subprocess.run(
        [sys.executable, FUZZ, "full" if full else "quick"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = {row["target"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"after {list(rows)}: {done.stderr[-4000:]}"
    return rows


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_input_is_a_right_value_or_a_named_error(
    target: str,
    full: bool,
    fuzzed: dict[str, dict[str, Any]],
    record_property: Callable[[str, object], None],
) -> None:
    _, quick, all_of_them = TARGETS[target]
    found = fuzzed[target]
    assert sum(found["outcomes"].values()) == (all_of_them if full else quick)
    assert found["kilobytes"] < KILOBYTES
    for key, value in {"fuzzed": target, **found}.items():
        record_property(key, value)
