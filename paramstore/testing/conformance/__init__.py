"""The suite that every kind of store has to pass, whatever holds its database.

Subclass :class:`StoreConformance` (one store object at a time), and :class:`SharedConformance`
too where several store objects can be opened on one database, and give the class a fixture
``make_store``::

    class TestFileStore(StoreConformance, SharedConformance):
        @pytest.fixture
        def make_store(self, tmp_path):
            with contextlib.ExitStack() as stack:
                yield lambda **options: stack.enter_context(
                    paramstore.open(tmp_path / "run.db", **options)
                )

It must never look below the public face: what it proves holds for any backend.
"""

from __future__ import annotations

from paramstore.testing.conformance.attached import AttachedConformance
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.checking import CheckingConformance
from paramstore.testing.conformance.dictionary import DictionaryConformance
from paramstore.testing.conformance.files import FilesConformance
from paramstore.testing.conformance.history import HistoryConformance
from paramstore.testing.conformance.housekeeping import HousekeepingConformance
from paramstore.testing.conformance.modules import ModuleConformance
from paramstore.testing.conformance.reopening import ReopeningConformance
from paramstore.testing.conformance.scopes import ScopeConformance
from paramstore.testing.conformance.snapshots import SnapshotConformance
from paramstore.testing.conformance.values import ValuesConformance
from paramstore.testing.conformance.writers import WritersConformance

__all__ = [
    "AttachedConformance",
    "CheckingConformance",
    "DictionaryConformance",
    "FilesConformance",
    "HistoryConformance",
    "HousekeepingConformance",
    "MakeStore",
    "ModuleConformance",
    "ReopeningConformance",
    "ScopeConformance",
    "SharedConformance",
    "SnapshotConformance",
    "StoreConformance",
    "ValuesConformance",
    "WritersConformance",
]


class StoreConformance(
    DictionaryConformance,
    ValuesConformance,
    FilesConformance,
    ModuleConformance,
    SnapshotConformance,
    HistoryConformance,
    AttachedConformance,
    ScopeConformance,
    CheckingConformance,
    HousekeepingConformance,
):
    """What one store object promises; ``make_store()`` gives a new, empty store."""


class SharedConformance(ReopeningConformance, WritersConformance):
    """What several store objects on one database promise; ``make_store()`` opens another one."""
