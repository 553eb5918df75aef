"""What of an ``nn.Module`` is stored: its parameters by path, with their constraints.

Reads modules only; must never change one, and knows none but torch's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import singledispatch
from typing import NamedTuple

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn.parallel import DataParallel, DistributedDataParallel


class Owned(NamedTuple):
    """A parameter of a module."""

    path: str
    """What it is called in the store, behind the module's name."""
    tensor: Tensor
    """Its unconstrained value: what is trained."""
    constraint: Constraint


@singledispatch
def constrained(module: object, /) -> Mapping[str, tuple[str, Constraint]]:  # noqa: ARG001 - by type
    """Return the name and the constraint of a module's own parameters that have one.

    The keys are the attributes that hold what is trained. An integration registers a function for
    modules that have such parameters.
    """
    return {}


@singledispatch
def check_bindable(module: object) -> None:
    """Refuse a module that somebody else keeps in step with a store.

    Raises:
        UsageError: says who, and what to do.
    """


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module that torch has wrapped, by `torch.compile` or for several devices.

    It has the same tensors, by the names that they have without.
    """
    # Nobody has compiled anything where this was not imported, which takes a second.
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())
    while True:
        if isinstance(module, DataParallel | DistributedDataParallel):
            module = module.module
        elif isinstance(module, compiled):
            module = module._orig_mod
        else:
            return module


def parameters_of(module: nn.Module) -> Iterator[Owned]:
    """Yield every parameter of a module; one that has several paths has the first."""
    special = {
        _join(path, attribute): (_join(path, name), constraint)
        for path, submodule in module.named_modules()
        for attribute, (name, constraint) in constrained(submodule).items()
    }
    for path, tensor in module.named_parameters():
        name, constraint = special.get(path, (path, constraints.real))
        yield Owned(name, tensor, constraint)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
