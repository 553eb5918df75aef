"""What a run takes on the disk, against the distinct bytes of its tensors.

Sizes are exact: nothing here is timed or repeated.
"""

from __future__ import annotations

import random
from pathlib import Path

from bench import peers, states, subject
from bench.harness import Settings, say
from bench.states import MIB, State
from bench.tables import Row, Table, Target

DISTINCT = "control: distinct tensor bytes"
STORE = "paramstore, the database file"
TORCH = "torch.save, one file per snapshot"
SAFETENSORS = "safetensors, one file per snapshot"


def run(settings: Settings) -> list[Table]:
    """Large tensors (held to the target), and small ones for information."""
    number, nbytes = settings.size(256, 4), settings.size(MIB, 64 << 10)
    large = _measure(settings, number, nbytes, snapshots=5, part=0.05)
    large.targets = [
        Target(claim="stored bytes ÷ distinct tensor bytes, 1 MiB case", row=STORE, bound=1.02)
    ]
    large.targets[0].peer = DISTINCT
    return [
        large,
        _measure(settings, settings.size(20_000, 50), 1 << 10, snapshots=3, part=1.0),
        _measure(settings, 500, 64, snapshots=settings.size(200, 3), part=1.0),
    ]


def _measure(settings: Settings, number: int, nbytes: int, *, snapshots: int, part: float) -> Table:
    state, dice = states.equal_tensors(number, nbytes), random.Random(3)
    few = max(1, round(number * part))
    size = f"{nbytes >> 10} KiB" if nbytes >= 1024 else f"{nbytes} B"
    title = f"{snapshots} snapshots of {number:,} × {size}, {few:,} changed in each"
    say(f"size: {title}")
    sizes = dict.fromkeys((DISTINCT, STORE, SAFETENSORS, TORCH), 0)
    path = settings.folder / "run.db"
    with subject.new_store(path, state) as store:
        for snapshot in range(snapshots):
            changed = state.values() if snapshot == 0 else dice.sample(list(state.values()), few)
            states.change(changed)
            store.commit()
            sizes[DISTINCT] += sum(tensor.nbytes for tensor in changed)
            _add_files(sizes, settings.folder, state)
    sizes[STORE] = path.stat().st_size
    subject.remove_store(path)
    rows = [Row(label=label, values=[size / MIB]) for label, size in sizes.items()]
    return Table(title=title, unit="MiB", rows=rows, control=DISTINCT)


def _add_files(sizes: dict[str, int], folder: Path, state: State) -> None:
    plain = {name: tensor.detach() for name, tensor in state.items()}
    for label, save in {TORCH: peers.save_torch, SAFETENSORS: peers.save_safetensors}.items():
        path = folder / "peer"
        save(path, plain)
        sizes[label] += path.stat().st_size
        peers.remove(path)
