"""How long the command takes, as whole processes: a shell's view of a long run.

Against ``python -c "import torch"``, which is what a command written with the store would cost.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

from bench import subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.tables import Row, Table, Target

TORCH = 'control: python -c "import torch"'
START = 'python -c "pass"'
HELP = "paramstore --help"
LOG = "paramstore log"
LOG_TEN = "paramstore log --limit 10"
HISTORY = "paramstore history NAME"
TAB = "TAB behind paramstore history"


def run(settings: Settings) -> list[Table]:
    """The one table: help, log and history of a run of 2,000 snapshots."""
    path = settings.folder / "run.db"
    snapshots = settings.size(2000, 20)
    say(f"shell: building a store of {snapshots:,} snapshots")
    _build(path, snapshots)
    rows, runs = quiet(settings, partial(_time, path, settings.repetitions), TORCH)
    subject.remove_store(path)
    targets = [
        Target(claim="paramstore --help, ms", row=HELP, bound=150.0, kind="median"),
        Target(claim="log of 2,000 snapshots, ms", row=LOG, bound=400.0, kind="median"),
        Target(claim="history over 2,000 snapshots, ms", row=HISTORY, bound=400.0, kind="median"),
    ]
    return [
        Table(
            title=f"The command on {snapshots:,} snapshots",
            unit="ms",
            rows=rows,
            control=TORCH,
            targets=targets,
            note="Whole processes, from start to end, output to a pipe. Compiled modules are "
            "cached, as pip leaves them.",
            runs=runs,
        )
    ]


def _build(path: Path, snapshots: int) -> None:
    """Every snapshot has eight parameters and two metrics; all of it changes."""
    state = {f"layer.{number}.weight": torch.zeros(64) for number in range(8)}
    with subject.new_store(path, state) as store:
        for step in range(snapshots):
            for tensor in state.values():
                tensor.data += 1
            store.commit(step=step, metrics={"loss": 1 / (step + 1), "rate": 0.01})


def _time(path: Path, repetitions: int) -> list[Row]:
    python, own = [sys.executable], [str(Path(sys.executable).with_name("paramstore"))]
    commands = {
        TORCH: [*python, "-c", "import torch"],
        START: [*python, "-c", "pass"],
        HELP: [*own, "--help"],
        LOG: [*own, "log"],
        LOG_TEN: [*own, "log", "--limit", "10"],
        HISTORY: [*own, "history", "layer.3.weight"],
        TAB: own,
    }
    typed = {"_PARAMSTORE_COMPLETE": "zsh_complete", "COMP_WORDS": "paramstore history lay"}
    typed["COMP_CWORD"] = "2"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PARAMSTORE_URL"] = str(path)
    cases = [
        Case(label=label, run=partial(_run, command, environment | (typed if label == TAB else {})))
        for label, command in commands.items()
    ]
    return interleave(cases, repetitions)


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr.decode()}")
