"""What leaves the database: snapshots, parameter versions and their statistics as plain values.

Holds no connection and no tensor; must never import anything but the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from paramstore.errors import CorruptError
from paramstore.listing import format_bytes, format_number, format_table, html_table

INTERRUPTED: Final = "interrupted"
"""The kind of a snapshot of what an exception left behind, which may be half a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Numbers over the finite elements of one tensor; None where there is no such element."""

    norm: float | None = None
    """Euclidean norm."""
    mean: float | None = None
    """Arithmetic mean; None for complex tensors."""
    std: float | None = None
    """Population standard deviation; None for complex tensors."""
    min: float | None = None
    """Smallest element; None for complex tensors."""
    max: float | None = None
    """Largest element; None for complex tensors."""
    nan_count: int = 0
    """Elements that are NaN."""
    inf_count: int = 0
    """Elements that are +inf or -inf."""
    value: str | None = None
    """The value as JSON when the tensor has exactly one element."""
    unconstrained: bool = False
    """True where these describe the unconstrained value, because the constrained one is large and
    its transform does not work element by element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An immutable point of a scope."""

    id: int
    """Row id, unique in the database."""
    scope: str
    """Name of the scope."""
    version: int
    """1, 2, 3 … within the scope."""
    parent: str | None
    """Reference of the snapshot that this one continues, e.g. ``main@11``; None for a first one."""
    step: int | None
    """The training step, as given to commit."""
    created_at: datetime
    """When it was committed, UTC."""
    message: str | None
    """As given to commit."""
    kind: str
    """``commit``; ``interrupted`` where an exception ended the training."""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Named numbers, as given to commit; NaN is possible."""
    tags: tuple[str, ...] = ()
    """Tags that point here now, sorted."""
    params: int = 0
    """How many parameters and buffers it holds."""
    changed: int = 0
    """How many of them differ from the parent, removed ones not counted."""
    nbytes: int = 0
    """Bytes of all its tensors."""
    added_nbytes: int = 0
    """Bytes that it added to the database; less than nbytes where tensors were already stored."""
    origin: str | None = None
    """Host and process that committed it, e.g. ``node17:4242``; None where older versions did."""
    extras: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """The extras given to commit; read from the database when first looked at."""

    @property
    def ref(self) -> str:
        """Its reference, e.g. ``main@12``."""
        return f"{self.scope}@{self.version}"

    def __str__(self) -> str:
        return format_table(SNAPSHOT_HEAD, [snapshot_row(self)])

    def _repr_html_(self) -> str:
        return html_table(SNAPSHOT_HEAD, [snapshot_row(self)])


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamVersion:
    """The value of one parameter as of the snapshot in which it changed."""

    name: str
    """Parameter name."""
    scope: str
    """Name of the scope."""
    version: int
    """Version of the snapshot in which this value appeared."""
    step: int | None
    """Step of that snapshot."""
    created_at: datetime
    """Time of that snapshot, UTC."""
    since_version: int
    """Version in which these bytes were first stored; less than version after a return to it."""
    until_version: int
    """Version of the newest snapshot up to which the parameter kept this value."""
    until_step: int | None
    """Step of that snapshot."""
    removed: bool
    """Whether the snapshot after that one lacks the parameter."""
    kind: str
    """``tensor``, ``parameter`` (of a module) or ``buffer``."""
    requires_grad: bool
    """Whether it was trained."""
    dtype: str
    """safetensors' name of the dtype, e.g. ``F32``."""
    shape: tuple[int, ...]
    """Shape of the constrained value."""
    nbytes: int
    """Bytes of the stored tensor."""
    constraint: str
    """Constraint spec, canonical JSON."""
    digest: str
    """BLAKE3-256 of the stored bytes, hexadecimal."""
    statistics: Statistics | None
    """None where the store was opened with ``statistics=False``."""

    @property
    def norm(self) -> float | None:
        """Euclidean norm of the finite elements."""
        return self.statistics.norm if self.statistics else None

    @property
    def mean(self) -> float | None:
        """Mean of the finite elements."""
        return self.statistics.mean if self.statistics else None

    @property
    def std(self) -> float | None:
        """Population standard deviation of the finite elements."""
        return self.statistics.std if self.statistics else None

    @property
    def min(self) -> float | None:
        """Smallest finite element."""
        return self.statistics.min if self.statistics else None

    @property
    def max(self) -> float | None:
        """Largest finite element."""
        return self.statistics.max if self.statistics else None

    @property
    def nan_count(self) -> int | None:
        """How many elements are NaN."""
        return self.statistics.nan_count if self.statistics else None

    @property
    def inf_count(self) -> int | None:
        """How many elements are infinite."""
        return self.statistics.inf_count if self.statistics else None

    @property
    def value(self) -> float | int | bool | complex | None:
        """The value of a parameter with one element; None for any other."""
        return None if self.statistics is None else parse_value(self.statistics.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeInfo:
    """A scope and how far it has come."""

    name: str
    """Its name."""
    head_version: int
    """Version of its newest snapshot."""
    created_at: datetime
    """When its first snapshot was committed, UTC."""


def parse_value(text: str | None) -> float | int | bool | complex | None:
    """Read the JSON value of a one-element tensor: a number, a boolean, or ``[real, imag]``.

    Raises:
        CorruptError: anything else.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
        if isinstance(found, list):
            real, imag = found
            return complex(float(real), float(imag))
        if isinstance(found, str):  # "NaN", "Infinity", "-Infinity": JSON has no such numbers
            return float(found)
        return found if isinstance(found, int) and abs(found) < 2**64 else float(found)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CorruptError(f"{text[:99]!r} in the database is not the value of a tensor") from error


SNAPSHOT_HEAD: Final = (
    "snapshot",
    "step",
    "time",
    "kind",
    "changed",
    "added",
    "tags",
    "metrics",
    "message",
)


def snapshot_row(s: Snapshot) -> list[str]:
    """The cells of a snapshot in a table."""
    return [
        s.ref,
        "" if s.step is None else str(s.step),
        f"{s.created_at:%Y-%m-%d %H:%M:%S}",
        "" if s.kind == "commit" else s.kind,
        f"{s.changed}/{s.params}",
        format_bytes(s.added_nbytes),
        ", ".join(s.tags),
        ", ".join(f"{name}={format_number(value)}" for name, value in s.metrics.items()),
        s.message or "",
    ]
