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
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

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
    "memory": ("--on-store=:memory:",),
    "file": ("--on-store=suite.db", "--install-late"),
}
"""Arguments of ``pyro_suite_plugin``; between them, a store is installed before Pyro's test
modules are imported, and after."""

AGAIN = 8
"""Times that stock Pyro is asked again where the bits differ: some of its tests leave other bits
from one process to the next, because a set of tensors is ordered by their addresses."""

Run = dict[str, dict[str, Any]]
"""What ``pyro_suite_plugin`` found, by test."""


def main(arguments: Sequence[str]) -> int:
    options, pytest_arguments = parse(arguments)
    with tempfile.TemporaryDirectory(dir=fast_folder()) as scratch:
        results = (options.results or Path(scratch)).resolve()
        results.mkdir(parents=True, exist_ok=True)
        suite = Suite(options.checkout.resolve(), results, scratch, pytest_arguments)
        try:
            runs = {name: suite.run(name, options.tests, *args) for name, args in VARIANTS.items()}
            tests = odd(runs)
            others = [suite.run(f"stock-{n}", tests) for n in range(AGAIN if tests else 0)]
        except SuiteError as error:
            print(error)
            return 2
    differing, refused = differences(runs, others), commits(runs["file"], "refused")
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


class SuiteError(Exception):
    """pytest did not come to its end."""


class Suite(NamedTuple):
    """Pyro's tests, and how and where they run."""

    checkout: Path
    results: Path
    folder: str
    """The working directory, where some of the tests leave files."""
    pytest_arguments: Sequence[str]

    def run(self, name: str, tests: Iterable[str], *arguments: str) -> Run:
        """Run tests in a process of their own.

        Raises:
            SuiteError: the end of the log is its message.
        """
        outcomes, log = self.results / f"{name}.jsonl", self.results / f"{name}.log"
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "pyro_suite_plugin"]
        command += ["-p", "no:cacheprovider", "--rootdir", str(self.checkout)]
        command += [f"{self.checkout}/{test}" for test in tests]
        command += ["--outcomes", str(outcomes), *arguments, *self.pytest_arguments]
        # Seeds of str.__hash__ order sets, threads order sums: both change the last bits.
        fixed = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), **fixed}
        with log.open("w") as out:
            status = subprocess.run(
                command, cwd=self.folder, env=environment, stdout=out, stderr=out
            ).returncode
        if status not in {0, 1}:  # 1: some tests failed, as they may with stock Pyro
            end = log.read_text()[-4000:]
            raise SuiteError(f"{name}: pytest ended with status {status}\n{end}")
        return read(outcomes)


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


def odd(runs: Mapping[str, Run]) -> list[str]:
    """The tests that came out as with stock Pyro, and left other bits in the parameter store."""
    stock = runs["stock"]
    return [
        test
        for test, wanted in stock.items()
        if any(
            run.get(test, {}).get("outcome") == wanted["outcome"]
            and run[test].get("bits") != wanted.get("bits")
            for run in runs.values()
        )
    ]


def differences(runs: Mapping[str, Run], others: Sequence[Run] = ()) -> list[str]:
    """A line for each test that came out otherwise than with stock Pyro, and each bad commit.

    Args:
        runs: By variant.
        others: More runs of stock Pyro: its bits are those of any of them.
    """
    stock = runs["stock"]
    lines = []
    for name, run in runs.items():
        for test in {**stock, **run}:
            wanted, found = stock.get(test, {}), run.get(test, {})
            bits = {other[test].get("bits") for other in (stock, *others) if test in other}
            if found.get("outcome") != wanted.get("outcome"):
                outcomes = f"{wanted.get('outcome')} → {found.get('outcome')}"
                lines.append(f"{name}: {test}: {outcomes}: {found.get('why', '')}")
            elif found.get("bits") not in bits:
                lines.append(f"{name}: {test}: left other bits in the parameter store")
        lines += commits(run, "broken")
    return lines


def commits(run: Run, kind: str) -> list[str]:
    """The commits that were refused by an error of ours, or broke in another way."""
    tests = ((test, one.get("commit", "")) for test, one in run.items())
    return [f"commit {what} after {test}" for test, what in tests if what.startswith(kind)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
