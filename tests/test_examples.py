"""The examples: killed in the middle, they continue by themselves to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import paramstore
from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal

HERE = Path(__file__).parent
Run = Callable[..., str]
"""Runs an example to its end and returns what it printed."""


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    command = [sys.executable, str(HERE / "example_runs.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as server:
        requests, answers = server.stdin, server.stdout
        assert requests
        assert answers

        def run(example: str, *arguments: object, status: int = 0) -> str:
            script = str(HERE.parent / "examples" / example)
            print(json.dumps([script, *map(str, arguments)]), file=requests, flush=True)
            found, printed = json.loads(answers.readline())
            assert found == status, printed
            return str(printed)

        yield run
        requests.close()


def assert_same_end(one: Path, other: Path, scope: str = "main") -> None:
    with paramstore.open(one, readonly=True) as a, paramstore.open(other, readonly=True) as b:
        found, wanted = a.at(scope), b.at(scope)
        assert found.snapshot.step == wanted.snapshot.step
        assert measured(a, scope) == measured(b, scope)
        assert list(found) == list(wanted)
        for name in wanted:
            assert same_bits(found.unconstrained(name), wanted.unconstrained(name)), name
        assert exactly_equal(found.state("optim"), wanted.state("optim"))
        assert exactly_equal(generator(found), generator(wanted))


def measured(store: paramstore.ParamStoreDict, scope: str) -> list[tuple[int | None, object]]:
    """Step and metrics of every snapshot."""
    return [(snapshot.step, dict(snapshot.metrics)) for snapshot in store.log(scope)]


def generator(view: paramstore.SnapshotView) -> Any:
    rng: Any = view.state("rng")
    return rng["torch"]  # no example draws from Python's or NumPy's


@pytest.mark.parametrize("example", sorted(p.name for p in (HERE.parent / "examples").glob("*.py")))
def test_every_example_explains_its_arguments(run: Run, example: str) -> None:
    printed = run(example, "--help")
    assert f"usage: {example}" in printed
    assert "the store" in printed


def test_the_breast_cancer_run_continues_where_it_was_killed(run: Run, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    run("breast_cancer.py", "--db", whole, "--steps", 150)
    run("breast_cancer.py", "--db", killed, "--kill-at", 120, status=-signal.SIGKILL)

    again = run("breast_cancer.py", "--db", killed, "--steps", 150, "--seed", 7)

    assert "continuing after step 100 (main@2)" in again
    assert_same_end(killed, whole)


def test_the_digits_run_continues_where_it_was_killed(run: Run, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    run("digits.py", "--db", whole, "--epochs", 4)
    run("digits.py", "--db", killed, "--kill-at", 3, status=-signal.SIGKILL)

    again = run("digits.py", "--db", killed, "--epochs", 4, "--seed", 7)

    assert "continuing after epoch 2 (main@2)" in again
    assert_same_end(killed, whole)

    report = run("report.py", killed, "net$$$0.weight", "--metric", "accuracy")
    assert "main@4" in report
    assert "history of 'net$$$0.weight'" in report
    assert "~ net$$$1.running_mean" in report


def test_the_auto_encoder_continues_where_it_was_killed(run: Run, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    size = ("--steps", 30, "--every", 5)
    uninterrupted = run("vae.py", "--db", whole, *size).splitlines()
    step = random.randrange(1, 30)  # printed below, should it matter
    run("vae.py", "--db", killed, *size, "--kill-at", step, status=-signal.SIGKILL)

    again = run("vae.py", "--db", killed, *size)

    commits = step // 5
    assert (f"continuing after step {5 * commits} (main@{commits}, loss " in again) == bool(commits)
    assert again.splitlines()[-6 + commits :] == uninterrupted[commits:], f"killed after {step}"
    assert_same_end(killed, whole)


def test_each_guide_of_the_eight_schools_continues_in_its_scope(run: Run, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole.db", tmp_path / "stopped.db"
    run("eight_schools.py", "--db", whole, "--steps", 30, "--every", 10)
    run("eight_schools.py", "--db", stopped, "--steps", 20, "--every", 10)

    again = run("eight_schools.py", "--db", stopped, "--steps", 30, "--every", 10, "--seed", 7)

    for scope in ("diagonal", "full", "low-rank"):
        assert f"{scope:10} continuing after step 20 ({scope}@2)" in again
        assert_same_end(stopped, whole, scope)
    assert "best ELBO" in again
    assert "how Guide.scale moved in 'low-rank'" in again
    assert "diagonal@3 → full@3: 1 added, 0 removed, 2 changed, 0 unchanged" in again


def test_module_local_parameters_continue_where_they_were_killed(run: Run, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.db", tmp_path / "killed.db"
    size = ("--steps", 30, "--every", 10)
    run("local_parameters.py", "--db", whole, *size)
    run("local_parameters.py", "--db", killed, *size, "--kill-at", 25, status=-signal.SIGKILL)

    again = run("local_parameters.py", "--db", killed, *size, "--seed", 7)

    assert "continuing after step 20 (main@2)" in again
    assert_same_end(killed, whole)
    with paramstore.open(killed, readonly=True) as store:
        assert sorted(store) == sorted(
            f"{clinic}$$${name}"
            for clinic in ("north", "south")
            for name in ("model.bias", "model.noise", "guide.locs.weights", "guide.scales.weights")
        )
        value = store.history("north$$$model.noise")[-1].value
        assert value == store.at("main")["north$$$model.noise"].item()  # constrained: no logarithm
