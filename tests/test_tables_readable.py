"""The tables are a public contract: the sqlite3 command alone reads a run.

Nothing of this package touches the file once the run is over.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.distributions import constraints

import paramstore

pytestmark = pytest.mark.skipif(
    shutil.which("sqlite3") is None, reason="the sqlite3 command is not installed"
)


def sqlite3(path: Path, statement: str, cwd: Path | None = None) -> list[dict[str, str]]:
    """Run one statement with the sqlite3 command, read-only, and return its rows as text."""
    done = subprocess.run(
        ["sqlite3", "-batch", "-readonly", "-csv", "-header", str(path), statement],
        check=True,
        capture_output=True,
        text=True,
        cwd=cwd,
    )
    assert not done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.fixture
def run(path: Path) -> Path:
    """A finished run: two scopes, a tag, metrics, a value that changes and one that does not."""
    torch.manual_seed(3)
    with paramstore.open(path) as store:
        store.setdefault("scale", torch.tensor(1.0), constraint=constraints.positive)
        store["weight"] = torch.randn(600, 700)  # two chunks
        for step in range(3):
            with torch.no_grad():
                store["scale"].unconstrained().fill_(float(step // 2))  # type: ignore[attr-defined]
            store.commit(
                step=step,
                metrics={"elbo": -10.0 * step},
                tags=["warm"] if step == 1 else [],
                message='it\'s, "odd"',
            )
        store.fork("try")
        store.commit(step=3)
    return path


def test_the_snapshots_are_a_view(run: Path) -> None:
    rows = sqlite3(run, "SELECT * FROM v_snapshots ORDER BY scope, version")
    assert [(r["scope"], r["version"], r["step"], r["parent"], r["tags"]) for r in rows] == [
        ("main", "1", "0", "", ""),
        ("main", "2", "1", "main@1", "warm"),
        ("main", "3", "2", "main@2", ""),
        ("try", "1", "3", "main@3", ""),
    ]
    assert rows[0]["message"] == 'it\'s, "odd"'
    assert rows[0]["created_at"].endswith("Z")
    assert len(rows[0]["created_at"]) == len("2026-01-01T00:00:00.000000Z")
    assert [(r["params"], r["changed"]) for r in rows] == [
        ("2", "2"),
        ("2", "0"),
        ("2", "1"),
        ("2", "0"),
    ]


def test_the_history_of_a_parameter_is_a_view(run: Path) -> None:
    rows = sqlite3(
        run,
        "SELECT * FROM v_history WHERE scope = 'main' AND name = 'scale' ORDER BY version",
    )
    assert [(r["version"], r["step"], r["since_version"]) for r in rows] == [
        ("1", "0", "1"),
        ("3", "2", "3"),
    ]
    assert [float(json.loads(r["value"])) for r in rows] == pytest.approx([1.0, 2.7182817])
    assert [float(r["norm"]) for r in rows] == pytest.approx([1.0, 2.7182817])
    assert {(r["dtype"], r["kind"], r["nan_count"]) for r in rows} == {("F32", "tensor", "0")}
    assert json.loads(rows[0]["constraint_spec"])["kind"] == "positive"


def test_the_sizes_are_a_view(run: Path) -> None:
    rows = sqlite3(run, "SELECT * FROM v_sizes WHERE name = 'weight' ORDER BY scope, version")
    assert [(r["scope"], r["version"], r["since_version"]) for r in rows] == [
        ("main", "1", "1"),
        ("main", "2", "1"),
        ("main", "3", "1"),
        ("try", "1", "1"),
    ]
    assert len({r["blob_id"] for r in rows}) == 1
    assert all(int(r["nbytes"]) > 600 * 700 * 4 for r in rows)


def test_metrics_join_by_the_id_of_the_view(run: Path) -> None:
    rows = sqlite3(
        run,
        "SELECT version, value FROM v_snapshots JOIN metrics USING (snapshot_id) "
        "WHERE scope = 'main' AND metrics.name = 'elbo' ORDER BY value LIMIT 1",
    )
    assert [(r["version"], float(r["value"])) for r in rows] == [("3", -20.0)]


@pytest.mark.parametrize(("name", "chunks"), [("scale", 1), ("weight", 2)])
def test_a_blob_that_sqlite3_extracts_opens_as_safetensors(
    run: Path, tmp_path: Path, name: str, chunks: int
) -> None:
    written = sqlite3(
        run,
        "SELECT writefile(printf('part-%07d', chunks.id & 0xFFFFF), data) AS bytes "
        "FROM v_sizes JOIN chunks ON chunks.id >> 20 = v_sizes.blob_id "
        f"WHERE scope = 'main' AND version = 1 AND name = '{name}'",
        cwd=tmp_path,
    )
    parts = sorted(tmp_path.glob("part-*"))
    assert len(parts) == len(written) == chunks
    content = b"".join(part.read_bytes() for part in parts)
    (found,) = safetensors.torch.load(content).values()
    with paramstore.open(run, readonly=True) as store:
        assert torch.equal(found, store.at("main@1").unconstrained(name))


def test_pythons_own_sqlite3_reads_the_file_while_a_store_is_open(run: Path) -> None:
    with paramstore.open(run) as store:
        store["new"] = torch.zeros(1)
        rows = sqlite3(run, "SELECT max(version) AS newest FROM v_snapshots WHERE scope = 'main'")
        assert rows[0]["newest"] == "3"
        store.commit()
        rows = sqlite3(run, "SELECT max(version) AS newest FROM v_snapshots WHERE scope = 'main'")
        assert rows[0]["newest"] == "4"
