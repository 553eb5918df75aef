"""Every file has the rights that the user's umask leaves, and never more, also while it is made."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import paramstore


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def allowed(request: pytest.FixtureRequest) -> Iterator[int]:
    """The rights that a umask leaves to a file."""
    before = os.umask(request.param)
    try:
        yield 0o666 & ~request.param
    finally:
        os.umask(before)


def rights(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def check(folder: Path, allowed: int) -> None:
    for name, mode in rights(folder).items():
        assert not mode & ~allowed, (name, oct(mode))
        assert mode & 0o600 == 0o600, name


@pytest.mark.parametrize("journal", ["truncate", "wal"])
def test_a_store_its_journal_and_its_copies_keep_to_the_umask(
    tmp_path: Path, allowed: int, journal: str
) -> None:
    with paramstore.open(tmp_path / "run.db", journal=journal) as store:  # type: ignore[arg-type]
        store["x"] = torch.ones(3)
        store.commit()
        store.backup(tmp_path / "copy.db")
        store.save(str(tmp_path / "file"))
        check(tmp_path, allowed)
        assert len(rights(tmp_path)) >= 4  # a journal, too
    paramstore.salvage(tmp_path / "copy.db", tmp_path / "salvaged.db")
    check(tmp_path, allowed)


def test_a_journal_has_no_more_rights_than_its_database(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    paramstore.open(path).close()
    path.with_name("run.db-journal").unlink(missing_ok=True)
    path.chmod(0o600)
    before = os.umask(0)
    try:
        with paramstore.open(path) as store:
            store["x"] = torch.ones(3)
            store.commit()
            check(tmp_path, 0o600)
    finally:
        os.umask(before)


_watched: list[tuple[Path, list[int]]] = []


def _notice(event: str, arguments: tuple[object, ...]) -> None:
    # Before a draft takes its name: what it was while its content was in it.
    if event == "os.rename":
        for folder, modes in _watched:
            if Path(os.fsdecode(str(arguments[0]))).parent == folder:
                modes.append(stat.S_IMODE(Path(str(arguments[0])).stat().st_mode))


def test_drafts_keep_to_the_umask_before_they_have_their_name(tmp_path: Path, allowed: int) -> None:
    if not _watched:
        sys.addaudithook(_notice)  # for good: there is no way to take one back
    modes: list[int] = []
    _watched.append((tmp_path, modes))
    with paramstore.open(tmp_path / "run.db") as store:
        store["x"] = torch.ones(3)
        store.commit()
        store.save(str(tmp_path / "file"))
    assert modes
    assert all(mode == allowed for mode in modes)
