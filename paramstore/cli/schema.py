"""``db``: the schema of a store, and how it gets from one revision to another.

Asks the migrations; must never change a table itself.
"""

from __future__ import annotations

from typing import Any

import click

from paramstore.cli.group import VERBS, common_options, verb
from paramstore.cli.opening import where
from paramstore.cli.output import Form, json_option, say, say_json
from paramstore.listing import printable

_place = click.argument("path", metavar="[PATH]", required=False, type=click.Path())
_backup = click.option(
    "--backup/--no-backup", default=True, show_default=True, help="Copy the store beside it first."
)


class Steps(click.Group):
    """A group whose help lists its commands as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.commands)


@click.group("db", cls=Steps, short_help=VERBS["db"][1], params=[*common_options()])
def db() -> None:
    """Look at the schema of a store, and bring it from one revision to another.

    The store is PATH, or what --db, PARAMSTORE_URL and the folder say.
    """


@verb(
    "current",
    "paramstore db current",
    "paramstore db current run.db --json",
    short_help="The revision of a store, and the newest.",
)
@_place
@json_option
def current(path: str | None, form: Form) -> None:
    """Print the revision of a store, and the one that this version of paramstore reads."""
    from paramstore.db import migrate

    found = migrate.current(path or where())
    if form == "json":
        say_json({"revision": found.found, "newest": found.newest})
    else:
        say(str(found))


@verb(
    "check",
    "paramstore db check",
    "paramstore db check run.db --json",
    short_help="Whether the tables are those of its revision.",
)
@_place
@json_option
def check(path: str | None, form: Form) -> int:
    """Compare the tables and views of a store with those of its revision.

    Exit code 1 where they differ, or where the store has to be upgraded.
    """
    from paramstore.db import migrate

    place = path or where()
    revisions, differing = migrate.current(place), migrate.check(place)
    if form == "json":
        say_json({"revision": revisions.found, "newest": revisions.newest, "drift": differing})
    else:
        say(str(revisions))
        say(printable("; ".join(differing)) if differing else "tables and views are as made")
        if revisions.found != revisions.newest:
            say("next: paramstore db upgrade")
    return int(bool(differing) or revisions.found != revisions.newest)


@verb(
    "upgrade",
    "paramstore db upgrade run.db",
    "paramstore db upgrade --no-backup",
    short_help="Bring a store to the newest revision.",
)
@_place
@_backup
@click.option("--share", is_flag=True, help="Make the tables beside those of another program.")
@json_option
def upgrade(path: str | None, backup: bool, share: bool, form: Form) -> None:
    """Bring a store to the newest revision: all of it, or nothing."""
    from paramstore.db import migrate

    _say_migrated(migrate.upgrade(path or where(), backup=backup, share=share), form)


@verb(
    "downgrade",
    "paramstore db downgrade 0001",
    "paramstore db downgrade 0001 run.db --json",
    short_help="Bring it back to an older revision.",
)
@click.argument("revision")
@_place
@_backup
@json_option
def downgrade(revision: str, path: str | None, backup: bool, form: Form) -> None:
    """Bring a store back to an older REVISION, for an older paramstore: all of it, or nothing."""
    from paramstore.db import migrate

    _say_migrated(migrate.downgrade(path or where(), revision, backup=backup), form)


def _say_migrated(done: Any, form: Form) -> None:
    if form == "json":
        backup = None if done.backup is None else str(done.backup)
        say_json(
            {"path": str(done.path), "before": done.before, "after": done.after, "backup": backup}
        )
    else:
        say(str(done))


for step in (current, check, upgrade, downgrade):
    db.add_command(step)
