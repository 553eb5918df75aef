"""The dictionary against Pyro's own class: the same operations have to give the same observations.

Where Pyro is wrong and we are better, the reference is put right after the operation, by the
functions at the end: that list is the whole of the differences. Must never compare by tolerance.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hypothesis.strategies as st
import torch
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint

from paramstore.testing.exact import exactly_equal
from paramstore.testing.stateful.observations import (
    Raised,
    Refused,
    describe,
    outcome,
    value_of,
)

NAMES = ("a", "b", "net$$$weight", "naïve name", "a.b")
SHAPES = ((), (1,), (3,), (2, 3), (2, 0))
CONSTRAINTS: tuple[Constraint, ...] = (
    constraints.real,
    constraints.positive,
    constraints.unit_interval,
    constraints.interval(-1.0, 2.5),
    constraints.greater_than(torch.tensor(0.5)),
    constraints.independent(constraints.positive, 1),
    constraints.simplex,
    constraints.lower_cholesky,
)
BAD_VALUES: tuple[object, ...] = (torch.arange(3), torch.tensor(True), 2.5, None, "text")
BAD_STATES: tuple[object, ...] = (None, {}, {"params": {}}, {"constraints": {}}, [1])

names = st.sampled_from(NAMES)
seeds = st.integers(0, 2**16)


@dataclass(frozen=True, eq=False)
class Pair:
    """The same thing on both sides: a tensor, a state, a file."""

    theirs: Any
    ours: Any


def unconstrained_value(constraint: Constraint, seed: int, *, double: bool = False) -> Tensor:
    """Draw an unconstrained value of a shape that ``constraint`` can have."""
    generator = torch.Generator().manual_seed(seed)
    shape: tuple[int, ...] = SHAPES[seed % len(SHAPES)]
    if constraint.event_dim == 1:
        shape = (2, 3)
    elif constraint.event_dim == 2:
        shape = (3, 3)
    dtype = torch.float64 if double else torch.float32
    return torch.randn(shape, generator=generator, dtype=dtype)


class DictionaryMachine(RuleBasedStateMachine):
    """Random dictionary operations on Pyro's class and on ours."""

    keeps_what_failed: ClassVar[bool] = False
    """Whether the state of a scope that was left by an exception is its working set, as that of a
    scope with a row is; in Pyro's class it is what it was before."""

    tensors: Bundle[Pair] = Bundle("tensors")
    states: Bundle[Pair] = Bundle("states")
    files: Bundle[Pair] = Bundle("files")

    def __init__(self) -> None:
        super().__init__()
        from pyro.params.param_store import ParamStoreDict as Reference

        self.outer = sys.exception()
        self.folder = Path(tempfile.mkdtemp(prefix="paramstore-machine-"))
        self.theirs: Any = Reference()
        self.context = self.make_store(self.folder)
        self.ours: Any = self.context.__enter__()
        self.scopes: list[tuple[Pair, Pair]] = []
        self.held: list[Pair] = []
        self.saved = 0

    def make_store(self, folder: Path) -> AbstractContextManager[Any]:
        """Make the store under test, given an empty folder; the context closes it."""
        raise NotImplementedError

    def teardown(self) -> None:
        """Close the store and remove its folder."""
        failed = sys.exception() is not self.outer
        while self.scopes and not failed:  # comparing on would hide what has failed
            self._leave(None)
        self.context.__exit__(None, None, None)
        shutil.rmtree(self.folder)

    # -- running and comparing -----------------------------------------------------

    def both(self, call: Callable[[Any], Any]) -> Pair:
        """Run ``call`` on both stores; both have to return, or to raise for the same reason."""
        found = Pair(outcome(lambda: call(self.theirs)), outcome(lambda: call(self.ours)))
        raised = found.theirs if isinstance(found.theirs, Raised) else None
        other = found.ours if isinstance(found.ours, Raised) else None
        assert raised == other, f"Pyro: {found.theirs!r}, here: {found.ours!r}"
        return found

    def compare(self, call: Callable[[Any], Any]) -> Pair:
        """Run ``call`` on both stores; both have to return the same value."""
        found = self.both(call)
        if isinstance(found.theirs, Tensor):
            assert isinstance(found.ours, Tensor)
            assert value_of(found.ours) == value_of(found.theirs)
        elif not isinstance(found.theirs, Raised):
            assert found.ours == found.theirs
        return found

    @invariant()
    def every_observation_agrees(self) -> None:
        """Compare everything that can be seen."""
        ours, theirs = describe(self.ours), describe(self.theirs)
        for what, wanted in theirs.items():
            assert ours[what] == wanted, what
        for name, constraint in self.theirs._constraints.items():
            assert exactly_equal(self.ours._constraints[name], constraint), name

    @invariant()
    def every_tensor_leads_to_its_name(self) -> None:
        """Compare param_name and identity of each tensor that was ever handed in."""
        stored = Pair(dict(self.theirs.named_parameters()), dict(self.ours.named_parameters()))
        for pair in self.held:
            holders = [name for name, t in stored.theirs.items() if t is pair.theirs]
            assert [name for name, t in stored.ours.items() if t is pair.ours] == holders
            found = self.ours.param_name(pair.ours)
            assert found in holders if holders else found is None
        for name, tensor in stored.ours.items():
            assert stored.ours[self.ours.param_name(tensor)] is tensor, name
        assert set(self.ours._param_to_name.values()) <= set(stored.ours)

    # -- values --------------------------------------------------------------------

    @initialize(target=tensors)
    def start(self) -> Any:
        """Begin with nothing to hand in."""
        return multiple()

    @rule(target=tensors, seed=seeds, double=st.booleans(), kind=st.integers(0, 2))
    def make_tensor(self, seed: int, double: bool, kind: int) -> Pair:
        """Make a tensor that can be handed in several times."""
        made = unconstrained_value(constraints.real, seed, double=double)
        pair = Pair(made.clone(), made.clone())
        if kind == 1:
            pair = Pair(pair.theirs.requires_grad_(), pair.ours.requires_grad_())
        elif kind == 2:
            pair = Pair(torch.nn.Parameter(pair.theirs), torch.nn.Parameter(pair.ours))
        self.held.append(pair)
        return pair

    @rule(name=names, pair=tensors)
    def set_tensor(self, name: str, pair: Pair) -> None:
        """Store the very tensor under a name without constraint."""
        if self.theirs._constraints.get(name, constraints.real) is not constraints.real:
            self.delete(name)
        self.theirs[name] = pair.theirs
        self.ours[name] = pair.ours

    @rule(name=names, seed=seeds)
    def set_value(self, name: str, seed: int) -> None:
        """Set a value that the name's constraint admits."""
        constraint = self.theirs._constraints.get(name, constraints.real)
        value = transform_to(constraint)(unconstrained_value(constraint, seed))
        self.both(lambda store: store.__setitem__(name, value.clone()))

    @rule(name=names, value=st.sampled_from(BAD_VALUES), lazy=st.booleans())
    def set_something_else(self, name: str, value: object, lazy: bool) -> None:
        """Offer what cannot be a parameter; only an existing name may accept it unseen."""
        known = name in self.theirs
        if lazy:
            found = self.both(lambda store: bool(store.setdefault(name, lambda: value).numel()))
            assert isinstance(found.ours, Raised) is not known
        elif known:
            # The logarithm of an integer is a number, and Pyro takes it.
            assert isinstance(outcome(lambda: self.ours.__setitem__(name, value)), Raised)
        else:
            assert isinstance(self.both(lambda store: store.__setitem__(name, value)).ours, Raised)
        self._mend_constraints()

    @rule(
        name=names,
        constraint=st.sampled_from(CONSTRAINTS),
        seed=seeds,
        double=st.booleans(),
        lazy=st.booleans(),
        method=st.sampled_from(("setdefault", "get_param")),
    )
    def set_default(
        self, name: str, constraint: Constraint, seed: int, double: bool, lazy: bool, method: str
    ) -> None:
        """Offer a first value, or a callable of it, with a constraint."""
        known = name in self.theirs
        value = transform_to(constraint)(unconstrained_value(constraint, seed, double=double))
        calls: list[int] = []

        def offer() -> Tensor:
            calls.append(1)
            copy: Tensor = value.clone()
            return copy

        self.compare(
            lambda store: getattr(store, method)(
                name, offer if lazy else value.clone(), constraint=constraint
            )
        )
        assert len(calls) == (2 if lazy and not known else 0)
        if not known:
            assert self.ours._constraints[name] is constraint

    @rule(name=names, pair=tensors)
    def set_default_tensor(self, name: str, pair: Pair) -> None:
        """Offer a tensor of the caller's for a name."""
        theirs = self.theirs.setdefault(name, pair.theirs)
        assert value_of(self.ours.setdefault(name, pair.ours)) == value_of(theirs)

    @rule(name=names, constraint=st.sampled_from(CONSTRAINTS))
    def set_default_raising(self, name: str, constraint: Constraint) -> None:
        """Offer a callable that raises."""

        def refuse() -> Tensor:
            raise Refused

        self.both(lambda store: bool(store.setdefault(name, refuse, constraint).numel()))
        self._mend_constraints()

    @rule(name=names)
    def look_up(self, name: str) -> None:
        """Look a name up in every way, there or not."""
        self.compare(lambda store: store[name])
        self.compare(lambda store: store.get_param(name))
        self.compare(lambda store: name in store)

    @rule(name=names)
    def delete(self, name: str) -> None:
        """Delete a name, there or not."""
        known = name in self.theirs
        theirs = outcome(lambda: self.theirs.__delitem__(name))
        ours = outcome(lambda: self.ours.__delitem__(name))
        self._mend_deletion()
        assert isinstance(ours, Raised) is not known
        assert known or ours == theirs

    @rule(name=names, seed=seeds, how=st.sampled_from(("no_grad", "data", "numpy")))
    def change_in_place(self, name: str, seed: int, how: str) -> None:
        """Write into a stored tensor, as optimisers and users do."""
        for store in (self.theirs, self.ours):
            if name in store:
                stored = store[name].unconstrained()
                generator = torch.Generator().manual_seed(seed)
                new = torch.randn(stored.shape, generator=generator, dtype=stored.dtype)
                if how == "no_grad":
                    with torch.no_grad():
                        stored.copy_(new)
                elif how == "data":
                    stored.data = new
                else:
                    stored.detach().numpy()[...] = new.numpy()

    @rule(name=names)
    def differentiate(self, name: str) -> None:
        """Compare the gradient that arrives at the stored tensor."""

        def gradient(store: Any) -> Tensor:
            value = store[name]
            found: Tensor = torch.autograd.grad(value.sum() * 2, value.unconstrained())[0]
            return found

        self.compare(gradient)

    @rule(name=names, seed=seeds, right=st.booleans())
    def replace(self, name: str, seed: int, right: bool) -> None:
        """Replace a value by the old method, with the right or a wrong old value."""

        def run(store: Any) -> list[str]:
            constraint = store._constraints[name]
            new = transform_to(constraint)(unconstrained_value(constraint, seed))
            old = store[name]
            if not right:
                old = torch.zeros(())
                setattr(old, "unconstrained", lambda: old)  # noqa: B010  # Tensor has no such name
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    store.replace_param(name, new, old)
                finally:
                    assert [w.category for w in caught] == [DeprecationWarning]
            return [str(w.category) for w in caught]

        self.compare(run)

    @rule(pattern=st.sampled_from(("a", "a.b", r"net\$", ".*e", "nothing", "(", "")))
    def match(self, pattern: str) -> None:
        """Compare what a pattern finds."""
        self.compare(lambda store: list(store.match(pattern)))

    @rule()
    def clear(self) -> None:
        """Empty both."""
        self.both(lambda store: store.clear())

    # -- states, files and scopes --------------------------------------------------

    @rule(target=states)
    def get_state(self) -> Pair:
        """Take the state."""
        found = Pair(self.theirs.get_state(), self.ours.get_state())
        self._compare_states(found)
        return found

    @rule(state=states)
    def set_state(self, state: Pair) -> None:
        """Put a state back that no active scope is about to change."""
        if any(state is active for _, active in self.scopes):
            return
        self.theirs.set_state(state.theirs)
        self.ours.set_state(state.ours)

    @rule(state=st.sampled_from(BAD_STATES))
    def set_malformed_state(self, state: object) -> None:
        """Offer something that is no state."""
        assert isinstance(self.both(lambda store: store.set_state(state)).ours, Raised)

    @rule(target=files)
    def save(self) -> Pair:
        """Write a file each."""
        self.saved += 1
        pair = Pair(str(self.folder / f"{self.saved}.pyro"), str(self.folder / f"{self.saved}.st"))
        self.theirs.save(pair.theirs)
        self.ours.save(pair.ours)
        return pair

    @rule(file=files, own=st.booleans())
    def load(self, file: Pair, own: bool) -> None:
        """Read the file back, our own one or the one that Pyro wrote."""
        self.theirs.load(file.theirs)
        self.ours.load(file.ours if own else file.theirs, map_location="cpu")

    @precondition(lambda self: len(self.scopes) < 3)
    @rule(state=st.none() | states)
    def enter_scope(self, state: Pair | None) -> None:
        """Enter a new scope, or one of a state that is not active."""
        if state is not None and any(state is active for _, active in self.scopes):
            return
        given = state or Pair(None, None)
        contexts = Pair(self.theirs.scope(given.theirs), self.ours.scope(given.ours))
        yielded = Pair(contexts.theirs.__enter__(), contexts.ours.__enter__())
        if state is not None:
            assert yielded.theirs is state.theirs
            assert yielded.ours is state.ours
        self.scopes.append((contexts, state or yielded))

    @precondition(lambda self: self.scopes)
    @rule(target=states, error=st.sampled_from((None, Refused)))
    def leave_scope(self, error: type[Exception] | None) -> Pair:
        """Leave the innermost scope, normally or by an exception."""
        return self._leave(None if self.keeps_what_failed else error)

    def _leave(self, error: type[Exception] | None) -> Pair:
        contexts, state = self.scopes.pop()
        for context in (contexts.theirs, contexts.ours):
            raised = error() if error else None
            assert not context.__exit__(error, raised, None)
        self._compare_states(state)
        return state

    def _compare_states(self, state: Pair) -> None:
        theirs, ours = state.theirs, state.ours
        assert set(theirs) == set(ours) == {"params", "constraints"}
        assert list(ours["params"]) == list(theirs["params"])
        for name, tensor in theirs["params"].items():
            assert value_of(ours["params"][name]) == value_of(tensor), name
            constraint = theirs["constraints"][name]
            assert exactly_equal(ours["constraints"][name], constraint), name

    # -- where Pyro is put right ---------------------------------------------------

    def _mend_constraints(self) -> None:
        """A first value that was refused, or whose callable raised, leaves its constraint there."""
        for name in set(self.theirs._constraints) - set(self.theirs._params):
            del self.theirs._constraints[name]

    def _mend_deletion(self) -> None:
        """Deleting one of two names of a tensor loses the other, whose deletion then fails."""
        self._mend_constraints()
        for other, tensor in self.theirs._params.items():
            self.theirs._param_to_name.setdefault(tensor, other)
