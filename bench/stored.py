"""Bytes on the disk after some commits, in the three regimes, against every peer.

Sizes are exact: nothing here is timed or repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial

from bench import rivals, states, subject
from bench.harness import Settings, say
from bench.rivals.side import opened
from bench.saves import HEAD
from bench.states import MIB
from bench.tables import Row, Table, Target

DISTINCT = "control: distinct tensor bytes"
STORE = "paramstore"
COMMITS = 5
_PAR = 1.02
_REASONS = {
    rivals.ORBAX: "Orbax compresses with zstd, which takes a few per cent off random float32",
}


def run(settings: Settings) -> list[Table]:
    """All changed, a frozen base with a trained head, nothing changed."""
    number, nbytes = settings.size(64, 20), settings.size(MIB, 64 << 10)
    names = sorted(states.equal_tensors(number, states.FLOAT))
    few = names[: max(1, round(number * HEAD))]
    return [
        _table(settings, number, nbytes, names, "all changed"),
        _table(settings, number, nbytes, few, f"{len(few)} trained and the rest frozen"),
        _table(settings, number, nbytes, [], "nothing changed"),
    ]


def _table(
    settings: Settings, number: int, nbytes: int, changing: Sequence[str], regime: str
) -> Table:
    title = f"Stored after {COMMITS} saves of {number} × {nbytes >> 10} KiB, {regime}"
    say(f"stored: {title}")
    sizes = {DISTINCT: (number + (COMMITS - 1) * len(changing)) * nbytes}
    sizes |= _peers(settings, partial(states.equal_tensors, number, nbytes), changing)
    sizes[STORE] = _ours(settings, number, nbytes, changing)
    rows = [Row(label=label, values=[size / MIB]) for label, size in sizes.items()]
    targets = [
        Target(
            claim=f"bytes ÷ {label}",
            row=STORE,
            peer=label,
            bound=_PAR,
            group=f"{title}: bytes ÷ each",
            reason=_REASONS.get(label, "every tensor, snapshot and name is a row besides"),
        )
        for label in sizes
        if label != STORE
    ]
    note = "The sum of all files. The peers keep a file, a folder or rows per save."
    return Table(
        title=title,
        unit="MiB",
        rows=rows,
        control=DISTINCT,
        ours=STORE,
        targets=targets,
        note=note + rivals.absent(),
    )


def _peers(
    settings: Settings, recipe: partial[states.State], changing: Sequence[str]
) -> dict[str, int]:
    with opened(settings.folder, recipe(), recipe) as sides:
        for step in range(1, COMMITS + 1):
            for side in sides.values():
                side.change(changing)
                side.save(step)
        labels = list(sides)
    folders = [settings.folder / f"peer-{number}" for number in range(len(labels))]
    sizes = {
        label: rivals.stored_bytes(folder) for label, folder in zip(labels, folders, strict=True)
    }
    for folder in folders:
        shutil.rmtree(folder)
    return sizes


def _ours(settings: Settings, number: int, nbytes: int, changing: Sequence[str]) -> int:
    path, state = settings.folder / "run.db", states.equal_tensors(number, nbytes)
    with subject.new_store(path, state) as store:
        for step in range(1, COMMITS + 1):
            states.change(state[name] for name in changing)
            store.commit(step=step)
    size = path.stat().st_size
    subject.remove_store(path)
    return size
