"""Norm, mean, spread, range and odd values of tensors, computed beside a running training.

Must never write to a tensor, use a second thread, or lose a commit over an odd value.

A large tensor becomes many rows, and small tensors of one shape become a row each; ``moments``
reduces them a block at a time, so that all passes but the first find the data in the CPU's cache.
Torch only stacks, converts and transforms.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import transforms
from torch.distributions.transforms import Transform

from paramstore import moments
from paramstore.moments import Array
from paramstore.one_thread import one_thread
from paramstore.snapshot import Statistics
from paramstore.transforms import is_elementwise

BLOCK = 1 << 18
"""Numbers per call: a block, 1 MiB in float32, stays in the cache; and each call gives the
interpreter's lock away once, for which the thread that writes has to wait less often."""
WHOLE = 1 << 16
"""Most elements of a tensor that a transform which is not element-wise is applied to."""

_Item = tuple[Tensor, Transform | None]
_Take = Callable[[int, int], Tensor | Array]

_FLOAT32 = (torch.float32, torch.float16, torch.bfloat16)
_REALS: dict[torch.dtype, type[np.floating[Any]]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}
_scratch = threading.local()


def describe(items: Sequence[tuple[Tensor, Transform | None]]) -> list[Statistics]:
    """Compute the statistics of constrained values, on the calling thread alone.

    Args:
        items: Unconstrained tensors of any shape, dtype and device, each with the transform to its
            constrained value (None where they are the same). They are only read.

    Returns:
        One ``Statistics`` per item, in their order; ``unconstrained=True`` where the transform
        failed, or is not element-wise and the tensor has more than ``WHOLE`` elements. A complex
        element with a part that is not finite counts once, as NaN if either part is.

    Raises:
        RuntimeError: If torch cannot convert the dtype of a tensor to float64.
    """
    with one_thread(), torch.no_grad(), np.errstate(all="ignore"):
        return _describe(items)


def _describe(items: Sequence[_Item]) -> list[Statistics]:
    batch = _Batch()
    for index, (tensor, transform) in enumerate(items):
        batch.add(index, tensor, transform)
    found = batch.statistics(len(items))
    if batch.failed:
        failed = sorted(batch.failed)
        plain = _describe([(items[index][0], None) for index in failed])
        for index, statistics in zip(failed, plain, strict=True):
            found[index] = replace(statistics, unconstrained=True)
    return found


class _Batch:
    """Groups tensors that are alike, reduces them as rows, merges the rows by tensor."""

    def __init__(self) -> None:
        self.failed: set[int] = set()
        self.values: dict[int, str] = {}
        self.groups: dict[object, _Group] = {}

    def add(self, index: int, tensor: Tensor, transform: Transform | None) -> None:
        """Take up the tensor of an item."""
        if tensor.layout is not torch.strided:
            tensor = tensor.to_dense()
        key: object = None
        if transform is not None:
            key = _key(transform)
            if key is None or tensor.numel() == 1 or tensor.is_complex():
                # A scalar too: alone, its value is bit by bit the one that the store hands out.
                whole = _transformed(tensor, transform)
                if whole is None:
                    self.failed.add(index)
                    return
                tensor, transform, key = whole, None, None
        like = (tensor.dtype, tensor.shape, tensor.device, key)
        group = self.groups.get(like)
        if group is None:
            group = self.groups[like] = _Group(tensor, transform)
        if group.scalar:
            self.values[index] = _json(tensor.item())
        if group.paired:
            tensor = torch.view_as_real(tensor.conj() if tensor.is_conj() else tensor)
        group.owners.append(index)
        group.tensors.append(tensor)

    def statistics(self, count: int) -> list[Statistics]:
        """Do the work, and give the results for items 0 … count."""
        sources = [source for group in self.groups.values() for source in group.sources()]
        owners: list[int] = []
        tables = [np.zeros((7, 0))]
        for real in _REALS:
            if some := [source for source in sources if source.real == real]:
                owners += [owner for source in some for owner in source.owners]
                tables.append(_reduce(some, real, self.failed))
        merged = moments.merge(np.concatenate(tables, axis=1), np.array(owners, np.intp), count)
        found = _build(merged, [self.values.get(index) for index in range(count)])
        for group in self.groups.values():
            for index in group.owners if group.paired else ():
                found[index] = replace(found[index], mean=None, std=None, min=None, max=None)
        return found


