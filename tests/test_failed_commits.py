"""A commit that failed leaves a store that goes on, also where the error came at the very end."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore.db import sqlite
from paramstore.errors import StorageError


def fail_after_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one COMMIT do its work, and then fail: as when the sync of the voided journal does."""
    commit, failing = sqlite.Connection.commit, [True]

    def failing_commit(connection: sqlite.Connection) -> None:
        commit(connection)
        if failing:
            failing.clear()
            raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(sqlite.Connection, "commit", failing_commit)


@pytest.mark.parametrize("wait", [True, False])
def test_a_commit_that_failed_and_is_there_is_the_one_that_the_next_continues(
    wait: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(2)
        store.commit(step=1)
        store["x"] = torch.ones(2)
        fail_after_the_next(monkeypatch)
        with pytest.raises(paramstore.DatabaseError, match="I/O error") as caught:
            made: Any = store.commit(step=2, extras={"of": "two"}, wait=wait)
            made.result()
        assert "main@2 is in the file all the same" in caught.value.__notes__[0]
        assert store.last is not None
        assert (store.last.ref, store.last.extras) == ("main@2", {"of": "two"})
        assert store.changed() == ()
        store["x"] = torch.full((2,), 3.0)
        assert store.commit(step=3).parent == "main@2"
        assert [row.step for row in store.history("x")] == [1, 2, 3]


def test_a_connection_that_could_only_be_opened_for_reading_does_not_stay(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite.connect
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(2)
        store.commit()
        # What SQLite does, without a word, when there is no file descriptor left for a journal.
        monkeypatch.setattr(sqlite, "connect", lambda path, mode: connect(path, "ro"))
        store._session.backend.database.before_fork()  # it closes what is idle
        with pytest.raises(StorageError, match="readonly"):
            store.commit()
        monkeypatch.undo()
        assert store.commit().version == 2
