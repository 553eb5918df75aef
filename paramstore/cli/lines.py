"""``copy``, ``rename`` and ``drop``: whole scopes, also between two stores.

Asks before a scope goes; must never touch a working set.
"""

from __future__ import annotations

import sys

import click

from paramstore.cli.arguments import ScopeType, dry_run_option, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, making, reading, where, writing
from paramstore.cli.output import Form, json_option, say, say_json, shown
from paramstore.errors import ParamStoreError
from paramstore.listing import format_bytes, printable

_scope = click.argument("scope", type=ScopeType())


@verb(
    "copy",
    "paramstore copy main before-the-change",
    "paramstore copy guide-a --to-db best.db          # the name stays",
    "paramstore copy main run-7 --to-db all-runs.db",
)
@_scope
@click.argument("new", metavar="[NEW]", required=False)
@click.option("--to-db", metavar="FILE", type=click.Path(), help="Into that store; made when new.")
@json_option
def copy(scope: str, new: str | None, to_db: str | None, form: Form) -> None:
    """Copy SCOPE with all of its snapshots to a new scope NEW, here or in another store.

    Versions, times, tags, extras and states stay as they are. All of it happens, or nothing.
    """
    from paramstore.db.scope_copy import copy_scope

    if new is None and to_db is None:
        raise click.UsageError("name the copy, or another store with --to-db")
    name = new or scope
    if to_db is None or _is_here(to_db):
        with writing() as repository:
            done = copy_scope(repository.database, scope, repository.database, name)
    else:
        with reading() as source, making(to_db) as target:
            done = copy_scope(source.database, scope, target.database, name)
    if form == "json":
        say_json({"scope": name, "snapshots": done.snapshots, "nbytes": done.nbytes})
    else:
        say(
            f"{printable(name)}: {done.snapshots} snapshots, {format_bytes(done.nbytes)} of "
            f"tensors written"
        )


@verb(
    "rename",
    "paramstore rename main first-try",
    "paramstore rename loc guide.loc --param          # a parameter in its whole history",
)
@click.argument("old", type=ScopeType())
@click.argument("new")
@click.option("--param", is_flag=True, help="OLD is a parameter of the scope, not a scope.")
@scope_option("With --param: the scope of the parameter.")
def rename(old: str, new: str, param: bool, scope: str | None) -> None:
    """Give the scope OLD, or a parameter of a scope, another name; the history stays.

    A run that is training in that scope gets a ConflictError at its next commit.
    """
    from paramstore.db.scope_changes import rename_scope

    if scope is not None and not param:
        raise click.UsageError("--scope goes with --param")
    with writing() as repository:
        if param:
            repository.rename(current_scope(repository, scope), old, new)
        else:
            rename_scope(repository.database, old, new)
    say(f"{printable(old)} is now {printable(new)}")


@verb(
    "drop",
    "paramstore drop first-try --dry-run",
    "paramstore drop first-try",
    "paramstore drop first-try --yes && paramstore gc",
)
@_scope
@click.option("--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@json_option
def drop(scope: str, yes: bool, dry_run: bool, form: Form) -> None:
    """Forget SCOPE with all of its snapshots and tags; gc then frees what they held.

    Scopes that were forked from it keep everything they have.
    """
    from paramstore.db.scope_changes import children, drop_scope

    with (reading if dry_run else writing)() as repository:
        count = len(repository.log(scope))
        forks = children(repository.database, scope)
        if not dry_run:
            if not yes:
                _ask(_told(scope, count, forks))
            drop_scope(repository.database, scope)
    if form == "json":
        say_json({"scope": scope, "snapshots": count, "orphaned": forks, "dry_run": dry_run})
    elif dry_run:
        say(f"would forget {_told(scope, count, forks)}\nnext: the same without --dry-run")
    else:
        say(f"forgot {printable(scope)} with {count} snapshots; next: paramstore gc")


def _is_here(place: str) -> bool:
    """Whether a path leads to the store that is used anyway."""
    from paramstore.db.sqlite import locate

    return locate(place) == locate(where())


def _told(scope: str, count: int, forks: list[str]) -> str:
    orphaned = f" ({shown(forks[:5])} will have no parent)" if forks else ""
    return f"{printable(scope)} with {count} snapshots{orphaned}"


def _ask(what: str) -> None:
    """Let a person decide; without one, refuse."""
    if not sys.stdin.isatty():
        raise ParamStoreError(f"this would forget {what}; say --yes")
    if not click.confirm(f"Forget {what}?", err=True):
        raise ParamStoreError("nothing was changed")
