"""Schema revisions as a person sees them: which one a store has, and what changed it.

Holds values; must never import anything but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class Revisions(NamedTuple):
    """The revision of a store beside the one that this version of the library reads."""

    found: str
    """That of the store."""
    newest: str
    """That of the library."""

    def __str__(self) -> str:
        if self.found == self.newest:
            return f"revision {self.found}, the newest"
        return f"revision {self.found}; this version of paramstore reads {self.newest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Migrated:
    """What an upgrade or a downgrade has done."""

    path: Path
    """The store."""
    before: str | None
    """The revision that was found; None where the tables were made beside those of another program.
    """
    after: str
    """The revision that it has now."""
    backup: Path | None
    """The copy of what it was before; None where none was made."""

    def __str__(self) -> str:
        if self.before == self.after:
            return f"{self.path} has revision {self.after}: there is nothing to do"
        kept = f"; as it was before: {self.backup}" if self.backup else ""
        return f"{self.path}: {self.before or 'no revision'} → {self.after}{kept}"
