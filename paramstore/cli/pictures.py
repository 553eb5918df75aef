"""``--plot``: histories and differences as pictures, in the terminal or in a file.

Files need matplotlib (extra ``[plot]``); the terminal needs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from paramstore.cli.output import BAD, HEAD, paint, say
from paramstore.cli.sketch import Level, bars, curve
from paramstore.diff import Diff
from paramstore.errors import StorageError
from paramstore.history import History
from paramstore.listing import format_bytes, printable
from paramstore.snapshot import ParamVersion, Snapshot

F = TypeVar("F", bound=Callable[..., Any])

TERMINAL: Final = "-"
"""Where ``--plot`` without a file draws."""
_ENDS: Final = (".png", ".svg", ".pdf")
_WIDEST: Final = 100
_BARS: Final = 30


def plot_option(command: F) -> F:
    """Give a verb ``--plot``."""
    return click.option(
        "--plot",
        is_flag=False,
        flag_value=TERMINAL,
        metavar="[FILE]",
        callback=_checked,
        help="Draw: in the terminal, or into FILE (.png, .svg, .pdf; needs matplotlib).",
    )(command)


def _checked(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and value != TERMINAL and Path(value).suffix not in _ENDS:
        raise click.BadParameter(
            f"{value!r} does not end in {', '.join(_ENDS)}; put --plot last to draw here",
            context,
            parameter,
        )
    return value


def plot_histories(
    histories: dict[str, list[ParamVersion]],
    where: str,
    log: Iterable[Snapshot],
    metrics: Sequence[str],
    *,
    joined: bool,
) -> None:
    """Draw how parameters moved; without lines in between where versions were left out."""
    if where != TERMINAL:
        from paramstore.plotting import plot_histories as draw

        rows = [History(versions) for versions in histories.values()]
        _save(draw(rows, log=log, metrics=metrics, joined=joined), Path(where))
        return
    for number, (name, versions) in enumerate(histories.items()):
        scalar = all(row.value is not None and not isinstance(row.value, complex)
                     for row in versions)  # fmt: skip
        what = "value" if scalar else "norm"
        say(("\n" if number else "") + paint(f"{printable(name)}  {what}", HEAD))
        unit = "version" if any(row.step is None for row in versions) else "step"
        say(curve(list(_levels(versions, unit, joined=joined)), _width(), under=unit))
        bad = [row for row in versions if row.nan_count or row.inf_count]
        if bad:
            places = ", ".join(f"{row.scope}@{row.version}" for row in bad[:10])
            more = " …" if len(bad) > 10 else ""
            say(paint(f"× NaN or infinite elements: {printable(places)}{more}", BAD))


def _levels(versions: Sequence[ParamVersion], unit: str, *, joined: bool) -> Iterator[Level]:
    """What the figures draw, too: no line where the parameter was absent or the step went back."""
    before: float | None = None  # where the last value ended, if a line may lead on from there
    for row in versions:
        scalar = row.value
        y = row.norm if scalar is None or isinstance(scalar, complex) else float(scalar)
        begin, end = row.version, row.until_version
        if unit == "step" and row.step is not None:
            begin, end = row.step, row.step if row.until_step is None else row.until_step
        known = None if row.nan_count or row.inf_count else y
        yield Level(
            begin, max(begin, end), known, joined and before is not None and before <= begin
        )
        before = None if row.removed else end


def plot_diff(found: Diff, where: str) -> None:
    """Draw the relative changes, the largest first."""
    if where != TERMINAL:
        from paramstore.plotting import plot_diff as draw

        _save(draw(found), Path(where))
        return
    say(paint(str(found).split("\n", 1)[0], HEAD))
    rows = [(c.name, c.relative) for c in found.changed if c.relative is not None]
    if rows:
        say("relative change")
        say(bars(rows[:_BARS], _width()))
    if len(rows) > _BARS:
        say(f"… and {len(rows) - _BARS} smaller ones")


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST)


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    say(f"{printable(str(path))}: {format_bytes(path.stat().st_size)}")
