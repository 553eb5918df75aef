"""State machines that run random operations and compare every observation with a trusted model.

:class:`DictionaryMachine` compares the dictionary with Pyro's own class (which has to be
installed); :class:`SnapshotMachine` compares commits, restores, scopes, forks, tags and reopening
with plain copies in memory. Give each to ``hypothesis.stateful.run_state_machine_as_test``, or use
its ``TestCase``; a subclass says which store to test. Must never look below the public face.
"""

from __future__ import annotations

from paramstore.testing.stateful.dictionary import DictionaryMachine
from paramstore.testing.stateful.snapshots import SnapshotMachine

__all__ = ["DictionaryMachine", "SnapshotMachine"]
