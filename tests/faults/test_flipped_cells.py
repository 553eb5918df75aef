"""Every byte of the cells that no digest covers is changed: `verify` reports it, or it is harmless.

These are the statistics, the tags, the versions of values and the counters of ids. The bounds that
are asserted here are those of docs/damage.md.
"""

from __future__ import annotations

import random
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tally import count
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import InvalidNameError, Verified
from paramstore.checking import verify_database
from paramstore.db.engine import Database
from paramstore.db.placeholders import STATISTICS
from paramstore.refs import check_tag_name

BOUNDS = 10  # no constraint here adds more


class Buffers(nn.Module):
    """What is stored beside parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.arange(7))
        self.register_buffer("number", torch.tensor(12345))
        self.register_buffer("yes", torch.tensor(True))


def make(path: Path) -> None:
    """Three snapshots and four tags; values of all kinds of dtype and transform."""
    with paramstore.open(path) as store:
        store["f32"] = torch.randn(50)
        store["f64"] = torch.randn(9, dtype=torch.float64)
        store["bf16"] = torch.randn(20).bfloat16()
        store["far"] = 1000 + torch.randn(5000) / 100
        store["same"] = torch.full((4,), 0.1)
        store["odd"] = torch.tensor([float("nan"), float("inf"), 0.3, -0.0])
        store["nothing"] = torch.zeros(0)
        store["all nan"] = torch.full((2,), float("nan"))
        store["complex"] = torch.randn(3, dtype=torch.complex64)
        store["one"] = torch.tensor(-2.75)
        store["one complex"] = torch.tensor(1.5 - 2.5j)
        store.module("net", Buffers())
        bound = torch.arange(3.0)
        for name, value, constraint in (
            ("positive", torch.rand(30) + 0.1, constraints.positive),
            ("one positive", torch.tensor(0.7), constraints.positive),
            ("no positive", torch.zeros(0), constraints.positive),
            ("inside", torch.rand(8), constraints.interval(-3.0, 5.0)),
            ("simplex", torch.tensor([0.1, 0.2, 0.7]), constraints.simplex),
            ("bounded", bound + 0.5, constraints.greater_than(bound)),
            ("huge", torch.full((70_000,), 1 / 70_000), constraints.simplex),
        ):
            store.setdefault(name, value, constraint=constraint)
        store.commit(tags=["first", "warm"])
        store["f32"] = torch.randn(50)
        store.commit(tags=["best so far"])
        store.fork("side")
        store["one"] = torch.tensor(float("nan"))
        store.commit(tags=["wärmer"])


@dataclass(frozen=True)
class Store:
    """An intact store, in which a cell can be changed for a while."""

    connection: sqlite3.Connection
    database: Database

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def found(self, table: str, column: str, row: int, cell: Any) -> Verified:
        """What `verify` finds while one row, by its place, holds another cell.

        Raises:
            sqlite3.IntegrityError: the schema does not admit it.
        """
        intact = self.rows(f"SELECT * FROM {table}")
        names = [name for _, name, *_ in self.rows(f"PRAGMA table_info({table})")]
        altered = list(intact[row])
        altered[names.index(column)] = cell
        self._fill(table, [*intact[:row], altered, *intact[row + 1 :]])
        try:
            return verify_database(self.database)
        finally:
            self._fill(table, intact)

    def _fill(self, table: str, rows: list[Any]) -> None:
        with self.connection:
            self.connection.execute(f"DELETE FROM {table}")
            for row in rows:  # bytes are a text that may be none
                holes = ["CAST(? AS TEXT)" if isinstance(cell, bytes) else "?" for cell in row]
                self.connection.execute(f"INSERT INTO {table} VALUES ({', '.join(holes)})", row)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("cells") / "run.db"
    make(path)
    database = Database.open(path, readonly=True)
    with closing(sqlite3.connect(path)) as connection:
        assert verify_database(database).ok
        yield Store(connection, database)
        assert verify_database(database).ok
    database.close()


def flips(cell: Any, *, full: bool) -> Iterator[Any]:
    """The cell with one byte changed, each in turn; as SQLite stores numbers, in few bytes."""
    data = stored(cell)
    for place in range(len(data)):
        rng = random.Random(f"{cell!r} {place}")
        bits = [1 << bit for bit in range(8)]
        masks = [*bits, *rng.sample(range(1, 256), 8)] if full else [rng.choice(bits)]
        for mask in masks:
            altered = bytearray(data)
            altered[place] ^= mask
            yield read(bytes(altered), like=cell)
    if cell is not None:
        yield None


def stored(cell: Any) -> bytes:
    if isinstance(cell, float):
        return struct.pack(">d", cell)
    if isinstance(cell, int):
        return cell.to_bytes(cell.bit_length() // 8 + 1, "big", signed=True)
    return b"" if cell is None else str(cell).encode()


def read(data: bytes, *, like: Any) -> Any:
    if isinstance(like, float):
        (number,) = struct.unpack(">d", data)
        return number
    return int.from_bytes(data, "big", signed=True) if isinstance(like, int) else data


# -- statistics --------------------------------------------------------------------


@pytest.mark.parametrize("column", STATISTICS)
def test_no_altered_statistic_stays_unnoticed(store: Store, column: str, full: bool) -> None:
    values = store.rows(
        f"SELECT {column}, norm, mean, std, spec, dtype, params.name FROM param_versions "
        "JOIN blobs ON blobs.id = blob_id JOIN constraints ON constraints.id = constraint_id "
        "JOIN params ON params.id = param_id ORDER BY param_versions.id"
    )
    times = 0
    for row, (old, *about, name) in enumerate(values):
        for new in flips(old, full=full):
            found = store.found("param_versions", column, row, new)
            times += 1
            if not is_harmless(column, old, new, *about):
                assert {p.kind for p in found.problems} in ({"statistics"}, {"file"}), (name, new)
                assert all(name in p.params for p in found.problems if p.kind == "statistics")
    count("cells", times)


def is_harmless(column: str, old: Any, new: Any, *about: Any) -> bool:
    """Whether a statistic is what it was, as far as another machine's may be apart."""
    norm, mean, std, spec, dtype = about
    if column == "unconstrained":
        return bool(old) == bool(new)
    if old is None or new is None or column in ("nan_count", "inf_count"):
        return bool(old == new)
    if column == "value":
        return old.encode() == new or ("real" not in spec and is_near(old, new))
    wide = 0.0 if "real" in spec else 2e-6 * (abs(old) + BOUNDS)
    if column in ("min", "max"):
        return bool(abs(new - old) <= wide + 2e-38)
    if column == "norm":
        return bool(abs(new - old) <= (2e-13 if mean is not None else 3e-5) * norm)
    some = 0.0 if dtype == "F64" or dtype.startswith("I") else 2e-5 * std
    return bool(abs(new - old) <= some + wide + 2e-13 * norm + 2e-38)


