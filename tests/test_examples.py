"""The examples: killed in the middle, they continue by themselves to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import paramstore
from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(example: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / example), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads of each would wait in line
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == status, printed
    return printed


def assert_same_end(one: Path, other: Path) -> None:
    with paramstore.open(one, readonly=True) as a, paramstore.open(other, readonly=True) as b:
        found, wanted = a.at("main"), b.at("main")
        assert found.snapshot.step == wanted.snapshot.step
        assert list(found) == list(wanted)
        for name in wanted:
            assert same_bits(found.unconstrained(name), wanted.unconstrained(name)), name
        assert exactly_equal(found.state("optim"), wanted.state("optim"))
        assert exactly_equal(generator(found), generator(wanted))


def generator(view: paramstore.SnapshotView) -> Any:
    rng: Any = view.state("rng")
    return rng["torch"]  # neither example draws from Python's or NumPy's


def test_the_breast_cancer_run_continues_where_it_was_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    uninterrupted = start("breast_cancer.py", "--db", whole, "--steps", 150)
    finish(start("breast_cancer.py", "--db", killed, "--kill-at", 120), -signal.SIGKILL)

    again = start("breast_cancer.py", "--db", killed, "--steps", 150, "--seed", 7)

    assert "continuing after step 100 (main@2)" in finish(again)
    finish(uninterrupted)
    assert_same_end(killed, whole)


def test_the_digits_run_continues_where_it_was_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    uninterrupted = start("digits.py", "--db", whole, "--epochs", 4)
    finish(start("digits.py", "--db", killed, "--kill-at", 3), -signal.SIGKILL)

    again = start("digits.py", "--db", killed, "--epochs", 4, "--seed", 7)

    assert "continuing after epoch 2 (main@2)" in finish(again)
    finish(uninterrupted)
    assert_same_end(killed, whole)

    report = finish(start("report.py", killed, "net$$$0.weight", "--metric", "accuracy"))
    assert "main@4" in report
    assert "history of 'net$$$0.weight'" in report
    assert "~ net$$$1.running_mean" in report
