"""The benchmarks still run, at sizes that take seconds; nothing here looks at a time."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("pyro")

from bench import charts, loads, readme, report, rivals, states
from bench.__main__ import BENCHMARKS, main
from bench.facts import facts
from bench.harness import Case, Settings, interleave
from bench.rivals.side import Apart
from bench.tables import MET, MISSED, WITHIN_SPREAD, Row, Table, Target
from bench.training import Training

ROOT = Path(__file__).resolve().parent.parent


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


def test_a_benchmark_that_fails_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BENCHMARKS, "broken", "bench.nowhere")
    with pytest.raises(RuntimeError, match="'broken' failed"):
        main(["broken", "--quick", "--out", str(tmp_path)])


@pytest.mark.parametrize("entry", rivals.ENTRIES, ids=lambda entry: entry.label)
def test_every_peer_gives_back_what_it_saved(entry: rivals.Entry, tmp_path: Path) -> None:
    pytest.importorskip(entry.package)
    side = Apart(entry, tmp_path / "peer", partial(states.equal_tensors, 3, 64 << 10))
    for step in (1, 2):
        side.change(["p0"])
        assert side.save(step) > 0
    assert side.load(2) > 0  # compares
    assert side.one(2, ["p1", "p2"]) > 0
    assert side.history("p0", (1, 2)) > 0  # fails where both steps hold the same
    assert rivals.stored_bytes(tmp_path) > 2 * 3 * 60_000
    side.change(["p2"])
    with pytest.raises(RuntimeError, match="'p2' did not come back"):
        side.load(2)


def test_a_peer_that_is_not_installed_is_left_out_with_a_line_that_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = rivals.Entry(label="Nobody", package="no_such_package", place="nowhere:Nobody")
    monkeypatch.setattr(rivals, "ENTRIES", (rivals.ENTRIES[0], missing))
    for table in loads.run(Settings(folder=tmp_path, repetitions=1, runs=1, quick=True)):
        labels = [row.label for row in table.rows]
        assert rivals.SAFETENSORS in labels
        assert "Nobody" not in labels
        assert "Left out, not installed: Nobody (`pip install -e '.[bench]'`)." in table.note


def test_a_case_that_has_its_own_clock_is_believed() -> None:
    case = Case(label="", run=lambda: 0.5, clocked=True, part=0.25)
    assert interleave([case], 2)[0].values == [2000.0, 2000.0]


def test_training_goes_on_until_a_save_is_done_and_for_some_steps_at_least() -> None:
    steps: list[int] = []
    loop = Training(state={}, trained=(), step=lambda: steps.append(1))
    assert loop.steps_until(lambda: len(steps) >= 5, least=2)[0] == 5
    assert loop.steps_until(lambda: True, least=3)[0] == 3


def test_the_table_of_the_readme_is_that_of_the_results(tmp_path: Path) -> None:
    if absent := readme.missing(ROOT / "bench" / "results"):
        pytest.skip(f"not measured yet: {', '.join(absent)}")
    page = tmp_path / "README.md"
    page.write_bytes((ROOT / "README.md").read_bytes())
    readme.rewrite(page, ROOT / "bench" / "results")
    assert page.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_page_gets_its_table_between_the_markers_and_stays_as_it_is_elsewhere(
    tmp_path: Path,
) -> None:
    rows = [Row(label="ours", values=[2.0]), Row(label=rivals.TORCH, values=[3.0])]
    tables = [Table(title="", unit="ms", rows=rows, ours="ours")] * 4
    for name in readme.missing(tmp_path):
        result = report.Result(name=name, command="", facts={}, tables=tables)
        report.write(result, tmp_path)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    readme.rewrite(page, tmp_path)
    lines = page.read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    line = next(line for line in lines if "20,000" in line)
    assert line.endswith("| **2.00** | – | 3.00 | – | – | – | – | – |")


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("no table here", encoding="utf-8")
    with pytest.raises(ValueError, match="has no table between"):
        readme.rewrite(page, tmp_path)
    assert page.read_text(encoding="utf-8") == "no table here"


def test_a_chart_is_drawn_of_every_result_that_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        picture = charts.draw(report.read(path), tmp_path)
        assert picture.name == f"{path.stem}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_chart_of_what_took_no_time_at_all_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [Row(label="ours", values=[0.0, -2.0]), Row(label="peer", values=[0.0, 0.0])]
    table = Table(title="lost", unit="ms", rows=rows, ours="ours")
    result = report.Result(name="nothing", command="", facts=facts(tmp_path), tables=[table])
    assert charts.draw(result, tmp_path).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("ours", "told"), [(10.0, False), (30.0, True)])
def test_a_reason_is_told_where_a_target_is_missed(ours: float, told: bool) -> None:
    rows = [Row(label="ours", values=[ours]), Row(label="peer", values=[20.0])]
    target = Target(claim="", row="ours", peer="peer", bound=1.0, reason="it does more")
    lines = report.section(Table(title="", unit="ms", rows=rows, ours="ours", targets=[target]))
    assert any("it does more" in line for line in lines) is told
    assert f"| peer | 20.0 | {report.figure(20 / ours)} |" in lines


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
