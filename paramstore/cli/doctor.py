"""``doctor``: what is wrong with a store or the place it lies in, and what to do.

Says what the examinations found; must never repair anything itself.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

import click

from paramstore.cli.examine import Finding, examine
from paramstore.cli.group import verb
from paramstore.cli.opening import where
from paramstore.cli.output import BAD, CHANGED, NEW, Form, Style, json_option, paint, say, say_rows
from paramstore.listing import printable

_STYLES: Final[dict[str, Style]] = {"ok": NEW, "note": CHANGED, "wrong": BAD}


@verb(
    "doctor",
    "paramstore doctor",
    "paramstore doctor --db /data/run.db --quick     # without reading the pages",
)
@click.option("--quick", is_flag=True, help="Do not read every page of the file.")
@json_option
def doctor(quick: bool, form: Form) -> int:
    """Look at versions, SQLite, file system, space, settings, schema and content.

    Exit code 1 where something is wrong.
    """
    from paramstore.db.sqlite import locate

    path = locate(where())
    if path is None:
        raise click.UsageError("a database in memory has nothing to look at")
    found = []
    for finding in examine(path, deep=not quick):
        found.append(finding)
        if form == "text":
            _say(finding)
    if form == "json":
        say_rows(map(asdict, found), form)
    return int(any(finding.level == "wrong" for finding in found))


def _say(finding: Finding) -> None:
    say(
        f"{paint(f'{finding.level:5}', _STYLES[finding.level])}  {finding.what:16}  "
        f"{printable(finding.found)}"
    )
    if finding.advice:
        say(f"{'':25}→ {finding.advice}")
