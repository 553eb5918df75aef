"""The live tensors of one scope, what of them is stored, and the objects attached to them.

Keeps the dictionary's three tables consistent; must never talk to the database itself.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore.constraints import is_identity, is_static, to_spec, transform_of
from paramstore.db import owners
from paramstore.db.manifest import entry_line
from paramstore.errors import InvalidNameError, UnknownConstraintError
from paramstore.lazy import UNREAD, Params
from paramstore.modules import parameters_of
from paramstore.names import param_with_module_name
from paramstore.refs import check_param_name

if TYPE_CHECKING:
    from torch.distributions.transforms import Transform

    from paramstore.constraints import Spec
    from paramstore.db.repository import Entry
    from paramstore.snapshot import Snapshot

logger = logging.getLogger("paramstore")

BUFFER = "buffer"


class StateDict(dict[str, Any]):
    """``{"params": …, "constraints": …}``: what a scope yields and takes back.

    The one yielded by a named scope carries that scope's working set.
    """

    working_set: WorkingSet | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ({**self, "params": dict(self["params"].items())},)


class Unconstrained(weakref.ref[Tensor]):
    """The ``.unconstrained`` of a constrained value: a weak reference to what is trained.

    Pickles and deep-copies as an empty ``OrderedDict``, one of the few things that
    ``torch.load(weights_only=True)`` accepts: a tensor's attributes travel with it.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return OrderedDict, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return OrderedDict()


class UnknownKind(Constraint):
    """Stands for a stored constraint whose kind is not registered here, until it is used."""

    def __init__(self, name: str, error: UnknownConstraintError) -> None:
        self.error = UnknownConstraintError(f"parameter {name!r}: {error}")


class Transforms(NamedTuple):
    """Both ways between the values of a parameter; None where they are the same."""

    constraint: Constraint
    forward: Transform | None
    """From the unconstrained to the constrained value."""
    inverse: Transform | None
    """Kept because torch makes it anew at every use."""


class Stored(NamedTuple):
    """What of a name is in the database."""

    entry: Entry
    """Its row in the snapshot that the working set continues."""
    fingerprint: bytes | None = None
    """xxh3-128 of these bytes, where the last commit found them unchanged; None otherwise: the next
    commit compares digests, which it needs in any case for what changes every time."""


class Item(NamedTuple):
    """One live tensor, ready to be stored."""

    name: str
    kind: str
    tensor: Tensor
    spec: Spec
    transform: Transform | None
    requires_grad: bool

    def is_described_by(self, entry: Entry) -> bool:
        """Whether a stored value is one of the same kind; its bytes are not looked at."""
        return (
            entry.kind == self.kind
            and entry.requires_grad == self.requires_grad
            and entry.spec == self.spec.text
        )


