"""Constraints to canonical JSON and back: the constraint spec.

A spec is ``{"kind": "greater_than", "lower_bound": 0.5}``; constraints inside it stand under
``base`` and ``parts``. Arguments are JSON values, or tagged objects: ``{"float": "nan"}``,
``{"tuple": […]}``, ``{"size": […]}`` and
``{"tensor": {"dtype": "F32", "shape": [2], "data": "<base64>"}}``, with ``digest`` in place of
``data`` where the tensor is stored as a blob. This module must never import what a text names:
kinds are looked up in :mod:`paramstore.kinds`, and nowhere else.
"""

from __future__ import annotations

import base64
import json
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import tensors
from paramstore.errors import CorruptError, ParamStoreError, UnknownConstraintError
from paramstore.kinds import (
    TORCH_SINGLETONS,
    arguments_of,
    kind_named,
    kind_of,
    register_constraint,
)
from paramstore.skeletons import float_of, float_text, sizes_of
from paramstore.transforms import (
    is_elementwise,
    is_identity,
    transform_of,
    unconstrain,
    validates_by_default,
)

__all__ = [
    "INLINE",
    "Spec",
    "from_spec",
    "is_elementwise",
    "is_identity",
    "is_static",
    "register_constraint",
    "to_spec",
    "transform_of",
    "unconstrain",
    "validates_by_default",
]

INLINE: Final = 4096
"""Bytes up to which a tensor argument stands in the spec itself; larger ones are blobs."""


@dataclass(frozen=True, slots=True)
class Spec:
    """The stored form of a constraint; equal texts mean equal constraints."""

    text: str
    """Canonical JSON: keys sorted, no spaces, ASCII."""
    tensors: tuple[tuple[str, Tensor], ...] = field(default=(), compare=False, repr=False)
    """The large tensor arguments, each with the hexadecimal digest of its encoded form."""


def to_spec(constraint: Constraint) -> Spec:
    """Return the spec of a constraint.

    Raises:
        UnknownConstraintError: a class that is not registered, or an argument without a stored
            form.
        UnsupportedTensorError: a tensor argument that cannot be stored.
    """
    writer = _Writer()
    try:
        text = _text(writer.constraint(constraint))
    except ParamStoreError:
        raise
    except (RecursionError, ValueError) as error:  # nested without end, an int without end
        raise UnknownConstraintError(f"the constraint has no stored form: {error}") from error
    return Spec(text, tuple(writer.tensors.items()))


def from_spec(
    text: str,
    fetch: Callable[[str], Tensor] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Constraint:
    """Return the constraint of a spec; torch's and Pyro's own objects where they have one.

    Args:
        text: The spec.
        fetch: Returns the large tensor argument of that hexadecimal digest.
        device: Where tensor arguments are put.

    Raises:
        UnknownConstraintError: a kind that is not registered, or Pyro's without Pyro.
        CorruptError: text that :func:`to_spec` did not write.
    """
    try:
        return _Reader(fetch, device).constraint(json.loads(text))
    except ParamStoreError:
        raise
    # The last three are what constructors raise.
    except (ValueError, TypeError, KeyError, AssertionError, AttributeError, RuntimeError) as error:
        raise CorruptError(f"not the spec of a constraint: {text:.200}") from error


def is_static(constraint: Constraint) -> bool:
    """Tell whether all its arguments are plain values, so that its transform cannot change."""
    try:
        _, arguments = arguments_of(constraint)
    except UnknownConstraintError:  # not stored, so nothing is known about it
        return False
    return all(map(_is_static_value, arguments.values()))


def _is_static_value(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_static_value, value))
    return is_static(value) if isinstance(value, Constraint) else not isinstance(value, Tensor)


# -- writing -------------------------------------------------------------------------------------


def _text(node: object) -> str:
    return json.dumps(node, sort_keys=True, separators=(",", ":"), allow_nan=False)


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def constraint(self, constraint: Constraint) -> dict[str, object]:
        kind, arguments = arguments_of(constraint)
        node: dict[str, object] = {"kind": kind.name}
        node |= {key: self.value(arguments[key], f"{kind.name}.{key}") for key in arguments}
        singleton = _SINGLETONS.get(_text(node)) if arguments else None
        return {"kind": singleton} if singleton else node

    def value(self, value: object, where: str) -> object:
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            value = value.item()
        if isinstance(value, Constraint):
            return self.constraint(value)
        if isinstance(value, Tensor):
            return {"tensor": self._tensor(value, where)}
        if type(value) is list:
            return [self.value(part, where) for part in value]
        if type(value) is tuple:
            return {"tuple": [self.value(part, where) for part in value]}
        if type(value) is torch.Size:
            return {"size": list(value)}
        if type(value) is float and not math.isfinite(value):
            return {"float": float_text(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise UnknownConstraintError(
            f"the argument {where} of a constraint is of type {type(value).__qualname__}, which "
            f"has no stored form; use a number, text, a tensor or a list of these"
        )

    def _tensor(self, tensor: Tensor, where: str) -> dict[str, object]:
        encoded = tensors.encode(tensor, name=where)
        node: dict[str, object] = {"dtype": encoded.dtype, "shape": list(encoded.shape)}
        if len(encoded.data) <= INLINE:
            return node | {"data": base64.b64encode(encoded.data).decode()}
        digest = encoded.digest().hex()
        self.tensors[digest] = tensor.detach()
        return node | {"digest": digest}


# -- reading -------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, fetch: Callable[[str], Tensor] | None, device: torch.device | str) -> None:
        self._fetch = fetch
        self._device = device

    def constraint(self, node: Any) -> Constraint:
        if not isinstance(node, dict):
            raise TypeError("a constraint is a JSON object")
        arguments = dict(node)
        kind = kind_named(arguments.pop("kind"))
        # An argument that the kind does not have is a KeyError; one that is missing a TypeError.
        return kind.build(**{kind.arguments[key]: self.value(arguments[key]) for key in arguments})

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.value(part) for part in node]
        if not isinstance(node, dict):
            return node
        if "kind" in node:
            return self.constraint(node)
        ((tag, content),) = node.items()
        if tag == "tensor":
            return self._tensor(content)
        if tag == "tuple":
            return tuple(map(self.value, content))
        if tag == "size":
            return torch.Size(sizes_of(content))
        if tag == "float":
            return float_of(content)
        raise ValueError(f"no such tag: {tag}")

    def _tensor(self, node: Any) -> Tensor:
        shape = tuple(map(operator.index, node["shape"]))
        if "data" in node:
            data = base64.b64decode(node["data"], validate=True)
            return tensors.from_data(node["dtype"], shape, data).to(self._device)
        if self._fetch is None:
            raise ValueError("a large tensor argument, which is stored elsewhere")
        tensor = self._fetch(node["digest"])
        if tensors.dtype_name(tensor.dtype) != node["dtype"] or tensor.shape != shape:
            raise ValueError("a tensor argument of another dtype or shape")
        return tensor.to(self._device)


# What a singleton with arguments is, {"kind":"greater_than","lower_bound":0.0} say, and its name:
# unpickled and copied constraints come back as the singleton, too.
_SINGLETONS: dict[str, str] = {}
_SINGLETONS |= {
    _text(_Writer().constraint(getattr(constraints, name))): name
    for name in TORCH_SINGLETONS
    if kind_of(getattr(constraints, name)).arguments
}
