"""Runs Pyro's own tests three times, on stock Pyro and on two stores, and compares test by test.

    python pyro_suite.py CHECKOUT [TESTS …] [-- ARGUMENTS OF PYTEST …]

CHECKOUT is Pyro's repository; the Pyro under test is the one that is installed. The status is 1
where a test came out differently, 2 where a run ended before its time. Never writes to CHECKOUT.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = (
    "tests/params",
    "tests/nn",
    "tests/optim",
    "tests/test_primitives.py",
    "tests/poutine",
    "tests/contrib/easyguide",
    "tests/infer",
)
"""What runs when nothing is named."""

VARIANTS = {
    "stock": (),
    "memory": ("--on-store",),
    "file": ("--on-store=suite.db", "--install-late"),
}
"""Arguments of ``pyro_suite_plugin``; between them, a store is installed before Pyro's test
modules are imported, and after."""

SAME = ("outcome", "bits")
"""What has to be the same: the outcome, and what the test left in the parameter store."""

Run = dict[str, dict[str, Any]]
"""What ``pyro_suite_plugin`` found, by test."""


def main(arguments: Sequence[str]) -> int:
    options, pytest_arguments = parse(arguments)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(dir=fast_folder()) as scratch:
        results = (options.results or Path(scratch)).resolve()
        results.mkdir(parents=True, exist_ok=True)
        for name, variant in VARIANTS.items():
            outcomes, log = results / f"{name}.jsonl", results / f"{name}.log"
            checkout = options.checkout.resolve()
            command = ["--rootdir", checkout, *(checkout / test for test in options.tests)]
            command += [*variant, "--outcomes", outcomes, *pytest_arguments]
            status = run_pytest(command, log, scratch)
            if status not in {0, 1}:  # 1: some tests failed, as they may with stock Pyro
                print(f"{name}: pytest ended with status {status}\n{log.read_text()[-4000:]}")
                return 2
            runs[name] = read(outcomes)
    differing, refused = differences(runs), commits(runs["file"], "refused")
    print(table(runs, options.tests), "", *differing, *refused, sep="\n")
    print(
        f"pyro-ppl {version('pyro-ppl')}, torch {version('torch')}: {len(runs['stock'])} tests, "
        f"{len(differing)} differences, {len(refused)} commits refused"
    )
    return 1 if differing else 0


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The runner's own arguments, and what stands behind ``--``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("tests", nargs="*", default=TESTS, help="files and folders of the checkout")
    parser.add_argument("--results", type=Path, help="where outcomes and logs are kept")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_intermixed_args(arguments[:end]), list(arguments[end + 1 :])


def fast_folder() -> str | None:
    """A folder in memory, where there is one: a commit after every test waits for the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run_pytest(arguments: Sequence[object], log: Path, folder: str) -> int:
    """Run the tests in ``folder``, where some of them leave files."""
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "pyro_suite_plugin"]
    command += ["-p", "no:cacheprovider", *map(str, arguments)]
    here = str(Path(__file__).parent)
    # Seeds of str.__hash__ order sets, threads order sums: both change the last bits.
    environment = {**os.environ, "PYTHONPATH": here, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        run = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=out)
    return run.returncode


def read(outcomes: Path) -> Run:
    found = map(json.loads, outcomes.read_text().splitlines())
    return {one.pop("test"): one for one in found}


def table(runs: Mapping[str, Run], groups: Sequence[str]) -> str:
    """Counts of each outcome by group and variant, in Markdown."""
    lines = [f"| tests | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}"]
    for group in (*groups, ""):
        counts = [
            Counter(one["outcome"] for test, one in run.items() if test.startswith(group))
            for run in runs.values()
        ]
        shown = [", ".join(f"{n} {what}" for what, n in sorted(c.items())) for c in counts]
        lines.append(f"| {group or 'all'} | {' | '.join(shown)} |")
    return "\n".join(lines)


def differences(runs: Mapping[str, Run]) -> list[str]:
    """A line for each test that differs from stock Pyro in a variant, and for each bad commit."""
    stock = runs["stock"]
    lines = []
    for name, run in runs.items():
        for test in {**stock, **run}:
            wanted, found = stock.get(test, {}), run.get(test, {})
            if differing := [what for what in SAME if found.get(what) != wanted.get(what)]:
                pairs = (f"{what} {wanted.get(what)} → {found.get(what)}" for what in differing)
                shown = ", ".join(pairs)
                lines.append(f"{name}: {test}: {shown}: {found.get('why', '')}")
        lines += commits(run, "broken")
    return lines


def commits(run: Run, kind: str) -> list[str]:
    """The commits that were refused by an error of ours, or broke in another way."""
    tests = ((test, one.get("commit", "")) for test, one in run.items())
    return [f"commit {what} after {test}" for test, what in tests if what.startswith(kind)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
