"""Whether a live tensor can take what a working set holds under a name, and how it takes it.

Compares before anybody changes anything; never decides what a misfit means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from paramstore.constraints import is_identity
from paramstore.header import DTYPES
from paramstore.lazy import UNREAD
from paramstore.tensors import dtype_name, unfillable
from paramstore.working_set import BUFFER, Stored, WorkingSet

if TYPE_CHECKING:
    from torch.distributions.constraints import Constraint

    from paramstore.db.repository import Entry
    from paramstore.reader import Reader


def source_of(ws: WorkingSet, name: str, buffers: Mapping[str, Tensor]) -> Tensor | Entry | None:
    """Where the value of a name is: in a live tensor, in a stored row, or nowhere.

    ``buffers`` are the working set's own, which cost a walk over its modules to find.
    """
    live = dict.get(ws.params, name)
    if live is None:
        live = buffers.get(name)
    if live is not None and live is not UNREAD:
        return live
    stored = ws.stored.get(name)
    if stored is None or (live is None and stored.entry.kind != BUFFER):
        return None
    return stored.entry


def misfit(tensor: Tensor, source: Tensor | Entry) -> str | None:
    """Say why a tensor cannot take a value; None when it can."""
    if isinstance(source, Tensor):
        if source.shape == tensor.shape and source.dtype == tensor.dtype:
            return None if source is tensor else unfillable(tensor)
        return f"{form(source)} in the store, {form(tensor)} here"
    if tuple(tensor.shape) == source.stored_shape and dtype_name(tensor.dtype) == source.dtype:
        return unfillable(tensor)
    dtype = DTYPES.get(source.dtype, source.dtype)
    return f"stored as {dtype} of shape {source.stored_shape}, {form(tensor)} here"


def other_constraint(ws: WorkingSet, name: str, constraint: Constraint) -> str | None:
    """Say which constraint a parameter has instead of ``constraint``; None where it has that."""
    if name not in ws.params:
        return None
    held = ws.constraints[name]
    if is_identity(held) and is_identity(constraint):
        return None
    unread = ws.params.is_unread(name)
    text = ws.stored[name].entry.spec if unread else ws.spec(held).text
    if text == ws.spec(constraint).text:
        return None
    return f"has the constraint {held} in the store, {constraint} here"


def holders_in(ws: WorkingSet, buffers: Mapping[str, Tensor]) -> dict[int, str]:
    """A name of every live tensor, by the tensor's id."""
    return {id(tensor): name for name, tensor in (*ws.params.live(), *buffers.items())}


def untieable(
    ws: WorkingSet, tensor: Tensor, source: Tensor | Entry | None, holder: str | None
) -> str | None:
    """Say why the tensor of ``holder`` cannot be that of another name, too; None where it can.

    Filling it with what that name holds would overwrite what it is by its first one. So both have
    to hold the same, as tied weights do.
    """
    if holder is None or source is None or source is tensor:
        return None
    if isinstance(source, Tensor):
        same = source.shape == tensor.shape and torch.equal(source, tensor)
    else:
        same = holder in ws.stored and ws.stored[holder].entry.digest == source.digest
    return None if same else f"its tensor is that of {holder!r}, which has another value"


def take_values(
    ws: WorkingSet, reader: Reader | None, targets: Mapping[str, tuple[Tensor, Tensor | Entry]]
) -> None:
    """Copy values into tensors by name: stored ones first, then those of live tensors.

    Only the former can fail.

    Raises:
        CorruptError: stored bytes are missing or altered; nothing has been changed.
        RestoreInterruptedError: they vanished after tensors had been changed.
    """
    rows = {
        name: (source, tensor)
        for name, (tensor, source) in targets.items()
        if not isinstance(source, Tensor)
    }
    if rows:
        assert reader is not None  # names are unread only where there is a database
        # No snapshot is named: after a filtered restore the values need not be the parent's.
        reader.check([entry for entry, _ in rows.values()], snapshot=None)
        reader.fill(list(rows.values()))
        for name, (entry, _) in rows.items():
            ws.stored[name] = Stored(entry)
    with torch.no_grad():
        for tensor, source in targets.values():
            if isinstance(source, Tensor) and source is not tensor:
                tensor.copy_(source)


def form(tensor: Tensor) -> str:
    """Dtype and shape, for people."""
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"
