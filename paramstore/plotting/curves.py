"""One parameter in one pair of axes: its line, its band, what is not finite.

Draws the numbers as they are; must never smooth, thin out or invent one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paramstore.plotting.style import BLUE, FAINT, PURPLE, VERMILLION, placed
from paramstore.snapshot import ParamVersion

_DECADES: Final = 100.0  # as far apart as values have to be for a logarithmic axis
_FAR: Final = 1e4  # from the median, for numbers of both signs
_SPARSE: Final = 40  # points up to which each gets a dot
_MARKED_AT: Final = 0.03  # of the height: where what is not finite is marked

Place = Callable[[ParamVersion], tuple[float, float]]
"""Where on the horizontal axis a value begins and ends to hold."""
Handles = dict[str, Artist]
"""What a legend shows, by its label."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What is drawn of a param version."""

    label: str
    line: Callable[[ParamVersion], float]
    band: bool = False


_VALUE = _Look("value", lambda row: _number(row.value))
_NORM = _Look("norm", lambda row: _number(row.norm))
_MEAN = _Look("mean", lambda row: _number(row.mean), band=True)


def by_step(row: ParamVersion) -> tuple[float, float]:
    """The steps from which and up to which a value is known to hold."""
    assert row.step is not None
    return row.step, row.step if row.until_step is None else row.until_step


def by_version(row: ParamVersion) -> tuple[float, float]:
    """The versions from which and up to which a value is held."""
    return row.version, row.until_version


def draw_history(
    axes: Axes, rows: Sequence[ParamVersion], place: Place, size: float, *, joined: bool
) -> Handles:
    """Draw the versions of one parameter; return what a legend has to explain."""
    look = _look(rows)
    known = [row for row in rows if _is_known(row, look)]
    runs = _runs(known, rows, place) if joined else [[row] for row in known]
    handles: Handles = {}
    if runs:
        set_scale(axes, [number for run in runs for row in run for number in _numbers(row, look)])
        for run in runs:
            _draw_run(axes, run, look, place, dots=len(rows) <= _SPARSE)
        handles |= _legend(look)
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, _nothing(rows), transform=axes.transAxes, ha="center", va="center",
                  size=size + 1, color=FAINT)  # fmt: skip
        for row in rows:  # so that the axis has its extent
            axes.plot(place(row), (math.nan, math.nan))
            axes.update_datalim([(place(row)[0], 0)], updatey=False)
    axes.set_ylabel(_unit(rows, look) if runs else "", size=size, color=FAINT)
    return handles | _mark(axes, rows, place)


def about(rows: Sequence[ParamVersion]) -> str:
    """Dtype, shape and constraint of the newest version, e.g. ``F32[64×128], positive``."""
    if not rows:
        return ""
    newest = rows[-1]
    kind = json.loads(newest.constraint).get("kind", "")
    shape = f"[{'×'.join(map(str, newest.shape))}]" if newest.shape else ""
    return ", ".join([f"{newest.dtype}{shape}", *([kind] if kind != "real" else [])])


def warning(rows: Sequence[ParamVersion], most: int, *, steps: bool) -> str:
    """Say where the first value that is not finite is; nothing where all are.

    In more than ``most`` characters, it leaves out how many elements that were.
    """
    said = []
    for what, count_of in (("NaN", _nans), ("inf", _infs)):
        first = next((row for row in rows if count_of(row)), None)
        if first is not None:
            where = f"step {first.step:,}" if steps else f"version {first.version:,}"
            number = prod(first.shape)
            part = f" ({count_of(first):,} of {number:,})" if number > 1 else ""
            said.append((first.version, f"first {what}: {where}{part}"))
    text = ", ".join(text for _, text in sorted(said))
    return text if len(text) <= most else re.sub(r" \(.*?\)", "", text)


