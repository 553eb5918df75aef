"""Carries what Pyro's own store holds over to one of ours: the same tensors, all or none.

Checks everything before it changes anything; must never replace a tensor of a bound module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import values
from paramstore.errors import InvalidInputError, MismatchError
from paramstore.fitting import (
    holders_in,
    misfit,
    other_constraint,
    source_of,
    take_values,
    untieable,
)
from paramstore.working_set import WorkingSet

if TYPE_CHECKING:
    from paramstore.db.repository import Entry
    from paramstore.reader import Reader

Prefer = Literal["store", "pyro"] | None
"""Whose value a name keeps that both stores hold; None refuses such a name."""

Targets = dict[str, "tuple[Tensor, Tensor | Entry]"]
"""Tensors of Pyro's, and where the values are that go into them."""


def check_prefer(prefer: object) -> None:
    """Refuse anything but a :data:`Prefer`.

    Raises:
        InvalidInputError: says what it may be.
    """
    if prefer not in ("store", "pyro", None):
        raise InvalidInputError(f"prefer is 'store', 'pyro' or None, got {prefer!r}")


def carry_over(
    ws: WorkingSet, reader: Reader | None, state: Mapping[str, Any], prefer: Prefer
) -> Callable[[], None]:
    """Make the tensors of Pyro's store those of the working set, the same objects.

    Returns:
        What undoes it.

    Raises:
        InvalidInputError: Pyro's store holds something that is no parameter. As with the others,
            nothing has changed.
        MismatchError: both hold a name, or a value does not fit.
        CorruptError: stored bytes are missing or altered.
    """
    params, found = values.check_state(state)
    specs = {name: found.get(name, constraints.real) for name in params}
    both = [name for name, tensor in params.items() if _differs(ws, name, tensor, specs[name])]
    live = ws.buffers()
    targets: Targets = {}
    if prefer == "store":
        for name in both:
            source = source_of(ws, name, live)
            assert source is not None  # the working set holds it
            targets[name] = (params[name], source)
    _check(ws, both, params, live, prefer=prefer, problems=_misfits(ws, targets, specs, live))
    undo = _undoing(ws, [tensor for tensor, _ in targets.values()])
    try:
        take_values(ws, reader, targets)
        for tensor, _ in targets.values():
            tensor.grad = None
        for name, tensor in params.items():
            ws.put(name, tensor, specs[name])
    except BaseException:
        undo()
        raise
    return undo


def _differs(ws: WorkingSet, name: str, tensor: Tensor, constraint: Constraint) -> bool:
    if name not in ws.params:
        return False
    return dict.get(ws.params, name) is not tensor or bool(other_constraint(ws, name, constraint))


def _check(
    ws: WorkingSet,
    both: list[str],
    params: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    *,
    prefer: Prefer,
    problems: Iterable[str],
) -> None:
    if both and prefer is None:
        raise MismatchError(
            f"Pyro's store and the one to install both hold {', '.join(map(repr, sorted(both)))}; "
            f"nothing has been changed. install(store, prefer='store') goes on with the stored "
            f"values, in Pyro's tensors, and prefer='pyro' with Pyro's; or drop those with "
            f"pyro.clear_param_store() before install(store)"
        )
    bound = ws.bound()
    problems = [
        *(f"{name!r}: belongs to a module bound here" for name in both if name in bound),
        *(f"{name!r}: a buffer of a module bound here" for name in params if name in live),
        *problems,
    ]
    if problems:
        raise MismatchError(
            f"Pyro's store does not fit the one to install: {'; '.join(problems)}. Nothing has "
            f"been changed; delete such a name in one of them, or install into another scope"
        )


def _misfits(
    ws: WorkingSet,
    targets: Targets,
    specs: Mapping[str, Constraint],
    live: Mapping[str, Tensor],
) -> Iterator[str]:
    """Say which tensors of Pyro's cannot take the store's values."""
    holders = holders_in(ws, dict(live))
    first: dict[int, str] = {}
    for name, (tensor, source) in targets.items():
        why = other_constraint(ws, name, specs[name]) or misfit(tensor, source)
        why = why or untieable(ws, tensor, source, holders.get(id(tensor)))
        other = first.setdefault(id(tensor), name)
        if why is None and other != name and not _same(source, targets[other][1]):
            why = f"its tensor in Pyro is that of {other!r}, which has another value here"
        if why:
            yield f"{name!r}: {why}"


def _same(one: Tensor | Entry, other: Tensor | Entry) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return one.digest == other.digest


def _undoing(ws: WorkingSet, changed: list[Tensor]) -> Callable[[], None]:
    """Remember the tables and the values of tensors; return what puts them back."""
    tables: list[dict[Any, Any]] = [ws.names, ws.constraints, ws.transforms, ws.stored]
    contents = [dict(table) for table in tables]
    params = list(dict.items(ws.params))  # as they are: nothing is read for this
    kept = [(tensor, tensor.detach().clone(), tensor.grad) for tensor in changed]

    def undo() -> None:
        for table, content in zip(tables, contents, strict=True):
            table.clear()
            table.update(content)
        ws.params.replace(params)
        for tensor, value, grad in kept:
            tensor.detach().copy_(value)
            tensor.grad = grad

    return undo
