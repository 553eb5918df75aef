"""Lets the tensors of an ``nn.Module`` be the store's: stored values go into them in place.

Checks a whole module before it changes any of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn, no_grad
from torch.distributions import constraints

from paramstore.constraints import is_identity
from paramstore.errors import InvalidInputError, InvalidNameError, MismatchError
from paramstore.names import param_with_module_name
from paramstore.refs import check_param_name
from paramstore.tensors import dtype_name, unfillable
from paramstore.working_set import (
    BUFFER,
    Stored,
    WorkingSet,
    logger,
    persistent_buffers,
)

if TYPE_CHECKING:
    from paramstore.db.repository import Entry
    from paramstore.reader import Reader


def adopt(ws: WorkingSet, reader: Reader, name: str, parameter: nn.Parameter) -> bool:
    """Let ``parameter`` become the tensor of a stored name that nobody has read.

    Returns:
        Whether it fits (shape, dtype, identity constraint) and now holds the stored value.
    """
    stored = ws.stored.get(name)
    if stored is None or not is_identity(ws.constraints[name]):
        return False
    if _misfit(parameter, stored.entry) is not None:
        warn_not_adopted(name)
        return False
    _fill(ws, reader, {name: (stored.entry, parameter)})
    ws.put(name, parameter, ws.constraints[name])
    return True


def warn_not_adopted(name: str) -> None:
    """Say that training the offered parameter will not reach the store."""
    logger.warning(
        "%r is already in the store, so the nn.Parameter offered for it is not used and its "
        "module will not be trained through the store; bind the module with store.module(…), "
        "which copies stored values into it",
        name,
    )


def bind(
    ws: WorkingSet, reader: Reader | None, name: str, module: nn.Module, *, strict: bool
) -> None:
    """Make every parameter and persistent buffer of ``module`` the store's, values included.

    Raises:
        InvalidNameError: a name with ``$$$`` in it.
        InvalidInputError: not a module.
        MismatchError: a shape, dtype or constraint differs from what the store holds, or, when
            ``strict``, one has a name that the other lacks. Nothing has been changed.
        CorruptError: stored bytes are missing or altered; nothing has been changed.
        RestoreInterruptedError: they vanished after tensors of the module had been changed;
            ``params`` names those.
    """
    _check(name, module)
    parameters: dict[str, Tensor] = {
        param_with_module_name(name, path): value for path, value in module.named_parameters()
    }
    buffers = {param_with_module_name(name, p): v for p, v in persistent_buffers(module).items()}
    _check_fit(ws, name, parameters, buffers, strict=strict)
    _take_values(ws, reader, {**parameters, **buffers})
    for full, parameter in parameters.items():
        ws.put(full, parameter, constraints.real)
    ws.modules[name] = module


def _check(name: str, module: nn.Module) -> None:
    check_param_name(name)
    if "$$$" in name:
        raise InvalidNameError(f"module name {name!r} contains '$$$', which separates its parts")
    if not isinstance(module, nn.Module):
        raise InvalidInputError(f"module {name!r}: expected an nn.Module, got {module!r}")


def _check_fit(
    ws: WorkingSet,
    name: str,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    *,
    strict: bool,
) -> None:
    prefix = param_with_module_name(name, "")
    for full in (*parameters, *buffers):
        check_param_name(full)
    known_buffers = {n for n, s in ws.stored.items() if s.entry.kind == BUFFER}
    live_buffers = ws.buffers()
    held = {n for n in (*ws.params, *live_buffers, *known_buffers) if n.startswith(prefix)}
    offered = parameters.keys() | buffers.keys()
    problems = [
        f"{full!r}: {why}"
        for full, tensor in {**parameters, **buffers}.items()
        if (why := _clash(ws, full, tensor, live_buffers, is_buffer=full in buffers)) is not None
    ]
    if strict and held:
        problems += [f"{n!r}: in the store, not in the module" for n in sorted(held - offered)]
        problems += [f"{n!r}: in the module, not in the store" for n in sorted(offered - held)]
    if problems:
        raise MismatchError(
            f"module {name!r} does not fit what the store holds: {'; '.join(problems)}. Nothing "
            f"has been changed; build the module as it was, bind it under another name, or pass "
            f"strict=False where only names differ"
        )


def _clash(
    ws: WorkingSet, full: str, tensor: Tensor, buffers: dict[str, Tensor], *, is_buffer: bool
) -> str | None:
    if is_buffer and full in buffers:
        return _difference(buffers[full], tensor)
    live = dict.get(ws.params, full)
    if live is not None and is_buffer:
        return "a parameter in the store, a buffer in the module"
    if live is not None and not is_identity(ws.constraints[full]):
        return f"has the constraint {ws.constraints[full]}, a module's parameter has none"
    if live is not None and not ws.params.is_unread(full):
        return _difference(live, tensor)
    stored = ws.stored.get(full)
    if stored is None or (live is None and stored.entry.kind != BUFFER):
        return None
    if stored.entry.kind == BUFFER and not is_buffer:
        return "a buffer in the store, a parameter in the module"
    return _misfit(tensor, stored.entry)


def _difference(live: Tensor, tensor: Tensor) -> str | None:
    if live.shape == tensor.shape and live.dtype == tensor.dtype:
        return None if live is tensor else unfillable(tensor)
    return f"{_form(live)} in the store, {_form(tensor)} here"


def _misfit(tensor: Tensor, entry: Entry) -> str | None:
    if tuple(tensor.shape) == entry.stored_shape and dtype_name(tensor.dtype) == entry.dtype:
        return unfillable(tensor)
    return f"stored as {entry.dtype} of shape {entry.stored_shape}, {_form(tensor)} here"


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _take_values(ws: WorkingSet, reader: Reader | None, tensors: dict[str, Tensor]) -> None:
    """Copy what the store holds into the module: from the database, then from memory.

    Only the former can fail, and says which tensors it has changed by then.
    """
    from_database: dict[str, tuple[Entry, Tensor]] = {}
    from_memory: list[tuple[Tensor, Tensor]] = []
    live_buffers = ws.buffers()
    for full, tensor in tensors.items():
        live = dict.get(ws.params, full, live_buffers.get(full))
        stored = ws.stored.get(full)
        if live is not None and not ws.params.is_unread(full):
            from_memory.append((tensor, live))
        elif stored is not None and (live is not None or stored.entry.kind == BUFFER):
            from_database[full] = (stored.entry, tensor)
    if from_database:
        assert reader is not None  # names are unread only where there is a database
        _fill(ws, reader, from_database)
    with no_grad():
        for tensor, live in from_memory:
            if live is not tensor:
                tensor.copy_(live)


def _fill(ws: WorkingSet, reader: Reader, targets: dict[str, tuple[Entry, Tensor]]) -> None:
    # No snapshot is named: after a filtered restore the values need not be those of ws.parent.
    reader.check([entry for entry, _ in targets.values()], snapshot=None)
    reader.fill(list(targets.values()))
    for full, (entry, _) in targets.items():
        ws.stored[full] = Stored(entry)
