"""Bytes of a closed file are changed one at a time: every read is right, or a named error.

Promised are tensors, names, constraints, kinds, steps and metrics. Statistics, tags, the parent's
name and the origin are not: `verify` finds those.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

import damage
import pytest
import torch
from tally import count

import paramstore
from paramstore import CorruptError
from paramstore.checking import verify_database
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.refs import parse_ref
from paramstore.testing.bits import bits

# Columns by place, where no check can tell another value from the right one: it would be one as
# well, or is the same within rounding, or means nothing.
NOT_LOOKED_AT = {
    # Who had it first; norm, mean and std, and others of a transform, all within rounding: how far
    # that may go is in test_flipped_cells.py.
    b"param_versions": {1, *range(8, 13), 15},
    b"scopes": {3},  # when it was made
    b"snapshots": {13},  # who committed it
    b"sqlite_sequence": {1},  # a higher one leaves ids out
    b"tags": {1, 2},  # another name, another snapshot of the scope, as somebody may have set them
}


@dataclass(frozen=True)
class Whole:
    """An intact file and what it says."""

    path: Path
    data: bytes
    answers: dict[str, object]
    rows: object

    @contextmanager
    def flipped(self, flips: dict[int, int]) -> Iterator[Path]:
        """The file with some bytes changed, by place and bits; nobody has it open."""
        with self.path.open("r+b", buffering=0) as file:
            self._write(file, flips)
        try:
            yield self.path
        finally:
            with self.path.open("r+b", buffering=0) as file:
                self._write(file, dict.fromkeys(flips, 0))
            assert self.path.stat().st_size == len(self.data)

    def _write(self, file: BinaryIO, flips: dict[int, int]) -> None:
        for place, mask in flips.items():
            file.seek(place)
            file.write(bytes([self.data[place] ^ mask]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("flips") / "run.db"
    damage.make(path)
    return Whole(path, path.read_bytes(), damage.truth(path), damage.rows(path))


def places(data: bytes, *, filler: bool) -> list[int]:
    return [place for place, byte in enumerate(data) if (byte == 0) == filler]


def test_no_byte_makes_a_read_wrong(whole: Whole, full: bool) -> None:
    found = places(whole.data, filler=False)
    chosen = found if full else random.Random(0).sample(found, 400)
    random.Random(1).shuffle(chosen)
    wrong: list[object] = []
    for number, place in enumerate(chosen):
        mask = random.Random(place).randrange(1, 256)
        with whole.flipped({place: mask}) as path:
            found_wrong, harmless = ask(path, whole)
            if harmless and (number < 100 or full):
                found_wrong += unverified(path, whole)
        if found_wrong:
            wrong.append((place, mask, found_wrong))
    assert not wrong, (len(wrong), wrong[:5])
    count("flips", len(chosen))


def ask(path: Path, whole: Whole) -> tuple[list[str], bool]:
    """What a damaged file says wrong, and whether it says everything right."""
    try:
        outcome = damage.examine(path, whole.answers)
    except Exception:  # noqa: BLE001  # no error of the library
        return [traceback.format_exc()], False
    return outcome.wrong, not outcome.errors


def unverified(path: Path, whole: Whole) -> list[str]:
    """Rows that differ and that neither a read nor `verify` has found."""
    database = Database.open(path, readonly=True)
    try:
        if not verify_database(database).ok:
            return []
    except paramstore.DatabaseError:
        return []
    finally:
        database.close()
    rows, wanted = damage.rows(path), whole.rows
    assert isinstance(wanted, dict)
    assert isinstance(rows, dict)
    return [
        f"{table!r}: {one} instead of {other}"
        for table, right in wanted.items()
        for one, other in zip_longest(rows[table], right, fillvalue=())
        if not _differing(one, other) <= NOT_LOOKED_AT.get(table, set())
    ]


def _differing(one: tuple[object, ...], other: tuple[object, ...]) -> set[int]:
    pairs = enumerate(zip_longest(one, other))
    return {place for place, (found, right) in pairs if found != right}


def test_no_byte_of_filler_makes_a_read_wrong(whole: Whole, full: bool) -> None:
    chosen = random.Random(2).sample(places(whole.data, filler=True), 10_000 if full else 150)
    for place in chosen:
        with whole.flipped({place: random.Random(place).randrange(1, 256)}) as path:
            wrong, _ = ask(path, whole)
            assert not wrong, (place, wrong)
    count("flips", len(chosen))


def test_no_handful_of_bytes_makes_a_read_wrong(whole: Whole, full: bool) -> None:
    found, rng = places(whole.data, filler=False), random.Random(3)
    times = 3000 if full else 100
    for _ in range(times):
        flips = {place: rng.randrange(1, 256) for place in rng.sample(found, rng.randint(2, 8))}
        with whole.flipped(flips) as path:
            wrong, _ = ask(path, whole)
            assert not wrong, (flips, wrong)
    count("flips", times)


def test_a_byte_of_a_tensor_names_the_parameters_and_snapshots_that_hold_it(whole: Whole) -> None:
    database = Database.open(whole.path, readonly=True)
    repository = Repository(database)
    holders: dict[bytes, set[str]] = {}
    names: dict[bytes, set[str]] = {}
    for ref in damage.REFS:
        snapshot = repository.resolve(parse_ref(ref), "main")
        for name, entry in repository.manifest(snapshot).entries.items():
            ((_, _, data),) = repository.read_blobs([entry.blob_id])
            holders.setdefault(data, set()).add(ref)
            names.setdefault(data, set()).add(name)
    database.close()
    times = 0
    for data, refs in holders.items():
        if whole.data.count(data) != 1:  # several small blobs may hold the same
            continue
        start = whole.data.index(data)
        for place in (start, start + 20, start + len(data) - 1):
            with whole.flipped({place: 0x55}) as path:
                outcome = damage.examine(path, whole.answers)
            assert not outcome.wrong
            assert set(damage.REFS) & outcome.right == set(damage.REFS) - refs
            for ref in refs:
                error = outcome.errors[ref]
                assert isinstance(error, CorruptError), error
                assert error.params
                assert set(error.params) <= names[data]
                assert set(error.snapshots) == refs
            times += 1
    assert times > 20
    count("flips", times)


def test_a_byte_of_a_large_store_spoils_what_it_names_and_nothing_else(
    tmp_path: Path, full: bool
) -> None:
    path, size = tmp_path / "large.db", (24 if full else 6)
    wanted: dict[str, dict[str, bytes]] = {}
    with paramstore.open(path, statistics=False) as store:
        for version in range(1, 4):
            for number in range(size):
                if (number + version) % 3 == 0 or version == 1:
                    store[f"w{number}"] = torch.randn(250_000 + number)
            ref = store.commit(step=version).ref
            wanted[ref] = {name: bits(value) for name, value in store.items()}
    data, rng = path.read_bytes(), random.Random(4)
    whole = Whole(path, data, {}, None)
    times = 400 if full else 10
    for _ in range(times):
        flips = {rng.randrange(1 << 17, len(data)): 1 << rng.randrange(8)}
        with whole.flipped(flips):
            spoilt = assert_right_or_named(path, wanted)
            assert len(spoilt) < 4, (flips, spoilt)
    count("flips", times)


def assert_right_or_named(path: Path, wanted: dict[str, dict[str, bytes]]) -> set[str]:
    """Read every tensor through a store; return the names that errors told."""
    told: set[str] = set()
    with paramstore.open(path, readonly=True) as store:
        for ref, values in wanted.items():
            for name, value in values.items():
                try:
                    view = store.at(ref)
                    assert set(view) == set(values)
                    assert bits(view[name]) == value
                except CorruptError as error:
                    told |= said_by(error, ref, name)
    return told


def said_by(error: CorruptError, ref: str, name: str) -> set[str]:
    """The names that an error tells, which has to tell the reference."""
    assert ref in error.snapshots
    assert name in error.params or not error.params
    return {*error.params}
