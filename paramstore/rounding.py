"""How far the statistics of the same bytes may be apart when two machines computed them.

Compares numbers and names those that differ by more; must never compute a statistic.

What was measured: OpenBLAS as made for seven processors (4 to 64 sums side by side), NumPy without
its vector code, torch's three and MKL's two, denormals flushed, tensors alone and among others; 14
kinds of values, 1 to 300,000 of them, and 10 constraints, in 11 dtypes. Counts, min, max and the
value of one element were the same to the bit, where no transform is between. No transform could be
measured on a GPU: CUDA's manual says 2 ulp for exp, and PyTorch's that TF32 keeps 10 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.distributions import transforms
from torch.distributions.transforms import Transform

from paramstore import moments
from paramstore.snapshot import Statistics, parse_value

_SUMS: Final = 128
"""Eps by which the sums of a row may be off, about a shift near its mean: there are 128 additions
one after another in float32 with 32 lanes. Measured: 17 in float32, 31 in float64."""
_MERGED: Final = 1e-13
"""What is lost between the sums of rows, in float64, and the norm, mean and std of a tensor;
measured: 2.4e-15. Norm, mean and std of one tensor agree with each other as well as that."""
_FUNCTION: Final = 8
"""Eps by which exp, sigmoid, … and the bound added to it may be off, each correct to 1 or 2;
measured: 0.9 between processors."""
_FREE: Final = 4
"""Square roots of eps by which any other transform may be off: a product of matrices in TF32, the
root of a difference from 1 in `corr_cholesky`. Measured: 0.3 eps, but with neither of these."""

_FLOAT32: Final = (torch.float32, torch.float16, torch.bfloat16)
_FUNCTIONS: Final = {
    "ExpTransform",
    "LowerCholeskyTransform",
    "SigmoidTransform",
    "SoftmaxTransform",
    "SoftplusTransform",
    "TanhTransform",
}
"""Torch's and Pyro's that apply one function to an element, and at most divide by a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What statistics were computed of."""

    dtype: torch.dtype
    """Of the stored tensor."""
    numel: int
    """Elements of the value described."""
    transform: Transform | None
    """From the stored tensor to that value; None where it is the tensor itself."""


def differing(stored: Statistics, now: Statistics, origin: Origin) -> list[str]:
    """Name the statistics that no other machine would have computed of the same bytes.

    Args:
        stored: What stands in the database; any cell may hold anything.
        now: What these bytes give here.
        origin: What both are of.

    Raises:
        TypeError, ValueError, CorruptError: something else stands where a number should.
    """
    counts = ("nan_count", "inf_count", "unconstrained")
    wrong = [name for name in counts if getattr(stored, name) != getattr(now, name)]
    allowed = _allowed(now, origin)
    for name, tolerance in allowed.items():
        before, after = getattr(stored, name), getattr(now, name)
        if not _is_close(before, after, tolerance):
            wrong.append(name)
    if not _same_value(stored, now, origin, allowed["max"]):
        wrong.append("value")
    if not wrong and not _agree(stored, origin):
        wrong.append("norm, mean or std")
    return wrong


def _allowed(now: Statistics, origin: Origin) -> dict[str, float]:
    """Say by how much each statistic may be off."""
    count = max(origin.numel - now.nan_count - now.inf_count, 1)
    rms = (now.norm or 0.0) / math.sqrt(count)
    if now.mean is not None and now.std is not None:
        rms = math.hypot(now.mean, now.std)  # where the norm is out of range, too
    real = torch.finfo(_real(origin))
    largest = max((abs(x) for x in (now.min, now.max) if x is not None), default=rms)
    relative, absolute = _of_element(origin, largest)
    absolute += real.tiny  # where a thread flushes denormals, they are zero
    # About its mean, which is how a row is summed; of complex numbers only the norm is known.
    sums = _SUMS * real.eps * (rms if now.std is None else now.std)
    moment = sums + (_merged(origin) + relative) * rms + absolute
    return {
        # n (std * its error + mean * its error) / norm
        "norm": math.sqrt(2 * count) * moment,
        "mean": moment,
        "std": moment,
        "min": relative * abs(now.min or 0.0) + absolute,
        "max": relative * abs(now.max or 0.0) + absolute,
    }


def _real(origin: Origin) -> torch.dtype:
    """Say what the sums were made in."""
    dtype = origin.dtype.to_real()
    if origin.transform is not None and not dtype.is_floating_point:
        return torch.float32
    return torch.float32 if dtype in _FLOAT32 else torch.float64


def _merged(origin: Origin) -> float:
    return _MERGED + torch.finfo(torch.float64).eps * origin.numel / moments.LONGEST


def _of_element(origin: Origin, largest: float) -> tuple[float, float]:
    """Say by which part of itself, and by how much, an element may be off."""
    if origin.transform is None:
        return 0.0, 0.0
    dtype = origin.dtype.to_real()
    limits = torch.finfo(dtype if dtype.is_floating_point else torch.float32)
    function, *bounds = list(_parts(origin.transform)) or [transforms.identity_transform]
    added = [b.loc for b in bounds if isinstance(b, transforms.AffineTransform)]
    name = type(function).__name__
    if name not in _FUNCTIONS or len(added) < len(bounds):
        return 0.0, _FREE * math.sqrt(limits.eps) * largest
    relative = _FUNCTION * limits.eps
    if name == "SoftmaxTransform":
        relative += math.sqrt(origin.numel) * limits.eps  # of the sum
    # What was added, and what it was added to, may be far larger than what is left.
    return relative, relative * (2 * sum(map(_magnitude, added)) + limits.tiny)


def _parts(transform: Transform) -> Iterator[Transform]:
    if isinstance(transform, transforms.IndependentTransform):
        yield from _parts(transform.base_transform)
    elif isinstance(transform, transforms.ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    else:
        yield transform


def _magnitude(bound: Tensor | float) -> float:
    if not isinstance(bound, Tensor):
        return abs(bound)
    return float(bound.abs().max()) if bound.numel() else 0.0


def _is_close(before: float | None, after: float | None, tolerance: float) -> bool:
    if before is None or after is None:
        return before is after
    return before == after or abs(before - after) <= tolerance


def _same_value(stored: Statistics, now: Statistics, origin: Origin, tolerance: float) -> bool:
    if stored.value == now.value:
        return True
    was, is_now = parse_value(stored.value), parse_value(now.value)
    if was is None or is_now is None:
        return False
    flushed = 0 < abs(is_now) < torch.finfo(_real(origin)).tiny
    return (origin.transform is not None or flushed) and bool(abs(was - is_now) <= tolerance)


def _agree(stored: Statistics, origin: Origin) -> bool:
    """Whether norm, mean, std, min and max can be of the same numbers, whoever computed them."""
    if stored.norm is None or stored.mean is None or stored.std is None:
        return True
    count = origin.numel - stored.nan_count - stored.inf_count
    norm = math.hypot(stored.mean, stored.std) * math.sqrt(count)
    tiny = torch.finfo(_real(origin)).tiny * math.sqrt(count)
    agree = math.isclose(stored.norm, norm, rel_tol=_merged(origin), abs_tol=tiny)
    if stored.min == stored.max:  # all elements are this one, and moments.merge says so
        agree &= stored.mean == stored.min and stored.std == 0 and _is_value(stored)
    return agree


def _is_value(stored: Statistics) -> bool:
    value = parse_value(stored.value)
    return value is None or value == stored.min
