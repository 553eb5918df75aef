"""Whether two tensors are the same, bit for bit.

Compares and never changes; must never import the store.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def bits(tensor: Tensor) -> bytes:
    """Return the bytes of ``tensor``'s elements in row-major order, of any dtype and any strides.

    Raises:
        RuntimeError: a tensor without dense elements.
    """
    dense = tensor.detach().resolve_conj().resolve_neg().cpu()
    # contiguous() keeps the strides of a tensor with one element, which may not be viewed as bytes.
    dense = dense.clone(memory_format=torch.contiguous_format)
    return bytes(dense.reshape(-1).view(torch.uint8).numpy())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether shape, dtype and every bit agree: NaN equals the same NaN, -0.0 is not 0.0.

    Raises:
        RuntimeError: a tensor without dense elements.
    """
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bits(one) == bits(other)


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Say in one line per name how ``found`` differs from ``wanted``; empty when it does not.

    Raises:
        RuntimeError: a tensor without dense elements.
    """
    lines = [f"{name!r} is missing" for name in wanted if name not in found]
    lines += [f"{name!r} should not be there" for name in found if name not in wanted]
    for name, tensor in wanted.items():
        if name in found and not same_bits(found[name], tensor):
            lines.append(f"{name!r} is {found[name]!r}, wanted {tensor!r}")
    return lines
