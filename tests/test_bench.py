"""The benchmarks still run, at sizes that take seconds; nothing here looks at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

pytest.importorskip("pyro")

from bench import report
from bench.__main__ import BENCHMARKS, main
from bench.tables import MET, MISSED, WITHIN_SPREAD, Row, Table, Target


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_runs_and_writes_its_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--quick", "--repetitions", "2", "--out", str(tmp_path)]) == 0
    result = report.read(tmp_path / f"{name}.json")
    assert result.tables
    printed = capsys.readouterr().out
    for table in result.tables:
        assert table.title in printed
        assert all(math.isfinite(value) for row in table.rows for value in row.values)
        assert len(table.verdicts()) == len(table.targets)
    assert f"## {name}" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_results_tell_neither_paths_nor_host(tmp_path: Path) -> None:
    main(["size", "--quick", "--out", str(tmp_path)])
    text = (tmp_path / "size.json").read_text(encoding="utf-8")
    assert set(json.loads(text)) == {"name", "command", "facts", "tables"}
    assert str(tmp_path) not in text
    assert str(Path.cwd()) not in text


def test_an_unknown_name_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["size", "nonsense"]) == 2
    assert "'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "ours", "outcome"),
    [
        ("throughput", [10.0, 10.0, 10.0], MET),
        ("throughput", [10.0, 25.0, 25.0], WITHIN_SPREAD),
        ("throughput", [25.0, 25.0, 25.0], MISSED),
        ("time", [18.0, 18.0, 18.0], MET),
        ("time", [25.0, 25.0, 25.0], MISSED),
        ("worst", [1.0, 1.0, 3.0], MISSED),
    ],
)
def test_a_verdict_follows_the_bound(kind: str, ours: list[float], outcome: str) -> None:
    bound = {"throughput": 1.0, "time": 1.0, "worst": 2.0}[kind]
    target = Target(claim="", row="ours", bound=bound, kind=kind)  # type: ignore[arg-type]
    target.peer = None if kind == "worst" else "peer"
    rows = [Row(label="ours", values=ours), Row(label="peer", values=[20.0, 20.0, 20.0])]
    table = Table(title="", unit="ms", rows=rows, targets=[target])
    assert table.verdicts()[0].outcome == outcome
