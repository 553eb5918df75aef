"""``export`` and ``import``: parameters out to files that others read, and in from theirs.

Both need tensors, and so import torch; must never run code of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramstore.cli.arguments import ScopeType, complete_params, ref_argument, scope_option
from paramstore.cli.group import verb
from paramstore.cli.history import choose
from paramstore.cli.opening import MAIN, current_scope, made_whole, reading, where
from paramstore.cli.output import Form, json_option, say, say_json, shown
from paramstore.errors import ParamNotFoundError, ScopeError
from paramstore.listing import format_bytes, printable
from paramstore.names import module_from_param_with_module_name, param_with_module_name
from paramstore.refs import Ref, check_tag_name, suggest

if TYPE_CHECKING:
    from paramstore.db.repository import Repository
    from paramstore.snapshot import Snapshot

_file = click.argument("file", type=click.Path(path_type=Path))


@verb(
    "export",
    "paramstore export @warm warm.safetensors             # constraints in its metadata",
    "paramstore export main warm.pt                       # what stock Pyro's load() takes",
    "paramstore export @12 scale.npy --param scale        # one value, for NumPy",
    "paramstore export main net.safetensors --module net  # what net.load_state_dict() takes",
    "paramstore export main some.safetensors --param 'net$$$*'",
)
@ref_argument("ref")
@_file
@click.option(
    "-p", "--param", "patterns", metavar="NAME", multiple=True, shell_complete=complete_params,
    help="Only this parameter, or those that a pattern finds.",
)  # fmt: skip
@click.option("--module", metavar="NAME", help="Only this module's parameters and buffers, by the "
              "names of its state_dict.")  # fmt: skip
@scope_option()
@json_option
def export(
    ref: Ref,
    file: Path,
    patterns: tuple[str, ...],
    module: str | None,
    scope: str | None,
    form: Form,
) -> None:
    """Write the parameters of a snapshot to a new FILE, whose name says in which form.

    .safetensors: unconstrained values, constraint specs in the metadata; any safetensors library
    reads it. .pt, .pth, .save: what stock Pyro saves; no buffers; with --module a state_dict.
    .npy: one constrained value. Imports torch.
    """
    if module is not None and patterns:
        raise click.UsageError("--module goes without --param")
    with reading() as repository:
        snapshot = repository.resolve(ref, current_scope(repository, scope))
        if module is None:
            names = _chosen(repository, snapshot, patterns)
        else:
            names = _of_module(repository, snapshot, module)
        from paramstore.cli.files import write

        left = write(repository, snapshot, names, file, state_dict=module is not None)
    nbytes, count = file.stat().st_size, len(names) - left
    if form == "json":
        say_json({"ref": snapshot.ref, "path": str(file), "params": count, "nbytes": nbytes})
        return
    what = "1 parameter" if count == 1 else f"{count} parameters"
    say(f"{printable(str(file))}: {what} of {printable(snapshot.ref)}, {format_bytes(nbytes)}")
    if left:
        say(f"left out: {left} buffers, which Pyro's store has no place for")


def _chosen(repository: Repository, snapshot: Snapshot, patterns: Sequence[str]) -> dict[str, str]:
    """The parameters of a snapshot that patterns find, all without any; each by its own name."""
    held = repository.manifest(snapshot).entries
    if not patterns:
        return {name: name for name in held}
    names = {n: n for n in choose(repository, snapshot.scope, patterns) if n in held}
    if not names:
        raise ParamNotFoundError(
            f"{snapshot.ref} has no parameter {patterns[0]!r}{suggest(patterns[0], held)}"
        )
    return names


def _of_module(repository: Repository, snapshot: Snapshot, module: str) -> dict[str, str]:
    """The parameters and buffers of a module, and their paths in it."""
    held, prefix = repository.manifest(snapshot).entries, param_with_module_name(module, "")
    names = {n: n.removeprefix(prefix) for n in held if n.startswith(prefix) and n != prefix}
    if not names:
        owners = {name: module_from_param_with_module_name(name) for name in held}
        modules = sorted({owner for name, owner in owners.items() if owner != name})
        raise ParamNotFoundError(
            f"{snapshot.ref} has no module {module!r}{suggest(module, modules)}; it has "
            f"{shown(modules) or 'none'}"
        )
    return names


@verb(
    "import",
    "paramstore import old.save --scope pyro              # what Pyro's save() wrote",
    "paramstore import resnet.pt --scope start --module net   # a state_dict",
    "paramstore import warm.safetensors --scope main --append --step 500 --tag warm",
)
@_file
@click.option("-s", "--scope", type=ScopeType(), default=MAIN, show_default=True,
              help="Where the snapshot goes; a new scope, unless --append.")  # fmt: skip
@click.option("--append", is_flag=True, help="The scope exists, and gets one snapshot more.")
@click.option("--module", metavar="NAME", help="They are those of this module: NAME$$$…")
@click.option("--buffer", "buffers", multiple=True, metavar="NAME", help="Of a state_dict: not "
              "trained, as running_mean is known to be; a pattern.")  # fmt: skip
@click.option("--step", type=int, help="The step of the snapshot.")
@click.option("--message", help="Its message; default: where it came from.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag for it.")
@json_option
def import_(
    file: Path,
    scope: str,
    append: bool,
    module: str | None,
    buffers: tuple[str, ...],
    step: int | None,
    message: str | None,
    tags: tuple[str, ...],
    form: Form,
) -> None:
    """Make a snapshot of the parameters in FILE; the store is made where there is none.

    FILE is a safetensors file, with or without constraints, what Pyro's save() wrote, or a
    state_dict that torch saved, maybe in a checkpoint, of which it says what else it leaves out.
    No code of it runs. All of it happens, or nothing. Imports torch.
    """
    from paramstore.cli import shapes
    from paramstore.cli.files import put, read
    from paramstore.store import ParamStoreDict

    for tag in tags:
        check_tag_name(tag)  # before a large file is read
    items, left = read(file, buffers)
    with made_whole(where()) as place, ParamStoreDict(place, scope=scope) as store:
        if store.last is not None and not append:
            raise ScopeError(
                f"scope {scope!r} has snapshots already; name a new one with --scope, or say "
                f"--append where nobody is training in it"
            )
        put(store, items, module=module)
        made = store.commit(step=step, message=message or f"imported {file.name}", tags=tags)
    if form == "json":
        say_json(shapes.snapshot(made))
    else:
        say(f"{printable(made.ref)}: {made.params} parameters of {printable(str(file))}")
    if left:
        click.echo(f"left out: {shown(left)}", err=form == "json")
