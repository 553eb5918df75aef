"""Whose the state of an optimiser is: its class and the names of its parameters travel with it.

torch files such a state by position. Here it goes back by name, to the same class; must never hand
the state of one parameter to another, and leaves a state that came without names as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from torch.optim import LBFGS, Optimizer

from paramstore.attached import naming
from paramstore.db.owners import KEY
from paramstore.errors import CorruptError, MismatchError
from paramstore.listing import some

if TYPE_CHECKING:
    from paramstore.working_set import WorkingSet

Names = list[str | None]
"""Of the parameters of one group, in order; None for a tensor that is in no store."""


def with_owners(ws: WorkingSet, states: Mapping[str, object]) -> dict[str, object]:
    """Add the class and the names to the states of torch's optimisers."""
    found = dict(states)
    for name, optim, state in _of_optimisers(ws, states):
        found[name] = {
            **state,
            KEY: {"class": type(optim).__qualname__, "params": _names(ws, optim)},
        }
    return found


def without_owner(state: object) -> object:
    """Return what ``state_dict`` gave."""
    return {k: v for k, v in state.items() if k != KEY} if _is_usual(state) else state


def for_owners(
    ws: WorkingSet,
    states: Mapping[str, object],
    *,
    strict: bool,
    wanted: Callable[[str], bool],
) -> dict[str, object]:
    """Bring stored states into the order of the optimisers that are attached.

    Args:
        ws: The working set.
        states: What a snapshot holds, by the name under which it was attached.
        strict: Whether the optimiser has to have the same parameters.
        wanted: Tells whether a parameter is restored at all; one that is not begins anew.

    Raises:
        MismatchError: an optimiser of another class, or with other parameters or groups.
    """
    found = {name: without_owner(state) for name, state in states.items()}
    for name, optim, state in _of_optimisers(ws, states):
        if KEY in state:
            with naming(name, "refused its state"):
                there = _Owner.of(state)
                here = _Owner(type(optim).__qualname__, _names(ws, optim))
                found[name] = _moved(optim, state, there, here, strict=strict, wanted=wanted)
    return found


class _Owner(NamedTuple):
    """What a state belongs to."""

    cls: str
    groups: list[Names]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> _Owner:
        """Read what was stored."""
        kind, groups = state[KEY]["class"], state[KEY]["params"]
        sizes = [len(group["params"]) for group in state["param_groups"]]
        names = [name for group in groups for name in group]
        if [len(group) for group in groups] != sizes or not all(
            name is None or isinstance(name, str) for name in names
        ):
            raise CorruptError("the names of its parameters are altered")
        return cls(str(kind), [list(group) for group in groups])


def _of_optimisers(
    ws: WorkingSet, states: Mapping[str, object]
) -> Iterator[tuple[str, Optimizer, dict[str, Any]]]:
    for name, state in states.items():
        optim = ws.attached.get(name)
        if isinstance(optim, Optimizer) and _is_usual(state):
            yield name, optim, state


def _is_usual(state: object) -> TypeGuard[dict[str, Any]]:
    """Tell whether a state has torch's form; a class of somebody else's may have its own."""
    return type(state) is dict and "state" in state and "param_groups" in state


def _names(ws: WorkingSet, optim: Optimizer) -> list[Names]:
    names = dict[int, str]()
    for name, tensor in ws.params.live():
        names.setdefault(id(tensor), name)  # tied ones: the first, whichever was bound last
    return [[names.get(id(tensor)) for tensor in group["params"]] for group in optim.param_groups]


def _moved(
    optim: Optimizer,
    state: dict[str, Any],
    there: _Owner,
    here: _Owner,
    *,
    strict: bool,
    wanted: Callable[[str], bool],
) -> dict[str, Any]:
    """Return the state with the parameters of each group in the order that they have here."""
    _check_alike(there, here)
    taken = [_pairs(before, now) for before, now in zip(there.groups, here.groups, strict=True)]
    if strict:
        _check_whole(there, here, taken, wanted)
    taken = [
        [None if name and not wanted(name) else index for name, index in zip(*both, strict=True)]
        for both in zip(here.groups, taken, strict=True)
    ]
    whole = [list(range(len(names))) for names in there.groups]
    if taken == whole:
        return {key: value for key, value in state.items() if key != KEY}
    if isinstance(optim, LBFGS):
        raise MismatchError(
            "LBFGS has one state for all of its parameters, which have to be the same, in the "
            "same order. Nothing has been changed; attach it under another name and pass "
            "strict=False, and it begins anew"
        )
    return _rearranged(state, taken)


