"""What a store takes on the disk, and what collecting garbage gave back.

Numbers that others counted; must never import anything but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramstore.listing import format_bytes, format_table


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeUsage:
    """What one scope holds."""

    name: str
    """Its name."""
    snapshots: int
    """How many snapshots it has."""
    params: int
    """How many names they hold; one that was given up counts until ``gc``."""
    nbytes: int
    """Bytes of all their tensors, each stored one counted once."""
    own_nbytes: int
    """Bytes of those that no other scope holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a store takes on the disk."""

    scopes: tuple[ScopeUsage, ...]
    """Its scopes, sorted by name."""
    file_nbytes: int
    """Bytes of the database; SQLite's journal is not among them."""
    free_nbytes: int
    """Bytes of its empty pages, which ``gc`` gives back."""
    tensor_nbytes: int
    """Bytes of all tensors in it."""
    unused_nbytes: int
    """Bytes of those that no snapshot holds, which ``gc`` frees."""

    @property
    def other_nbytes(self) -> int:
        """Bytes of everything else: the catalogue, and space inside pages that are partly full."""
        return self.file_nbytes - self.free_nbytes - self.tensor_nbytes

    def __str__(self) -> str:
        scopes = [
            [s.name, f"{s.snapshots:,}", f"{s.params:,}", *_bytes(s.nbytes, s.own_nbytes)]
            for s in self.scopes
        ]
        totals = [
            ["tensors that snapshots hold", *_bytes(self.tensor_nbytes - self.unused_nbytes)],
            ["tensors that gc would free", *_bytes(self.unused_nbytes)],
            ["catalogue, and pages partly full", *_bytes(self.other_nbytes)],
            ["empty pages, which gc gives back", *_bytes(self.free_nbytes)],
            ["the file", *_bytes(self.file_nbytes)],
        ]
        tables = [format_table(_SCOPES, scopes)] if scopes else []
        return "\n\n".join([*tables, format_table(("part", "bytes"), totals)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What ``gc`` freed, or with ``dry_run`` would free."""

    nbytes: int
    """Bytes of the tensors that nothing referred to."""
    blobs: int
    """How many such tensors."""
    param_versions: int
    """Values of parameters that no snapshot holds."""
    file_before: int
    """Bytes of the database before."""
    file_after: int
    """Bytes of the database after; the same with ``dry_run``."""
    dry_run: bool
    """Whether nothing was changed."""

    def __str__(self) -> str:
        rows = (
            ("tensors", self.blobs),
            ("values of parameters", self.param_versions),
        )
        head = ("what", "would be freed" if self.dry_run else "freed")
        table = format_table(head, [[what, f"{count:,}"] for what, count in rows])
        return f"{table}\n{self.summary}"

    @property
    def summary(self) -> str:
        """One line about it."""
        if self.dry_run:
            return f"would free {format_bytes(self.nbytes)} of tensors"
        return (
            f"freed {format_bytes(self.nbytes)} of tensors; the file has shrunk from "
            f"{format_bytes(self.file_before)} to {format_bytes(self.file_after)}"
        )


_SCOPES = ("scope", "snapshots", "params", "tensors", "of its own")


def _bytes(*amounts: int) -> list[str]:
    return [format_bytes(amount) for amount in amounts]
