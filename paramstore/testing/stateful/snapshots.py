"""Snapshots against a model in memory: whatever is done, every snapshot keeps its bits.

Random commits, restores, scopes, forks, tags, renames, reopenings, rival writers, expiry and
garbage collection; must never read a tensor of the store before the store would have.
"""

from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
import torch
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from paramstore.errors import ConflictError, ScopeError
from paramstore.retention import KeepLast
from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal
from paramstore.testing.stateful.model import ModelScope, ModelSnapshot, Param
from paramstore.testing.stateful.observations import Refused

NAMES = ("a", "b", "c", "net$$$weight")
SCOPES = ("main", "guide a", "guide-b")
TAGS = ("warm", "best so far", "ünïcode")
CONSTRAINTS: tuple[Constraint, ...] = (
    constraints.real,
    constraints.positive,
    constraints.interval(-1.0, torch.tensor(2.0)),
)
SHAPES = ((), (3,), (0, 2), (40, 500))  # the last is larger than what is deduplicated by scope only

names = st.sampled_from(NAMES)
seeds = st.integers(0, 7)  # few, so that values return
steps = st.none() | st.integers(0, 3)
picks = st.integers(0, 2**16)


def unconstrained_value(seed: int) -> torch.Tensor:
    """Draw a value; its shape and dtype follow from the seed, too."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if seed == 5 else torch.float32
    return torch.randn(SHAPES[seed % len(SHAPES)], generator=generator, dtype=dtype)


class SnapshotMachine(RuleBasedStateMachine):
    """Random operations on one store, its scopes and its rivals."""

    shared: ClassVar[bool] = True
    """Whether a second call with the same folder opens the same database."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = sys.exception()
        self.folder = Path(tempfile.mkdtemp(prefix="paramstore-machine-"))
        self.scopes: dict[str, ModelScope] = {"main": ModelScope("main")}
        self.scopes["main"].enter()
        self.base = "main"
        self.entered: list[tuple[str, AbstractContextManager[Any], bool]] = []
        """Scope, its context and whether leaving commits, the innermost last."""
        self.forks = 0
        self.store: Any = self._open()

    def open_store(self, folder: Path, **options: Any) -> Any:
        """Open a store: an empty folder, and options of :func:`paramstore.open`."""
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        """Check the invariants of the database in the folder, once every store is closed."""

    def _open(self, **options: Any) -> Any:
        return self.open_store(self.folder, **options)

    @property
    def scope(self) -> ModelScope:
        """The model of the current scope."""
        return self.scopes[self.entered[-1][0] if self.entered else self.base]

    @property
    def working(self) -> dict[str, Param]:
        """The model of the working set."""
        return self.scope.enter()

    def pick(self, number: int) -> tuple[str, ModelSnapshot] | None:
        """Choose one of all snapshots."""
        every = [(s.name, snapshot) for s in self.scopes.values() for snapshot in s.snapshots]
        return every[number % len(every)] if every else None

    # -- the working set -----------------------------------------------------------

    @rule(name=names, seed=seeds, constraint=st.sampled_from(CONSTRAINTS))
    def set_value(self, name: str, seed: int, constraint: Constraint) -> None:
        """Set a name, with a constraint when it is new."""
        if name in self.working:
            constraint = self.working[name].constraint
            self.store[name] = transform_to(constraint)(unconstrained_value(seed))
        else:
            value = transform_to(constraint)(unconstrained_value(seed))
            self.store.setdefault(name, value, constraint=constraint)
        stored = self.store[name].unconstrained().detach().clone()
        torch.testing.assert_close(stored, unconstrained_value(seed))
        self.working[name] = Param(stored, constraint)

    @rule(name=names, seed=seeds, how=st.sampled_from(("no_grad", "data", "numpy")))
    def change_in_place(self, name: str, seed: int, how: str) -> None:
        """Write into a stored tensor."""
        if name not in self.working:
            return
        stored = self.store[name].unconstrained()
        new = torch.full_like(stored, seed, requires_grad=False)
        if how == "no_grad":
            with torch.no_grad():
                stored.copy_(new)
        elif how == "data":
            stored.data = new.clone()
        else:
            stored.detach().numpy()[...] = new.numpy()
        self.working[name] = Param(new, self.working[name].constraint)

    @rule(name=names)
    def delete(self, name: str) -> None:
        """Delete a name, read or unread."""
        if name in self.working:
            del self.store[name]
            del self.working[name]

    @rule(name=names)
    def look_up(self, name: str) -> None:
        """Read one value."""
        if name in self.working:
            wanted = self.working[name]
            assert same_bits(self.store[name].unconstrained().detach(), wanted.tensor)
            assert exactly_equal(self.store._constraints[name], wanted.constraint)
            assert self.store[name].unconstrained().requires_grad

    @rule()
    def clear(self) -> None:
        """Empty the working set; the database keeps everything."""
        self.store.clear()
        self.working.clear()

    @invariant()
    def the_names_are_those_of_the_model(self) -> None:
        """Compare names, which reads no tensor."""
        assert set(self.store) == self.working.keys()

    # -- commits -------------------------------------------------------------------

    @rule(step=steps, append=st.booleans())
    def commit(self, step: int | None, append: bool) -> None:
        """Commit, or be told of a conflict."""
        scope, changed = self.scope, self.scope.changed()
        assert set(self.store.changed()) == changed
        options = {"on_conflict": "append"} if append else {}
        if scope.seen != scope.head and not append:
            with pytest.raises(ConflictError) as caught:
                self.store.commit(step=step)
            assert (caught.value.seen, caught.value.found) == (scope.seen, scope.head)
            return
        made = self.store.commit(step=step, **options)
        wanted = scope.commit(step)
        assert (made.scope, made.version) == (scope.name, wanted.version)
        assert (made.parent, made.step) == (wanted.parent, step)
        assert made.params == len(wanted.params)
        assert made.changed == len(changed & wanted.params.keys())

    @precondition(lambda self: self.shared and not self.entered)
    @rule(seed=seeds)
    def commit_in_another_store(self, seed: int) -> None:
        """Let a rival move the head."""
        scope = self.scopes[self.base]
        with self._open(scope=self.base) as rival:
            rival["rival"] = torch.full((), float(seed))
            made = rival.commit()
        before = scope.snapshots[-1] if scope.snapshots else None
        params = dict(before.params) if before else {}
        value = transform_to(constraints.real)(torch.full((), float(seed)))
        params["rival"] = Param(value, constraints.real)
        parent = f"{scope.name}@{before.version}" if before else None
        scope.snapshots.append(ModelSnapshot(scope.head + 1, parent, None, params))
        assert (made.version, made.parent) == (scope.head, parent)

    @rule(pick=picks, tag=st.sampled_from(TAGS))
    def tag(self, pick: int, tag: str) -> None:
        """Tag any snapshot, moving the tag when it is there."""
        found = self.pick(pick)
        if found is not None:
            name, snapshot = found
            self.store.tag(tag, f"{name}@{snapshot.version}", move=True)
            self.scopes[name].tags[tag] = snapshot.version
            assert self.store.at(f"{name}@{tag}").snapshot.version == snapshot.version

    @rule(tag=st.sampled_from(TAGS))
    def untag(self, tag: str) -> None:
        """Remove a tag of the current scope."""
        if tag in self.scope.tags:
            self.store.untag(tag)
            del self.scope.tags[tag]

    @rule(name=names)
    def rename(self, name: str) -> None:
        """Rename a parameter of the current scope, in all its snapshots."""
        scope, new = self.scope, f"{name}'"
        taken = scope.known_names() | self.working.keys()
        if name in scope.known_names() and name in self.working and new not in taken:
            self.store.rename(name, new)
            scope.rename(name, new)

    # -- housekeeping --------------------------------------------------------------

    @rule(last=st.integers(1, 3))
    def expire(self, last: int) -> None:
        """Forget what is old, but for what a working set continues."""
        told = self.store.expire(KeepLast(last), dry_run=True)
        done = self.store.expire(KeepLast(last))
        held = {scope.parent for scope in self.scopes.values() if scope.parent}
        gone = [scope.expire(last, held) for scope in self.scopes.values()]
        assert {s.ref for s in done.expired} == set().union(*gone)
        assert (told.expired, told.kept, told.nbytes) == (done.expired, done.kept, done.nbytes)

    @rule()
    def gc(self) -> None:
        """Free what nothing holds; no value may change for it."""
        free = self.store.du().unused_nbytes
        assert self.store.gc().nbytes == free
        found = self.store.du()
        assert (found.unused_nbytes, found.free_nbytes) == (0, 0)

    # -- going back ----------------------------------------------------------------

    @rule(pick=picks)
    def restore(self, pick: int) -> None:
        """Restore any snapshot of any scope."""
        found = self.pick(pick)
        if found is None:
            return
        held = {name: self.store[name].unconstrained() for name in self.working}
        before, (name, snapshot) = dict(self.working), found
        self.store.restore(f"{name}@{snapshot.version}")
        self.scope.continue_from(name, snapshot)
        for param in held.keys() & snapshot.params.keys():
            self._check_identity(param, held[param], before[param], snapshot.params[param])

    @rule(pick=picks, name=names, leave_out=st.booleans())
    def restore_one(self, pick: int, name: str, leave_out: bool) -> None:
        """Restore one name, or everything else."""
        found = self.pick(pick)
        if found is None or name not in found[1].params:
            return
        option = {"exclude": [name]} if leave_out else {"include": [name]}
        self.store.restore(f"{found[0]}@{found[1].version}", **option)
        for other in found[1].params.keys() | self.working.keys():
            if (other == name) is not leave_out:
                self._restored(other, found[1])

    def _restored(self, name: str, snapshot: ModelSnapshot) -> None:
        if name in snapshot.params:
            self.working[name] = snapshot.params[name]
        else:
            self.working.pop(name, None)

    def _check_identity(self, name: str, held: torch.Tensor, before: Param, after: Param) -> None:
        fits = (
            before.tensor.shape == after.tensor.shape
            and before.tensor.dtype == after.tensor.dtype
            and exactly_equal(before.constraint, after.constraint)
        )
        assert (self.store[name].unconstrained() is held) is fits
        assert held.grad is None or not fits

    @rule()
    def resume(self) -> None:
        """Take the newest snapshot of the current scope."""
        made = self.store.resume()
        if self.scope.snapshots:
            assert made.ref == f"{self.scope.name}@{self.scope.head}"
            self.scope.continue_from(self.scope.name, self.scope.snapshots[-1])
        else:
            assert made is None

    # -- scopes --------------------------------------------------------------------

    @precondition(lambda self: not self.entered and self.forks < 3)
    @rule()
    def fork(self) -> None:
        """Continue the working set in a new scope."""
        self.forks += 1
        old, name = self.scope, f"fork {self.forks}"
        self.store.fork(name)
        new = self.scopes[name] = ModelScope(name)
        new.working, new.parent, new.stored = self.working, old.parent, old.stored
        old.forget()
        self.base = name

    @precondition(lambda self: len(self.entered) < 3)
    @rule(name=st.sampled_from(SCOPES), commit=st.booleans())
    def enter_scope(self, name: str, commit: bool) -> None:
        """Enter a named scope, or be told that it is active."""
        context = self.store.scope(name, commit=commit)
        if name == self.base or name in [active for active, _, _ in self.entered]:
            with pytest.raises(ScopeError, match=name):
                context.__enter__()
            return
        context.__enter__()
        self.scopes.setdefault(name, ModelScope(name)).enter()
        self.entered.append((name, context, commit))

    @precondition(lambda self: self.entered)
    @rule(error=st.sampled_from((None, Refused)))
    def leave_scope(self, error: type[Exception] | None) -> None:
        """Leave the innermost scope, normally or by an exception."""
        name, context, commit = self.entered.pop()
        assert not context.__exit__(error, error() if error else None, None)
        scope = self.scopes[name]
        if commit and error is None and scope.changed():
            scope.commit(None)
        assert self._head(name) == scope.head

    def _head(self, name: str) -> int:
        heads: dict[str, int] = {info.name: info.head_version for info in self.store.scopes()}
        return heads.get(name, 0)

    @precondition(lambda self: self.shared and not self.entered)
    @rule(number=picks)
    def reopen(self, number: int) -> None:
        """Close the store and open it again, on any of its scopes."""
        self.store.close()
        for scope in self.scopes.values():
            scope.forget()
        known = [name for name, scope in self.scopes.items() if scope.snapshots] or ["main"]
        self.base = known[number % len(known)]
        self.store = self._open(scope=self.base)
        self.scopes[self.base].enter()

    # -- the end -------------------------------------------------------------------

    def teardown(self) -> None:
        """Look at everything there is, in another store where there can be one."""
        if sys.exception() is not self.outer:
            shutil.rmtree(self.folder)  # a rule has failed; what follows would hide that
            return
        try:
            for _, context, _ in reversed(self.entered):
                context.__exit__(Refused, Refused(), None)
            self.entered.clear()
            self._compare_working()
            reader = self._open(scope="reader") if self.shared else self.store
            for scope in self.scopes.values():
                self._compare_scope(reader, scope)
                for snapshot in scope.snapshots:
                    self._compare_snapshot(reader, scope.name, snapshot)
            self._compare_differences(reader)
            reader.close()
            self.store.close()
            self.check(self.folder)
        finally:
            shutil.rmtree(self.folder)

    def _compare_working(self) -> None:
        stored = dict(self.store.named_parameters())
        assert stored.keys() == self.working.keys()
        for name, tensor in stored.items():
            assert same_bits(tensor.detach(), self.working[name].tensor), name
            assert tensor.requires_grad, name

    def _compare_scope(self, reader: Any, scope: ModelScope) -> None:
        if not scope.snapshots:
            return
        log = reader.log(scope=scope.name)
        wanted = scope.snapshots[::-1]
        assert [s.version for s in log] == [s.version for s in wanted]
        assert [s.parent for s in log] == [self._still_there(s.parent) for s in wanted]
        assert [s.step for s in log] == [s.step for s in wanted]
        tags = {tag: s.version for s in log for tag in s.tags}
        assert tags == scope.tags
        for name in scope.known_names():
            found = {row.version for row in reader.history(name, scope=scope.name)}
            must = set(scope.history(name))
            # A value that comes back from an older snapshot may count as a change of itself.
            assert must <= found <= must | scope.returns(name), name

    def _still_there(self, ref: str | None) -> str | None:
        every = {
            f"{s.name}@{snapshot.version}" for s in self.scopes.values() for snapshot in s.snapshots
        }
        return ref if ref in every else None

    def _compare_snapshot(self, reader: Any, scope: str, snapshot: ModelSnapshot) -> None:
        ref = f"{scope}@{snapshot.version}"
        view = reader.at(ref)
        assert set(view) == snapshot.params.keys()
        reader.restore(ref)
        restored = dict(reader.named_parameters())
        assert restored.keys() == snapshot.params.keys()
        for name, param in snapshot.params.items():
            assert same_bits(view.unconstrained(name), param.tensor), name
            assert same_bits(restored[name].detach(), param.tensor), name
            assert exactly_equal(reader._constraints[name], param.constraint), name
            value = transform_to(param.constraint)(param.tensor)
            assert same_bits(view[name], value), name

    def _compare_differences(self, reader: Any) -> None:
        every = [(s.name, snapshot) for s in self.scopes.values() for snapshot in s.snapshots]
        for (one, before), (other, after) in itertools.pairwise(every):
            diff = reader.diff(f"{one}@{before.version}", f"{other}@{after.version}")
            old, new = before.params, after.params
            assert set(diff.added) == new.keys() - old.keys()
            assert set(diff.removed) == old.keys() - new.keys()
            changed = {name for name in old.keys() & new.keys() if not old[name].same(new[name])}
            assert {change.name for change in diff.changed} == changed
