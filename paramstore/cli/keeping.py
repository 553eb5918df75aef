"""``expire``, ``gc`` and ``du``: what to keep of a long run, and what it takes on the disk.

Asks the policies and the collector; must never choose by itself what goes.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from itertools import groupby
from typing import Any, Final, Literal

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import dry_run_option, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import reading, writing
from paramstore.cli.output import (
    BAD,
    HEAD,
    Form,
    Style,
    json_option,
    paint,
    say,
    say_json,
    say_table,
)
from paramstore.retention import (
    Expired,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    KeepWithin,
    Policy,
)

_ROWS: Final = 20  # that are printed of each scope
_AGE: Final = re.compile(r"(\d{1,6})\s*(s|min|h|d|w)")
_UNITS: Final = {"s": "seconds", "min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class AgeType(click.ParamType[timedelta]):
    """A span of time, such as ``7d``."""

    name = "age"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        """Parse it."""
        if isinstance(value, timedelta):
            return value
        found = _AGE.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not an age; write 30min, 12h, 7d or 4w", param, ctx)
        return timedelta(**{_UNITS[found[2]]: int(found[1])})


class BestType(click.ParamType[KeepBest]):
    """A metric, how many of its best, and whether more is better: ``elbo``, ``loss:3:min``."""

    name = "metric"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> KeepBest:
        """Parse it; the metric's name may have colons itself."""
        if isinstance(value, KeepBest):
            return value
        metric, mode, count = str(value), "max", 1
        if metric.endswith((":min", ":max")):
            metric, _, mode = metric.rpartition(":")
        if (head := metric.rpartition(":"))[0] and head[2].isascii() and head[2].isdigit():
            metric, count = head[0], int(head[2])
        if not metric or not count:
            self.fail(f"{value!r} is not METRIC[:N][:min]", param, ctx)
        return KeepBest(metric, count, _mode(mode))


def _mode(text: str) -> Literal["max", "min"]:
    return "min" if text == "min" else "max"


@verb(
    "expire",
    "paramstore expire --keep-last 10 --keep-every 1000 --dry-run",
    "paramstore expire --keep-best elbo --keep-best loss:3:min --keep-within 7d",
    "paramstore expire --keep-tagged --scope guide-a    # what may go, goes",
)
@click.option("--keep-last", metavar="N", type=click.IntRange(1), help="The newest N.")
@click.option(
    "--keep-every", metavar="STEPS", type=click.IntRange(1), help="The first of so many steps."
)
@click.option("--keep-within", metavar="AGE", type=AgeType(), help="What is at most so much older "
              "than the newest: 30min, 12h, 7d, 4w.")  # fmt: skip
@click.option("--keep-best", metavar="METRIC[:N][:min]", type=BestType(), multiple=True,
              help="The N with the largest (min: smallest) metric.")  # fmt: skip
@click.option("--keep-tagged", is_flag=True, help="What has a tag: that and no more.")
@scope_option("The only scope to look at; default: every one by itself.")
@dry_run_option
@json_option
def expire(
    keep_last: int | None,
    keep_every: int | None,
    keep_within: timedelta | None,
    keep_best: tuple[KeepBest, ...],
    keep_tagged: bool,
    scope: str | None,
    dry_run: bool,
    form: Form,
) -> None:
    """Forget the snapshots that no --keep option keeps; gc then frees what they held.

    The newest of each scope and what has a tag always stay.
    """
    from paramstore.db.expiry import expire as forget

    policies: list[Policy] = list(keep_best)
    policies += [KeepLast(keep_last)] if keep_last else []
    policies += [KeepEvery(steps=keep_every)] if keep_every else []
    policies += [KeepWithin(keep_within)] if keep_within else []
    policies += [KeepTagged()] if keep_tagged else []
    if not policies:
        raise click.UsageError("say what to keep, with one --keep option or several")
    policy = policies[0]
    for other in policies[1:]:
        policy |= other
    with (reading if dry_run else writing)() as repository:
        found = forget(repository.database, policy, scope=scope, dry_run=dry_run)
    _say_expired(found, form)


def _say_expired(found: Expired, form: Form) -> None:
    if form == "json":
        kept = [{**shapes.snapshot(k.snapshot), "reasons": list(k.reasons)} for k in found.kept]
        say_json(
            {
                "kept": kept,
                "expired": list(map(shapes.snapshot, found.expired)),
                "nbytes": found.nbytes,
                "dry_run": found.dry_run,
            }
        )
        return
    _say_short(found)
    say(paint(found.summary, HEAD))
    if found.expired:
        say("next: the same without --dry-run" if found.dry_run else "next: paramstore gc")


def _say_short(found: Expired) -> None:
    """Print the table with the newest snapshots of each scope only; what goes is red."""
    table = str(found).rpartition("\n")[0]
    gone = {snapshot.id for snapshot in found.expired}
    every = sorted(
        [*(kept.snapshot for kept in found.kept), *found.expired],
        key=lambda snapshot: (snapshot.scope, -snapshot.version),
    )
    head, *rows = table.split("\n")
    lines, styles = [head], list[Style | None]()
    for _, group in groupby(zip(every, rows, strict=True), lambda pair: pair[0].scope):
        of_scope = list(group)
        for snapshot, row in of_scope[:_ROWS]:
            lines.append(row)
            styles.append(BAD if snapshot.id in gone else None)
        if more := of_scope[_ROWS:]:
            going = sum(snapshot.id in gone for snapshot, _ in more)
            lines.append(f"… {len(more):,} more, {going:,} of which go; --json has all of them")
            styles.append(None)
    say_table("\n".join(lines), styles)


@verb("gc", "paramstore gc --dry-run", "paramstore gc", "paramstore gc --compact")
@click.option(
    "--compact",
    is_flag=True,
    help="Rewrite the whole file: smallest, needs room for a second one, and stops other users.",
)
@dry_run_option
@json_option
def gc(compact: bool, dry_run: bool, form: Form) -> None:
    """Free what no snapshot holds, and give the space back to the file system.

    Safe beside a run that is training; a commit waits for a part of it.
    """
    from paramstore.db.collection import collect

    with (reading if dry_run else writing)() as repository:
        found = collect(repository.database, dry_run=dry_run, compact=compact)
    if form == "json":
        say_json(asdict(found))
        return
    table, _, summary = str(found).rpartition("\n")
    say_table(table)
    say(paint(summary, HEAD))


@verb("du", "paramstore du", "paramstore du --json | jq .file_nbytes")
@json_option
def du(form: Form) -> None:
    """Print what the store takes on the disk, what of it each scope, and what gc would free."""
    from paramstore.db.occupancy import usage

    with reading() as repository:
        found = usage(repository.database)
    if form == "json":
        say_json({**asdict(found), "other_nbytes": found.other_nbytes})
        return
    for number, table in enumerate(str(found).split("\n\n")):
        if number:
            say("")
        say_table(table)
