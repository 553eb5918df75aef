"""A store made by a real training run, and the command in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shell_runs import Ran, Run, train

from paramstore.cli.entry import run as run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the training run; no test may write to it."""
    path = tmp_path_factory.mktemp("trained") / "run.db"
    train(path)
    return path


@pytest.fixture
def db(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that write; ``paramstore.db`` in the test's folder."""
    return Path(shutil.copy(trained, tmp_path / "paramstore.db"))


@pytest.fixture
def run(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, on the training run's store unless it names another."""
    monkeypatch.setenv("PARAMSTORE_URL", str(trained))

    def run(*arguments: object, code: int = 0) -> Ran:
        capsys.readouterr()
        found = run_command([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert found == code, err
        return Ran(found, out, err)

    return run
