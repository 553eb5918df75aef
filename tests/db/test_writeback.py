"""The disk is asked to begin early, through a descriptor that SQLite opened, and never has to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import paramstore
from paramstore.db import writeback

LARGE = torch.arange(writeback.STEP // 4 * 3, dtype=torch.float32)  # three steps

Hint = tuple[bool, int, int, int]


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Hint]:
    """What the kernel was asked for: whether about the database, and the other arguments."""
    asked: list[Hint] = []

    def record(descriptor: int, *arguments: int) -> int:
        of_database = os.path.samestat(os.fstat(descriptor), (tmp_path / "run.db").stat())
        asked.append((of_database, *arguments))  # type: ignore[arg-type]
        return 0

    monkeypatch.setattr(writeback, "_sync_file_range", lambda: record)
    return asked


def commit(where: str | Path) -> None:
    with paramstore.open(where) as store:
        store["large"] = LARGE
        store.commit()
        assert torch.equal(store.at(1)["large"], LARGE)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux")
def test_a_large_commit_lets_the_disk_begin_while_it_goes_on(
    hints: list[Hint], tmp_path: Path
) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    commit(tmp_path / "run.db")
    assert hints == [(True, 0, 0, 2)] * 3
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_small_commit_asks_for_nothing(hints: list[Hint], tmp_path: Path) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        store["small"] = torch.ones(1 << 16)
        store.commit()
    assert hints == []


def test_a_database_in_memory_asks_for_nothing(hints: list[Hint]) -> None:
    commit(":memory:")
    assert hints == []


@pytest.mark.parametrize("listing", ["empty", "missing"])
def test_where_no_descriptor_is_found_the_commit_is_made_all_the_same(
    listing: str, hints: list[Hint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(writeback, "_DESCRIPTORS", tmp_path / listing)
    commit(tmp_path / "run.db")
    assert hints == []


def test_without_the_system_call_the_commit_is_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(writeback, "_sync_file_range", lambda: None)
    commit(tmp_path / "run.db")


@pytest.mark.skipif(writeback._sync_file_range() is None, reason="needs Linux")
def test_a_descriptor_that_was_closed_meanwhile_is_looked_for_again(
    hints: list[Hint], tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    path.touch()
    first = os.open(path, os.O_RDWR)
    early = writeback.Writeback(path)
    early.wrote(writeback.STEP)
    second = os.open(path, os.O_RDWR)
    os.close(first)
    early.wrote(writeback.STEP)
    os.close(second)
    early.wrote(writeback.STEP)
    assert hints == [(True, 0, 0, 2)] * 2


def test_a_look_that_found_nothing_is_not_repeated(
    hints: list[Hint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "run.db"
    path.touch()
    early = writeback.Writeback(path)
    early.wrote(writeback.STEP)
    with path.open():
        early.wrote(writeback.STEP)
    assert hints == []
