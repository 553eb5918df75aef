"""Histories of parameters and the metrics of a run, side by side over the same steps.

Lays out; what stands in a panel is drawn elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from paramstore.errors import InvalidInputError
from paramstore.history import History
from paramstore.plotting import curves
from paramstore.plotting.style import (
    FAINT,
    GREEN,
    INK,
    PLAIN,
    VERMILLION,
    Picture,
    beside,
    drawable,
    dress,
    fitting,
    room,
    whole_labels,
)
from paramstore.refs import suggest
from paramstore.snapshot import Snapshot

MOST: Final = 24
"""Parameters in one picture; of more, the first are drawn and the rest is counted."""
_WIDTH, _HEIGHT = 6.4, 4.0  # inches; of one parameter
_DASHED = 200  # points up to which a line is still a line when it is dashed
_DASHES = ((0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def plot_histories(
    histories: Sequence[History],
    *,
    log: Iterable[Snapshot] = (),
    metrics: str | Sequence[str] = (),
    ax: Axes | None = None,
    joined: bool = True,
) -> Figure:
    """Draw parameters over the steps of a run, each in a panel of its own.

    Args:
        histories: One per parameter.
        log: The snapshots that have the metrics, in any order.
        metrics: Names of metrics: on a second axis where there is one parameter, else in panels.
        ax: Where to draw, of one parameter; default: a figure of its own.
        joined: Whether lines lead from version to version; not where some in between were left out.

    Raises:
        InvalidInputError: no snapshot has such a metric, several parameters for one ``ax``, or
            ``ax`` has no straight horizontal and vertical axis.
    """
    metrics = _names(metrics)
    _check_axes(ax)
    snapshots = sorted(log, key=lambda snapshot: snapshot.version)
    _check_metrics(snapshots, metrics)
    steps = _have_steps(histories, snapshots if metrics else ())
    page = _Page(snapshots, steps=steps, joined=joined)
    if len(histories) == 1:
        return page.single(histories[0], metrics, ax)
    if ax is not None:
        raise InvalidInputError(f"ax is for one parameter, got {len(histories)}; leave it out")
    return page.several(histories, metrics)


class _Page:
    """One picture in the making."""

    def __init__(self, snapshots: Sequence[Snapshot], *, steps: bool, joined: bool) -> None:
        self._snapshots = snapshots
        self._steps, self._joined = steps, joined
        self._place = curves.by_step if steps else curves.by_version
        self._handles: curves.Handles = {}

    def single(self, history: History, metrics: Sequence[str], ax: Axes | None) -> Figure:
        axes = Picture(_WIDTH, _HEIGHT).add_subplot() if ax is None else ax
        width = axes.figure.get_figure(root=True).get_size_inches()[0]
        self._parameter(axes, history, 9, width)
        self._label_steps(axes, 9)
        for place, metric in enumerate(metrics):
            self._second_axis(axes, metric, place)
        self._explain(axes if ax is not None else axes.figure)
        figure = axes.figure.get_figure(root=True)
        assert isinstance(figure, Figure)
        return figure

    def several(self, histories: Sequence[History], metrics: Sequence[str]) -> Figure:
        shown = histories[:MOST]
        panels = len(shown) + len(metrics)
        columns = 1 if panels <= 3 else 2 if panels <= 8 else 3
        rows = math.ceil(panels / columns)
        width = _WIDTH if columns == 1 else 3.4 * columns
        page = Picture(width, 0.9 + (1.75 if columns == 1 else 1.6) * rows)
        grid = page.subplots(rows, columns, sharex=True, squeeze=False)
        cells: list[Axes] = list(grid.flat)
        for axes, history in zip(cells, shown, strict=False):
            self._parameter(axes, history, 7.5, width / columns - 0.5)
        for axes, metric in zip(cells[len(shown) :], metrics, strict=False):
            self._metric(axes, metric, 7.5, width / columns - 0.5)
        for axes in cells[panels:]:
            axes.remove()
        for place in range(max(0, panels - columns), panels):
            cells[place].tick_params(labelbottom=True)
            self._label_steps(cells[place], 7.5)
        if hidden := len(histories) - len(shown):
            page.supxlabel(
                f"and {hidden:,} more parameters", size=8, color=FAINT, x=0.99, ha="right"
            )
        self._explain(page)
        return page

    # -- one panel -----------------------------------------------------------------

    def _parameter(self, axes: Axes, history: History, size: float, inches: float) -> None:
        dress(axes, size)
        name = history[0].name if history else ""
        self._handles |= curves.draw_history(axes, history, self._place, size, joined=self._joined)
        most, what = room(inches, size), curves.about(history)
        said = curves.warning(history, most, steps=self._steps)
        if len(said) + len(what) > most:
            what = ""
        _title(axes, name, what, size, inches)
        beside(axes, said, "right", size, color=VERMILLION, weight="bold")

    def _metric(self, axes: Axes, metric: str, size: float, inches: float) -> None:
        dress(axes, size)
        xs, values = self._points(metric)
        curves.set_scale(axes, values)
        axes.plot(xs, values, color=GREEN, linewidth=1.4 if len(xs) <= _DASHED else 0.8)
        _title(axes, metric, "metric", size, inches)

    def _second_axis(self, axes: Axes, metric: str, place: int) -> None:
        twin = axes.twinx()
        twin.spines[["top", "left", "bottom"]].set_visible(False)
        twin.spines["right"].set_position(("outward", 60 * place))
        axes.set_zorder(twin.get_zorder() + 1)  # the parameter stays in front
        axes.patch.set_visible(False)
        axes.grid(visible=False)  # of two axes it would be of no use, and in front of the metric
        xs, values = self._points(metric)
        line: dict[str, Any] = {"color": GREEN, "linewidth": 0.8}
        if len(xs) <= _DASHED:
            line = {"color": GREEN, "linewidth": 1.4, "linestyle": _DASHES[place % len(_DASHES)]}
        whole_labels(twin)
        curves.set_scale(twin, values)
        twin.plot(xs, values, **line)
        twin.set_ylabel(fitting(metric, 3, 9), size=9, color=GREEN, **PLAIN)
        twin.tick_params(labelsize=9, colors=GREEN, length=3)
        twin.spines["right"].set_color(GREEN)
        label = drawable(f"metric {metric}")
        self._handles[label] = Line2D([], [], **line)

    def _points(self, metric: str) -> tuple[list[float], list[float]]:
        found = [s for s in self._snapshots if metric in s.metrics]
        xs = [(s.step or 0) if self._steps else s.version for s in found]
        return [float(x) for x in xs], [s.metrics[metric] for s in found]

    def _label_steps(self, axes: Axes, size: float) -> None:
        axes.set_xlabel("step" if self._steps else "version", size=size, color=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _counted(x)))

    def _explain(self, where: Any) -> None:
        if not self._handles:
            return
        outside = {"loc": "outside lower center"} if isinstance(where, Figure) else {"loc": "best"}
        legend = where.legend(
            list(self._handles.values()),
            list(self._handles),
            ncols=len(self._handles) if isinstance(where, Figure) else 1,
            frameon=False,
            fontsize=8,
            labelcolor=INK,
            handlelength=1.6,
            **outside,
        )
        for text in legend.get_texts():
            text.set(**PLAIN)


def _title(axes: Axes, name: str, what: str, size: float, inches: float) -> None:
    title = fitting(name, inches, size + 1, "bold")
    axes.set_title(
        title, loc="left", size=size + 1, weight="bold", color=INK, pad=size + 6, **PLAIN
    )
    beside(axes, drawable(what), "left", size, color=FAINT)


def _counted(x: float) -> str:
    return f"{x / 1e6:,g}M" if abs(x) >= 1e6 else f"{x:,.0f}"


def _have_steps(histories: Iterable[History], snapshots: Iterable[Snapshot]) -> bool:
    steps = [row.step for history in histories for row in history]
    steps += [snapshot.step for snapshot in snapshots]
    return None not in steps and bool(steps)


def _names(metrics: Any) -> list[str]:
    single = isinstance(metrics, str) or not isinstance(metrics, Iterable)
    names: list[Any] = [metrics] if single else list(metrics)
    if not all(isinstance(name, str) for name in names):
        raise InvalidInputError(f"metrics are the name of a metric or several, got {metrics!r}")
    return names


def _check_axes(ax: object) -> None:
    if ax is None:
        return
    if not isinstance(ax, Axes):
        raise InvalidInputError(
            f"ax is matplotlib's Axes to draw in, got {type(ax).__name__}; leave it out for a "
            f"figure of its own"
        )
    if ax.name != "rectilinear" or ax.get_figure() is None:
        what = "has been removed from its figure" if ax.name == "rectilinear" else f"is {ax.name}"
        raise InvalidInputError(f"ax {what}; give ordinary axes, such as plt.subplots() makes")


def _check_metrics(snapshots: Sequence[Snapshot], metrics: Sequence[str]) -> None:
    known = sorted({name for snapshot in snapshots for name in snapshot.metrics})
    for metric in metrics:
        if metric not in known:
            listed = ", ".join(map(repr, known[:10])) or "none"
            raise InvalidInputError(
                f"no snapshot has a metric {metric!r}{suggest(metric, known)}; there are: {listed}"
            )
