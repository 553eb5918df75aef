"""The runner of Pyro's own tests, on a small suite that is made here."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyro_suite import differences, main, odd

SUITE = """
import pyro
import pytest
import torch
from pyro.params.param_store import ParamStoreDict
from torch.distributions import constraints, transforms, biject_to, transform_to

pyro.param("made at import", torch.zeros(2))


class Nowhere(type(constraints.positive)):
    pass


biject_to.register(Nowhere, lambda constraint: transforms.ExpTransform())
transform_to.register(Nowhere, lambda constraint: transforms.ExpTransform())


def test_that_agrees():
    pyro.param("x", torch.ones(3), constraint=constraints.positive)
    assert "made at import" in pyro.get_param_store()


def test_that_fails_everywhere():
    raise AssertionError


@pytest.mark.skip
def test_that_is_skipped():
    pass


def test_that_sees_the_store():
    assert type(pyro.get_param_store()) is ParamStoreDict


def test_that_leaves_other_values():
    pyro.param("z", torch.tensor(float(type(pyro.get_param_store()) is ParamStoreDict)))


def test_whose_constraint_no_file_can_hold():
    pyro.clear_param_store()
    pyro.param("y", torch.ones(3), constraint=Nowhere(0.0))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    return tmp_path


def run(checkout: Path, suite: str) -> int:
    (checkout / "tests/test_small.py").write_text(suite)
    return main([str(checkout), "tests/test_small.py"])


def test_outcomes_are_counted_and_what_a_store_changes_is_named(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyro_suite.AGAIN", 1)
    assert run(checkout, SUITE) == 1

    printed = capsys.readouterr().out
    stock, ours = "1 failed, 4 passed, 1 skipped", "2 failed, 3 passed, 1 skipped"
    assert f"| tests/test_small.py | {stock} | {ours} | {ours} |" in printed
    for store in ("memory", "file"):
        test = f"\n{store}: tests/test_small.py"
        assert f"{test}::test_that_sees_the_store: passed → failed: Assert" in printed
        assert f"{test}::test_that_leaves_other_values: left other bits" in printed
        assert f"{test}::test_whose" not in printed
    assert "\ncommit refused with UnknownConstraintError" in printed
    assert "6 tests, 4 differences, 1 commits refused" in printed


def test_the_same_outcomes_are_no_difference_and_a_broken_commit_is_one() -> None:
    passed = {"outcome": "passed", "bits": "0"}
    runs = {"stock": {"test": passed}, "memory": {"test": passed}, "file": {"test": passed}}
    assert differences(runs) == []

    runs["file"] = {"test": passed | {"commit": "broken by ValueError: no"}}
    assert differences(runs) == ["commit broken by ValueError: no after test"]


def test_bits_that_stock_pyro_leaves_in_another_run_are_no_difference() -> None:
    one, other = {"outcome": "passed", "bits": "0"}, {"outcome": "passed", "bits": "1"}
    runs = {"stock": {"test": one}, "memory": {"test": other}, "file": {"test": one}}
    assert odd(runs) == ["test"]
    assert differences(runs, [{"test": one}, {"test": other}]) == []
    assert differences(runs, [{"test": one}]) == [
        "memory: test: left other bits in the parameter store"
    ]


def test_a_test_that_did_not_run_is_a_difference() -> None:
    runs = {"stock": {"test": {"outcome": "passed", "bits": "0"}}, "memory": {}, "file": {}}
    assert len(differences(runs)) == 2


def test_a_run_that_ends_early_is_no_success(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(checkout, "import os; os._exit(9)") == 2
    assert "stock: pytest ended with status 9" in capsys.readouterr().out