def _key(transform: Transform | None) -> tuple[object, ...] | None:
    """Name what an element-wise transform computes; None for any other.

    Tensors whose transforms share a key are stacked. Torch's transforms have ``__eq__`` without
    ``__hash__``, and the one that a constraint stands for may be made anew for every parameter.
    """
    if isinstance(transform, transforms.IndependentTransform):
        return _key(transform.base_transform)
    if isinstance(transform, transforms.ComposeTransform):
        keys = [_key(part) for part in transform.parts]
        return None if None in keys else tuple(keys)
    if transform is None or not is_elementwise(transform):
        return None
    arguments = [value for name, value in vars(transform).items() if not name.startswith("_")]
    if all(isinstance(value, (int, float)) for value in arguments):
        return (type(transform), *arguments)
    return (id(transform),)


def _transformed(tensor: Tensor, transform: Transform) -> Tensor | None:
    """Constrain a small tensor as a whole; None where that is not possible."""
    if tensor.numel() > WHOLE:
        return None
    try:
        found: object = transform(tensor)
    except Exception:  # noqa: BLE001 - whatever it does to odd values, the commit goes on
        return None
    return found if isinstance(found, Tensor) else None


class _Group:
    """Tensors of one dtype, shape, device and transform."""

    def __init__(self, first: Tensor, transform: Transform | None) -> None:
        self.transform = transform
        self.scalar = first.numel() == 1
        self.paired = first.is_complex()
        self.owners: list[int] = []
        self.tensors: list[Tensor] = []

    def sources(self) -> Iterator[_Source]:
        """Give large tensors one by one, small ones together."""
        size = self.tensors[0].numel()
        if size > moments.LONGEST:
            for index, tensor in zip(self.owners, self.tensors, strict=True):
                yield from self._cut(index, tensor.detach())
        elif size:
            yield self._source(_stacker(self.tensors), self.owners, size)

    def _cut(self, index: int, tensor: Tensor) -> Iterator[_Source]:
        """Cut a large tensor into rows, and one shorter row."""
        # Transposed, channels last, …: in the order of its memory no copy is needed.
        order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
        flat = tensor.permute(order).reshape(-1)
        size = flat.numel()
        even = size - size % moments.LONGEST
        for part, width in ((flat[:even], moments.LONGEST), (flat[even:], size - even)):
            if width:
                rows = part.view(-1, width)
                take = _slicer(rows, as_array=self.transform is None and _is_plain(rows))
                yield self._source(take, [index] * len(rows), width)

    def _source(self, take: _Take, owners: list[int], width: int) -> _Source:
        real = torch.float32 if self.tensors[0].dtype in _FLOAT32 else torch.float64
        return _Source(take, owners, width, real, self.transform, self.paired)


def _is_plain(rows: Tensor) -> bool:
    return rows.dtype in _REALS and rows.device.type == "cpu" and not rows.is_neg()


def _slicer(rows: Tensor, *, as_array: bool) -> _Take:
    if as_array:  # once here instead of at every block
        array: Array = rows.numpy()
        return lambda start, stop: array[start:stop]
    return lambda start, stop: rows[start:stop]


def _stacker(tensors: list[Tensor]) -> _Take:
    first = tensors[0]

    def take(start: int, stop: int) -> Tensor:
        some = tensors[start:stop]
        shape = (len(some), *first.shape)
        out = _buffer("stack", first.dtype, shape) if first.device.type == "cpu" else None
        return torch.stack(some, out=out).view(len(some), -1)

    return take


