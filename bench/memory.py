"""Peak memory of commit and restore above the tensors, one process per case.

Starts :mod:`bench.probes` and writes down what it reports; measures nothing itself.
"""

from __future__ import annotations

from bench import probes
from bench.harness import Settings, say
from bench.tables import Row, Table, Target

ALLOWED = 64.0  # MiB above the tensors


def run(settings: Settings) -> list[Table]:
    """Commit and restore, each over all layouts, the peers beside them."""
    return [
        _table(settings, "commit", probes.COMMITS),
        _table(settings, "restore", probes.RESTORES),
    ]


def _table(settings: Settings, verb: str, cases: tuple[str, ...]) -> Table:
    rows, targets = [], []
    for case in [case for case in cases if case in probes.QUICK or not settings.quick]:
        label = f"{verb}, {case}"
        say(f"memory: {label}")
        found = probes.call(
            "memory",
            path=settings.folder / "run.db",
            case=case,
            verb=verb,
            quick=settings.quick,
            repetitions=settings.repetitions,
        )
        rows.append(Row(label=label, values=found["peaks"]))
        if case in probes.PEERS:
            continue
        copy = found["copy"]
        extra = f" + one copy of {copy:.0f} MiB" if copy else ""
        targets.append(
            Target(
                claim=f"{label}: peak above the tensors, MiB (64{extra})",
                row=label,
                bound=ALLOWED + copy,
                kind="worst",
                group=f"peak memory of {verb} above the tensors ÷ what is allowed",
            )
        )
    return Table(
        title=f"Peak memory of {verb} above the tensors",
        unit="MiB",
        rows=rows,
        targets=targets,
        note="Resident memory at its highest (VmHWM, reset before each repetition) less what was "
        "resident before, less the bytes of new tensors where the restore makes them.",
    )
