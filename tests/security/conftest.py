"""Prints how many inputs each target of the fuzzing has read, and what came of them."""

from __future__ import annotations

from typing import Any

import pytest

_rows: list[dict[str, Any]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what a test of the fuzzing counted."""
    found = dict(report.user_properties)
    if report.when == "call" and "fuzzed" in found:
        _rows.append(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per target."""
    if not _rows:
        return
    terminalreporter.section("fuzzed")
    for row in _rows:
        outcomes = dict(row["outcomes"])
        values, total = outcomes.get("a value", 0), sum(outcomes.values())
        terminalreporter.write_line(
            f"{row['fuzzed']:<16} {total:>8,} inputs: {values:,} read, {total - values:,} refused "
            f"by name; {row['kilobytes'] / 1024:.0f} MiB more memory"
        )
    total = sum(sum(row["outcomes"].values()) for row in _rows)
    terminalreporter.write_line(f"{'in all':<16} {total:>8,} inputs")
