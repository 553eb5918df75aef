"""A closed file is cut off, at any length: every read is right, or a named error."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import damage
import pytest
import torch
from tally import count

import paramstore
from paramstore import ParamStoreError
from paramstore.checking import verify_database
from paramstore.db.engine import Database

PAGE = 65536


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cut") / "whole.db"
    damage.make(path)
    return path


def lengths(size: int, *, full: bool) -> list[int]:
    """Round every end of a page, and anywhere."""
    boundaries = [end + by for end in range(0, size, PAGE) for by in (-1, 0, 1) if end + by >= 0]
    anywhere = [random.Random(5).randrange(size) for _ in range(2000)]
    small = list(range(1, 200)) if full else [1, 15, 16, 99, 100, 101]
    return [*boundaries, *small, *anywhere[: 2000 if full else 60]]


def test_no_length_makes_a_read_wrong_and_verify_finds_each(
    whole: Path, path: Path, full: bool
) -> None:
    answers, size = damage.truth(whole), whole.stat().st_size
    chosen = lengths(size, full=full)
    shutil.copy(whole, path)
    for length in sorted(chosen, reverse=True):
        with path.open("r+b") as file:
            file.truncate(length)
        outcome = damage.examine(path, answers)
        assert not outcome.wrong, (length, outcome.wrong)
        # Where no read has lost anything, the page was free, or of what no read looks at.
        if not outcome.errors and damage.rows(path) != damage.rows(whole):
            database = Database.open(path, readonly=True)
            assert not verify_database(database).ok, length
            database.close()
    count("truncations", len(chosen))


@pytest.mark.parametrize("pages", [0, 1, 5, 20])
def test_a_commit_on_a_file_that_was_cut_off_is_refused_or_whole(
    whole: Path, path: Path, pages: int
) -> None:
    data = whole.read_bytes()
    path.write_bytes(data[: pages * PAGE + 1])
    try:
        with paramstore.open(path, scope="new") as store:
            store["x"] = torch.ones(3)
            ref = store.commit(step=1).ref
    except ParamStoreError:
        return
    with paramstore.open(path, scope="new") as store:
        assert store.at(ref)["x"].tolist() == [1.0] * 3


def test_a_long_file_cut_off_leaves_the_snapshots_before_the_cut(path: Path, full: bool) -> None:
    with paramstore.open(path) as store:
        store["w"] = torch.zeros(100_000)
        for version in range(1, 11):
            store["w"] = torch.full((100_000,), float(version))
            store.commit(step=version)
    data = path.read_bytes()
    for length in random.Random(6).sample(range(len(data)), 300 if full else 15):
        path.write_bytes(data[:length])
        try:
            with paramstore.open(path, readonly=True) as store:
                right = 0
                for version in range(1, 11):
                    try:
                        view = store.at(version)
                        assert view["w"].unique().tolist() == [float(version)]
                        assert view.snapshot.step == version
                        right += 1
                    except ParamStoreError:
                        continue
        except ParamStoreError:
            continue
        assert right < 10 or length > len(data) - PAGE
    count("truncations", 300 if full else 15)
