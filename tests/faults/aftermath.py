"""What has to be true of a file after any fault.

Looks at the file as the next run would; what it writes is one more commit.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import content
from content import Key
from ledger import Ledger

import paramstore
from paramstore.testing import invariants


def check(path: Path, ledger: Ledger, scopes: Iterable[str] = ("main",)) -> None:
    """Check all that is promised after a fault; what is found then is what the ledger confirms.

    Args:
        path: the file; none, or an empty one, where the first commit was disturbed.
        ledger: what the run said.
        scopes: those in which the next commit has to work.
    """
    paramstore.open(path).close()
    found = _snapshots(path)
    assert ledger.confirmed <= found, f"lost: {sorted(ledger.confirmed - found)}"
    more = found - ledger.confirmed - ledger.possible
    assert not more, f"should not be there: {sorted(more)}"
    _is_sound(path)
    ledger.confirmed = found | {_continue(path, scope) for scope in scopes}
    ledger.possible = set()
    _is_sound_to_sqlite(path)


def _snapshots(path: Path) -> set[Key]:
    """Compare every snapshot with what it has to be."""
    found = []
    with paramstore.open(path, readonly=True) as store:
        for scope in store.scopes():
            for snapshot in store.log(scope.name):
                found.append(content.check(store.at(snapshot)))
    assert len(set(found)) == len(found), "two snapshots of one commit"
    return set(found)


def _is_sound(path: Path) -> None:
    """Let SQLite, our invariants and our own verb look at the whole file."""
    _is_sound_to_sqlite(path)
    invariants.check(path)
    with paramstore.open(path, readonly=True) as store:
        verified = store.verify()
        assert verified.ok, verified


def _is_sound_to_sqlite(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def _continue(path: Path, scope: str) -> Key:
    """Resume a scope, and commit to it."""
    with content.opened(path, scope) as (store, training):
        newest = store.last
        key = content.next_key(store)
        if newest is not None:  # what was resumed is what is stored
            assert content.check(store.at(newest)).step == key.step - 1
        training.train(key.step)
        content.put(store, key)
        committed = store.commit(**content.about(key))
        assert content.check(store.at(committed)) == key
        assert committed.version == (newest.version if newest else 0) + 1
    return key
