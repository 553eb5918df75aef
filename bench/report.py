"""Turns the result files into the committed table, ``bench/RESULTS.md``.

Reads only what the benchmarks wrote; must never measure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


def write(result: Result, folder: Path) -> Path:
    """Write ``<name>.json``; the raw samples of every row."""
    data = {
        "name": result.name,
        "command": result.command,
        "facts": result.facts,
        "tables": [to_dict(table) for table in result.tables],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.json"
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> Result:
    """The inverse of :func:`write`."""
    data = json.loads(path.read_text(encoding="utf-8"))
    data["tables"] = [from_dict(table) for table in data["tables"]]
    return Result(**data)


def markdown(results: Sequence[Result]) -> str:
    """The whole page: targets first, then every table with its control."""
    lines = ["# Figures", "", *_introduction(), "## Targets", ""]
    lines += _grid(("", "target", "wanted", "measured", "quartiles", ""), _summary(results))
    for result in results:
        lines += [f"## {result.name}", "", f"`{result.command}`", "", _machine(result), ""]
        for table in result.tables:
            lines += section(table)
    return "\n".join(lines).rstrip() + "\n"


def section(table: Table) -> list[str]:
    """One comparison as markdown lines."""
    lines = [f"### {table.title}", ""]
    lines += [table.note, ""] if table.note else []
    head: tuple[str, ...] = (table.unit, "median", "min – max", "MB/s")
    body: list[tuple[str, ...]] = [_row(row, table) for row in table.rows]
    if not any(line[-1] for line in body):
        head, body = head[:-1], [line[:-1] for line in body]
    lines += _grid(head, body)
    lines += _restless(table)
    verdicts = table.verdicts()
    if verdicts:
        lines += _grid(("target", "wanted", "measured", "quartiles", ""), map(_verdict, verdicts))
    return lines


def _introduction() -> list[str]:
    return [
        "Medians of interleaved repetitions in one process (one process per case where memory is",
        "measured, one per repetition where opening is). A ratio is one of medians; its quartiles",
        f"are those of the ratios of single repetitions. A control that varied by more than "
        f"{MAX_VARIATION:g} ×",
        "between its slowest and fastest repetition makes a run repeat, and is said where that did",
        "not help. Raw samples: `results/*.json`.",
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
    spread = f"{_figure(verdict.low)} – {_figure(verdict.high)}"
    return verdict.target.claim, wanted, _figure(verdict.measured), spread, verdict.outcome


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
    return name, wanted, f"worst {_figure(worst)}", "", outcome


def _row(row: Row, table: Table) -> tuple[str, str, str, str]:
    spread = f"{_figure(min(row.values))} – {_figure(max(row.values))}"
    if len(row.values) == 1:
        spread = ""
    rate = ""
    if row.nbytes and table.unit in _PER_SECOND:
        rate = f"{row.nbytes / 1e6 / (row.median * _PER_SECOND[table.unit]):,.0f}"
    return row.label, _figure(row.median), spread, rate


def _restless(table: Table) -> list[str]:
    if table.control_variation <= MAX_VARIATION:
        return [f"Quiet at run {table.runs}.", ""] if table.runs > 1 else []
    low, high = quartiles(table.row(table.control or "").values)
    return [
        f"**Restless**: the control varied by {table.control_variation:.1f} × in the best of "
        f"{table.runs} runs (quartiles {_figure(low)} – {_figure(high)}).",
        "",
    ]


def _grid(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return [*lines, *(f"| {' | '.join(cells)} |" for cells in body), ""]


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{places}f}"
