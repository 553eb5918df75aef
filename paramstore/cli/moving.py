"""``export`` and ``import``: parameters out to files that others read, and in from theirs.

Both need tensors, and so import torch; must never run code of a file.
"""

from __future__ import annotations

from pathlib import Path

import click

from paramstore.cli.arguments import ScopeType, complete_params, ref_argument, scope_option
from paramstore.cli.group import verb
from paramstore.cli.history import choose
from paramstore.cli.opening import MAIN, current_scope, made_whole, reading, where
from paramstore.cli.output import Form, json_option, say, say_json, shown
from paramstore.errors import ParamNotFoundError, ScopeError
from paramstore.listing import format_bytes, printable
from paramstore.refs import Ref, check_tag_name, suggest

_file = click.argument("file", type=click.Path(path_type=Path))


@verb(
    "export",
    "paramstore export @warm warm.safetensors             # constraints in its metadata",
    "paramstore export main warm.pt                       # what stock Pyro's load() takes",
    "paramstore export @12 scale.npy --param scale        # one value, for NumPy",
    "paramstore export main net.safetensors --param 'net$$$*'",
)
@ref_argument("ref")
@_file
@click.option(
    "-p", "--param", "patterns", metavar="NAME", multiple=True, shell_complete=complete_params,
    help="Only this parameter, or those that a pattern finds.",
)  # fmt: skip
@scope_option()
@json_option
def export(ref: Ref, file: Path, patterns: tuple[str, ...], scope: str | None, form: Form) -> None:
    """Write the parameters of a snapshot to a new FILE, whose name says in which form.

    .safetensors: unconstrained values, constraint specs in the metadata; any safetensors library
    reads it. .pt, .pth, .save: what stock Pyro saves; no buffers. .npy: one constrained value.
    Imports torch.
    """
    with reading() as repository:
        snapshot = repository.resolve(ref, current_scope(repository, scope))
        held = repository.manifest(snapshot).entries
        names = list(held)
        if patterns:
            chosen = choose(repository, snapshot.scope, patterns)
            names = [name for name in chosen if name in held]
            if not names:
                raise ParamNotFoundError(
                    f"{snapshot.ref} has no parameter {patterns[0]!r}{suggest(patterns[0], held)}"
                )
        from paramstore.cli.files import write

        left = write(repository, snapshot, names, file)
    nbytes, count = file.stat().st_size, len(names) - left
    if form == "json":
        say_json({"ref": snapshot.ref, "path": str(file), "params": count, "nbytes": nbytes})
        return
    what = "1 parameter" if count == 1 else f"{count} parameters"
    say(f"{printable(str(file))}: {what} of {printable(snapshot.ref)}, {format_bytes(nbytes)}")
    if left:
        say(f"left out: {left} buffers, which Pyro's store has no place for")


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
