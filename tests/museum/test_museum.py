"""Every revision's piece of the museum is read by this version, after an upgrade, bit for bit."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from record import record, text

from paramstore.db.schema import REVISION
from paramstore.testing import invariants

FOLDER = Path(__file__).parent
REVISIONS = sorted(piece.name.partition(".")[0] for piece in FOLDER.glob("*.db.xz"))


def put(revision: str, path: Path) -> dict[str, Any]:
    """Put a copy of a piece at ``path`` and return its record."""
    path.write_bytes(lzma.decompress((FOLDER / f"{revision}.db.xz").read_bytes()))
    found: dict[str, Any] = json.loads((FOLDER / f"{revision}.json").read_text())
    return found


@pytest.mark.parametrize("revision", [REVISION])
def test_a_store_of_this_revision_holds_what_its_record_says(revision: str, path: Path) -> None:
    expected = put(revision, path)
    assert text(record(path)) == text(expected)
    invariants.check(path)
