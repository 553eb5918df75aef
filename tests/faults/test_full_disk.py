"""A disk that is full, really: a small file system in memory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aftermath
import pytest
import runs
import tally
import torch
from cases import Cases
from ledger import Ledger, Listener

import paramstore
from paramstore import StorageError

SIZE = 48 << 20
PAGE = 1 << 16
NAMES = ("first commit", "small change", "many MiB", "extras and optimiser", "background", "WAL")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "paramstore-test", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"may not mount a file system: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Filling(Listener):
    """Lets go of the space at the pause."""

    def __init__(self, filler: Path) -> None:
        super().__init__()
        self._filler = filler

    def pause(self) -> None:
        """Make room."""
        self._filler.unlink()


def fill(filler: Path, left: int) -> None:
    """Leave so many bytes free, or a little less."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while shutil.disk_usage(filler.parent).free > left:
            file.write(bytes(PAGE // 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_when_a_full_disk_has_space_again(
    name: str, full: bool, small_disk: Path
) -> None:
    cases = Cases(runs.RUNS[name], small_disk)
    filler = small_disk / "filler"
    pages = range(100 if name == "many MiB" else 20)
    for left in pages if full else (0, len(pages) // 3):
        path = cases.fresh()
        teller = Filling(filler)
        with cases.run.enduring(path) as do:
            fill(filler, left * PAGE)
            do(teller)
        notes = [line for line in teller.lines if line.startswith("note")]
        assert all(line.startswith("note StorageError") for line in notes), notes
        assert left or notes, "the disk was not full"
        aftermath.check(path, Ledger(cases.said + teller.lines), [cases.run.scope])
        tally.count("full disk", bool(notes))


def test_a_commit_that_cannot_fit_is_refused_before_it_writes(small_disk: Path) -> None:
    path = small_disk / "run.db"
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(100_000)
        store.commit()
        before = (path.stat().st_size, path.stat().st_mtime_ns)
        store["large"] = torch.zeros(15 << 20)
        with pytest.raises(
            StorageError, match=r"60\.0 MiB.* 4\d\.\d MiB left.*nothing was written"
        ):
            store.commit()
        assert (path.stat().st_size, path.stat().st_mtime_ns) == before
        store["large"] = torch.zeros(5 << 20)
        assert store.commit().version == 2
    tally.count("full disk")


def test_what_is_stored_already_needs_no_room(small_disk: Path) -> None:
    path = small_disk / "run.db"
    with paramstore.open(path) as store:
        store["large"] = torch.arange(7.0 * (1 << 20))
        store.commit()
        store["same"] = store["large"].clone()
        assert store.commit().version == 2
        assert store.commit().version == 3
