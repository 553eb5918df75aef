"""``log``: the snapshots of a scope, their parents drawn, or the new ones as they come.

Reads; must never hold the database between two looks at it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import limit_option, ref_argument, scope_option
from paramstore.cli.graph import draw
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, reading
from paramstore.cli.output import (
    CHANGED,
    Form,
    age,
    json_options,
    on_terminal,
    say,
    say_rows,
    say_table,
)
from paramstore.history import Log
from paramstore.listing import format_table, printable
from paramstore.refs import Ref
from paramstore.snapshot import INTERRUPTED, SNAPSHOT_HEAD, Snapshot, snapshot_row

if TYPE_CHECKING:
    from paramstore.db.repository import Repository

PAUSE: Final = 1.0
"""Seconds between two looks of ``--follow``."""
_HEAD: Final = tuple("age" if cell == "time" else cell for cell in SNAPSHOT_HEAD)
_WIDTHS: Final = (12, 8, 8, 9, 10)  # of --follow, whose later rows are not known yet


@verb(
    "log",
    "paramstore log                       # the newest first",
    "paramstore log guide-a@warm -n 10    # ten of another scope, back from a tag",
    "paramstore log --graph               # all scopes, and which grew from which",
    "paramstore log --follow              # beside a run that is training",
    "paramstore log --jsonl | jq .metrics.elbo",
)
@ref_argument("ref", required=False)
@scope_option()
@limit_option("So many snapshots at most.")
@click.option("--graph", is_flag=True, help="Draw which snapshot continues which, in all scopes.")
@click.option("-f", "--follow", is_flag=True, help="Print new snapshots as they are committed.")
@json_options
def log(
    ref: Ref | None, scope: str | None, limit: int | None, graph: bool, follow: bool, form: Form
) -> None:
    """Print the snapshots of a scope, newest first; from REF back, if one is given."""
    if follow and (graph or ref):
        raise click.UsageError("--follow goes with neither --graph nor REF")
    with reading() as repository:
        if follow:
            _follow(repository, current_scope(repository, scope), limit, form)
        elif graph:
            _draw(_all(repository, ref, scope), limit, form)
        else:
            _list(_of_scope(repository, ref, scope, limit), form)


def _of_scope(
    repository: Repository, ref: Ref | None, scope: str | None, limit: int | None
) -> list[Snapshot]:
    current = current_scope(repository, scope)
    if ref is None:
        return repository.log(current, limit)
    start = repository.resolve(ref, current)
    return [s for s in repository.log(start.scope) if s.version <= start.version][:limit]


def _all(repository: Repository, ref: Ref | None, scope: str | None) -> list[Snapshot]:
    """The snapshots to draw, newest first: of one scope, what led to one snapshot, or all."""
    names = [scope] if scope else [found.name for found in repository.scopes()]
    found = sorted(
        (snapshot for name in names for snapshot in repository.log(name)),
        key=lambda snapshot: snapshot.id,
        reverse=True,
    )
    if ref is None:
        return found
    wanted: str | None = repository.resolve(ref, current_scope(repository, scope)).ref
    line = []
    for snapshot in found:
        if snapshot.ref == wanted:
            line.append(snapshot)
            wanted = snapshot.parent
    return line


def _list(snapshots: list[Snapshot], form: Form) -> None:
    if form != "text":
        say_rows(map(shapes.snapshot, snapshots), form)
    elif snapshots and on_terminal():
        say_table(format_table(_HEAD, map(_row, snapshots)), map(_style, snapshots))
    elif snapshots:  # a scope has one at least: who asked for none is shown none
        say_table(str(Log(snapshots)))


def _draw(snapshots: list[Snapshot], limit: int | None, form: Form) -> None:
    if form != "text":
        say_rows(map(shapes.snapshot, snapshots[:limit]), form)
        return
    table = format_table(_HEAD, map(_row, snapshots[:limit])).split("\n")[1:]
    for line in draw([(s.ref, s.parent) for s in snapshots][:limit], table):
        say(line)


def _style(snapshot: Snapshot) -> dict[str, str] | None:
    return dict(CHANGED) if snapshot.kind == INTERRUPTED else None


def _row(snapshot: Snapshot) -> list[str]:
    ref, step, _, *rest = snapshot_row(snapshot)
    return [ref, step, age(snapshot.created_at), *rest]


# -- following ---------------------------------------------------------------------


def _follow(repository: Repository, scope: str, limit: int | None, form: Form) -> None:
    shown = 10 if limit is None else limit
    last = repository.log(scope, max(shown, 1))
    if form == "text":
        say_table(_line(("snapshot", "step", "time", "changed", "added", "tags and metrics")))
    for snapshot in _coming(repository, scope, last, shown):
        if form == "text":
            say(_line(_followed(snapshot)))
        else:
            say_rows([shapes.snapshot(snapshot)], "jsonl")


def _coming(
    repository: Repository, scope: str, last: list[Snapshot], shown: int
) -> Iterator[Snapshot]:
    """Yield some of the last snapshots, oldest first, and then each that is committed."""
    yield from reversed(last[:shown])
    seen = last[0].version
    while True:
        time.sleep(PAUSE)
        newest = repository.head_version(scope)
        found = repository.log(scope, newest - seen) if newest > seen else []
        yield from (snapshot for snapshot in reversed(found) if snapshot.version > seen)
        seen = max(seen, newest)


def _followed(snapshot: Snapshot) -> list[str]:
    ref, step, _, kind, changed, added, *rest = snapshot_row(snapshot)
    told = "  ".join(filter(None, (kind, *rest)))
    return [ref, step, f"{snapshot.created_at:%H:%M:%S}", changed, added, told]


def _line(cells: tuple[str, ...] | list[str]) -> str:
    widths = (*_WIDTHS, 0)
    return "  ".join(printable(c).ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
