"""Counts, moments and ranges of the rows of a matrix, and of tensors made of several rows.

NumPy alone, because it starts no threads and is as fast as memory; must never import torch.

A *table* has a column per row and these lines: count of finite numbers, mean, std, min, max, count
of NaN, count of infinities. *Sums* have as many columns and: shift, sum and sum of squares about
it, min, max.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LONGEST = 1 << 12
"""Most numbers in a row: a float32 dot product that adds up to 128 of them in each lane is right to
six digits; and OpenBLAS keeps up to 10,000 on the calling thread."""
ILL_CONDITIONED = 3.0
"""Where the squares exceed those about the mean by more than this factor, their difference has too
few digits, and the row needs a shift."""

_ONES = {np.dtype(real): np.ones(LONGEST, real) for real in (np.float32, np.float64)}


def sum_rows(rows: Array, sums: Array, scratch: Array | None) -> None:
    """Fill in the sums of a float32 or float64 matrix; the shift stands there already.

    Args:
        rows: Matrix with at most ``LONGEST`` columns.
        sums: Of the same dtype, with a column per row.
        scratch: An array of the same size; None where every shift is zero, which saves a pass.
    """
    moved = rows
    if scratch is not None:
        moved = np.subtract(rows, sums[0, :, None], out=scratch.reshape(rows.shape))
    np.vecdot(moved, _ONES[rows.dtype][: rows.shape[1]], out=sums[1])
    np.vecdot(moved, moved, out=sums[2])
    np.minimum.reduce(rows, axis=1, out=sums[3])
    np.maximum.reduce(rows, axis=1, out=sums[4])


def shift_for(row: Array) -> float:
    """Give the shift about which to sum rows like this one; 0 where none is needed.

    Without one, float32 sees nothing of 0.01 around 1,000.
    """
    total = float(np.vecdot(row, _ONES[row.dtype][: len(row)]))
    squares = float(np.vecdot(row, row))
    needed = total * total > (1 - 1 / ILL_CONDITIONED) * squares * len(row)
    return total / len(row) if needed else 0.0


def tabulate(sums: Array, widths: Array | int) -> tuple[Array, Array]:
    """Turn sums into a table, and tell the rows for which it is not right.

    These have NaN, infinity, squares outside the range of the dtype, or a shift so far from the
    mean that the difference of squares has lost its digits.
    """
    limits = np.finfo(sums.dtype)
    shift, total, squares, low, high = sums.astype(np.float64)
    about_mean = squares - total * total / widths
    sound = np.isfinite(squares) & (squares >= float(limits.tiny) / float(limits.eps) ** 2)
    sound &= squares <= ILL_CONDITIONED * about_mean
    constant = (low == high) & np.isfinite(low)
    mean = np.where(constant, low, shift + total / widths)
    std = np.where(constant, 0.0, np.sqrt(about_mean / widths))
    none = np.zeros_like(mean)
    return np.stack([none + widths, mean, std, low, high, none, none]), ~(sound | constant)


def tabulate_odd(rows: Array, together: int) -> Array:
    """Give the table of any rows: two passes in float64, scaled so that nothing overflows.

    Args:
        rows: Matrix in which ``together`` neighbours are one element.
        together: 1, or 2 for complex numbers, whose counts are those of elements. One that is
            not finite counts once, as NaN if either part is.
    """
    values = rows.astype(np.float64)
    nan, inf = np.isnan(values), np.isinf(values)
    if together > 1:
        elements = (len(rows), -1, together)
        nan, inf = (np.repeat(odd.reshape(elements).any(2), together, axis=1) for odd in (nan, inf))
        inf &= ~nan
    odd = nan | inf
    nans, infs = np.count_nonzero(nan, axis=1), np.count_nonzero(inf, axis=1)
    count = values.shape[1] - nans - infs
    np.copyto(values, np.inf, where=odd)
    low = values.min(1)
    np.copyto(values, -np.inf, where=odd)
    high = values.max(1)
    peak, size = _peak(low, high), np.maximum(count, 1)
    np.copyto(values, 0, where=odd)
    values /= peak[:, None]
    mean = values.sum(1) / size
    values -= mean[:, None]
    np.copyto(values, 0, where=odd)
    std = np.sqrt(np.vecdot(values, values) / size)
    return np.stack([count, mean * peak, std * peak, low, high, nans / together, infs / together])


def merge(table: Array, owners: Array, count: int) -> Array:
    """Merge rows of equal owner: columns of a table with one more line, the norm, after the count.

    Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979; here for any number of parts at once, and scaled against overflow.

    Args:
        table: Of all rows.
        owners: The number, below ``count``, of what each row belongs to.
        count: How many owners there are.
    """

    def total(weights: Array) -> Array:
        return np.bincount(owners, weights, minlength=count)

    size, mean, std, low, high, nan, inf = table
    lowest, highest = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(lowest, owners, low)
    np.maximum.at(highest, owners, high)
    peak = _peak(lowest, highest)
    mean, std = mean / peak[owners], std / peak[owners]
    sizes = total(size)
    centre = total(size * mean) / np.maximum(sizes, 1)
    variance = total(size * (std**2 + (mean - centre[owners]) ** 2)) / np.maximum(sizes, 1)
    norm = peak * np.sqrt(total(size * (std**2 + mean**2)))
    # Rounding must neither give a constant a spread nor put the mean outside the range.
    deviation = np.where(lowest == highest, 0.0, peak * np.sqrt(variance))
    average = np.clip(peak * centre, lowest, highest)
    return np.stack([sizes, norm, average, deviation, lowest, highest, total(nan), total(inf)])


def _peak(low: Array, high: Array) -> Array:
    """Give the largest magnitude, and 1 where there is none to divide by."""
    peak = np.maximum(-low, high)
    return np.where((peak > 0) & np.isfinite(peak), peak, 1.0)
