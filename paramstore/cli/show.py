"""``show``: one snapshot with everything that it holds.

Reads the catalogue; reads tensors, and imports torch, only for ``--values``.
"""

from __future__ import annotations

import json
from datetime import UTC
from typing import TYPE_CHECKING, Any

import click

from paramstore.cli import shapes
from paramstore.cli.arguments import ref_argument, scope_option
from paramstore.cli.group import verb
from paramstore.cli.opening import current_scope, reading
from paramstore.cli.output import (
    BAD,
    HEAD,
    Form,
    age,
    json_option,
    paint,
    say,
    say_json,
    say_table,
    shown,
)
from paramstore.cli.stored import constraint_text, plain, plain_text
from paramstore.listing import format_bytes, format_number, format_table, printable
from paramstore.refs import Ref
from paramstore.snapshot import Snapshot, parse_value

if TYPE_CHECKING:
    from paramstore.db.repository import Manifest, Repository

_SMALL = 16  # elements that --values prints
_HEAD = ("param", "dtype", "shape", "constraint", "norm", "nan", "inf", "bytes", "since", "value")


@verb(
    "show",
    "paramstore show                       # the newest snapshot",
    "paramstore show main@warm --values    # with the values of small parameters",
    "paramstore show @12 --json | jq '.params[].name'",
)
@ref_argument("ref", required=False)
@scope_option()
@click.option(
    "--values", is_flag=True, help=f"Print values of up to {_SMALL} elements; imports torch."
)
@json_option
def show(ref: Ref | None, scope: str | None, values: bool, form: Form) -> None:
    """Print one snapshot, checked against its digest: REF, or the newest of the scope."""
    from paramstore.db.looking import statistics

    with reading() as repository:
        snapshot = repository.resolve(ref or Ref(), current_scope(repository, scope))
        manifest = repository.manifest(snapshot)
        taken = statistics(repository.database, snapshot)
        small = _small_values(repository, manifest) if values else {}
    rows = [_param(entry, taken.get(entry.name), small) for entry in manifest.entries.values()]
    if form == "json":
        say_json(_shape(manifest, rows))
    else:
        _say(manifest, rows)


def _param(entry: Any, taken: Any, small: dict[str, Any]) -> dict[str, Any]:
    one = None if taken is None else parse_value(taken.value)
    return {
        "name": entry.name,
        "kind": entry.kind,
        "requires_grad": bool(entry.requires_grad),
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "nbytes": entry.nbytes,
        "constraint": json.loads(entry.spec),
        "digest": entry.digest.hex(),
        "since_version": entry.since_version,
        **shapes.statistics(taken, small.get(entry.name, one)),
    }


def _shape(manifest: Manifest, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "snapshot": shapes.snapshot(manifest.snapshot),
        "digest": manifest.digest.hex(),
        "params": rows,
        "extras": {n: plain(text) for kind, n, text in manifest.extras if kind == "extra"},
        "states": [name for kind, name, _ in manifest.extras if kind == "state"],
    }


def _small_values(repository: Repository, manifest: Manifest) -> dict[str, Any]:
    from paramstore.reader import Reader, SnapshotView

    view = SnapshotView(Reader(repository), manifest, manifest.snapshot)
    small = [name for name, e in manifest.entries.items() if _elements(e.shape) <= _SMALL]
    return {name: view[name].detach().tolist() for name in small}


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


# -- text --------------------------------------------------------------------------


def _say(manifest: Manifest, rows: list[dict[str, Any]]) -> None:
    say("\n".join(_facts(manifest.snapshot)))
    say("")
    if rows:
        styles = [BAD if row["nan_count"] or row["inf_count"] else None for row in rows]
        say_table(format_table(_HEAD, map(_cells, rows)), styles)
    else:
        say("no parameters")
    extras = {n: plain_text(text) for kind, n, text in manifest.extras if kind == "extra"}
    states = [name for kind, name, _ in manifest.extras if kind == "state"]
    if extras:
        say("\nextras")
        say("\n".join(f"  {printable(name)}: {printable(text)}" for name, text in extras.items()))
    if states:
        say(f"\nstates of attached objects: {shown(states)}")


def _facts(found: Snapshot) -> list[str]:
    when = f"{found.created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC ({age(found.created_at)} ago)"
    metrics = ", ".join(f"{name}={format_number(value)}" for name, value in found.metrics.items())
    facts = {
        "step": "" if found.step is None else str(found.step),
        "time": when,
        "parent": found.parent or "",
        "origin": found.origin or "",
        "kind": "" if found.kind == "commit" else found.kind,
        "tags": ", ".join(found.tags),
        "metrics": metrics,
        "message": found.message or "",
        "params": f"{found.params}, {found.changed} changed",
        "size": f"{format_bytes(found.nbytes)}, {format_bytes(found.added_nbytes)} added",
    }
    lines = [f"{what:8} {printable(text)}" for what, text in facts.items() if text]
    return [paint(printable(found.ref), HEAD), *lines]


def _cells(row: dict[str, Any]) -> list[str]:
    value = row["value"]
    return [
        row["name"],
        row["dtype"],
        "×".join(map(str, row["shape"])) or "()",
        constraint_text(row["constraint"]),
        format_number(row["norm"]),
        format_number(row["nan_count"] or None),
        format_number(row["inf_count"] or None),
        format_bytes(row["nbytes"]),
        str(row["since_version"]),
        _value_text(value),
    ]


def _value_text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    return "" if value is None else format_number(value)
