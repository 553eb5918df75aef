"""One picture per benchmark: a panel per table, a bar per row, whiskers for the quartiles.

Draws what the result files hold; must never measure.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from bench.report import Result, figure
from bench.tables import Row, Table, quartiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _OTHERS, _CONTROL, _INK, _FAINT = "#d9480f", "#b8c0cc", "#495057", "#212529", "#868e96"
_LOGARITHMIC = 40.0  # more than this between the least and the largest bar
_ROW, _FRAME, _FOOT = 0.3, 1.15, 0.25  # inches


def drawable() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(result: Result, folder: Path) -> Path:
    """Write ``<name>.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display is needed
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    bars = [max(1, len(_bars(table))) for table in result.tables]
    heights = [_FRAME + _ROW * number for number in bars]
    height = sum(heights) + _FOOT
    foot = _FOOT / height
    layout = ConstrainedLayoutEngine(h_pad=0.14, w_pad=0.1, rect=(0, foot, 1, 1 - foot))
    page = Figure(
        figsize=(10, height),
        layout=layout,
        facecolor="white",
    )
    FigureCanvasAgg(page)
    panels = page.subplots(len(bars), 1, squeeze=False, height_ratios=heights)
    for axes, table in zip(panels[:, 0], result.tables, strict=True):
        _panel(axes, table)
    page.text(0.995, 0.002, _source(result), ha="right", va="bottom", size=7, color=_FAINT)
    path = folder / f"{result.name}.png"
    page.savefig(path, dpi=110, metadata={"Software": ""})
    return path


def _panel(axes: Axes, table: Table) -> None:
    rows = _bars(table)
    for place, row in enumerate(rows):
        _bar(axes, place, row)
    medians = [row.median for row in table.rows if row.median > 0]
    logarithmic = len(medians) > 1 and max(medians) / min(medians) > _LOGARITHMIC
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
        axes.set_xlim(left=min(medians) / 2, right=max(medians) * 3)
    else:
        longest = max(quartiles(row.values)[1] for row in table.rows)
        # Where nothing was lost, in all of a few quick repetitions, no bar is longer than zero.
        axes.set_xlim(left=0, right=longest * 1.15 if longest > 0 else 1)
    if table.control is not None and table.row(table.control).median > 0:
        _line(axes, table.row(table.control))
    _dress(axes, table, rows, logarithmic=logarithmic)


def _bars(table: Table) -> list[Row]:
    """All but the control; by their length where one of them is ours and the others are not."""
    rows = [row for row in table.rows if row.label != table.control]
    return rows if table.ours is None else sorted(rows, key=lambda row: row.median)


def _bar(axes: Axes, place: int, row: Row) -> None:
    low, high = quartiles(row.values)
    ours = _is_ours(row)
    axes.barh(place, row.median, height=0.66, color=_OURS if ours else _OTHERS, zorder=2)
    if len(row.values) > 1:
        spread = [[max(0.0, row.median - low)], [max(0.0, high - row.median)]]
        style: dict[str, Any] = {"ecolor": _INK, "elinewidth": 1.0, "capsize": 2.5, "zorder": 3}
        axes.errorbar(row.median, place, xerr=spread, fmt="none", **style)
    axes.annotate(
        figure(row.median),
        (max(row.median, high), place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        size=8.5,
        color=_OURS if ours else _INK,
        weight="bold" if ours else "normal",
        zorder=4,
    )


def _line(axes: Axes, control: Row) -> None:
    name = control.label.removeprefix("control: ")
    axes.axvline(
        control.median,
        color=_CONTROL,
        linewidth=1.2,
        linestyle=(0, (4, 3)),
        zorder=2.5,
        label=f"{name}: {figure(control.median)}",
    )
    axes.legend(
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize=8,
        labelcolor=_CONTROL,
        borderaxespad=0.1,
        handlelength=1.8,
    )


def _dress(axes: Axes, table: Table, rows: list[Row], *, logarithmic: bool) -> None:
    scale = f"{table.unit}, logarithmic" if logarithmic else table.unit
    axes.set_title(
        f"{fill(table.title, 72)}\n", loc="left", size=11, weight="bold", color=_INK, pad=2
    )
    axes.text(0, 1.0, f"{scale}; less is better", transform=axes.transAxes, size=8, color=_FAINT)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], size=8.5)
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(_OURS if _is_ours(row) else _INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8, colors=_FAINT, length=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e9ecef", linewidth=0.8, zorder=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)


def _is_ours(row: Row) -> bool:
    return row.label.startswith("paramstore")


def _source(result: Result) -> str:
    facts = result.facts
    named = ("date", "cores", "memory", "file system", "torch")
    return f"{result.command}  ·  " + " · ".join(f"{name} {facts[name]}" for name in named)
