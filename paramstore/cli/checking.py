"""``verify``, ``backup`` and ``salvage``: whether a store is sound, a copy of it, and what is left.

Prints what the checks found; must never repair a store in place.
"""

from __future__ import annotations

from dataclasses import asdict

import click

from paramstore.cli.group import verb
from paramstore.cli.opening import reading
from paramstore.cli.output import BAD, HEAD, NEW, Form, json_option, paint, say, say_json
from paramstore.damage import Verified
from paramstore.listing import format_bytes, printable


@verb(
    "verify",
    "paramstore verify",
    "paramstore verify --sample 0.05        # all rows, and every twentieth tensor",
    "paramstore verify --statistics --json",
)
@click.option(
    "--sample",
    metavar="FRACTION",
    type=click.FloatRange(0, 1),
    default=1.0,
    show_default=True,
    help="Part of the tensors to read, at random; all rows are checked.",
)
@click.option(
    "--statistics", is_flag=True, help="Compute the statistics again, too; imports torch."
)
@json_option
def verify(sample: float, statistics: bool, form: Form) -> int:
    """Check every row, and compare tensors with their digests. Exit code 1 where one is wrong."""
    with reading() as repository:
        if statistics:
            from paramstore.checking import verify_database

            found = verify_database(repository.database, sample=sample)
        else:
            from paramstore.db.verification import verify as check

            found = check(repository.database, sample=sample)
    if form == "json":
        say_json({"ok": found.ok, **asdict(found)})
    else:
        _say(found)
    return int(not found.ok)


def _say(found: Verified) -> None:
    first, *rest = str(found).split("\n")
    say(paint(first, NEW if found.ok else BAD))
    for line in rest:
        say(line.replace("gc() frees", "'paramstore gc' frees"))


@verb("backup", "paramstore backup run-$(date +%F).db", "paramstore backup /mnt/nas/run.db --json")
@click.argument("path", type=click.Path())
@json_option
def backup(path: str, form: Form) -> None:
    """Copy the whole store into a new file PATH, also while a run is writing to it.

    The file is there when the copy is complete and on the disk, or not at all.
    """
    from paramstore.db.backup import backup as copy

    with reading() as repository:
        made = copy(repository.database, path)
    nbytes = made.stat().st_size
    if form == "json":
        say_json({"path": str(made), "nbytes": nbytes})
    else:
        say(f"{printable(str(made))}: {format_bytes(nbytes)}")


@verb("salvage", "paramstore salvage damaged.db saved.db", "paramstore verify --db saved.db")
@click.argument("damaged", type=click.Path())
@click.argument("into", type=click.Path())
@json_option
def salvage(damaged: str, into: str, form: Form) -> int:
    """Write everything that is readable in the store DAMAGED into a new one.

    Snapshots that are whole keep their names; what is left of others goes to scopes such as
    'main (salvaged)'. DAMAGED is not changed. Exit code 1 where something is lost.
    """
    from paramstore.db.salvage import salvage as save

    found = save(damaged, into)
    if form == "json":
        say_json({"ok": found.ok, **asdict(found)})
    else:
        first, *rest = str(found).split("\n")
        say("\n".join([paint(first, HEAD), *rest]))
    return int(not found.ok)
