"""A power cut at any moment: as if only what was synced had reached the disk, and a bit more."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import aftermath
import pytest
import runs
import tally
from blake3 import blake3
from cases import Cases, sample
from disk import CALLS, Disk
from disturb import disturbed, unavailable
from ledger import Ledger

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

QUICK, FULL = 4, 20
"""Moments of each run in the two selections; three images of each, where they differ."""

Image = tuple[str, list[str], dict[str, bytes]]
"""What was done last, what had been said until then, and the files."""


def traced(cases: Cases, folder: Path) -> Disk:
    """Run the case under strace, and return the disk before it, with the trace to replay."""
    path = cases.fresh()
    disk = Disk(path.parent, {file.name: file.read_bytes() for file in path.parent.iterdir()})
    trace = f"--trace={','.join(CALLS)}"
    fault = ["-o", str(folder / "trace"), "-y", "-xx", "-s", "1000000", trace]
    assert disturbed(cases.begin(path), *fault).status == 0
    return disk


def moments(disk: Disk, trace: str) -> int:
    """How many calls change something."""
    return sum(1 for _ in disk.replay(trace))


def images(disk: Disk, trace: str, chosen: set[int]) -> Iterator[Image]:
    """Yield what may be on the disk after each of some calls, nothing twice."""
    chance, seen = random.Random(0), set()
    for place, call in enumerate(disk.replay(trace)):
        if place not in chosen:
            continue
        for kind, files in (
            ("nothing", disk.with_nothing_pending()),
            ("some", disk.with_some_pending(chance, torn=False)),
            ("torn", disk.with_some_pending(chance, torn=True)),
        ):
            digest = image_digest(files, disk.lines)
            if digest not in seen:
                seen.add(digest)
                yield f"{kind} of what was pending after call {place}, {call}", [*disk.lines], files


def image_digest(files: dict[str, bytes], lines: list[str]) -> bytes:
    """What tells two images apart."""
    hasher = blake3("\n".join(lines).encode())
    for name, content in sorted(files.items()):
        hasher.update(f"\n{name} {len(content)}\n".encode())
        hasher.update(content)
    return hasher.digest()


def restored(cases: Cases, image: Image) -> Path:
    """Put the files of an image where a store can be opened."""
    path = cases.emptied()
    for name, content in image[2].items():
        if not name.endswith("-shm"):  # memory, and gone with the power
            path.with_name(name).write_bytes(content)
    return path


@pytest.mark.parametrize("name", runs.RUNS)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_confirmed(
    name: str, full: bool, tmp_path: Path
) -> None:
    cases = Cases(runs.RUNS[name], tmp_path)
    before = traced(cases, tmp_path)
    trace = (tmp_path / "trace").read_text()
    disk = before.copied()
    places = range(moments(before.copied(), trace))
    chosen = set(sample(places, FULL if full else QUICK))
    for image in images(disk, trace, chosen):
        path = restored(cases, image)
        try:
            aftermath.check(path, Ledger(cases.said + image[1]), [cases.run.scope])
        except Exception as error:
            error.add_note(f"{name!r}, {image[0]}; said: {image[1]}")
            raise
        tally.count("power cuts")


def test_a_store_that_does_not_wait_for_the_disk_loses_what_it_confirmed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cases = Cases(runs.RUNS["everything"], tmp_path)
    monkeypatch.setattr("paramstore.db.sqlite.PRAGMAS", (("synchronous", "OFF"),))
    disk = traced(cases, tmp_path)
    monkeypatch.undo()
    last = None
    for _ in disk.replay((tmp_path / "trace").read_text()):
        last = ("at the end", [*disk.lines], disk.with_nothing_pending())
    assert last is not None
    with pytest.raises(AssertionError, match="lost"):
        aftermath.check(restored(cases, last), Ledger(cases.said + last[1]))
