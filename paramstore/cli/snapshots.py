"""``best`` and ``scopes``: short listings.

Reads; must never read a tensor.
"""

from __future__ import annotations

from datetime import datetime

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, reading
from paramstore.cli.output import Form, age, json_option, say_json, say_rows, say_table
from paramstore.history import Log
from paramstore.listing import format_table


@verb(
    "best",
    "paramstore best elbo",
    "paramstore best loss --mode min",
    "paramstore show $(paramstore best elbo --json | jq -r .ref)",
)
@click.argument("metric")
@click.option("--mode", type=click.Choice(["max", "min"]), default="max", show_default=True)
@scope_option()
@json_option
def best(metric: str, mode: str, scope: str | None, form: Form) -> None:
    """Print the snapshot of a scope with the largest (or smallest) METRIC; of equals the newest."""
    with reading() as repository:
        found = repository.best(current_scope(repository, scope), metric, mode)
    if form == "json":
        say_json(shapes.snapshot(found))
    else:
        say_table(str(Log([found])))


@verb("scopes", "paramstore scopes", "paramstore scopes --json")
@json_option
def scopes(form: Form) -> None:
    """Print the scopes of the store: newest version, number of snapshots, age of the newest."""
    from paramstore.db.looking import counts

    with reading() as repository:
        found = repository.scopes()
        of_scope = counts(repository.database)
    rows = [shapes.scope(scope, *of_scope.get(scope.name, (0, None))) for scope in found]
    if form == "json":
        say_rows(rows, form)
        return
    head = ("scope", "newest", "snapshots", "age")
    cells = [
        [row["scope"], str(row["head_version"]), str(row["snapshots"]), _age(row["newest_at"])]
        for row in rows
    ]
    say_table(format_table(head, cells) if cells else "no scopes")


def _age(stored: str | None) -> str:
    return "" if stored is None else age(datetime.fromisoformat(stored))
