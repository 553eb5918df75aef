"""Every revision's piece of the museum is read by this version, after an upgrade, bit for bit."""

from __future__ import annotations

import json
import lzma
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from record import record, text

import paramstore
from paramstore.db import migrate, scripts
from paramstore.db.schema import REVISION
from paramstore.testing import invariants

FOLDER = Path(__file__).parent
REVISIONS = sorted(piece.name.partition(".")[0] for piece in FOLDER.glob("*.db.xz"))


def put(revision: str, path: Path) -> dict[str, Any]:
    """Put a copy of a piece at ``path`` and return its record."""
    path.write_bytes(lzma.decompress((FOLDER / f"{revision}.db.xz").read_bytes()))
    found: dict[str, Any] = json.loads((FOLDER / f"{revision}.json").read_text())
    return found


def test_every_revision_has_a_piece() -> None:
    assert tuple(REVISIONS) == scripts.known()


@pytest.mark.parametrize("revision", REVISIONS)
def test_after_an_upgrade_a_store_holds_what_its_record_says(revision: str, path: Path) -> None:
    expected = put(revision, path)
    done = migrate.upgrade(path)
    assert (done.before, done.after) == (revision, REVISION)
    assert text(record(path)) == text(expected)
    invariants.check(path)
    assert migrate.check(path) == ()


@pytest.mark.parametrize("revision", REVISIONS)
def test_after_an_upgrade_a_store_is_written_as_any_other(revision: str, path: Path) -> None:
    put(revision, path)
    migrate.upgrade(path)
    with paramstore.open(path) as store:
        before = store.latest
        assert before is not None
        store["one more"] = store["scale"].detach() + 1
        made = store.commit(step=1000)
        assert made.id > max(s.id for scope in store.scopes() for s in store.log(scope.name)[1:])
        assert (made.parent, made.changed) == (before.ref, 1)
    invariants.check(path)


@pytest.mark.parametrize("revision", REVISIONS[:-1])
@pytest.mark.parametrize("readonly", [False, True])
def test_an_older_store_is_not_upgraded_unasked(revision: str, readonly: bool, path: Path) -> None:
    put(revision, path)
    before = path.read_bytes()
    command = f"paramstore db upgrade {path}"
    with pytest.raises(paramstore.SchemaTooOldError, match=command) as caught:
        paramstore.open(path, readonly=readonly)
    assert repr(revision) in str(caught.value)
    assert repr(REVISION) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("revision", REVISIONS)
def test_the_tables_of_a_piece_are_what_its_migrations_make(revision: str, path: Path) -> None:
    put(revision, path)
    assert migrate.check(path) == ()
    assert migrate.current(path) == (revision, REVISION)


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_upgrade_and_back_leaves_what_was_there(revision: str, path: Path) -> None:
    def dump() -> list[str]:
        with closing(sqlite3.connect(path)) as connection:
            return list(connection.iterdump())

    put(revision, path)
    before = dump()
    migrate.upgrade(path)
    assert dump() != before
    migrate.downgrade(path, revision)
    assert sorted(dump()) == sorted(before)
    assert migrate.check(path) == ()


def test_the_record_sees_a_single_bit(path: Path) -> None:
    expected = put(REVISION, path)
    expected["main"]["snapshots"]["main@1"]["values"]["float16"]["unconstrained"][1] = (
        "003e0080017c"
    )
    assert text(record(path)) != text(expected)
