"""``--plot``: histories and differences as pictures, in the terminal or in a file.

Files need matplotlib (extra ``[plot]``); the terminal needs nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from paramstore.cli.output import BAD, HEAD, paint, say
from paramstore.cli.sketch import bars, curve
from paramstore.diff import Diff
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
) -> None:
    """Draw how parameters moved."""
    if where != TERMINAL:
        from paramstore.plotting import plot_histories as draw

        rows = [History(versions) for versions in histories.values()]
        _save(draw(rows, log=log, metrics=metrics), Path(where))
        return
    for number, (name, versions) in enumerate(histories.items()):
        scalar = all(row.value is not None and not isinstance(row.value, complex)
                     for row in versions)  # fmt: skip
        what = "value" if scalar else "norm"
        say(("\n" if number else "") + paint(f"{printable(name)}  {what}", HEAD))
        say(curve(list(map(_point, versions)), _width(), under=_unit(versions)))
        bad = [row for row in versions if row.nan_count or row.inf_count]
        if bad:
            places = ", ".join(f"{row.scope}@{row.version}" for row in bad[:10])
            more = " …" if len(bad) > 10 else ""
            say(paint(f"× NaN or infinite elements: {printable(places)}{more}", BAD))


def _point(row: ParamVersion) -> tuple[float, float | None]:
    scalar = row.value
    y = row.norm if scalar is None or isinstance(scalar, complex) else float(scalar)
    x = row.version if row.step is None else row.step
    return float(x), None if row.nan_count or row.inf_count else y


def _unit(versions: Sequence[ParamVersion]) -> str:
    return "version" if any(row.step is None for row in versions) else "step"


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
    figure.savefig(path)
    say(f"{printable(str(path))}: {format_bytes(path.stat().st_size)}")
