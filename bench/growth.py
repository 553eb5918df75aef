"""Whether commits and history stay as fast as they were after thousands of snapshots.

The grown store and a young one are committed to in turns, so that both see the same disk.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from bench import peers, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.states import State
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict

PARAMS = 500
ELEMENTS = 16
RAW = "control: write + fsync of the same bytes"
FIRST = "the first hundred, timed while it grew"
LAST = "the last hundred"
YOUNG = "the first hundred of a young store, in turns with them"

ROWS = "control: 100 rows by primary key"
LONG = "paramstore, history of the last 100 of the grown store"
SHORT = "paramstore, history of the last 100 of the young store"
VIEW = "sqlite3 alone, last 100 of the view, grown store"


def run(settings: Settings) -> list[Table]:
    """Growth of the commit, then the history by name on what has grown."""
    folder, hundred = settings.folder, settings.size(100, 10)
    commits = settings.size(2000, 30)
    grown, young = (states.equal_tensors(PARAMS, ELEMENTS * states.FLOAT) for _ in range(2))
    say(f"growth: {commits:,} commits of {PARAMS} small params")
    with (
        subject.new_store(folder / "grown.db", grown) as old,
        subject.new_store(folder / "young.db", young) as new,
    ):
        first = [_commit(old, grown) for _ in range(commits - hundred)][:hundred]
        rows = _last_hundred(folder, hundred, (old, grown), (new, young))
        _commit(new, young)  # one more than the hundred that history is asked for
        history = _history(settings, old, new, hundred)
    rows.insert(1, Row(label=FIRST, values=_blocks(first)))
    _clean(folder)
    return [_growth_table(rows, commits), history]


def _growth_table(rows: list[Row], commits: int) -> Table:
    claim = f"{commits:,} commits of 500 small params, all changed: last hundred ÷ first hundred"
    targets = [
        Target(claim=claim, row=LAST, peer=FIRST, bound=1.3),
        Target(claim=f"{claim} of a young store", row=LAST, peer=YOUNG, bound=1.3),
    ]
    return Table(
        title=f"Commit of {PARAMS} small params, all changed, {commits:,} times",
        unit="ms",
        rows=rows,
        control=RAW,
        targets=targets,
        note="Milliseconds per commit; a sample is the mean of ten consecutive commits.",
    )


def _commit(store: ParamStoreDict, state: State) -> float:
    states.change(state.values())
    start = perf_counter()
    store.commit()
    return perf_counter() - start


Side = tuple[ParamStoreDict, State]


def _last_hundred(folder: Path, hundred: int, old: Side, new: Side) -> list[Row]:
    raw, last, young = [], [], []
    data = memoryview(os.urandom(PARAMS * ELEMENTS * states.FLOAT))
    for i in range(hundred):
        raw.append(_write(folder / f"raw-{i}", data))
        last.append(_commit(*old))
        young.append(_commit(*new))
    pairs = {RAW: raw, LAST: last, YOUNG: young}
    return [Row(label=label, values=_blocks(values)) for label, values in pairs.items()]


def _write(path: Path, data: memoryview) -> float:
    start = perf_counter()
    peers.save_raw(path, data)
    return perf_counter() - start


def _blocks(seconds: list[float]) -> list[float]:
    """Means of ten blocks, in milliseconds: single small fsyncs scatter too much to compare."""
    size = max(1, len(seconds) // 10)
    parts = [seconds[i : i + size] for i in range(0, size * 10, size)]
    return [sum(part) / len(part) * 1e3 for part in parts]


def _history(settings: Settings, old: ParamStoreDict, new: ParamStoreDict, last: int) -> Table:
    loops, name = settings.size(20, 2), sorted(old.keys())[PARAMS // 2]

    def ask(store: ParamStoreDict) -> Callable[[], None]:
        def asks() -> None:
            for _ in range(loops):
                rows = store.history(name, limit=last)
                if len(rows) != last:
                    raise RuntimeError(f"asked for {last} versions of {name!r}, got {len(rows)}")

        return asks

    def measure() -> list[Row]:
        connection = sqlite3.connect(settings.folder / "grown.db")
        try:
            cases = [
                Case(label=ROWS, run=lambda: _keyed(connection, last, loops), loops=loops),
                Case(label=VIEW, run=lambda: _viewed(connection, name, last, loops), loops=loops),
                Case(label=LONG, run=ask(old), loops=loops),
                Case(label=SHORT, run=ask(new), loops=loops),
            ]
            return interleave(cases, settings.repetitions)
        finally:
            connection.close()

    rows, runs = quiet(settings, measure, ROWS)
    targets = [
        Target(
            claim="history of the last 100 snapshots by name, ms",
            row=LONG,
            bound=2.0,
            kind="median",
        ),
        Target(
            claim="history is flat: after 2,000 snapshots ÷ after 100",
            row=LONG,
            peer=SHORT,
            bound=1.3,
        ),
    ]
    title = f"History of one param over its last {last} snapshots"
    return Table(title=title, unit="ms", rows=rows, control=ROWS, targets=targets, runs=runs)


def _keyed(connection: sqlite3.Connection, last: int, loops: int) -> None:
    query = "SELECT * FROM param_versions WHERE id <= ? ORDER BY id DESC LIMIT ?"
    for i in range(loops):
        connection.execute(query, (last * (i + 1), last)).fetchall()


def _viewed(connection: sqlite3.Connection, name: str, last: int, loops: int) -> None:
    query = (
        "SELECT * FROM v_history WHERE scope = 'main' AND name = ? ORDER BY version DESC LIMIT ?"
    )
    for _ in range(loops):
        connection.execute(query, (name, last)).fetchall()


def _clean(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        peers.remove(file)
