"""Lets the tensors of an ``nn.Module`` be the store's: stored values go into them in place.

Checks a whole module before it changes any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING

from torch import Tensor, nn

from paramstore.constraints import is_identity
from paramstore.errors import (
    InvalidInputError,
    InvalidNameError,
    MismatchError,
    UnsupportedTensorError,
)
from paramstore.fitting import (
    form,
    holders_in,
    misfit,
    other_constraint,
    source_of,
    take_values,
    untieable,
)
from paramstore.listing import some
from paramstore.modules import Owned, check_bindable, parameters_of, unwrapped
from paramstore.names import module_from_param_with_module_name, param_with_module_name
from paramstore.refs import check_param_name
from paramstore.restore import Names, chosen
from paramstore.tensors import copy_into, unfillable, unstorable
from paramstore.working_set import BUFFER, WorkingSet, logger, persistent_buffers

if TYPE_CHECKING:
    from torch.distributions.constraints import Constraint

    from paramstore.db.repository import Entry
    from paramstore.reader import Reader


def adopt(ws: WorkingSet, reader: Reader, name: str, parameter: nn.Parameter) -> bool:
    """Let ``parameter`` become the tensor of a stored name that nobody has read.

    Returns:
        Whether it fits (shape, dtype, identity constraint) and now holds the stored value. One
        that is the tensor of another name already has to hold the same value there.
    """
    stored = ws.stored.get(name)
    if stored is None or not is_identity(ws.constraints[name]):
        return False
    holder = ws.names.get(parameter)
    if holder is not None and dict.get(ws.params, holder) is not parameter:
        holder = None
    entry = stored.entry
    if misfit(parameter, entry) or untieable(ws, parameter, entry, holder):
        warn_not_adopted(name)
        return False
    if holder is None:
        take_values(ws, reader, {name: (parameter, entry)})
    ws.put(name, parameter, ws.constraints[name])
    return True


def warn_not_adopted(name: str) -> None:
    """Say that training the offered parameter will not reach the store."""
    logger.warning(
        "%r is already in the store, so the nn.Parameter offered for it is not used and its "
        "module will not be trained through the store, unless it asked pyro.module for "
        "update_module_params=True; bind it with store.module(…), which copies stored values "
        "into it",
        name,
    )


def unbound(ws: WorkingSet, carried: Iterable[Entry]) -> set[str]:
    """Name the modules whose stored values go into the next snapshot as they are, unread."""
    names = {entry.name for entry in carried if entry.kind != "tensor"}
    modules = {name: module_from_param_with_module_name(name) for name in names}
    return {module for name, module in modules.items() if module != name} - ws.modules.keys()


def warn_not_bound(module: str) -> None:
    """Say that what is trained of a module does not reach the store."""
    logger.warning(
        "nothing is bound as module %r: the commit carries its stored values on as they were. If "
        "it is trained, bind it with store.module(%r, …) before resume()",
        module,
        module,
    )


def bind(
    ws: WorkingSet,
    reader: Reader | None,
    name: str,
    module: nn.Module,
    *,
    strict: bool,
    exclude: Names = None,
) -> None:
    """Make every parameter and persistent buffer of ``module`` the store's, values included.

    Of names that are excluded the module's own values are kept, and nothing that it lacks.

    Raises:
        InvalidNameError: a name with ``$$$`` in it.
        InvalidInputError: not a module, or ``exclude`` is neither names nor patterns.
        UsageError: one that somebody else keeps in step with a store.
        UnsupportedTensorError: a tensor in it could never be stored; nothing has been changed.
        MismatchError: a shape, dtype or constraint differs from what the store holds, or, when
            ``strict``, one has a name that the other lacks. Nothing has been changed.
        CorruptError: stored bytes are missing or altered; nothing has been changed.
        RestoreInterruptedError: they vanished after tensors of the module had been changed;
            ``params`` names those.
    """
    _check(name, module)
    module, wanted = unwrapped(module), chosen(None, exclude, ())
    parameters = {param_with_module_name(name, p.path): p for p in parameters_of(module)}
    buffers = {param_with_module_name(name, p): v for p, v in persistent_buffers(module).items()}
    tensors = {full: owned.tensor for full, owned in parameters.items()} | buffers
    for full, tensor in tensors.items():
        if why := unstorable(tensor):
            raise UnsupportedTensorError(f"{full!r} is {why}. Nothing has been changed")
    live = ws.buffers()
    holders = holders_in(ws, live)
    sources = {full: source_of(ws, full, live) if wanted(full) else None for full in tensors}
    problems = [
        *_misfits(ws, parameters, buffers, live, wanted),
        *(
            f"{full!r}: {why}"
            for full, tensor in tensors.items()
            if (why := untieable(ws, tensor, sources[full], holders.get(id(tensor))))
        ),
    ]
    held = _held(ws, name, live.keys())
    unmatched = _unmatched(set(filter(wanted, held)), set(filter(wanted, tensors)))
    unmatched = unmatched if strict else []
    if problems or unmatched:
        raise MismatchError(
            f"module {name!r} does not fit what the store holds: "
            f"{some(problems + unmatched, '; ')}. Nothing has been changed; "
            f"{_advice(problems, unmatched)}"
        )
    targets = {
        full: (tensors[full], source)
        for full, source in sources.items()
        if source is not None and id(tensors[full]) not in holders
    }
    take_values(ws, reader, targets)
    for full in held:
        if not wanted(full) and full not in parameters:
            ws.remove(full)
            ws.stored.pop(full, None)
    for full, owned in parameters.items():
        ws.put(full, owned.tensor, owned.constraint)
    ws.modules[name] = module
    ws.seen[name] = {full: owned.tensor for full, owned in parameters.items()}
    if stateful := [path for path, part in module.named_modules() if _has_extra_state(part)]:
        logger.warning(
            "what get_extra_state() gives of %s in module %r is not stored; store.attach(%s=…) an "
            "object whose state_dict() and load_state_dict() call it and set_extra_state()",
            some(map(repr, stateful)),
            name,
            f"{name}_extra" if name.isidentifier() else "extra",
        )


def _has_extra_state(module: nn.Module) -> bool:
    return type(module).get_extra_state is not nn.Module.get_extra_state


def follow(ws: WorkingSet) -> None:
    """Let the tensors of bound modules be what those hold now, where that has changed.

    A parameter may have been replaced, added or taken away since: `load_state_dict(assign=True)`,
    adapters, pruning. One that was deleted from the store stays deleted.
    """
    for name, module in ws.modules.items():
        seen, moved = ws.seen[name], list[str]()
        now = {param_with_module_name(name, p.path): p for p in parameters_of(module)}
        for full in seen.keys() - now.keys():
            if dict.get(ws.params, full) is seen[full]:
                ws.remove(full)
                moved.append(full)
        for full, owned in now.items():
            if seen.get(full) is not owned.tensor:
                ws.put(full, owned.tensor, owned.constraint)
                moved.append(full)
        ws.seen[name] = {full: owned.tensor for full, owned in now.items()}
        if moved:
            logger.warning(
                "module %r has other parameters than when it was bound or last committed; the "
                "store goes on with what it holds now: %s",
                name,
                some(sorted(moved)),
            )


def assign(
    ws: WorkingSet, values: Mapping[str, Tensor], constraints: Mapping[str, Constraint]
) -> None:
    """Set unconstrained values; those of bound modules go into the modules' own tensors.

    Raises:
        MismatchError: a value does not fit there. Nothing has been changed.
        InvalidNameError: a name is that of a buffer of a bound module.
    """
    own: dict[str, Tensor] = {}
    if not ws.modules.keys().isdisjoint(map(module_from_param_with_module_name, values)):
        follow(ws)  # walks over the modules, which setting any other name must not pay for
        own = {full: tensor for seen in ws.seen.values() for full, tensor in seen.items()}
    into = {name: own[name] for name, value in values.items() if own.get(name, value) is not value}
    problems = [
        f"{name!r}: {why}"
        for name, tensor in into.items()
        if (why := other_constraint(ws, name, constraints[name]) or _refusal(tensor, values[name]))
    ]
    if problems:
        raise MismatchError(
            f"a bound module cannot take what was given: {'; '.join(problems)}. Nothing has been "
            f"changed; give a value that fits, or change the module, which the store follows"
        )
    for name, value in values.items():
        ws.put(name, own.get(name, value), constraints[name])
    for name, tensor in into.items():
        copy_into(tensor, values[name])


def _refusal(tensor: Tensor, value: Tensor) -> str | None:
    if tensor.shape == value.shape and tensor.dtype == value.dtype:
        return unfillable(tensor)
    return f"{form(value)} does not fit its {form(tensor)}"


def _check(name: str, module: nn.Module) -> None:
    check_param_name(name)
    if "$$$" in name:
        raise InvalidNameError(f"module name {name!r} contains '$$$', which separates its parts")
    if not isinstance(module, nn.Module):
        raise InvalidInputError(f"module {name!r}: expected an nn.Module, got {module!r}")
    for submodule in module.modules():
        check_bindable(submodule)


def _misfits(
    ws: WorkingSet,
    parameters: dict[str, Owned],
    buffers: dict[str, Tensor],
    live: dict[str, Tensor],
    wanted: Callable[[str], bool],
) -> Iterator[str]:
    """Say which tensors cannot take what the store holds under their names."""
    for full in (*parameters, *buffers):
        check_param_name(full)
    for full, owned in parameters.items():
        if not wanted(full):
            continue
        why = other_constraint(ws, full, owned.constraint)
        if why := why or _clash(ws, full, owned.tensor, live, is_buffer=False):
            yield f"{full!r}: {why}"
    for full, buffer in buffers.items():
        if wanted(full) and (why := _clash(ws, full, buffer, live, is_buffer=True)):
            yield f"{full!r}: {why}"


def _held(ws: WorkingSet, name: str, live: Set[str]) -> set[str]:
    """The names of a module's parameters and buffers, as the working set has them."""
    prefix = param_with_module_name(name, "")
    known_buffers = {n for n, s in ws.stored.items() if s.entry.kind == BUFFER}
    return {n for n in (*ws.params, *live, *known_buffers) if n.startswith(prefix)}


def _unmatched(held: Set[str], offered: Set[str]) -> list[str]:
    """Say which names only the store or only the module has; a new module's are no problem."""
    if not held:
        return []
    return [
        *(f"{n!r}: in the store, not in the module" for n in sorted(held - offered)),
        *(f"{n!r}: in the module, not in the store" for n in sorted(offered - held)),
    ]


def _advice(problems: list[str], unmatched: list[str]) -> str:
    """Say what to do about what does not fit, and what is in no store, or in no module."""
    advice = "build the module as it was, bind it under another name, "
    if problems:
        advice += "or keep its own values with exclude=[…]"
    else:
        advice += "or pass strict=False, and what both have is taken"
    if any("_orig_mod." in line for line in unmatched):
        advice += "; names with '_orig_mod' come of torch.compile(part): part.compile() keeps them"
    return advice


def _clash(
    ws: WorkingSet, full: str, tensor: Tensor, live: dict[str, Tensor], *, is_buffer: bool
) -> str | None:
    if is_buffer and full in ws.params:
        return "a parameter in the store, a buffer in the module"
    source = source_of(ws, full, live)
    if source is None:
        return None
    if not is_buffer and full not in ws.params:
        return "a buffer in the store, a parameter in the module"
    return misfit(tensor, source)
