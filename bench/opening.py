"""How long it takes to open a long run, in a fresh process with everything imported.

The store is read by other processes (:mod:`bench.probes`); this module only builds it.
"""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path

from bench import probes, states, subject
from bench.harness import Settings, quiet, say
from bench.states import MIB
from bench.tables import Row, Table, Target

RAW = "control: sqlite3 alone, connect + newest snapshot"
FIRST = "paramstore.open, first in its process"
AGAIN = "paramstore.open, again in the same process"
READ = "the same and one small param read"


def run(settings: Settings) -> list[Table]:
    """The one table of opening."""
    path = settings.folder / "run.db"
    snapshots, nbytes = settings.size(2000, 20), settings.size(MIB // 2, 64 << 10)
    say(f"open: building a store of {snapshots:,} snapshots")
    _build(path, snapshots, nbytes)
    size = path.stat().st_size
    rows, runs = quiet(settings, lambda: _open_repeatedly(path, settings.repetitions), RAW)
    subject.remove_store(path)
    target = Target(
        claim="opening 1 GiB and 2,000 snapshots, beyond imports, ms",
        row=FIRST,
        bound=30.0,
        kind="median",
    )
    return [
        Table(
            title=f"Opening a store of {size / MIB:,.0f} MiB and {snapshots:,} snapshots",
            unit="ms",
            rows=rows,
            control=RAW,
            targets=[target],
            note="One fresh process per repetition; the modules that opening needs are imported "
            "before the clock starts.",
            runs=runs,
        )
    ]


def _build(path: Path, snapshots: int, nbytes: int) -> None:
    """Every snapshot changes one of 32 large tensors; 168 small ones stand by."""
    large = states.equal_tensors(32, nbytes)
    small = {f"small.{name}": tensor for name, tensor in states.equal_tensors(168, 1024).items()}
    with subject.new_store(path, large | small) as store:
        store.commit()
        for tensor in islice(cycle(large.values()), snapshots - 1):
            states.change([tensor])
            store.commit()


def _open_repeatedly(path: Path, repetitions: int) -> list[Row]:
    modules = probes.call("modules", path=path)["modules"]
    labels = {"control": RAW, "first": FIRST, "again": AGAIN, "read": READ}
    samples: dict[str, list[float]] = {key: [] for key in labels}
    for repetition in range(repetitions):
        took = probes.call("open", path=path, modules=modules, control_first=repetition % 2 == 0)
        for key in labels:
            samples[key].append(took[key] * 1e3)
    return [Row(label=label, values=samples[key]) for key, label in labels.items()]
