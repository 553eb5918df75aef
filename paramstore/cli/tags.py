"""``tag`` and ``untag``: names for snapshots.

Writes one row; must never change a snapshot.
"""

from __future__ import annotations

import click

from paramstore.cli.arguments import complete_tags, ref_argument, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, writing
from paramstore.cli.output import say
from paramstore.listing import printable
from paramstore.refs import Ref


@verb(
    "tag",
    "paramstore tag warm                  # the newest snapshot",
    "paramstore tag warm @12 --move       # a tag that points elsewhere",
)
@click.argument("name", shell_complete=complete_tags)
@ref_argument("ref", required=False)
@scope_option()
@click.option("--move", is_flag=True, help="Let a tag that points elsewhere point here.")
def tag(name: str, ref: Ref | None, scope: str | None, move: bool) -> None:
    """Let NAME mean a snapshot: REF, or the newest of the scope."""
    with writing() as repository:
        found = repository.resolve(ref or Ref(), current_scope(repository, scope))
        repository.tag(found, name, move=move)
    say(f"{printable(found.scope)}@{printable(name)} is {printable(found.ref)}")


@verb("untag", "paramstore untag warm", "paramstore untag warm --scope guide-a")
@click.argument("name", shell_complete=complete_tags)
@scope_option()
def untag(name: str, scope: str | None) -> None:
    """Forget the tag NAME; its snapshot stays."""
    with writing() as repository:
        inside = current_scope(repository, scope)
        repository.untag(inside, name)
    say(f"forgot {printable(inside)}@{printable(name)}")
