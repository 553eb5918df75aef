"""What a commit is going to write, as it is at one moment.

Reads the working set and what is attached to it; must never change them, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from paramstore import extras, tensors
from paramstore.attached import capture_all, check_places
from paramstore.constraints import Spec, from_spec, transform_of
from paramstore.optimisers import with_owners
from paramstore.sharing import share
from paramstore.working_set import Item, Stored, WorkingSet

if TYPE_CHECKING:
    from paramstore.db.repository import Entry
    from paramstore.request import Request
    from paramstore.staging import Copies, Staging


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """What a commit is going to write.

    **Ownership**: refers to the live tensors, which must not change until the commit is made; after
    ``copied``, to copies of those that changed, and the live tensors are free.
    """

    request: Request
    """What the caller says about the snapshot."""
    items: dict[str, Item]
    """Every parameter, and every buffer of a bound module, by name."""
    carried: dict[str, Entry]
    """What goes into the snapshot as it is stored, because nobody has read it."""
    skeletons: list[tuple[str, str, str]]
    """Kind, name and JSON of attached states and extras: the states first, so that extras do not
    move their tensors."""
    tensors: list[Tensor]
    """The large tensors in them."""
    unchanged: dict[str, Stored] = field(default_factory=dict)
    """What was compared with its fingerprint already; its item may hold other bytes by now."""
    is_copied: bool = False
    """Whether the live tensors are free to change."""

    @classmethod
    def of(cls, working_set: WorkingSet, request: Request) -> Capture:
        """Capture a working set without copying any tensor.

        Raises:
            UnsupportedExtraError, MismatchError: something has no stored form.
        """
        encoder = extras.Encoder()
        check_places(working_set.attached, working_set)
        found = capture_all(working_set.attached, rng=working_set.rng)
        states = with_owners(working_set, found)
        items = {item.name: item for item in working_set.items()}
        return cls(
            request=request,
            items=items,
            carried=working_set.carried(items),
            skeletons=[
                *(("state", n, encoder.encode(v, f"attached {n!r}")) for n, v in states.items()),
                *(
                    ("extra", n, encoder.encode(v, f"extras[{n!r}]"))
                    for n, v in request.extras.items()
                ),
            ],
            tensors=encoder.tensors,
        )

    def copied(self, working_set: WorkingSet, staging: Staging) -> tuple[Capture, Copies]:
        """The same, of copies, so that training may go on; and the memory of the copies.

        A parameter that did not change at the last commit is looked at before it is copied: a
        fingerprint only reads, and takes no memory. One that did is copied at once.

        Raises:
            UnsupportedTensorError: a tensor without a stored form, by its name.
        """
        unchanged = _unchanged(self.items.values(), working_set)
        changed = [item for name, item in self.items.items() if name not in unchanged]
        frozen = [_frozen(item, working_set) for item in changed]  # may fail; nothing is held yet
        copies = staging.copy(
            {item.name: item.tensor for item in changed}
            | {("extras", seq): tensor for seq, tensor in enumerate(self.tensors)}
        )
        found = copies.tensors
        items = {item.name: item._replace(tensor=found[item.name]) for item in frozen}
        capture = replace(
            self,
            items={name: items.get(name, item) for name, item in self.items.items()},
            tensors=[found["extras", seq] for seq in range(len(self.tensors))],
            unchanged=unchanged,
            is_copied=True,
        )
        return capture, copies


def _frozen(item: Item, working_set: WorkingSet) -> Item:
    """The item with copies of the tensors in its constraint."""
    cached = working_set.transforms.get(item.name)
    # The cache may still have the transform of another constraint that the name had before.
    if item.transform is None or (cached is not None and cached.forward is item.transform):
        return item  # plain numbers only
    arguments = tuple((digest, tensor.clone()) for digest, tensor in item.spec.tensors)
    constraint = from_spec(item.spec.text, dict(arguments).__getitem__)
    spec = Spec(item.spec.text, arguments)
    return item._replace(spec=spec, transform=transform_of(constraint))


def _unchanged(items: Iterable[Item], working_set: WorkingSet) -> dict[str, Stored]:
    """Find the parameters that are as they were at the last commit, which found them unchanged."""
    candidates = []
    for item in items:
        stored = working_set.stored.get(item.name)
        if stored is None or stored.fingerprint is None or not item.is_described_by(stored.entry):
            continue
        # Here, because threads that need the interpreter for it would wait for each other.
        if (seen := tensors.view(item.tensor)) is not None:
            candidates.append((item.name, stored, seen))
    views = [seen for _, _, seen in candidates]
    found = share(_fingerprints, views, sum(view.nbytes for view in views))
    return {
        name: stored
        for (name, stored, _), fingerprint in zip(candidates, found, strict=True)
        if fingerprint == stored.fingerprint
    }


def _fingerprints(views: Sequence[tensors.Encoded]) -> list[bytes]:
    return [view.fingerprint() for view in views]
