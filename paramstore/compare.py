"""How two snapshots differ, parameter by parameter.

Holds at most two tensors at a time; never touches the working set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paramstore.diff import NOT_FINITE, Change, Diff
from paramstore.errors import UnknownConstraintError
from paramstore.progress import progress
from paramstore.reader import SnapshotView

if TYPE_CHECKING:
    from paramstore.db.repository import Entry

_BLOCK = 1 << 20  # elements; differences are taken in float64 without a second copy of a tensor


def compare(before: SnapshotView, after: SnapshotView) -> Diff:
    """Compare two snapshots by digest, and by value where the digests differ.

    Raises:
        CorruptError: a value that has to be read is missing or altered.
    """
    old, new = before.manifest, after.manifest
    common = [name for name in new.entries if name in old.entries]
    differing = [n for n in common if _content(old.entries[n]) != _content(new.entries[n])]
    changes = []
    with progress("comparing parameters", len(differing)) as advance:
        for name in differing:
            changes.append(_change(name, old.entries[name], new.entries[name], before, after))
            advance(1)
    return Diff(
        before=before.snapshot,
        after=after.snapshot,
        added=tuple(sorted(new.entries.keys() - old.entries.keys())),
        removed=tuple(sorted(old.entries.keys() - new.entries.keys())),
        changed=tuple(sorted(changes, key=_order)),
        unchanged=len(common) - len(differing),
    )


def _content(entry: Entry) -> tuple[object, ...]:
    return entry.digest, entry.spec, entry.kind, entry.requires_grad


def _order(change: Change) -> tuple[float, str]:
    if change.relative is None or change.what == NOT_FINITE:
        return -math.inf, change.name
    return -change.relative, change.name


def _change(name: str, old: Entry, new: Entry, before: SnapshotView, after: SnapshotView) -> Change:
    if old.shape != new.shape:
        return Change(name=name, what="shape")
    what = _what(old, new)
    try:
        return _measure(name, what, before[name], after[name])
    except UnknownConstraintError:
        return Change(name=name, what=what)


def _what(old: Entry, new: Entry) -> str:
    if old.dtype != new.dtype:
        return "dtype"
    if old.spec != new.spec:
        return "constraint"
    if (old.kind, old.requires_grad) != (new.kind, new.requires_grad):
        return "kind"
    return "value"


def _measure(name: str, what: str, before: Tensor, after: Tensor) -> Change:
    """Tell the norm of the difference, that over the earlier norm, and the cosine between both.

    Over the elements that are finite in both, in float64 (complex128).
    """
    difference = old_square = new_square = inner = 0.0
    alike, measured = True, before.numel() == 0
    wide = torch.complex128 if before.is_complex() or after.is_complex() else torch.float64
    for a, b in zip(_blocks(before, wide), _blocks(after, wide), strict=True):
        finite = torch.isfinite(a) & torch.isfinite(b)
        alike = alike and torch.equal(torch.isfinite(a), torch.isfinite(b))
        measured = measured or bool(finite.any())
        x, y = torch.where(finite, a, 0), torch.where(finite, b, 0)
        difference += _square(y - x)
        old_square += _square(x)
        new_square += _square(y)
        inner += float(torch.vdot(x, y).real)
    if what == "value" and not alike:
        what = NOT_FINITE
    if not measured:  # a zero would say that nothing has changed
        return Change(name=name, what=what)
    norm, length = math.sqrt(difference), math.sqrt(old_square)
    relative = norm / length if length else (math.inf if norm else 0.0)
    both = length * math.sqrt(new_square)
    cosine = inner / both if both else None
    return Change(name=name, what=what, norm=norm, relative=relative, cosine=cosine)


def _square(x: Tensor) -> float:
    return float(torch.vdot(x, x).real)


def _blocks(tensor: Tensor, wide: torch.dtype) -> Iterator[Tensor]:
    flat = tensor.detach().cpu().reshape(-1)
    return (block.to(wide) for block in flat.split(_BLOCK))
