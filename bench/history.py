"""The history of one parameter by its name, against opening every file that was saved.

Both sides come to the same rows: step, norm, mean, least, largest and NaN count.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from bench import rivals, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.rivals.side import Side, opened
from bench.saves import PAR
from bench.states import State
from bench.tables import Table, Target
from paramstore import ParamStoreDict

STORE = "paramstore, store.history(name)"
RAW = "control: a stat of every file"
NAME = "wte.weight"  # 1 MiB
TIMES = 100.0  # as fast as this, at least, against opening all files
SLOW = 20  # peers that take long read the twentieth part of the steps
_REASON = "the peer opens a file and maps one tensor in less than 100 × the time of a row of ours"


def run(settings: Settings) -> list[Table]:
    """Warm, and with nothing of any file in memory."""
    snapshots = settings.size(1000, 40)
    folder = settings.folder
    recipe = _recipe(settings)
    state = recipe()
    say(f"history: saving {len(state)} tensors {snapshots:,} times")
    with opened(folder, state, recipe) as sides:
        for label, side in sides.items():
            for step in _steps(label, snapshots):
                side.change([NAME])
                side.save(step)
        _commit(folder / "run.db", state, snapshots)
        return [
            _table(settings, sides, snapshots, cold=False),
            _table(settings, sides, snapshots, cold=True),
        ]


def _recipe(settings: Settings) -> partial[State]:
    """A model of GPT-2 small's 148 tensors, narrow enough that a thousand of it fit in memory."""
    layers, words = settings.size(12, 2), settings.size(4096, 64)
    return partial(states.gpt2, width=64, layers=layers, words=words, places=64)


def _commit(path: Path, state: State, snapshots: int) -> None:
    with subject.new_store(path, state) as store:
        for step in range(snapshots):
            states.change(state.values())
            store.commit(step=step)


def _steps(label: str, snapshots: int) -> Sequence[int]:
    return range(snapshots if label == rivals.SAFETENSORS else snapshots // SLOW)


def _table(settings: Settings, sides: dict[str, Side], snapshots: int, *, cold: bool) -> Table:
    title = f"History of one parameter by name, {snapshots:,} snapshots"
    title += ", nothing in memory" if cold else ", warm"
    say(f"history: {title}")
    with subject.open_store(settings.folder / "run.db") as store:
        cases = _cases(settings, sides, store, snapshots, cold=cold)
        rows, runs = quiet(settings, partial(interleave, cases, settings.repetitions), RAW)
    where = "The page cache is emptied of all files before each sample. " if cold else ""
    note = (
        f"{where}Peers other than safetensors read the first {SLOW}th part of the steps, and their "
        f"time is multiplied by {SLOW}."
    )
    return Table(
        title=title,
        unit="ms",
        rows=rows,
        control=RAW,
        ours=STORE,
        targets=[_target(row.label, title) for row in rows if row.label not in (RAW, STORE)],
        note=note + rivals.absent(),
        runs=runs,
    )


def _cases(
    settings: Settings,
    sides: dict[str, Side],
    store: ParamStoreDict,
    snapshots: int,
    *,
    cold: bool,
) -> list[Case]:
    folder = settings.folder
    files = rivals.files_below(folder / "peer-0")

    def forget() -> None:
        if cold:
            subprocess.run([sys.executable, "-m", "bench.evict", folder], check=True)

    def ours() -> None:
        if len(store.history(NAME)) != snapshots:
            raise RuntimeError(f"{NAME!r} has not changed in every snapshot")

    cases = [Case(label=RAW, before=forget, run=lambda: [path.stat() for path in files])]
    for label, side in sides.items():
        steps = _steps(label, snapshots)
        look, part = partial(side.history, NAME, steps), len(steps) / snapshots
        cases.append(Case(label=label, before=forget, run=look, clocked=True, part=part))
    cases.append(Case(label=STORE, before=forget, run=ours))
    return cases


def _target(label: str, title: str) -> Target:
    """A hundredth of the time of opening files; another database, not slower."""
    database = label in (rivals.DISKCACHE, rivals.LANGGRAPH)
    return Target(
        claim=f"time ÷ {label}",
        row=STORE,
        peer=label,
        bound=PAR if database else 1 / TIMES,
        group=f"{title}: time ÷ {'another database' if database else 'opening every file'}",
        reason="" if database else _REASON,
    )