@dataclass(slots=True)
class _Source:
    """Rows of equal width: most of a large tensor, what is left over of it, or a stack."""

    take: _Take
    """Gives the unconstrained rows from … to, as a matrix."""
    owners: list[int]
    """The item that each row belongs to."""
    width: int
    """Numbers per row."""
    real: torch.dtype
    """What it is computed in: float32 or float64."""
    transform: Transform | None
    paired: bool
    """Whether two numbers at a time are one complex element."""

    def blocks(self) -> list[tuple[int, int]]:
        """List the first row and the end of every block."""
        step, end = BLOCK // self.width, len(self.owners)
        return [(start, min(start + step, end)) for start in range(0, end, step)]

    def load(self, start: int, stop: int) -> Array:
        """Give constrained rows, valid until the next call."""
        rows = self.take(start, stop)
        if isinstance(rows, np.ndarray):
            return rows
        if self.transform is not None:
            rows = self.transform(rows)
            if rows.shape != (stop - start, self.width):
                raise ValueError(f"{self.transform} changed the shape to {tuple(rows.shape)}")
        if rows.dtype != self.real or not _is_plain(rows):
            rows = _buffer("real", self.real, rows.shape).copy_(rows)
        array: Array = rows.numpy()
        return array

    def sum(self, sums: Array) -> None:
        """Fill in the sums of all rows.

        The rows of one tensor get the shift that the first of them needs; where that is none, as
        with most weights, a pass is saved. Rows for which it is wrong are left to ``repair``.
        """
        shift = 0.0
        for start, stop in self.blocks():
            rows = self.load(start, stop)
            if start == 0 and self.owners[0] == self.owners[-1]:
                shift = moments.shift_for(rows[0])
            out = sums[:, start:stop]
            out[0] = shift
            moments.sum_rows(rows, out, self._scratch(rows) if shift else None)

    def repair(self, table: Array, odd: Array) -> None:
        """Compute odd rows again: about the mean found, and those still odd in float64."""
        for start, stop in self.blocks():
            which = np.flatnonzero(odd[start:stop])
            if len(which):
                rows = self.load(start, stop)[which]
                sums = np.zeros((5, len(which)), rows.dtype)
                sums[0] = table[1, start + which]
                moments.sum_rows(rows, sums, self._scratch(rows))
                columns, still_odd = moments.tabulate(sums, self.width)
                if still_odd.any():
                    together = 2 if self.paired else 1
                    columns[:, still_odd] = moments.tabulate_odd(rows[still_odd], together)
                table[:, start + which] = columns

    def _scratch(self, rows: Array) -> Array:
        array: Array = _buffer("moved", self.real, rows.shape).numpy()
        return array


def _reduce(sources: list[_Source], real: torch.dtype, failed: set[int]) -> Array:
    """Give the table of all rows of some sources."""
    starts = list(accumulate((len(source.owners) for source in sources), initial=0))
    sums = np.zeros((5, starts[-1]), _REALS[real])
    for source, at in zip(sources, starts, strict=False):
        try:
            source.sum(sums[:, at : at + len(source.owners)])
        except Exception:
            if source.transform is None:
                raise
            failed.update(source.owners)
    widths = np.repeat([source.width for source in sources], np.diff(starts))
    table, odd = moments.tabulate(sums, widths)
    for number in np.unique(np.searchsorted(starts, np.flatnonzero(odd), side="right") - 1):
        source, at = sources[number], starts[number]
        if failed.isdisjoint(source.owners):
            source.repair(table[:, at:], odd[at : at + len(source.owners)])
    return table


def _build(merged: Array, values: list[str | None]) -> list[Statistics]:
    """Make a ``Statistics`` of every column of ``moments.merge``.

    Field by field, because the ``__init__`` of a frozen dataclass costs more than all arithmetic
    on a small tensor, and is paid with the GIL held.
    """
    numbers = merged[1:6].astype(object)
    numbers[:, merged[0] == 0] = None
    counts: list[list[Any]] = merged[6:].astype(np.int64).tolist()
    names = ("norm", "mean", "std", "min", "max", "nan_count", "inf_count", "value")
    columns = dict(zip(names, [*numbers.tolist(), *counts, values], strict=True))
    found = list(map(object.__new__, repeat(Statistics, len(values))))
    for field in fields(Statistics):
        column = columns.get(field.name, repeat(field.default))
        deque(map(getattr(Statistics, field.name).__set__, found, column), maxlen=0)
    return found


def _json(value: bool | int | float | complex) -> str:  # noqa: FBT001 - one kind of number
    """Write a number as JSON; what JSON has no number for as a string, a complex one as a pair."""
    if isinstance(value, complex):
        return f"[{_json(value.real)}, {_json(value.imag)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    return repr(value).lower()


def _buffer(use: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Give this thread's scratch memory for one use: fresh pages cost more than the arithmetic."""
    size = math.prod(shape) * dtype.itemsize
    found: Tensor | None = getattr(_scratch, use, None)
    if found is None or len(found) < size:
        # Through NumPy, which no torch mode redirects; on a cache line, for whole-line stores.
        memory = np.empty(max(size, BLOCK * 8) + 64, np.uint8)
        found = torch.from_numpy(memory[-memory.ctypes.data % 64 :])
        setattr(_scratch, use, found)
    return found[:size].view(dtype).view(*shape)
