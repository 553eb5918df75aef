"""Brings a working set to a snapshot: checks everything first, then fills tensors in place.

Decides before it touches; must never leave a live tensor half changed without saying so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributions.constraints import Constraint

from paramstore.errors import (
    InvalidInputError,
    MismatchError,
    ParamNotFoundError,
    UnknownConstraintError,
)
from paramstore.refs import suggest
from paramstore.tensors import dtype_name, unfillable
from paramstore.working_set import BUFFER, Stored, UnknownKind, WorkingSet

if TYPE_CHECKING:
    from paramstore.db.repository import Entry, Manifest
    from paramstore.reader import Reader

Names = str | Iterable[str] | None
"""Parameter names or shell patterns (``net$$$*``)."""


def begin(working_set: WorkingSet, manifest: Manifest, reader: Reader) -> None:
    """Make an empty working set continue a snapshot: every name is known, nothing is read."""
    _Plan(later=list(manifest.entries.values())).carry_out(working_set, manifest, reader)
    continue_from(working_set, manifest)


def continue_from(working_set: WorkingSet, manifest: Manifest) -> None:
    """Make the next commit a child of the snapshot."""
    working_set.parent = manifest.snapshot
    working_set.parent_entries = dict(manifest.entries)
    working_set.extra_blobs = {}
    working_set.parent_states = {
        name: skeleton for kind, name, skeleton in manifest.extras if kind == "state"
    }
    working_set.parent_digests = [digest for _, digest, _ in manifest.extra_blobs]


@dataclass(slots=True)
class _Plan:
    """What a restore is going to do."""

    fill: list[tuple[Entry, Tensor]] = field(default_factory=list)
    """Stored values and the live tensors that take them in place."""
    later: list[Entry] = field(default_factory=list)
    """Stored values that become the value of their name when it is next touched."""
    remove: list[str] = field(default_factory=list)
    """Live names that the snapshot lacks."""

    def entries(self) -> list[Entry]:
        return [entry for entry, _ in self.fill] + self.later

    def carry_out(self, ws: WorkingSet, manifest: Manifest, reader: Reader) -> None:
        """Fill live tensors, or change the tables so that they are read later."""
        constraints = {e.name: _constraint(reader, e) for e in self.later if e.kind != BUFFER}
        reader.fill(self.fill, snapshot=manifest.snapshot)
        for entry, tensor in self.fill:
            tensor.grad = None
            ws.stored[entry.name] = Stored(entry)
        # In the order of their rows, which is the order in which the run first made them:
        # whoever builds an optimiser from named_parameters() counts on it.
        for entry in sorted(self.later, key=lambda entry: entry.param_id):
            ws.stored[entry.name] = Stored(entry)
            if entry.kind == BUFFER:
                ws.remove(entry.name)
            else:
                ws.expect(entry.name, constraints[entry.name])
        for name in self.remove:
            ws.remove(name)
            ws.stored.pop(name, None)


def restore(
    working_set: WorkingSet,
    manifest: Manifest,
    reader: Reader,
    *,
    include: Names = None,
    exclude: Names = None,
    strict: bool = True,
    verify: bool = True,
) -> None:
    """Bring the parameters and buffers of a working set to a snapshot.

    Raises:
        InvalidInputError: a filter that is neither names nor patterns.
        ParamNotFoundError: nothing matches one of ``include``.
        MismatchError: a tensor of a bound module cannot take what is stored for it, or, when
            ``strict``, the snapshot lacks it.
        CorruptError: stored bytes are missing or altered; nothing has been changed.
        RestoreInterruptedError: stored bytes vanished, or without ``verify`` are not whole, after
            live tensors had been changed; ``params`` names those.
    """
    wanted = _filter(include, exclude, [*manifest.entries, *working_set.params])
    plan = _plan(working_set, manifest, wanted, strict=strict)
    if verify:
        reader.check(plan.entries(), snapshot=manifest.snapshot)
    plan.carry_out(working_set, manifest, reader)


def _plan(
    ws: WorkingSet, manifest: Manifest, wanted: Callable[[str], bool], *, strict: bool
) -> _Plan:
    plan, problems = _Plan(), list[str]()
    buffers = ws.buffers()
    bound = ws.bound() | buffers.keys()
    live: dict[str, Tensor] = dict(ws.params.live()) | buffers
    holders: dict[int, Entry] = {}
    # Bound names first: of two that share a tensor, the module's keeps it.
    names = sorted(filter(wanted, manifest.entries), key=lambda name: name not in bound)
    for name in names:
        entry, tensor = manifest.entries[name], live.get(name)
        why = None
        if tensor is not None:
            why = _misfit(ws, name, entry, tensor) or _tie(holders, entry, tensor)
        if tensor is not None and why is None:
            plan.fill.append((entry, tensor))
        elif name in bound:
            problems.append(f"{name!r}: {why}")
        else:
            plan.later.append(entry)
    lacking = [n for n in (*ws.params, *buffers) if n not in manifest.entries and wanted(n)]
    problems += [f"{name!r}: not in the snapshot" for name in lacking if name in bound and strict]
    plan.remove = [name for name in lacking if name not in bound]
    if problems:
        raise MismatchError(
            f"{manifest.snapshot.ref} does not fit the modules that are bound: "
            f"{'; '.join(problems)}. Nothing has been changed; build the module as it was, or "
            f"leave these out with exclude=[…]"
        )
    return plan


def _misfit(ws: WorkingSet, name: str, entry: Entry, tensor: Tensor) -> str | None:
    """Say why a stored value cannot be filled into a live tensor; None when it can."""
    if (entry.kind == BUFFER) != (name not in ws.params):
        return f"stored as a {entry.kind}"
    if tuple(tensor.shape) != entry.stored_shape:
        return f"stored with shape {entry.stored_shape}, live {tuple(tensor.shape)}"
    if dtype_name(tensor.dtype) != entry.dtype:
        return f"stored as {entry.dtype}, live {dtype_name(tensor.dtype)}"
    if name in ws.params and ws.spec(ws.constraints[name]).text != entry.spec:
        return f"stored with constraint {entry.spec}, live {ws.constraints[name]}"
    return unfillable(tensor)


def _tie(holders: dict[int, Entry], entry: Entry, tensor: Tensor) -> str | None:
    """Say which name fills the same tensor with another value; None when none does.

    ``holders`` has the first stored value of each tensor, and is given this one.
    """
    first = holders.setdefault(id(tensor), entry)
    if first.digest == entry.digest:
        return None
    return f"is tied to {first.name!r}, which holds another value there"


def _filter(include: Names, exclude: Names, names: Iterable[str]) -> Callable[[str], bool]:
    included, excluded = _patterns("include", include), _patterns("exclude", exclude)
    names = list(names)
    for pattern in included or ():
        if not any(_matches(name, pattern) for name in names):
            raise ParamNotFoundError(
                f"include: no parameter matches {pattern!r}{suggest(pattern, names)}"
            )

    def wanted(name: str) -> bool:
        if any(_matches(name, pattern) for pattern in excluded or ()):
            return False
        return included is None or any(_matches(name, pattern) for pattern in included)

    return wanted


def _patterns(what: str, names: Names) -> list[str] | None:
    if names is None:
        return None
    patterns = [names] if isinstance(names, str) or not isinstance(names, Iterable) else [*names]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidInputError(
                f"{what} is names or shell patterns such as 'net$$$*', got {pattern!r}"
            )
    return patterns


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _constraint(reader: Reader, entry: Entry) -> Constraint:
    """The constraint of a stored parameter; one that cannot be built says so when it is used."""
    try:
        return reader.constraint(entry)
    except UnknownConstraintError as error:
        return UnknownKind(entry.name, error)
