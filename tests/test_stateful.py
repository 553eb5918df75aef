"""Random operations against trusted models: Pyro's own class, and copies in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

import paramstore
from paramstore import ParamStoreDict
from paramstore.testing import invariants
from paramstore.testing.stateful import DictionaryMachine, SnapshotMachine


class PrivateDictionary(DictionaryMachine):
    """The dictionary of a store in memory."""

    def make_store(self, folder: Path) -> AbstractContextManager[Any]:
        return closing(ParamStoreDict())


class FileDictionary(DictionaryMachine):
    """The dictionary of a store on a file, whose scopes are rows."""

    keeps_what_failed = True

    def make_store(self, folder: Path) -> AbstractContextManager[Any]:
        return closing(paramstore.open(folder / "run.db"))


class PrivateSnapshots(SnapshotMachine):
    """Snapshots in memory."""

    shared = False

    def open_store(self, folder: Path, **options: Any) -> ParamStoreDict:
        return ParamStoreDict(**options)


class FileSnapshots(SnapshotMachine):
    """Snapshots in a file."""

    def open_store(self, folder: Path, **options: Any) -> ParamStoreDict:
        return paramstore.open(folder / "run.db", **options)

    def check(self, folder: Path) -> None:
        invariants.check(folder / "run.db")


@pytest.mark.parametrize(
    ("machine", "share"),
    [(PrivateDictionary, 4), (FileDictionary, 1), (PrivateSnapshots, 1), (FileSnapshots, 1)],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_random_operations_agree_with_the_model(machine: type[Any], share: float) -> None:
    examples = max(1, int(settings().max_examples * share))
    run_state_machine_as_test(machine, settings=settings(max_examples=examples))
