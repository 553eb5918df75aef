"""What goes into the repository and comes out of it: plain values, never rows or connections.

Holds bytes and text; must never import torch or SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from paramstore.snapshot import Snapshot, Statistics


class Entry(NamedTuple):
    """One parameter of one snapshot, as stored.

    A named tuple because a restore makes one for each of thousands of rows: a frozen dataclass
    of this size takes twenty times as long.
    """

    name: str
    """Parameter name."""
    scope_id: int
    """Row of the scope that it was read from."""
    param_id: int
    """Row of the name in that scope."""
    param_version_id: int
    """Row of the value."""
    since_version: int
    """Version of the snapshot that stored the value first."""
    blob_id: int
    """Row of the bytes."""
    digest: bytes
    """BLAKE3-256 of the bytes, 32 of them."""
    nbytes: int
    """Length of the stored bytes, header included."""
    dtype: str
    """safetensors' name of the dtype, ``C128`` for complex128."""
    stored_shape: tuple[int, ...]
    """Shape of the stored, unconstrained tensor."""
    constraint_id: int
    """Row of the constraint spec."""
    spec: str
    """Constraint spec, canonical JSON."""
    kind: str
    """``tensor``, ``parameter`` or ``buffer``."""
    requires_grad: bool
    """Whether it was trained."""
    shape: tuple[int, ...]
    """Shape of the constrained value."""
    line: bytes
    """Its line in the manifest."""


class NewEntry(NamedTuple):
    """One parameter that changed, its bytes already written; becomes an `Entry`."""

    name: str
    blob_id: int
    digest: bytes
    nbytes: int
    dtype: str
    stored_shape: tuple[int, ...]
    spec: str
    spec_blobs: tuple[int, ...]
    """Blobs of the tensor arguments that the spec names by digest, in any order."""
    kind: str
    requires_grad: bool
    shape: tuple[int, ...]
    statistics: Statistics | None


class NewBlob(Protocol):
    """The bytes of one tensor on their way into the database.

    What has them is asked directly: a record of each would cost more than writing it.
    """

    @property
    def digest(self) -> bytes:
        """BLAKE3-256 of the header and all chunks joined."""

    @property
    def header(self) -> bytes:
        """What the first row has in front of its chunk."""

    @property
    def nbytes(self) -> int:
        """Length of the header and all chunks joined."""

    @property
    def dtype(self) -> str:
        """Name of the dtype in safetensors, ``C128`` for complex128."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""

    def chunks(self) -> Iterable[bytes | memoryview]:
        """Make the chunks anew: one for each row, 1 MiB each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A snapshot that is about to be appended."""

    scope: str
    """Name of the scope; made when it does not exist."""
    seen_head: int
    """Version of the scope's head that the writer knew; 0 for none."""
    seen_id: int | None = None
    """Its row, which a scope that was made anew does not have; None is not compared."""
    append: bool = False
    """Append to whatever the head is now."""
    parent_id: int | None = None
    """Row of the snapshot that this one continues."""
    step: int | None = None
    message: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    """Tags of the new snapshot; one that exists in the scope moves here."""
    kind: str = "commit"
    entries: Mapping[str, Entry | NewEntry] = field(default_factory=dict)
    """Every parameter of the snapshot by name."""
    extras: Sequence[tuple[str, str, str]] = ()
    """``extra`` or ``state``, name, skeleton."""
    extra_blobs: Sequence[tuple[int, bytes]] = ()
    """Row and digest of the tensors that the skeletons refer to by their place here."""
    blobs_written: Mapping[int, NewBlob] = field(default_factory=dict)
    """What ``put_blobs`` returned for this snapshot, in this or an earlier transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that one snapshot holds, checked against its digest; bytes of tensors excepted."""

    snapshot: Snapshot
    digest: bytes
    """BLAKE3-256 of the canonical manifest."""
    entries: dict[str, Entry]
    """Parameters by name, sorted."""
    extras: tuple[tuple[str, str, str], ...]
    """``extra`` or ``state``, name, skeleton; sorted."""
    extra_blobs: tuple[tuple[int, bytes, int], ...]
    """Row, digest and length of the tensors that the skeletons refer to."""


class StaleEntries(Exception):  # noqa: N818 — a state of affairs that its catcher puts right
    """Unchanged parameters whose rows are gone: their history was expired by somebody else.

    For the store floor only, which writes them anew; no user ever sees it.
    """

    def __init__(self, names: Iterable[str], blobs: Iterable[int] = ()) -> None:
        self.names = frozenset(names)
        """Parameters whose value has to be written again."""
        self.blobs = frozenset(blobs)
        """Rows of tensors of the extras that have to be written again."""
        super().__init__(f"gone: {sorted(self.names)}, blobs {sorted(self.blobs)}")
