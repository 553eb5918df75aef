"""``history``: how parameters moved, asked by name, glob or regular expression.

Reads statistics and never a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import complete_params, limit_option, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, reading
from paramstore.cli.output import BAD, HEAD, Form, json_options, paint, say, say_rows, say_table
from paramstore.cli.pictures import TERMINAL, plot_histories, plot_option
from paramstore.condition import COLUMNS, Condition, parse_condition
from paramstore.errors import InvalidInputError, ParamNotFoundError
from paramstore.history import History, format_history
from paramstore.listing import printable
from paramstore.progress import progress
from paramstore.refs import suggest, to_pattern
from paramstore.snapshot import ParamVersion

if TYPE_CHECKING:
    from paramstore.db.repository import Repository

_GLOB = re.compile(r"[*?\[]")


@verb(
    "history",
    "paramstore history scale                             # one parameter",
    "paramstore history 'net$$$*' --where 'nan > 0' --first   # where it went wrong",
    "paramstore history '/weight$/' --jsonl               # by regular expression",
    "paramstore history loc -n 20 --where 'norm > 10 or max > 5'",
    "paramstore history scale loc --plot                  # in the terminal",
    "paramstore history loc --metric elbo --plot loc.png  # or .svg, with matplotlib",
)
@click.argument("names", metavar="NAME…", nargs=-1, required=True, shell_complete=complete_params)
@scope_option()
@limit_option("So many versions at most, the newest.")
@click.option("--regex", is_flag=True, help="NAMEs are regular expressions, found anywhere.")
@click.option(
    "--where",
    metavar="CONDITION",
    help=f"Only versions for which it holds; it compares {', '.join(COLUMNS)} with numbers, and "
    "knows and, or, not and parentheses. Nothing found: exit code 1.",
)
@click.option("--first", is_flag=True, help="Of each parameter only the first version left.")
@plot_option
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="With --plot FILE: a metric beside it.",
)
@json_options
def history(
    names: tuple[str, ...],
    scope: str | None,
    limit: int | None,
    regex: bool,
    where: str | None,
    first: bool,
    plot: str | None,
    metrics: tuple[str, ...],
    form: Form,
) -> int:
    """Print the versions of parameters, oldest first.

    A NAME with * ? [ is a pattern of the shell (quote it), one between slashes a regular
    expression. A name that exists is always taken as it is.
    """
    if plot is not None and form != "text":
        raise click.UsageError("--plot goes with neither --json nor --jsonl")
    if metrics and plot in (None, TERMINAL):
        raise click.UsageError("--metric goes with --plot FILE")
    condition = _condition(where)
    with reading() as repository:
        inside = current_scope(repository, scope)
        chosen = choose(repository, inside, names, regex=regex)
        found = _read(repository, inside, _candidates(repository, inside, chosen, condition), limit)
        log = repository.log(inside) if metrics else []
    of_names = {name: _kept(rows, condition, first=first) for name, rows in found.items()}
    kept = {name: rows for name, rows in of_names.items() if rows}
    if plot is not None and kept:
        whole = condition is None and not first
        plot_histories(kept, plot, log, metrics, joined=whole)
    else:
        _say(kept, found, form, alone=list(chosen.values()) == [True])
    if where is not None and not kept:
        what = repr(*chosen) if len(chosen) == 1 else f"{len(chosen)} parameters"
        click.echo(f"no version of {what} has {where}", err=True)
        return 1
    return 0


def choose(
    repository: Repository, scope: str, names: Sequence[str], *, regex: bool = False
) -> dict[str, bool]:
    """Return the parameters of a scope that names and patterns mean, in order.

    Returns:
        Each with whether it was named itself: a pattern may also find what has no version any more.

    Raises:
        ParamNotFoundError: a pattern finds nothing.
        InvalidInputError: not a regular expression.
    """
    from paramstore.db.looking import param_names

    known = param_names(repository.database, scope)
    exact, chosen = set(known), dict[str, bool]()
    for name in names:
        matches = None if name in exact else _matcher(name, regex=regex)
        found = [name] if matches is None else [n for n in known if matches(n)]
        if not found:
            repository.log(scope, 0)  # the scope may be what does not exist
            raise ParamNotFoundError(
                f"no parameter of scope {scope!r} matches {name!r}{suggest(name, known)}"
            )
        chosen.update((n, chosen.get(n, False) or matches is None) for n in found)
    return chosen


def _matcher(name: str, *, regex: bool) -> Callable[[str], object] | None:
    """How a pattern is looked for; None for a name."""
    if regex:
        return to_pattern(name).search
    if len(name) > 2 and name[0] == name[-1] == "/":
        return to_pattern(name[1:-1]).search
    if _GLOB.search(name):
        return lambda known: fnmatchcase(known, name)
    return None


def _candidates(
    repository: Repository, scope: str, chosen: dict[str, bool], condition: Condition | None
) -> dict[str, bool]:
    """Leave out what a pattern found and the condition cannot hold for."""
    from paramstore.db.looking import candidates

    if condition is None or all(chosen.values()):
        return chosen
    able = candidates(repository.database, scope, condition)
    return {name: named for name, named in chosen.items() if named or name in able}


def _read(
    repository: Repository, scope: str, chosen: dict[str, bool], limit: int | None
) -> dict[str, list[ParamVersion]]:
    found = {}
    with progress("reading histories", len(chosen)) as advance:
        for name, named in chosen.items():
            try:
                found[name] = repository.history(scope, name, limit)
            except ParamNotFoundError:
                if named:
                    raise
            advance(1)
    return found


def _condition(where: str | None) -> Condition | None:
    try:
        return None if where is None else parse_condition(where)
    except InvalidInputError as error:
        raise click.BadParameter(str(error), param_hint="--where") from error


def _kept(
    rows: Iterable[ParamVersion], condition: Condition | None, *, first: bool
) -> list[ParamVersion]:
    kept = [row for row in rows if condition is None or condition(row)]
    return kept[:1] if first else kept


def _say(
    kept: dict[str, list[ParamVersion]],
    found: dict[str, list[ParamVersion]],
    form: Form,
    *,
    alone: bool,
) -> None:
    if form != "text":
        rows = (row for versions in kept.values() for row in versions)
        say_rows(map(shapes.param_version, rows), form)
        return
    for number, (name, versions) in enumerate(kept.items()):
        if not alone:
            say(("\n" if number else "") + paint(printable(name), HEAD))
        bad = [BAD if row.nan_count or row.inf_count else None for row in versions]
        shown = {row.version for row in versions}
        say_table(format_history(History(found[name]), shown), bad)
