"""Runs scripts on request, each in a fork of this process, which has imported what they need.

A request is a line of JSON, ``[script, argument, …]``; the answer is one, ``[status, output]``.
Must never compute anything itself: a fork inherits neither threads nor drawn numbers then.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import tempfile

import pyro.infer.autoguide
import sklearn.datasets
import torch._dynamo  # a second's work at the first optimiser

import paramstore.integrations.pyro

IMPORTED = (pyro.infer.autoguide, sklearn.datasets, torch._dynamo, paramstore.integrations.pyro)


def run(arguments: list[str]) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            become(arguments)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return status, output.read()


def become(arguments: list[str]) -> None:
    """Be that script, to the end of this process."""
    signal.alarm(300)  # rather than hang
    status = 1
    try:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        if status:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
