"""What a verb prints: text for people, coloured on a terminal only, or JSON of a stable shape.

Formats values that it is given; must never ask a store.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar

import click

from paramstore.listing import printable

Form = Literal["text", "json", "jsonl"]
Style = Mapping[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

HEAD: Final[Style] = {"bold": True}
BAD: Final[Style] = {"fg": "red"}
WEAK: Final[Style] = {"dim": True}
NEW: Final[Style] = {"fg": "green"}
CHANGED: Final[Style] = {"fg": "yellow"}

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("min", 60))


def json_option(command: F) -> F:
    """Give a verb ``--json``."""
    option = click.option("--json", "form", flag_value="json", help="Print JSON.", default="text")
    return option(command)


def json_options(command: F) -> F:
    """Give a verb ``--json`` and, for what may be long, ``--jsonl``."""
    lines = click.option(
        "--jsonl", "form", flag_value="jsonl", help="Print JSON, one object per line."
    )
    return json_option(lines(command))


def on_terminal() -> bool:
    """Whether a person reads what is printed."""
    return sys.stdout is not None and sys.stdout.isatty()


def paint(text: str, style: Style | None) -> str:
    """Colour text for a terminal; what goes elsewhere loses it when it is printed."""
    plain = style is None or not on_terminal() or "NO_COLOR" in os.environ
    return text if plain else click.style(text, **(style or {}))


def say(text: str) -> None:
    """Print a line of text or several."""
    click.echo(text)


def say_table(text: str, styles: Iterable[Style | None] = ()) -> None:
    """Print a table, its head in bold, each row in its style."""
    lines = text.split("\n")
    of_rows = [HEAD, *styles][: len(lines)]
    of_rows += [None] * (len(lines) - len(of_rows))
    click.echo("\n".join(map(paint, lines, of_rows)))


def say_json(value: object) -> None:
    """Print one JSON value, over several lines."""
    click.echo(json.dumps(jsonable(value), indent=2, allow_nan=False))


def say_rows(rows: Iterable[Mapping[str, object]], form: Form) -> None:
    """Print a list of objects as JSON, or one per line."""
    if form == "jsonl":
        for row in rows:
            click.echo(json.dumps(jsonable(row), allow_nan=False))
    else:
        say_json(list(rows))


def jsonable(value: Any) -> Any:
    """Return a value as JSON has it; NaN and infinities as the texts that the database uses."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, complex):
        return [jsonable(value.real), jsonable(value.imag)]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def shown(names: Sequence[str]) -> str:
    """Write names in one line, escaped where a terminal would act on them."""
    return ", ".join(map(printable, names))


def age(moment: datetime) -> str:
    """Write how long ago something was, in its largest unit: ``3 min``."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
