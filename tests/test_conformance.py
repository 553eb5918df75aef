"""The conformance suite on every kind of store that needs no server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import paramstore
from paramstore import ParamStoreDict
from paramstore.testing.conformance import MakeStore, SharedConformance, StoreConformance


class TestPrivateStore(StoreConformance):
    """Pyro's class: no database until the first snapshot."""

    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        with contextlib.ExitStack() as stack:

            def make(**options: Any) -> ParamStoreDict:
                return stack.enter_context(ParamStoreDict(**options))

            yield make


class TestMemoryStore(StoreConformance):
    """A database in memory, opened by its URL."""

    @pytest.fixture
    def make_store(self) -> Iterator[MakeStore]:
        with contextlib.ExitStack() as stack:

            def make(**options: Any) -> ParamStoreDict:
                return stack.enter_context(paramstore.open("sqlite://", **options))

            yield make


class TestFileStore(StoreConformance, SharedConformance):
    """A file, as most runs have it."""

    @pytest.fixture
    def make_store(self, path: Path) -> Iterator[MakeStore]:
        with contextlib.ExitStack() as stack:

            def make(**options: Any) -> ParamStoreDict:
                return stack.enter_context(paramstore.open(path, **options))

            yield make


class TestWalFileStore(SharedConformance):
    """A file with a write-ahead log, for many live readers."""

    @pytest.fixture
    def make_store(self, path: Path) -> Iterator[MakeStore]:
        with contextlib.ExitStack() as stack:

            def make(**options: Any) -> ParamStoreDict:
                return stack.enter_context(paramstore.open(path, journal="wal", **options))

            yield make
