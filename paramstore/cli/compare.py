"""``diff``: two snapshots side by side.

The size of a change needs the tensors, so this verb imports torch where something has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import ref_argument, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, reading
from paramstore.cli.output import (
    BAD,
    CHANGED,
    HEAD,
    NEW,
    Form,
    Style,
    json_option,
    paint,
    say,
    say_json,
    say_table,
)
from paramstore.cli.pictures import plot_diff, plot_option
from paramstore.diff import Diff
from paramstore.refs import Ref

if TYPE_CHECKING:
    from paramstore.db.repository import Repository

_STYLES: dict[str, Style] = {"+": NEW, "-": BAD, "~": CHANGED}


@verb(
    "diff",
    "paramstore diff @1 @latest",
    "paramstore diff @warm                 # a tag and the newest snapshot",
    "paramstore diff main@step=500 guide-a --json",
    "paramstore diff @1 --plot                # bars, in the terminal",
)
@ref_argument("before")
@ref_argument("after", required=False)
@scope_option()
@plot_option
@json_option
def diff(before: Ref, after: Ref | None, scope: str | None, plot: str | None, form: Form) -> None:
    """Print what was added, removed and changed from one snapshot to another, or to the newest.

    First NaN and inf, then by relative change. Reads the tensors that differ, and imports torch.
    """
    if plot is not None and form != "text":
        raise click.UsageError("--plot does not go with --json")
    with reading() as repository:
        current = current_scope(repository, scope)
        found = _compare(repository, current, before, after or Ref())
    if form == "json":
        say_json(shapes.diff(found))
        return
    if plot is not None:
        plot_diff(found, plot)
        return
    first, *table = str(found).split("\n")
    say(paint(first, HEAD))
    if table:
        say_table("\n".join(table), [_STYLES.get(line[:1]) for line in table[1:]])


def _compare(repository: Repository, scope: str, before: Ref, after: Ref) -> Diff:
    from paramstore.compare import compare
    from paramstore.reader import Reader, SnapshotView

    reader = Reader(repository)
    snapshots = [repository.resolve(ref, scope) for ref in (before, after)]
    views = [SnapshotView(reader, repository.manifest(found), found) for found in snapshots]
    return compare(*views)
