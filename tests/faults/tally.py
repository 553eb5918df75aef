"""Counts what was injected, and prints the table: a plugin of pytest for ``scripts/faults``.

Knows each fault with its promise; must never decide whether a promise was kept: the tests do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the table."""

    what: str
    promised: str
    where: str
    """The file whose tests inject it."""


_WHOLE = "what was confirmed is there bit for bit, the rest whole or absent; the next commit works"
_NAMED = "a named error or success, in a process that goes on; the next commit is complete"
_DAMAGED = "the right values, or a named error that says what is affected; never wrong ones"

FAULTS = {
    "kills": Fault(what="SIGKILL at a system call", promised=_WHOLE, where="test_kills.py"),
    "random kills": Fault(
        what="SIGKILL at a random moment", promised=_WHOLE, where="test_random_kills.py"
    ),
    "errors": Fault(
        what="ENOSPC, EIO, EINTR from a system call", promised=_NAMED, where="test_errors.py"
    ),
    "full disk": Fault(what="a disk that is full", promised=_NAMED, where="test_full_disk.py"),
    "power cuts": Fault(what="a power cut", promised=_WHOLE, where="test_power_cut.py"),
    "migrations": Fault(
        what="SIGKILL at a system call of an upgrade or a downgrade",
        promised="the old store or the new one, and a whole copy or none; it can be run again",
        where="test_killed_migrations.py",
    ),
    "flips": Fault(
        what="bytes of a file changed", promised=_DAMAGED, where="test_flipped_bytes.py"
    ),
    "cells": Fault(
        what="statistics, tags, versions, counts of ids changed",
        promised="`verify` finds it, or no check can: it is within rounding, or may be meant so",
        where="test_flipped_cells.py",
    ),
    "truncations": Fault(what="a file cut off", promised=_DAMAGED, where="test_truncated.py"),
    "strangers": Fault(
        what="another program holds a lock, or is killed with it",
        promised="a commit in time or StoreBusyError; the next one is complete",
        where="test_strangers.py",
    ),
    "crowds": Fault(
        what="commits of eight processes at once",
        promised="what was confirmed is there bit for bit; losers of a scope get ConflictError",
        where="test_crowds.py",
    ),
    "forks": Fault(
        what="fork, spawn, threads, gc in the middle of commits",
        promised="what was confirmed is there bit for bit; the file is sound",
        where="test_forks_and_threads.py",
    ),
    "files": Fault(
        what="the file or journal deleted, moved, replaced",
        promised="no commit is confirmed that no path leads to; reads are right or named errors",
        where="test_replaced_files.py",
    ),
    "fuzz": Fault(
        what="a hostile file, header, spec, reference or row",
        promised="a right value or a named error, in little memory and time; no code of it runs",
        where="test_fuzz.py",
    ),
}
"""The rows, in their order, by the word that tests count under."""

_injected: Counter[str] = Counter()
_failed: set[str] = set()


def count(fault: str, times: int = 1) -> None:
    """Count a fault that was injected, and after which all was found as promised."""
    assert fault in FAULTS
    _injected[fault] += times


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember where a promise was not kept, and what was read in processes of the fuzzing."""
    if report.failed:
        _failed.add(report.location[0].rpartition("/")[2])
    read = dict(report.user_properties)
    if report.when == "call" and report.passed and "fuzzed" in read:
        outcomes = read["outcomes"]
        assert isinstance(outcomes, dict)
        count("fuzz", sum(outcomes.values()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of what was injected in this run."""
    terminalreporter.section("faults")
    for row in rows():
        terminalreporter.write_line(f"| {' | '.join(row)} |")


def rows() -> list[list[str]]:
    """The table as it stands in docs/faults.md."""
    found = [["fault", "injected", "promised", "lost", "again"], ["---"] * 5]
    for key, fault in FAULTS.items():
        failed = fault.where in _failed
        if _injected[key] or failed:
            lost = "SEE ABOVE" if failed else "nothing"
            name = fault.where.removeprefix("test_").removesuffix(".py")
            times = f"{_injected[key]:,}"
            found.append([fault.what, times, fault.promised, lost, f"`scripts/faults {name}`"])
    return found
