"""What cannot fit is refused before anything is written, and nothing else is."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import paramstore
from paramstore.db import room
from paramstore.errors import StorageError


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the file system says is free."""
    disk = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk)
    return disk


@pytest.mark.parametrize("wait", [True, False])
def test_a_commit_that_cannot_fit_says_what_it_needs(
    wait: bool, free: SimpleNamespace, path: Path
) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.arange(2.0 * (1 << 20))
        free.free = 3 << 20
        with pytest.raises(StorageError, match=r"adds 8\.0 MiB.* 3\.\d MiB left"):
            made: Any = store.commit(wait=wait)
            made.result()
        assert not store.log()
        free.free = 9 << 20
        assert store.commit().version == 1


def test_what_did_not_change_and_what_is_stored_under_another_name_needs_no_room(
    free: SimpleNamespace, path: Path
) -> None:
    with paramstore.open(path) as store:
        free.free = 1 << 40
        store["x"] = torch.arange(2.0 * (1 << 20))
        store.commit()
        free.free = 0
        store["y"] = store["x"].clone()
        assert store.commit().version == 2


def test_empty_pages_of_the_file_are_room(free: SimpleNamespace, path: Path) -> None:
    with paramstore.open(path) as store:
        free.free = 1 << 40
        store["x"] = torch.arange(2.0 * (1 << 20))
        store.commit()
        store["x"] = torch.zeros(2)
        store.commit()
        with store._session.repository.database.write() as connection:
            for table in ("chunks", "blobs", "snapshot_params", "param_versions"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
            free.free = 0
        room.check(store._session.repository.database, {b"digest": 7 << 20})
        with pytest.raises(StorageError):
            room.check(store._session.repository.database, {b"digest": 12 << 20})


def test_in_memory_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(shutil, "disk_usage")
    with paramstore.open(":memory:") as store:
        store["x"] = torch.zeros(3)
        assert store.commit().version == 1
