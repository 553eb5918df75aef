"""What a benchmark returns: rows of samples, the targets they are held to, and the verdicts.

Plain values that go to JSON and back; must never measure anything.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["throughput", "time", "median", "worst"]

MET = "met"
WITHIN_SPREAD = "within spread"
MISSED = "**not met**"


@dataclass(slots=True, kw_only=True)
class Row:
    """The samples of one thing that was measured; less is better."""

    label: str
    """What was measured."""
    values: list[float]
    """One figure per repetition, in the table's unit."""
    nbytes: int | None = None
    """Bytes moved per repetition, where a throughput makes sense."""

    @property
    def median(self) -> float:
        """Median of the samples."""
        return statistics.median(self.values)

    @property
    def variation(self) -> float:
        """Largest sample over smallest."""
        return max(self.values) / max(min(self.values), 1e-12)


@dataclass(slots=True, kw_only=True)
class Target:
    """One line of the specification: a row, what it is compared with, and the bound."""

    claim: str
    """What is asked, in words."""
    row: str
    """Label of the row that is judged."""
    bound: float
    """The wanted figure."""
    kind: Kind = "time"
    """``throughput``: peer's time / ours, at least the bound. ``time``: ours / peer's, at most.
    ``median`` and ``worst``: the median or the largest sample itself, at most the bound."""
    peer: str | None = None
    """Label of the row that it is compared with."""
    group: str | None = None
    """Targets of one group are summed up in one line of the summary."""
    reason: str = ""
    """Why it is not met, where that is known; told only then."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What came out for one target."""

    target: Target
    """The target."""
    measured: float
    """The figure: a ratio of medians, or a sample."""
    low: float
    """Lower quartile of the ratios of single repetitions (or of the samples)."""
    high: float
    """Upper quartile of the same."""
    outcome: str
    """``met``, ``within spread`` (missed, but a quartile of the repetitions met it) or not met."""


@dataclass(slots=True, kw_only=True)
class Table:
    """One comparison: everything in it was measured interleaved, in one run."""

    title: str
    """What is compared."""
    unit: str
    """Unit of the samples."""
    rows: list[Row]
    """The samples, the raw control among them."""
    control: str | None = None
    """Label of the raw control."""
    ours: str | None = None
    """Label of the row that every other is told as a multiple of."""
    targets: list[Target] = field(default_factory=list)
    """What is asked of it."""
    note: str = ""
    """What a reader has to know; one sentence or two."""
    runs: int = 1
    """How many runs it took until the control was quiet enough."""

    def multiple(self, row: Row) -> float | None:
        """Median of that row over ours; None where no row is named as ours."""
        return None if self.ours is None else row.median / self.row(self.ours).median

    def row(self, label: str) -> Row:
        """The row of that label; KeyError if there is none."""
        for row in self.rows:
            if row.label == label:
                return row
        raise KeyError(f"table {self.title!r} has no row {label!r}")

    @property
    def control_variation(self) -> float:
        """Largest over smallest sample of the control; 1.0 without one."""
        return 1.0 if self.control is None else self.row(self.control).variation

    def verdicts(self) -> list[Verdict]:
        """One verdict per target."""
        return [_judge(self, target) for target in self.targets]


def to_dict(table: Table) -> dict[str, object]:
    """The table as plain JSON values."""
    return asdict(table)


def from_dict(data: dict[str, object]) -> Table:
    """The inverse of :func:`to_dict`."""
    plain = dict(data)
    rows = [Row(**row) for row in plain.pop("rows")]  # type: ignore[attr-defined]  # from JSON
    targets = [Target(**target) for target in plain.pop("targets")]  # type: ignore[attr-defined]
    return Table(rows=rows, targets=targets, **plain)  # type: ignore[arg-type]  # from JSON


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Lower and upper quartile; the one sample twice if there is one."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _judge(table: Table, target: Target) -> Verdict:
    samples = _samples(table, target)
    measured = _measured(table, target, samples)
    low, high = quartiles(samples)
    more = target.kind == "throughput"
    met = measured >= target.bound if more else measured <= target.bound
    near = target.kind != "worst" and (high >= target.bound if more else low <= target.bound)
    outcome = MET if met else WITHIN_SPREAD if near else MISSED
    return Verdict(target=target, measured=measured, low=low, high=high, outcome=outcome)


def _samples(table: Table, target: Target) -> list[float]:
    """Ratios repetition by repetition, so that a slow phase of the disk hits both sides."""
    ours = table.row(target.row).values
    if target.peer is None:
        return ours
    pairs = zip(ours, table.row(target.peer).values, strict=True)
    if target.kind == "throughput":
        return [peer / own for own, peer in pairs]
    return [own / peer for own, peer in pairs]


def _measured(table: Table, target: Target, samples: list[float]) -> float:
    if target.kind == "worst":
        return max(samples)
    if target.peer is None:
        return statistics.median(samples)
    own, peer = table.row(target.row).median, table.row(target.peer).median
    return peer / own if target.kind == "throughput" else own / peer