class WorkingSet:
    """The tensors, constraints, modules and attached objects of one scope.

    **Threads**: no lock of its own; the store's lock is held wherever more than one table moves.

    **Ownership**: tensors belong to the caller; modules and attached objects are referenced.
    """

    def __init__(
        self, scope: str | None, read: Callable[[WorkingSet, Iterable[str]], None] | None = None
    ) -> None:
        self.scope = scope
        """Name of its scope; None for a state that lives in memory only."""
        self.params = Params()
        if read is not None:
            self.params.read_with(lambda names: read(self, names))
        self.names: dict[Tensor, str] = {}
        self.constraints: dict[str, Constraint] = {}
        self.transforms: dict[str, Transforms] = {}

    # Made when they are first looked at: PyroModule makes working sets that need none of them, one
    # at every forward call.

    rng = False
    """Whether the random generators are attached."""
    head: Snapshot | None = None
    """The newest snapshot of the scope that this store has seen."""
    parent: Snapshot | None = None
    """The snapshot that the next commit continues."""

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Bound modules by name."""
        return {}

    @cached_property
    def seen(self) -> dict[str, dict[str, Tensor]]:
        """By the name of a bound module: its parameters by full name, when last looked at."""
        return {}

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Parameters and buffers by name, as of ``parent`` or of what was restored since."""
        return {}

    @cached_property
    def attached(self) -> dict[str, object]:
        """Live objects by name, whose state every commit stores."""
        return {}

    @cached_property
    def parent_entries(self) -> dict[str, Entry]:
        """Every parameter of ``parent``."""
        return {}

    @cached_property
    def extra_blobs(self) -> dict[tuple[bytes, int], tuple[int, bytes]]:
        """Blobs of the last extras by fingerprint and size: row id and digest."""
        return {}

    @cached_property
    def parent_states(self) -> dict[str, str]:
        """Skeletons of the attached states in ``parent``."""
        return {}

    @cached_property
    def parent_digests(self) -> list[bytes]:
        """Digests of the tensors in them, and of those in the extras behind."""
        return []

    @cached_property
    def _specs(self) -> dict[int, tuple[Constraint, Spec]]:
        return {}

    @cached_property
    def state(self) -> StateDict:
        """What a named scope yields: the tables themselves, and this working set with them."""
        state = StateDict(params=self.params, constraints=self.constraints)
        state.working_set = self
        return state

    def expect(self, name: str, constraint: Constraint) -> None:
        """Hold ``name`` unread, in place of any tensor that it had."""
        self.remove(name)
        self.params.expect([name])
        self.constraints[name] = constraint

    # -- one name ------------------------------------------------------------------

    def put(self, name: str, tensor: Tensor, constraint: Constraint) -> None:
        """Make ``tensor`` the unconstrained value of ``name``.

        Raises:
            InvalidNameError: not a parameter's name, or that of a buffer of a bound module.
        """
        if name not in self.params:
            check_param_name(name)
            if self.modules and name in self.buffers():
                raise InvalidNameError(f"{name!r} is a buffer of a bound module; change it there")
        self.forget_tensor(name)
        dict.__setitem__(self.params, name, tensor)
        self.names[tensor] = name
        self.constraints[name] = constraint

    def forget_tensor(self, name: str) -> None:
        """Drop the way back from the tensor of ``name``, unless it leads to another name."""
        old = dict.get(self.params, name)
        if old is not None and old is not UNREAD and self.names.get(old) == name:
            del self.names[old]

    def remove(self, name: str) -> None:
        """Remove ``name``; its tensor is not read for that."""
        self.forget_tensor(name)
        self.params.discard(name)
        self.constraints.pop(name, None)
        self.transforms.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Move everything that is known of a name to another one."""
        if old in self.params:
            value = dict.__getitem__(self.params, old)
            # At its old place: whoever makes an optimiser of named_parameters() counts on it.
            self.params.replace((new if n == old else n, v) for n, v in dict.items(self.params))
            self.constraints[new] = self.constraints.pop(old)
            self.transforms.pop(old, None)
            if value is not UNREAD and self.names.get(value) == old:
                self.names[value] = new
        if stored := self.stored.pop(old, None):
            self.stored[new] = stored._replace(entry=_renamed(stored.entry, new))
        if old in self.parent_entries and self.parent and self.parent.scope == self.scope:
            self.parent_entries[new] = _renamed(self.parent_entries.pop(old), new)
            self.parent_states = {
                name: owners.renamed(skeleton, old, new)
                for name, skeleton in self.parent_states.items()
            }

    def as_in_parent(self, entry: Entry) -> Entry:
        """The parent's row of the same content where there is one: a value that came back from
        another snapshot is no change then.
        """
        parent = self.parent_entries.get(entry.name)
        return parent if parent is not None and parent.line == entry.line else entry

    def forget_fingerprints(self) -> None:
        """Let the next commit look at all bytes anew."""
        self.stored = {n: s._replace(fingerprint=None) for n, s in self.stored.items()}

    def clear(self) -> None:
        """Empty the tables; attached objects stay, and so does what is known of stored bytes."""
        dict.clear(self.params)
        self.names.clear()
        self.constraints.clear()
        self.transforms.clear()
        self.modules.clear()
        self.seen.clear()
        self.stored = {n: s for n, s in self.stored.items() if s.entry.kind != BUFFER}

    def transforms_of(self, name: str, constraint: Constraint) -> Transforms:
        """The transforms of ``name`` both ways; cached while they cannot change."""
        cached = self.transforms.get(name)
        if cached is not None and cached.constraint is constraint:
            return cached
        if isinstance(constraint, UnknownKind):
            raise constraint.error
        try:
            forward = None if is_identity(constraint) else transform_of(constraint)
        except UnknownConstraintError as error:
            raise UnknownConstraintError(f"{name!r}: {error}") from error
        made = Transforms(constraint, forward, forward and forward.inv)
        if is_static(constraint):
            self.transforms[name] = made
        return made

    def name_of(self, tensor: Tensor) -> str | None:
        """A name of ``tensor``, also where ``names`` lacks it.

        Its latest name may have been deleted; a plain state is entered without any of them.
        """
        name = self.names.get(tensor)
        if name is None:
            live = self.params.live()
            name = next((name for name, value in live if value is tensor), None)
            if name is not None:  # whoever asks for one of them asks for many
                self.names.update({value: name for name, value in live} | self.names)
        return name

    # -- modules -------------------------------------------------------------------

    def buffers(self) -> dict[str, Tensor]:
        """The persistent buffers of the bound modules by full name."""
        return {
            param_with_module_name(name, path): buffer
            for name, module in self.modules.items()
            for path, buffer in persistent_buffers(module).items()
        }

    def bound(self) -> set[str]:
        """The full names that belong to a bound module and cannot be replaced."""
        return {
            param_with_module_name(name, path)
            for name, module in self.modules.items()
            for path, parameter, _ in parameters_of(module)
            if dict.get(self.params, param_with_module_name(name, path)) is parameter
        }

    # -- towards the database ------------------------------------------------------

    def spec(self, constraint: Constraint) -> Spec:
        """The spec of ``constraint``; cached where it cannot change."""
        cached = self._specs.get(id(constraint))
        if cached is not None:
            return cached[1]
        spec = to_spec(constraint)
        if is_static(constraint):
            # The constraint is kept beside its spec, so that its id is not given to another.
            self._specs[id(constraint)] = (constraint, spec)
        return spec

    def items(self) -> Iterator[Item]:
        """Every live tensor: parameters and the buffers of bound modules."""
        for name, tensor in self.params.live():
            constraint = self.constraints[name]
            # The type is asked first: isinstance of a Parameter runs Python code.
            plain = type(tensor) is Tensor or not isinstance(tensor, nn.Parameter)
            kind = "tensor" if plain else "parameter"
            transform = self.transforms_of(name, constraint).forward
            spec = self.spec(constraint)
            yield Item(name, kind, tensor, spec, transform, tensor.requires_grad)
        for name, tensor in self.buffers().items():
            spec = self.spec(constraints.real)
            yield Item(name, BUFFER, tensor, spec, None, tensor.requires_grad)

    def carried(self, live: Mapping[str, object]) -> dict[str, Entry]:
        """What goes into the next snapshot as it is: unread names, buffers without a module."""
        return {
            name: stored.entry
            for name, stored in self.stored.items()
            if name not in live and (stored.entry.kind == BUFFER or name in self.params)
        }


def _renamed(entry: Entry, name: str) -> Entry:
    line = entry_line(name, entry.digest, entry.spec, entry.kind, requires_grad=entry.requires_grad)
    return entry._replace(name=name, line=line)


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that the module's ``state_dict`` holds, by path."""
    kept = module.state_dict(keep_vars=True)
    return {path: buffer for path, buffer in module.named_buffers() if path in kept}
