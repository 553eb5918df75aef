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

from paramstore.attached import applied, check_places, check_states
from paramstore.errors import (
    InvalidInputError,
    MismatchError,
    ParamNotFoundError,
    UnknownConstraintError,
)
from paramstore.fitting import misfit
from paramstore.listing import some
from paramstore.optimisers import for_owners
from paramstore.refs import suggest
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


def bring(
    ws: WorkingSet,
    manifest: Manifest,
    reader: Reader,
    wanted: Callable[[str], bool],
    *,
    strict: bool,
    verify: bool = True,
    extra: bool = False,
) -> None:
    """Let the working set and what is attached continue a snapshot, the generators last.

    Raises:
        MismatchError: as :func:`restore`, or what is attached does not fit: when ``strict``, a
            state is lacking or, with ``extra``, nothing is attached for one.
        CorruptError: as :func:`restore`.
    """
    check_places(ws.attached, ws)
    if strict:
        stored = [name for kind, name, _ in manifest.extras if kind == "state"]
        where = manifest.snapshot.ref
        check_states(ws.attached, stored, rng=ws.rng, extra=extra, where=where)
    states = reader.extras(manifest, "state") if ws.attached or ws.rng else {}
    states = for_owners(ws, states, strict=strict, wanted=wanted)
    whole = not ws.params.any_unread
    with applied(ws.attached, states, rng=ws.rng):
        restore(ws, manifest, reader, wanted, strict=strict, verify=verify)
        continue_from(ws, manifest)
    if whole:  # a view of the values may have been handed out, and shows what is in memory
        ws.params.load()


def restore(
    working_set: WorkingSet,
    manifest: Manifest,
    reader: Reader,
    wanted: Callable[[str], bool],
    *,
    strict: bool = True,
    verify: bool = True,
) -> None:
    """Bring the parameters and buffers of a working set to a snapshot; those that are wanted.

    Raises:
        MismatchError: a tensor of a bound module cannot take what is stored for it, or, when
            ``strict``, the snapshot lacks it.
        CorruptError: stored bytes are missing or altered; nothing has been changed.
        RestoreInterruptedError: stored bytes vanished, or without ``verify`` are not whole, after
            live tensors had been changed; ``params`` names those.
    """
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
    new = [f"{name!r}: not in the snapshot" for name in lacking if name in bound and strict]
    plan.remove = [name for name in lacking if name not in bound]
    if problems or new:
        advice = "leave these out with exclude=[…]"
        if not problems:
            advice += ", or leave what the snapshot lacks as it is with strict=False"
        raise MismatchError(
            f"{manifest.snapshot.ref} does not fit the modules that are bound: "
            f"{some(problems + new, '; ')}. Nothing has been changed; build the module as it was, "
            f"or {advice}"
        )
    return plan


def _misfit(ws: WorkingSet, name: str, entry: Entry, tensor: Tensor) -> str | None:
    """Say why a stored value cannot be filled into a live tensor; None when it can."""
    if (entry.kind == BUFFER) != (name not in ws.params):
        return f"stored as a {entry.kind}"
    if why := misfit(tensor, entry):
        return why
    if name in ws.params and ws.spec(ws.constraints[name]).text != entry.spec:
        return f"stored with the constraint {entry.spec}, {ws.constraints[name]} here"
    return None


def _tie(holders: dict[int, Entry], entry: Entry, tensor: Tensor) -> str | None:
    """Say which name fills the same tensor with another value; None when none does.

    ``holders`` has the first stored value of each tensor, and is given this one.
    """
    first = holders.setdefault(id(tensor), entry)
    if first.digest == entry.digest:
        return None
    return f"is tied to {first.name!r}, which holds another value there"


def chosen(include: Names, exclude: Names, names: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a name passes a filter.

    Raises:
        InvalidInputError: a filter that is neither names nor patterns.
        ParamNotFoundError: none of ``names`` matches one of ``include``.
    """
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
