"""Whether a store stays small that is thinned again and again, and how long that takes.

Live bytes of scalars are those of their rows, as a file has them that SQLite has rewritten: a
scalar's row in the catalogue is larger than the scalar.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter

from bench import states, subject
from bench.harness import Settings, say
from bench.states import MIB, State
from bench.tables import Row, Table, Target
from paramstore import KeepBest, KeepEvery, KeepLast, ParamStoreDict

PARAMS = 500
ALLOWED = 4 * MIB  # of any store: empty tables take pages, too
RAW = "control: the file, read once"
DU, DRY, EXPIRE = "du", "expire, dry run", "expire"
GC_DRY, GC, COMPACT = "gc, dry run", "gc", "gc(compact=True), of what is left"
WAITED = "longest commit beside expire and gc"
FILE = "the file after gc, less 4 MiB, ÷ live bytes"
WHOLE = "the same with the 4 MiB"
POLICY = KeepLast(50) | KeepEvery(steps=1000) | KeepBest("loss", 3, mode="min")


def run(settings: Settings) -> list[Table]:
    """How long each takes on a large store; how large a store stays."""
    tables = [_times(settings)]
    number = settings.size(200, 20)
    for count, nbytes, part in ((number, 64 << 10, 0.3), (number, 256 << 10, 0.3)):
        tables.append(_steady(settings, count, nbytes, part, bound=1.2))
    tables.append(_steady(settings, settings.size(500, 50), states.FLOAT, 1.0, bound=2.0))
    tables.append(_steady(settings, settings.size(5000, 100), states.FLOAT, 0.05, bound=2.0))
    return tables


# -- time --------------------------------------------------------------------------


def _times(settings: Settings) -> Table:
    snapshots = settings.size(5000, 20)
    path = settings.folder / "run.db"
    with _in_memory(settings) as folder:
        grown = folder / "grown.db"
        _grow(grown, snapshots)
        samples = [_sample(grown, path) for _ in range(min(3, settings.repetitions))]
    rows = [Row(label=label, values=[s[label] for s in samples]) for label in samples[0]]
    return Table(
        title=f"{snapshots:,} snapshots of {PARAMS} small params, all changed in each",
        unit="s",
        rows=rows,
        control=RAW,
        targets=[
            Target(claim=f"{label}, s", row=label, bound=10.0, kind="worst")
            for label in (DU, EXPIRE, GC)
        ],
        note="Another thread commits to the same file all the time, except while it is compacted; "
        "the last row is the slowest of its commits. 55 snapshots stay.",
    )


@contextmanager
def _in_memory(settings: Settings) -> Iterator[Path]:
    """A folder where a commit waits for no disk, for what is not timed."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else settings.folder) as folder:
        yield Path(folder)


def _grow(path: Path, snapshots: int) -> None:
    say(f"thinning: {snapshots:,} commits of {PARAMS} params")
    state = states.equal_tensors(PARAMS, 16 * states.FLOAT)
    with subject.new_store(path, state) as store:
        for step in range(snapshots):
            states.change(state.values())
            store.commit(step=step, metrics={"loss": 1 / (step + 1)})


def _sample(grown: Path, path: Path) -> dict[str, float]:
    """Seconds of each step, on a copy on the disk under test."""
    shutil.copy(grown, path)
    os.sync()
    found = {RAW: _seconds(path.read_bytes)}
    with subject.open_store(path, scope="beside") as store:
        with _committing(path) as waits:
            found[DU] = _seconds(store.du)
            found[DRY] = _seconds(lambda: store.expire(POLICY, scope="main", dry_run=True))
            found[EXPIRE] = _seconds(lambda: store.expire(POLICY, scope="main"))
            found[GC_DRY] = _seconds(lambda: store.gc(dry_run=True))
            found[GC] = _seconds(store.gc)
        found[COMPACT] = _seconds(lambda: store.gc(compact=True))
    found[WAITED] = max(waits)
    subject.remove_store(path)
    return found


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


@contextmanager
def _committing(path: Path) -> Iterator[list[float]]:
    """Commit a little to a scope of its own until the block ends; the seconds of each commit."""
    seconds: list[float] = []
    ended = Event()

    def commit() -> None:
        state = states.equal_tensors(4, 64)
        with subject.open_store(path, scope="rival") as store:
            subject.fill(store, state)
            while not ended.wait(0.01):
                states.change(state.values())
                start = perf_counter()
                store.commit()
                seconds.append(perf_counter() - start)

    thread = Thread(target=commit)
    thread.start()
    try:
        yield seconds
    finally:
        ended.set()
        thread.join()


# -- space -------------------------------------------------------------------------


def _steady(settings: Settings, count: int, nbytes: int, part: float, *, bound: float) -> Table:
    rounds, commits = settings.size(20, 3), settings.size(10, 4)
    few, dice = max(1, round(count * part)), random.Random(5)
    size = f"{nbytes >> 10} KiB" if nbytes >= 1024 else "a scalar"
    title = (
        f"Thinned {rounds} times: {count:,} × {size}, {few:,} changed in each of {commits} commits"
    )
    say(f"thinning: {title}")
    state: State = states.equal_tensors(count, nbytes)
    ratios, step = [], 0
    with _in_memory(settings) as folder, subject.new_store(folder / "run.db", state) as store:
        path = folder / "run.db"
        for _ in range(rounds):
            for _ in range(commits):
                states.change(dice.sample(list(state.values()), few))
                store.commit(step=step)
                step += 1
            store.expire(KeepLast(3) | KeepEvery(steps=3 * commits))
            store.gc()
            live = _live(store, path, nbytes)
            ratios.append((path.stat().st_size / live, (path.stat().st_size - ALLOWED) / live))
    rows = [
        Row(label=FILE, values=[max(0.0, less) for _, less in ratios]),
        Row(label=WHOLE, values=[whole for whole, _ in ratios]),
    ]
    claim = f"{count:,} × {size}, {few:,} changed in each: file less 4 MiB ÷ live bytes"
    live_as = "distinct tensor bytes" if nbytes >= 1024 else "the size of a rewritten copy"
    return Table(
        title=title,
        unit="×",
        rows=rows,
        targets=[Target(claim=claim, row=FILE, bound=bound, kind="worst")],
        note=f"One sample after every thinning; live bytes are {live_as}.",
    )


def _live(store: ParamStoreDict, path: Path, nbytes: int) -> int:
    if nbytes >= 1024:
        return store.du().tensor_nbytes
    copy = path.with_suffix(".copy")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    found = copy.stat().st_size
    copy.unlink()
    return found
