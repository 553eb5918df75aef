"""``python -m bench.one NAME JSON``: one benchmark in this process, which ends with it.

Prints the result as one line of JSON; :func:`run_apart` starts it. Writes nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from bench.facts import facts
from bench.harness import Settings
from bench.report import Result, from_json, to_json

_ROOT = Path(__file__).resolve().parent.parent


def run_apart(name: str, module: str, command: str, settings: Settings) -> Result:
    """Run a benchmark in a fresh process: no other's threads, memory or caches of names.

    Raises:
        RuntimeError: it failed; what it said is on standard error.
    """
    options = json.dumps(asdict(settings), default=str)
    done = subprocess.run(
        [sys.executable, "-m", "bench.one", name, module, command, options],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the benchmark {name!r} failed with status {done.returncode}")
    return from_json(done.stdout)


def main(name: str, module: str, command: str, options: str) -> None:
    """Run it; whatever the libraries print goes to standard error."""
    chosen = json.loads(options)
    settings = Settings(**chosen | {"folder": Path(chosen["folder"])})
    with contextlib.redirect_stdout(sys.stderr):
        tables = importlib.import_module(module).run(settings)
    found = facts(settings.folder)
    print(to_json(Result(name=name, command=command, facts=found, tables=tables)))


if __name__ == "__main__":
    main(*sys.argv[1:])
