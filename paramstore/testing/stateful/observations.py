"""What can be seen of a dictionary of parameters, as values that two classes can be compared by.

Reads only; must never import a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramstore.testing.bits import bits


class Refused(Exception):  # noqa: N818 - the sentence reads better
    """What a callable of the machine's own raises."""


@dataclass(frozen=True)
class Raised:
    """That a call raised, and for what kind of reason."""

    family: str


_FAMILIES: tuple[tuple[type[Exception], str], ...] = (
    (Refused, "the callable raised"),
    (KeyError, "no such name"),
    # Pyro asserts; here the same mistakes are InvalidInputError, a ValueError.
    (AssertionError, "bad input"),
    (AttributeError, "bad input"),
    (RuntimeError, "bad input"),
    (TypeError, "bad input"),
    (ValueError, "bad input"),
    (re.error, "bad input"),
)


def outcome(call: Callable[[], Any]) -> Any:
    """Return what ``call`` returns, or which kind of error it raises.

    Raises:
        Exception: any that stands for no mistake of the caller's.
    """
    try:
        return call()
    except Exception as error:
        for kind, family in _FAMILIES:
            if isinstance(error, kind):
                return Raised(family)
        raise


@dataclass(frozen=True)
class Value:
    """Everything about one tensor but which object it is."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    content: bytes
    requires_grad: bool
    is_leaf: bool
    is_parameter: bool


def value_of(tensor: Tensor) -> Value:
    """Describe a tensor."""
    return Value(
        dtype=tensor.dtype,
        shape=tuple(tensor.shape),
        content=bits(tensor),
        requires_grad=tensor.requires_grad,
        is_leaf=tensor.is_leaf,
        is_parameter=isinstance(tensor, torch.nn.Parameter),
    )


def describe(store: Any) -> dict[str, Any]:
    """Describe every public observation of a store, and its private tables that Pyro uses.

    The same sequence of operations has to give the same description in Pyro's class and in ours.
    """
    stored = dict(store.named_parameters())
    values = dict(store.items())
    names = list(store)
    return {
        "names": names,
        "keys": list(store.keys()),
        "length": len(store),
        "truth": bool(store),
        "names of items": [name for name, _ in store.items()],
        "names of named_parameters": [name for name, _ in store.named_parameters()],
        "values": {name: value_of(value) for name, value in values.items()},
        "in order": [value_of(value) for value in store.values()],
        "unconstrained": {name: value_of(value) for name, value in stored.items()},
        "contains": all(name in store for name in names),
        "matched": list(store.match("")),
        "leads back": {name: store[name].unconstrained() is stored[name] for name in names},
        "is the stored one": {name: store[name] is stored[name] for name in names},
        "aliases": aliases(stored),
        "constrained names": sorted(store._constraints),
    }


def aliases(stored: Mapping[str, Tensor]) -> list[list[str]]:
    """Group names by the tensor object that they stand for."""
    groups: dict[int, list[str]] = {}
    for name, tensor in stored.items():
        groups.setdefault(id(tensor), []).append(name)
    return sorted(groups.values())
