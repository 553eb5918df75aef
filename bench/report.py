"""Turns the result files into the committed table, ``bench/RESULTS.md``.

Reads only what the benchmarks wrote; must never measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from bench.harness import MAX_VARIATION
from bench.tables import MET, MISSED, Row, Table, Verdict, from_dict, quartiles, to_dict

_PER_SECOND = {"ms": 1e-3, "µs": 1e-6, "s": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one benchmark found."""

    name: str
    """Its name."""
    command: str
    """What to type to have it again."""
    facts: dict[str, str]
    """Machine and versions."""
    tables: list[Table]
    """The comparisons."""


def to_json(result: Result) -> str:
    """The result as one text; the raw samples of every row."""
    data = {
        "name": result.name,
        "command": result.command,
        "facts": result.facts,
        "tables": [to_dict(table) for table in result.tables],
    }
    return json.dumps(data, indent=1, ensure_ascii=False)


def from_json(text: str) -> Result:
    """The inverse of :func:`to_json`."""
    data = json.loads(text)
    data["tables"] = [from_dict(table) for table in data["tables"]]
    return Result(**data)


def write(result: Result, folder: Path) -> Path:
    """Write ``<name>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(to_json(result) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Result:
    """The inverse of :func:`write`."""
    return from_json(path.read_text(encoding="utf-8"))


def markdown(results: Sequence[Result], charts: Mapping[str, str] | None = None) -> str:
    """The whole page: targets first, then every table with its control.

    Args:
        results: What is told, in that order.
        charts: Where the chart of a benchmark lies, by its name.
    """
    lines = ["# Figures", "", *_introduction(), "## Targets", ""]
    lines += _grid(("", "target", "wanted", "measured", "quartiles", ""), _summary(results))
    for result in results:
        lines += [f"## {result.name}", "", f"`{result.command}`", "", _machine(result), ""]
        if charts and result.name in charts:
            lines += [f"![{result.name}]({charts[result.name]})", ""]
        for table in result.tables:
            lines += section(table)
    return "\n".join(lines).rstrip() + "\n"


def section(table: Table) -> list[str]:
    """One comparison as markdown lines."""
    lines = [f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    lines += _rows(table)
    lines += _restless(table)
    verdicts = table.verdicts()
    if verdicts:
        lines += _grid(("target", "wanted", "measured", "quartiles", ""), map(_verdict, verdicts))
    return lines


def _rows(table: Table) -> list[str]:
    """The samples, without the columns that would stay empty."""
    head = (table.unit, "median", "min – max", "MB/s", "÷ ours")
    body = [_row(row, table) for row in table.rows]
    filled = [any(cells) for cells in zip(*body, strict=True)]
    return _grid(
        list(compress(head, filled)),
        [list(compress(cells, filled)) for cells in body],
    )


def _introduction() -> list[str]:
    return [
        "Medians of interleaved repetitions. Every benchmark has a process of its own; memory is",
        "measured in one per case, opening in one per repetition; Orbax has its own.",
        "A ratio is one of medians; its quartiles are those of the ratios of single repetitions. A",
        f"control that varied by more than {MAX_VARIATION:g} × between its slowest and fastest",
        "repetition makes a run repeat, and is said where that did not help. Samples and charts:",
        "`results/`.",
        "",
    ]


def _machine(result: Result) -> str:
    return " · ".join(f"{name} {value}" for name, value in result.facts.items())


def _summary(results: Iterable[Result]) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = []
    for result in results:
        groups: dict[str, list[Verdict]] = {}
        for verdict in (verdict for table in result.tables for verdict in table.verdicts()):
            if verdict.target.group is None:
                lines.append((result.name, *_verdict(verdict)))
            else:
                groups.setdefault(verdict.target.group, []).append(verdict)
        lines += [(result.name, *_group(name, verdicts)) for name, verdicts in groups.items()]
    return lines


def _verdict(verdict: Verdict) -> tuple[str, str, str, str, str]:
    sign = "≥" if verdict.target.kind == "throughput" else "≤"
    wanted = f"{sign} {verdict.target.bound:g}"
    spread = f"{figure(verdict.low)} – {figure(verdict.high)}"
    reason = verdict.target.reason if verdict.outcome != MET else ""
    outcome = f"{verdict.outcome}: {reason}" if reason else verdict.outcome
    return verdict.target.claim, wanted, figure(verdict.measured), spread, outcome


def _group(name: str, verdicts: list[Verdict]) -> tuple[str, str, str, str, str]:
    met = sum(verdict.outcome == MET for verdict in verdicts)
    missed = sum(verdict.outcome == MISSED for verdict in verdicts)
    if all(verdict.target.peer is None for verdict in verdicts):
        worst, wanted = max(v.measured / v.target.bound for v in verdicts), "≤ 1"
    else:
        worst, wanted = max(v.measured for v in verdicts), f"≤ {verdicts[0].target.bound:g}"
    outcome = f"{met} of {len(verdicts)} met, {missed} **not met**" if missed else f"{met} of "
    if not missed:
        outcome += f"{len(verdicts)} met" + (", the rest within spread" * (met < len(verdicts)))
    return name, wanted, f"worst {figure(worst)}", "", outcome


def _row(row: Row, table: Table) -> tuple[str, str, str, str, str]:
    spread = f"{figure(min(row.values))} – {figure(max(row.values))}"
    if len(row.values) == 1:
        spread = ""
    rate = ""
    if row.nbytes and table.unit in _PER_SECOND:
        rate = f"{row.nbytes / 1e6 / (row.median * _PER_SECOND[table.unit]):,.0f}"
    multiple = table.multiple(row)
    ratio = "" if multiple is None else figure(multiple)
    return row.label, figure(row.median), spread, rate, ratio


def _restless(table: Table) -> list[str]:
    if table.control_variation <= MAX_VARIATION:
        return [f"Quiet at run {table.runs}.", ""] if table.runs > 1 else []
    low, high = quartiles(table.row(table.control or "").values)
    return [
        f"**Restless**: the control varied by {table.control_variation:.1f} × in the best of "
        f"{table.runs} runs (quartiles {figure(low)} – {figure(high)}).",
        "",
    ]


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in body), ""]


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{places}f}"