def is_near(old: str, new: bytes) -> bool:
    try:
        return abs(float(new) - float(old)) <= 2e-6
    except ValueError:
        return False


def test_statistics_that_are_gone_in_part_are_found(store: Store) -> None:
    for column in ("nan_count", "inf_count"):
        found = store.found("param_versions", column, 0, None)
        assert {p.kind for p in found.problems} == {"statistics"}


# -- what else no digest covers ----------------------------------------------------


def test_an_altered_tag_is_found_unless_somebody_may_have_set_it(store: Store, full: bool) -> None:
    scopes = dict(store.rows("SELECT id, scope_id FROM snapshots"))
    times = 0
    for row, (scope, name, snapshot) in enumerate(store.rows("SELECT * FROM tags")):
        for column, old in (("scope_id", scope), ("name", name), ("snapshot_id", snapshot)):
            for new in flips(old, full=full):
                try:
                    found = store.found("tags", column, row, new)
                except sqlite3.IntegrityError:
                    continue
                may_be = scopes.get(new) == scope if column == "snapshot_id" else is_tag(new)
                assert found.ok == may_be, (column, old, new, found)
                times += 1
    assert times > 30
    count("cells", times)


def is_tag(name: Any) -> bool:
    try:
        return bool(check_tag_name(name.decode()))
    except (InvalidNameError, UnicodeDecodeError, AttributeError):
        return False


def test_an_altered_version_of_a_value_is_found(store: Store, full: bool) -> None:
    versions = store.rows("SELECT version FROM param_versions ORDER BY id")
    for row, (version,) in enumerate(versions):
        for new in [0, -1, 2**40, *flips(version, full=full)]:
            if new is not None:
                found = store.found("param_versions", "version", row, new)
                assert {p.kind for p in found.problems} == {"history"}, (row, version, new)
                count("cells", 1)


def test_an_altered_counter_of_ids_is_found_unless_it_only_leaves_ids_out(
    store: Store, full: bool
) -> None:
    times = 0
    for row, (name, seq) in enumerate(store.rows("SELECT * FROM sqlite_sequence")):
        for new in flips(name, full=full):
            assert not store.found("sqlite_sequence", "name", row, new).ok, (name, new)
            times += 1
        for new in [0, -1, str(seq) + "x", *flips(seq, full=full)]:
            found = store.found("sqlite_sequence", "seq", row, new)
            assert found.ok == (isinstance(new, int) and new >= seq), (name, seq, new)
            times += 1
    count("cells", times)
