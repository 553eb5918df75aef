"""The model of a store with its snapshots: copies of tensors in dictionaries, nothing else.

Simple enough to be seen to be right; must never import a store.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.distributions.constraints import Constraint

from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal


class Param(NamedTuple):
    """A copy of one unconstrained value and the constraint that goes with it."""

    tensor: Tensor
    constraint: Constraint

    def same(self, other: Param | None) -> bool:
        """Tell whether both are the same, bit for bit."""
        return (
            other is not None
            and same_bits(self.tensor, other.tensor)
            and exactly_equal(self.constraint, other.constraint)
        )


Params = dict[str, Param]


@dataclass
class ModelSnapshot:
    """What a snapshot has to be until it is expired."""

    version: int
    parent: str | None
    step: int | None
    params: Params


@dataclass
class ModelScope:
    """A line of snapshots and the working set that continues it."""

    name: str
    snapshots: list[ModelSnapshot] = field(default_factory=list)
    tags: dict[str, int] = field(default_factory=dict)
    working: Params | None = None
    """None while the store has not entered the scope."""
    parent: tuple[str, int] | None = None
    """Scope and version that the next commit continues."""
    stored: Params = field(default_factory=dict)
    """The content of ``parent``."""
    seen: int = 0
    """The head version that the store knows."""

    @property
    def head(self) -> int:
        """The newest version; 0 without any."""
        return self.snapshots[-1].version if self.snapshots else 0

    def forget(self) -> None:
        """Close the store."""
        self.working, self.parent, self.stored, self.seen = None, None, {}, 0

    def enter(self) -> Params:
        """Read the newest snapshot, unless the store has the scope in memory."""
        if self.working is None:
            self.working = {}
            if self.snapshots:
                self.continue_from(self.name, self.snapshots[-1])
        return self.working

    def continue_from(self, scope: str, snapshot: ModelSnapshot) -> None:
        """Take a snapshot of this or another scope for the working set."""
        self.working = dict(snapshot.params)
        self.parent = (scope, snapshot.version)
        self.stored = dict(snapshot.params)
        self.seen = self.head

    def changed(self) -> set[str]:
        """Name what differs from the parent."""
        working = self.working or {}
        names = {name for name, param in working.items() if not param.same(self.stored.get(name))}
        return names | (self.stored.keys() - working.keys())

    def commit(self, step: int | None) -> ModelSnapshot:
        """Append a snapshot of the working set."""
        parent = None if self.parent is None else f"{self.parent[0]}@{self.parent[1]}"
        made = ModelSnapshot(self.head + 1, parent, step, dict(self.working or {}))
        self.snapshots.append(made)
        self.parent, self.stored = (self.name, made.version), dict(made.params)
        self.seen = made.version
        return made

    def expire(self, last: int, held: set[tuple[str, int]]) -> set[str]:
        """Forget all but the last snapshots, tagged ones and those in ``held``; name what goes."""
        kept = {snapshot.version for snapshot in self.snapshots[-last:]} | set(self.tags.values())
        kept |= {version for scope, version in held if scope == self.name}
        gone = {f"{self.name}@{s.version}" for s in self.snapshots if s.version not in kept}
        self.snapshots = [s for s in self.snapshots if s.version in kept]
        return gone

    def rename(self, old: str, new: str) -> None:
        """Give a parameter another name in every snapshot and in the working set."""
        tables = [snapshot.params for snapshot in self.snapshots]
        tables += [self.stored] + ([] if self.working is None else [self.working])
        for table in tables:
            if old in table:
                table[new] = table.pop(old)

    def known_names(self) -> set[str]:
        """Every name that a snapshot of this scope has."""
        return {name for snapshot in self.snapshots for name in snapshot.params}

    def history(self, name: str) -> list[int]:
        """The versions in which the value of ``name`` differs from the version before."""
        before: Param | None = None
        versions = []
        for snapshot in self.snapshots:
            now = snapshot.params.get(name)
            if now is not None and not now.same(before):
                versions.append(snapshot.version)
            before = now
        return versions

    def returns(self, name: str) -> set[int]:
        """The versions whose value of ``name`` an earlier version has had already."""
        seen: list[Param] = []
        versions = set()
        for snapshot in self.snapshots:
            now = snapshot.params.get(name)
            if now is not None:
                if any(now.same(param) for param in seen):
                    versions.add(snapshot.version)
                seen.append(now)
        return versions
