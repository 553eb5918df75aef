"""A pytest plugin that runs another suite on a store installed in Pyro, and writes what came out.

One line of JSON per test goes to ``--outcomes``, at once, so that a suite that hangs or crashes
leaves what it had. Must never change the outcome of a test.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any, TextIO

import pyro
import pytest
from torch import Tensor

import paramstore
from paramstore import ParamStoreDict, ParamStoreError
from paramstore.integrations.pyro import install
from paramstore.testing.bits import bits, differences

MEMORY = ":memory:"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("a store installed in Pyro")
    group.addoption("--outcomes", type=Path, required=True, help="file for the outcomes")
    group.addoption("--on-store", metavar="PATH", help=f"or {MEMORY}; default: stock Pyro")
    group.addoption("--install-late", action="store_true", help="after all imports")


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    pyro.set_rng_seed(0)  # some tests draw when they are imported
    options = early_config.known_args_namespace
    suite = Suite(options.on_store, options.outcomes.open("w"))
    if not options.install_late:
        suite.install()
    early_config.pluginmanager.register(suite)


class Suite:
    """The store that is installed, if any, and the outcome of each test."""

    def __init__(self, path: str | None, outcomes: TextIO) -> None:
        self._path = path
        self._outcomes = outcomes
        self._store: ParamStoreDict | None = None
        self._found: dict[str, Any] = {}

    def install(self) -> None:
        if self._path is None or self._store is not None:
            return
        in_memory = self._path == MEMORY
        self._store = ParamStoreDict() if in_memory else paramstore.open(self._path)
        install(self._store)

    def pytest_collection_finish(self) -> None:
        self.install()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:  # before the next setup, where Pyro's conftest clears the store
            self._found["bits"] = _digest()
            if self._store is not None:
                self._found["commit"] = self._commit(self._store)

    def _commit(self, store: ParamStoreDict) -> str:
        pyros_store: object = pyro.get_param_store()
        if pyros_store is not store:
            return "broken: Pyro has another store"
        return "none" if self._path == MEMORY else _commit(store)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = _outcome(report)
        if outcome is not None and self._found.get("outcome") not in {"failed", "error"}:
            self._found["outcome"] = outcome
            if report.failed:
                self._found["why"] = _why(report)
        if report.when == "teardown":
            self._outcomes.write(json.dumps({"test": report.nodeid, **self._found}) + "\n")
            self._outcomes.flush()
            self._found = {}

    def pytest_unconfigure(self) -> None:
        self._outcomes.close()


def _outcome(report: pytest.TestReport) -> str | None:
    """The outcome of a test as its phase tells it; None if that phase says nothing."""
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.when == "call" or report.skipped:
        return report.outcome
    return "error" if report.failed else None


def _why(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]


def _digest() -> str:
    """What Pyro's store holds: names in their order, constraints, values, gradients."""
    store: Any = pyro.get_param_store()
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in store.named_parameters():
        kind = type(tensor).__name__, tensor.dtype, tuple(tensor.shape), tensor.requires_grad
        found.update(repr((name, kind, store._constraints[name])).encode())
        found.update(_bits(tensor))
        found.update(b"none" if tensor.grad is None else _bits(tensor.grad))
    return found.hexdigest()


def _bits(tensor: Tensor) -> bytes:
    try:
        return bits(tensor)
    except RuntimeError as error:  # sparse
        return repr((type(error), tensor.shape)).encode()


def _commit(store: ParamStoreDict) -> str:
    """Commit what the test left and read it back; say what went wrong, if anything."""
    try:
        with warnings.catch_warnings(action="error"):
            view = store.at(store.commit())
            stored = {name: view.unconstrained(name) for name in view}
        wrong = differences(stored, dict(store.named_parameters()))
    except ParamStoreError as error:
        return f"refused with {type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - reported; the suite goes on
        return f"broken by {type(error).__name__}: {error}"
    return f"broken: {'; '.join(wrong)}" if wrong else "done"
