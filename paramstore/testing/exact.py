"""Whether two values are the same to the last bit and the exact type, all the way down.

``==`` says that 1, 1.0 and True are equal, that 0.0 equals -0.0, and that no NaN equals another.
Must never import the store.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions.constraints import Constraint

from paramstore.testing.bits import same_bits


def exactly_equal(one: object, other: object) -> bool:
    """Tell whether two values have the same types, order, memory layout and bits.

    Knows what extras can hold, and constraints, which are equal if their attributes are.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        assert isinstance(other, dict)
        return _pairs_equal(one, other) and _attributes_equal(one, other)
    if isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        return len(one) == len(other) and all(map(exactly_equal, one, other))
    return _leaves_equal(one, other)


def _pairs_equal(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return exactly_equal([*one.items()], [*other.items()])


def _attributes_equal(one: object, other: object) -> bool:
    return type(one) is not OrderedDict or exactly_equal(vars(one), vars(other))


def _leaves_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        flags = one.requires_grad == other.requires_grad
        return flags and same_bits(one, other)
    if isinstance(one, np.ndarray | np.generic):
        same_order = np.isfortran(one) == np.isfortran(other)
        shape = one.dtype == other.dtype and one.shape == other.shape and same_order
        return shape and one.tobytes() == other.tobytes()
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, complex):
        return exactly_equal((one.real, one.imag), (other.real, other.imag))
    if isinstance(one, Constraint):
        return exactly_equal(vars(one), vars(other))
    return bool(one == other)
