"""``demo``: a training run is killed, started again, asked what happened, and compared.

Runs a training script as a user would, and this command's own verbs; must never touch a file
that is not in its folder.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import Final

import click

from paramstore.cli.group import root, verb
from paramstore.cli.opening import reading
from paramstore.cli.output import HEAD, paint, say
from paramstore.errors import ParamStoreError
from paramstore.listing import printable

KILLED_AFTER: Final = 480
_OURS: Final = ("-m", "paramstore.cli.training")


@verb("demo", "paramstore demo", "paramstore demo --training examples/breast_cancer.py")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="paramstore-demo",
    show_default=True,
    help="Where the stores are made; those of an earlier demo are replaced.",
)
@click.option(
    "--training",
    type=click.Path(exists=True, dir_okay=False),
    help="Another script that takes --db and --kill-at. Default: eight schools in plain torch.",
)
def demo(folder: Path, training: str | None) -> None:
    """Train, be killed with SIGKILL, continue, look at the store, and compare the bits.

    The bits are compared with those of a run that was never killed. Takes some ten seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    killed, unbroken = folder / "killed.db", folder / "unbroken.db"
    for name in (killed, unbroken):
        for file in (name, name.with_name(f"{name.name}-journal")):
            file.unlink(missing_ok=True)
    script = (training,) if training else _OURS
    _train(script, killed, "--kill-at", str(KILLED_AFTER), status=-SIGKILL)
    say("Killed. Again: it continues by itself.")
    _train(script, killed)
    _ask(killed)
    _train(script, unbroken)
    say(_compared(killed, unbroken))
    say(f"The stores stay in {folder}: try 'paramstore log --graph --db {killed}'.")


def _train(script: tuple[str, ...], db: Path, *arguments: str, status: int = 0) -> None:
    command = [*script, "--db", str(db), *arguments]
    _show("python", command)
    # The tensors are tiny: a second thread of torch would only spin, and starve a busy machine.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], env=environment, check=False)  # noqa: S603  # ours
    if done.returncode != status:
        raise ParamStoreError(f"the training ended with status {done.returncode}, not {status}")


def _ask(db: Path) -> None:
    with reading(str(db)) as repository:
        newest = repository.latest("main")
        assert newest is not None
        entries = repository.manifest(newest).entries
    # One that a person can read: a single number where there is one.
    name = next((name for name, entry in entries.items() if entry.shape == ()), min(entries))
    for command in (["log", "-n", "5"], ["history", name], ["diff", "@1", "@latest"]):
        _show("paramstore", [*command, "--db", str(db)])
        sys.stdout.flush()
        root.main([*command, "--db", str(db)], standalone_mode=False)


def _show(program: str, arguments: list[str]) -> None:
    say("\n" + paint(f"$ {program} {shlex.join(arguments)}", HEAD))
    sys.stdout.flush()


def _compared(killed: Path, unbroken: Path) -> str:
    digests = []
    for db in (killed, unbroken):
        with reading(str(db)) as repository:
            newest = repository.latest("main")
            assert newest is not None
            entries = repository.manifest(newest).entries
            digests.append({name: entry.digest for name, entry in entries.items()})
    differ = sorted(name for name in digests[1] if digests[0].get(name) != digests[1][name])
    if differ or digests[0].keys() != digests[1].keys():
        raise ParamStoreError(
            f"the run that was killed ended with other bits: {printable(', '.join(differ))}"
        )
    return (
        f"\nThe run that was killed ended with the same bits in all {len(digests[0])} parameters."
    )
