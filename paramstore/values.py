"""What may be the value of a parameter, and how it becomes the tensor that is trained.

Checks before anything changes; never looks at names that are held already.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore.constraints import unconstrain
from paramstore.errors import InvalidInputError, InvalidValueError
from paramstore.refs import check_param_name
from paramstore.tensors import shares_memory, unstorable
from paramstore.working_set import WorkingSet

if TYPE_CHECKING:
    from torch.distributions.transforms import Transform

_REAL = type(constraints.real)


def to_trained(
    name: str,
    value: Tensor,
    constraint: Constraint,
    inverse: Transform | None,
    *,
    validate: bool | None,
) -> Tensor:
    """Turn a constrained value into the unconstrained leaf that is trained.

    A leaf whose constraint changes nothing is kept as it is, whatever its strides, so that a
    module's parameter stays the module's; everything else becomes a contiguous tensor of its own.

    Args:
        name: Parameter name.
        value: Constrained value.
        constraint: Its constraint.
        inverse: The way from there to the real numbers; None where it changes nothing.
        validate: Whether the value is checked; None follows ``torch.distributions``.

    Raises:
        InvalidValueError: not a dense floating-point or complex tensor with data, or one that the
            constraint does not admit.
    """
    _check(name, value)
    if inverse is None:
        return trainable(value)
    tensor = unconstrain(constraint, value, name=name, validate=validate, inverse=inverse)
    # A transform may hand its argument through; the caller's tensor is not the store's then.
    tensor = value.detach().clone() if tensor is value else tensor
    # A leaf without shared memory, so that it need not be asked for them.
    tensor = tensor.contiguous()
    if tensor.is_inference():
        return trainable(tensor)
    tensor.requires_grad = True
    return tensor


def trainable(tensor: Tensor) -> Tensor:
    """Return the tensor itself where it is a leaf, else a detached one; it requires a gradient.

    So does every parameter of Pyro's store. An expanded tensor, whose elements share memory, could
    be neither trained nor restored in place; a contiguous copy takes its place.
    """
    if tensor.is_inference():
        with torch.inference_mode(mode=False):
            tensor = tensor.clone()
    elif not tensor.is_leaf or shares_memory(tensor):
        tensor = tensor.detach().contiguous()
    tensor.requires_grad = True
    return tensor


def check_state(state: Any) -> tuple[dict[str, Tensor], dict[str, Constraint]]:
    """Check a ``get_state()`` and return its parameters and constraints.

    Raises:
        InvalidInputError: not a dictionary of ``params`` and ``constraints``, or one of them holds
            something else.
    """
    if not isinstance(state, Mapping) or state.keys() != {"params", "constraints"}:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise InvalidInputError(
            f"malformed state: expected {{'params': …, 'constraints': …}} as from get_state(), "
            f"got {found}"
        )
    for key, table in state.items():
        if not isinstance(table, Mapping):
            raise InvalidInputError(
                f"malformed state: {key!r} is {type(table).__name__}, not a dictionary by name"
            )
    for name, tensor in state["params"].items():
        check_param_name(name)
        _check(name, tensor)
    for name, constraint in state["constraints"].items():
        if not isinstance(constraint, Constraint):
            raise InvalidInputError(f"the constraint of {name!r} is {constraint!r}")
    # A constraint that was pickled is another object; everybody compares with constraints.real.
    specs = {
        name: constraints.real if type(constraint) is _REAL else constraint
        for name, constraint in state["constraints"].items()
    }
    return dict(state["params"]), specs


def plain_working_set(state: Any) -> WorkingSet:
    """Make the working set of a state that lives in memory only.

    Raises:
        InvalidInputError: not a state, or one that cannot take what it holds in the end.
    """
    params, specs = check_state(state)
    if not isinstance(state, MutableMapping):
        raise InvalidInputError(
            f"scope(state) writes into the state on leaving, and {type(state).__name__} cannot "
            f"be written to; pass dict(state)"
        )
    ws = WorkingSet(None)
    dict.update(ws.params, params)  # at once: there is nothing yet that they could replace
    ws.names.update(zip(params.values(), params, strict=True))
    ws.constraints.update({name: specs.get(name, constraints.real) for name in params})
    return ws


def _check(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InvalidValueError(
            f"the value of {name!r} is {type(value).__name__}, expected a torch.Tensor"
        )
    advice = unstorable(value)
    if advice is not None:
        raise InvalidValueError(f"the value of {name!r} is {advice}")
    if not (value.is_floating_point() or value.is_complex()):
        raise InvalidValueError(
            f"the value of {name!r} is {value.dtype}; only floating-point and complex tensors can "
            f"be trained: convert it with .float(), or keep it with commit(extras=…)"
        )
