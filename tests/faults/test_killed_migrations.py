"""SIGKILL and power cuts at every system call by which a migration comes to the disk."""

from __future__ import annotations

import lzma
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import tally
from cases import sample
from disk import CALLS as TRACED
from disk import Disk
from disturb import WRITES, counted, disturbed, killing, unavailable
from ledger import Teller

from paramstore.db import migrate
from paramstore.db.schema import REVISION
from paramstore.testing import invariants

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

QUICK = 6
"""Kills of each migration in the quick selection."""
CALLS = (*WRITES, "link", "rename")
OLD = lzma.decompress((Path(__file__).parents[1] / "museum" / "0001.db.xz").read_bytes())


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.iterdump())


@contextmanager
def begun(work: Callable[[], object]) -> Iterator[Callable[[Teller], None]]:
    def do(_: Teller) -> None:
        work()

    yield do


def put(path: Path, content: bytes) -> None:
    """Put a file there, and nothing beside it."""
    for left in path.parent.iterdir():
        left.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("down", [False, True], ids=["upgrade", "downgrade"])
def test_a_killed_migration_leaves_the_old_store_or_the_new_one(
    down: bool, full: bool, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path.write_bytes(OLD)
    old = dump(path)
    migrate.upgrade(path, backup=False)
    new, upgraded = dump(path), path.read_bytes()
    work = partial(migrate.downgrade, path, "0001") if down else partial(migrate.upgrade, path)
    start, before, after = (upgraded, new, old) if down else (OLD, old, new)
    put(path, start)
    trace = tmp_path_factory.mktemp("trace") / "trace"
    counts = counted(partial(begun, work), trace, f"--trace={','.join(CALLS)}")
    points = [(call, n) for call in sorted(counts) for n in range(1, counts[call] + 1)]
    for call, when in points if full else sample(points, QUICK):
        put(path, start)
        outcome = disturbed(partial(begun, work), *killing(call, when))
        assert outcome.killed, (call, when, outcome)
        assert dump(path) in (before, after), (call, when)
        for copy in path.parent.glob("run.db.*.bak"):
            assert dump(copy) == before, (call, when)
            copy.unlink()
        work()
        assert dump(path) == after, (call, when)
        tally.count("migrations")
    if not down:
        invariants.check(path)


def test_a_power_cut_in_an_upgrade_leaves_the_old_store_or_the_new_one(
    full: bool, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    work = partial(migrate.upgrade, path, backup=False)
    path.write_bytes(OLD)
    old = dump(path)
    work()
    new = dump(path)
    put(path, OLD)
    trace = tmp_path_factory.mktemp("trace") / "trace"
    options = ["-o", str(trace), "-y", "-xx", "-s", "1000000", f"--trace={','.join(TRACED)}"]
    assert disturbed(partial(begun, work), *options).status == 0
    disk, chance = Disk(path.parent, {path.name: OLD}), random.Random(0)
    images = [
        files
        for _ in disk.replay(trace.read_text())
        for files in (
            disk.with_nothing_pending(),
            *(disk.with_some_pending(chance, torn=torn) for torn in (False, True)),
        )
    ]
    found = []
    for files in images if full else sample(images, QUICK):
        put(path, b"")
        for name, content in files.items():
            path.with_name(name).write_bytes(content)
        found.append(dump(path))
        assert found[-1] in (old, new)
        assert work().after == REVISION
        assert dump(path) == new
        tally.count("power cuts")
    assert found[0] == old
    assert found[-1] == new
