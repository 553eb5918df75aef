"""A durable save against every peer: all changed, a frozen base, nothing changed, many small.

Every timed save follows a change of the values that are said to change; the change is not timed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench import peers, rivals, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.rivals.side import Recipe, Side, opened
from bench.states import MIB, State
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict

RAW = "control: write + fsync of the same bytes"
STORE = "paramstore, commit"
STEP = 1
PAR = 1.1  # up to a tenth more time counts as at par
HEAD = 0.05  # part of the bytes that is trained

_REASON = (
    "a commit hashes what changed, takes its statistics and makes it rows; the peer copies bytes"
)


def run(settings: Settings) -> list[Table]:
    """Three regimes of one large state, and a state of many small tensors."""
    number, nbytes = settings.size(256, 20), settings.size(MIB, 64 << 10)
    size = f"{number} × {nbytes >> 10} KiB"
    few = max(1, round(number * HEAD))
    regimes = {
        f"Durable save of {size}, all changed": number,
        f"Durable save of {size}, {few} of them trained and the rest frozen": few,
        f"Durable save of {size}, nothing changed": 0,
    }
    tables = _tables(settings, partial(states.equal_tensors, number, nbytes), regimes)
    small = settings.size(20_000, 200)
    title = f"Durable save of {small:,} × 1 KiB, all changed"
    recipe = partial(states.equal_tensors, small, 1 << 10)
    fewer = replace(settings, repetitions=min(3, settings.repetitions), runs=1)  # Orbax takes long
    return [*tables, *_tables(fewer, recipe, {title: small})]


def _tables(settings: Settings, recipe: Recipe, regimes: Mapping[str, int]) -> list[Table]:
    """One table per regime: its title, and how many of the tensors change."""
    folder, state = settings.folder, recipe()
    names, size = sorted(state), states.nbytes_of(state)
    tables = []
    with (
        subject.new_store(folder / "run.db", state) as store,
        opened(folder, state, recipe) as sides,
    ):
        store.commit(step=0)
        for title, number in regimes.items():
            say(f"saves: {title}")
            cases = [
                _control(folder / "raw", size),
                *(_peer(label, side, names[:number], size) for label, side in sides.items()),
                _ours(store, state, names[:number], size),
            ]
            rows, runs = quiet(settings, partial(interleave, cases, settings.repetitions), RAW)
            tables.append(_table(title, rows, runs))
    subject.empty(folder)
    return tables


def _table(title: str, rows: list[Row], runs: int) -> Table:
    targets = [
        Target(
            claim=f"time ÷ {row.label}",
            row=STORE,
            peer=row.label,
            bound=PAR,
            group=f"{title}: time ÷ each peer's",
            reason=_REASON,
        )
        for row in rows
        if row.label not in (RAW, STORE)
    ]
    note = (
        "Every peer saves all of it each time, as it is documented to, and is made as durable: "
        "files and folders fsynced, SQLite at synchronous=FULL. Ours includes digests and "
        "statistics. MB/s counts the bytes of the whole state." + rivals.absent()
    )
    return Table(
        title=title,
        unit="ms",
        rows=rows,
        control=RAW,
        ours=STORE,
        targets=targets,
        note=note,
        runs=runs,
    )


def _control(path: Path, size: int) -> Case:
    noise = memoryview(os.urandom(min(size, MIB)) * (size // MIB + 1))[:size]
    return Case(
        label=RAW,
        before=lambda: peers.remove(path),
        run=lambda: peers.save_raw(path, noise),
        nbytes=size,
    )


def _peer(label: str, side: Side, changing: Sequence[str], size: int) -> Case:
    def before() -> None:
        side.forget(STEP)
        side.change(changing)

    return Case(label=label, before=before, run=partial(side.save, STEP), clocked=True, nbytes=size)


def _ours(store: ParamStoreDict, state: State, changing: Sequence[str], size: int) -> Case:
    return Case(
        label=STORE,
        before=lambda: states.change(state[name] for name in changing),
        run=partial(store.commit, step=STEP),
        nbytes=size,
    )