def set_scale(axes: Axes, numbers: Iterable[float]) -> None:
    """Make the vertical axis logarithmic where its numbers span decades.

    With zero and both signs, where the largest is far from most of them; up to those it is linear.
    """
    known = [number for number in numbers if math.isfinite(number)]
    sizes = sorted(abs(number) for number in known if number)
    if not sizes:
        return
    least, middle, most = sizes[0], sizes[len(sizes) // 2], sizes[-1]
    if 0 < min(known) < max(known) / _DECADES:
        axes.set_yscale("log")
    elif max(known) < 0 and most > _DECADES * least:
        axes.set_yscale("symlog", linthresh=least)
    elif most > _FAR * middle:
        decades = math.log10(most / middle)
        axes.set_yscale("symlog", linthresh=middle, linscale=decades / 6)
        # matplotlib's own labels of both ends of the linear part overlap.
        top, apart = math.floor(math.log10(most)), math.ceil(decades / 3)
        powers = [10.0 ** (top - place * apart) for place in range(3)]
        axes.set_yticks([*(-power for power in powers), 0, *powers], minor=False)
        axes.minorticks_off()


# -- what to draw ------------------------------------------------------------------


def _look(rows: Sequence[ParamVersion]) -> _Look:
    if any(row.dtype.startswith("C") for row in rows):
        return _NORM
    described = [row for row in rows if row.statistics is not None]
    return _VALUE if all(row.value is not None for row in described) else _MEAN


def _is_known(row: ParamVersion, look: _Look) -> bool:
    return math.isfinite(look.line(row))


def _runs(
    known: Sequence[ParamVersion], rows: Sequence[ParamVersion], place: Place
) -> list[list[ParamVersion]]:
    """The versions that one line connects: no gap in the numbers, no removal, no step back."""
    following = dict(pairwise(row.version for row in rows))
    runs: list[list[ParamVersion]] = []
    for row in known:
        last = runs[-1][-1] if runs else None
        joined = (
            last is not None
            and following[last.version] == row.version
            and not last.removed
            and place(last)[1] <= place(row)[0]
        )
        if joined:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _numbers(row: ParamVersion, look: _Look) -> list[float]:
    if not look.band:
        return [look.line(row)]
    return [_number(row.mean), _number(row.min), _number(row.max)]


def _number(value: float | complex | None) -> float:
    if value is None or isinstance(value, complex):
        return math.nan
    return placed(value) if math.isfinite(value) else math.nan


def _nans(row: ParamVersion) -> int:
    return row.nan_count or 0


def _infs(row: ParamVersion) -> int:
    return row.inf_count or 0


def _unit(rows: Sequence[ParamVersion], look: _Look) -> str:
    if not look.band:
        return look.label
    marked = any(row.statistics and row.statistics.unconstrained for row in rows)
    return "elements, unconstrained" if marked else "elements"


def _nothing(rows: Sequence[ParamVersion]) -> str:
    if not rows:
        return "no versions"
    if all(row.statistics is None for row in rows):
        return "no statistics:\ncommitted with statistics=False"
    if all(0 in row.shape for row in rows):
        return "no elements"
    return "no finite element in any version"


# -- how to draw it ----------------------------------------------------------------


def _draw_run(
    axes: Axes, run: Sequence[ParamVersion], look: _Look, place: Place, *, dots: bool
) -> None:
    points = [(x, row) for row in run for x in dict.fromkeys(place(row))]
    xs = [x for x, _ in points]
    lines = [look.line(row) for _, row in points]
    if look.band:
        least = [_number(row.min) for _, row in points]
        most = [_number(row.max) for _, row in points]
        low, high = zip(*(_deviation(row) for _, row in points), strict=True)
        if len(points) > 1:
            axes.fill_between(xs, least, most, color=BLUE, alpha=0.16, linewidth=0)
            axes.fill_between(xs, low, high, color=BLUE, alpha=0.34, linewidth=0)
        else:  # a band has no width here
            axes.vlines(xs, least, most, color=BLUE, alpha=0.25, linewidth=3)
            axes.vlines(xs, low, high, color=BLUE, alpha=0.5, linewidth=6)
    axes.plot(xs, lines, color=BLUE, linewidth=1.4)
    if dots or len(points) == 1:
        begins = [(place(row)[0], look.line(row)) for row in run]
        axes.plot(*zip(*begins, strict=True), "o", color=BLUE, markersize=3.2)


def _deviation(row: ParamVersion) -> tuple[float, float]:
    """One standard deviation to both sides of the mean, no further than there are elements."""
    mean, std = _number(row.mean), _number(row.std)
    return max(mean - std, _number(row.min)), min(mean + std, _number(row.max))


def _legend(look: _Look) -> Handles:
    if not look.band:  # its axis says what it is
        return {}
    return {
        look.label: Line2D([], [], color=BLUE, linewidth=1.4),
        "mean ± std": Patch(color=BLUE, alpha=0.45, linewidth=0),
        "min – max": Patch(color=BLUE, alpha=0.16, linewidth=0),
    }


def _mark(axes: Axes, rows: Sequence[ParamVersion], place: Place) -> Handles:
    """Mark the versions that are not finite along the lower edge, and the first of them."""
    handles: Handles = {}
    kinds = (("NaN", "x", VERMILLION, _nans, 1.0), ("inf", "^", PURPLE, _infs, 2.6))
    for label, marker, color, count_of, height in kinds:
        spans = [place(row) for row in rows if count_of(row)]
        if not spans:
            continue
        for begin, end in spans:
            if end > begin:
                axes.axvspan(begin, end, color=color, alpha=0.12, linewidth=0)
        axes.axvline(spans[0][0], color=color, linewidth=1, linestyle=(0, (3, 2)))
        axes.plot(
            [begin for begin, _ in spans],
            [_MARKED_AT * height] * len(spans),
            marker,
            color=color,
            markersize=5,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        handles[label] = Line2D([], [], color=color, marker=marker, linestyle="none", markersize=5)
    return handles