def _check_alike(there: _Owner, here: _Owner) -> None:
    """Refuse another class, and other groups: their options go by position."""
    if there.cls != here.cls:
        raise MismatchError(
            f"its state is one of {there.cls}, and {here.cls} is attached. Nothing has been "
            f"changed; attach {there.cls}, or attach {here.cls} under another name and pass "
            f"strict=False, and it begins anew"
        )
    if len(there.groups) != len(here.groups):
        raise MismatchError(
            f"its state is one of {len(there.groups)} groups of parameters, and it has "
            f"{len(here.groups)}. Nothing has been changed; make it with the groups that it had, "
            f"and add one by add_param_group when that is done"
        )
    group_of = {name: i for i, group in enumerate(there.groups) for name in group if name}
    moved = [
        f"{name!r} is in group {group_of[name]} there, {i} here"
        for i, group in enumerate(here.groups)
        for name in group
        if name and group_of.get(name, i) != i
    ]
    if moved:
        raise MismatchError(
            f"its groups have other parameters: {some(moved)}. Nothing has been changed; make it "
            f"with the groups that it had"
        )


def _pairs(there: Names, here: Names) -> list[int | None]:
    """For each parameter here, the place that it had there; None for a new one.

    Those whose name is unknown on either side keep their order, where nothing else is left over.
    """
    places = {name: place for place, name in enumerate(there) if name is not None}
    taken = [places.get(name) if name is not None else None for name in here]
    new = [i for i, place in enumerate(taken) if place is None]
    gone = sorted(set(range(len(there))) - set(taken))
    both = list(zip(new, gone, strict=False))
    if len(new) == len(gone) and all(here[i] is None or there[j] is None for i, j in both):
        for i, place in both:
            taken[i] = place
    return taken


def _check_whole(
    there: _Owner,
    here: _Owner,
    taken: list[list[int | None]],
    wanted: Callable[[str], bool],
) -> None:
    """Refuse parameters that only one side has."""
    new, gone = list[str](), list[str]()
    for group, (before, now, places) in enumerate(
        zip(there.groups, here.groups, taken, strict=True)
    ):
        left = set(range(len(before))) - set(places)
        new += _called(now, [i for i, place in enumerate(places) if place is None], group, wanted)
        gone += _called(before, sorted(left), group, wanted)
    problems = [f"it has no state for {some(new)}"] if new else []
    problems += [f"it has one for {some(gone)}, which the optimiser lacks"] if gone else []
    if problems:
        raise MismatchError(
            f"its state is one of other parameters: {'; '.join(problems)}. Nothing has been "
            f"changed; with strict=False those that both have go on, and the others begin anew"
        )


def _called(
    names: Names, places: list[int], group: int, wanted: Callable[[str], bool]
) -> Iterator[str]:
    for place in places:
        name = names[place]
        if name is None:
            yield f"parameter {place} of group {group}, whose name is not known"
        elif wanted(name):
            yield repr(name)


def _rearranged(state: dict[str, Any], taken: list[list[int | None]]) -> dict[str, Any]:
    fresh = count(-1, -1)  # torch's own numbers begin at 0
    groups, left_out = [], set[Any]()
    for group, places in zip(state["param_groups"], taken, strict=True):
        numbers = group["params"]
        left_out |= {numbers[place] for place in set(range(len(numbers))) - set(places)}
        kept = [next(fresh) if place is None else numbers[place] for place in places]
        # torch's own names would be in the old order; without them it keeps those of the optimiser.
        options = {key: value for key, value in group.items() if key != "param_names"}
        groups.append({**options, "params": kept})
    return {
        "state": {key: value for key, value in state["state"].items() if key not in left_out},
        "param_groups": groups,
        **{key: v for key, v in state.items() if key not in ("state", "param_groups", KEY)},
    }
