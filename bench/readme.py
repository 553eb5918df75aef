"""The performance table of the README, made of the result files.

Must never write outside its two markers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import rivals
from bench.report import Result, figure, read
from bench.tables import Table

BEGIN, END = "<!-- python -m bench --readme -->", "<!-- end of the table -->"
COLUMNS = {
    "paramstore": None,
    "safetensors": rivals.SAFETENSORS,
    "`torch.save`": rivals.TORCH,
    "DCP": rivals.DCP,
    "Orbax": rivals.ORBAX,
    "diskcache": rivals.DISKCACHE,
    "LangGraph": rivals.LANGGRAPH,
    "Pyro": rivals.PYRO,
}
# What a line says, the result file, and its tables, whose figures stand in one cell.
LINES = (
    ("durable save, 256 × 1 MiB: all / 5 % / nothing changed", "saves", (0, 1, 2)),
    ("durable save, 20,000 × 1 KiB", "saves", (3,)),
    ("restore 256 × 1 MiB: all / one by its name", "loads", (0, 1)),
    ("history of one name, 1,000 snapshots: warm / cold", "history", (0, 1)),
    ("MiB after 5 saves of 64 MiB: all / 5 % / nothing changed", "stored", (0, 1, 2)),
)


def missing(results: Path) -> list[str]:
    """Names of the benchmarks that the table needs and whose result file is not there."""
    names = dict.fromkeys(name for _, name, _ in LINES)
    return [name for name in names if not (results / f"{name}.json").exists()]


def table(results: Path) -> list[str]:
    """The lines of the table."""
    body = [_line(text, read(results / f"{name}.json"), numbers) for text, name, numbers in LINES]
    return [_cells(["ms", *COLUMNS]), "|" + "---|" * (len(COLUMNS) + 1), *body]


def rewrite(page: Path, results: Path) -> None:
    """Put the table between the markers of that page.

    Raises:
        ValueError: the page has not both markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page.name} has no table between {BEGIN!r} and {END!r}")
    block = "\n".join(["", *table(results), ""])
    page.write_text(before + begin + block + end + after, encoding="utf-8")


def _line(text: str, result: Result, numbers: Sequence[int]) -> str:
    tables = [result.tables[number] for number in numbers]
    return _cells([text, *(_cell(tables, label) for label in COLUMNS.values())])


def _cell(tables: Sequence[Table], label: str | None) -> str:
    if any(label not in (None, *(row.label for row in table.rows)) for table in tables):
        return "–"
    return " / ".join(_figure(table, label) for table in tables)


def _figure(table: Table, label: str | None) -> str:
    """The median, bold where no other in its table is less."""
    shown = [table.ours, *(name for name in COLUMNS.values() if name is not None)]
    medians = {row.label: row.median for row in table.rows if row.label in shown}
    median = medians[label or table.ours or ""]
    text = figure(median)
    return f"**{text}**" if median == min(medians.values()) else text


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
