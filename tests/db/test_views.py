from __future__ import annotations

import math
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from drafts import CHUNK, Line, blob

from paramstore.db.engine import Database
from paramstore.db.repository import Repository

COLUMNS = {
    "v_snapshots": "scope version step created_at parent tags message kind params changed nbytes "
    "added_nbytes digest snapshot_id origin",
    "v_history": "scope name version step created_at since_version kind requires_grad dtype shape "
    "nbytes constraint_spec digest norm mean std min max nan_count inf_count value unconstrained "
    "snapshot_id param_version_id blob_id",
    "v_sizes": "scope version name kind dtype shape nbytes since_version snapshot_id blob_id",
    "v_metrics": "scope version step created_at name value snapshot_id",
    "v_tags": "scope name version step created_at snapshot_id",
}


@pytest.fixture
def run(file: Database, path: Path) -> Path:
    """Two scopes; a name that changes, goes and comes back; one of two chunks."""
    line = Line(Repository(file))
    line.commit({"w": "1", "big": b"x" * (CHUNK + 10)}, step=10, tags=["b, c", "a"])
    kept = line.entries
    line.commit({"w": "2"}, step=20, message='it\'s "odd"\n| x')
    line.commit(without=["w"])
    line.entries = kept
    line.commit()
    fork = Line(line.repository, "try")
    fork.parent, fork.entries = line.parent, line.entries
    fork.commit({"w": "3"})
    file.close()
    return path


@pytest.mark.parametrize("view", COLUMNS)
def test_the_columns_of_a_view_are_a_contract(run: Path, view: str) -> None:
    with closing(sqlite3.connect(run)) as connection:
        cursor = connection.execute(f"SELECT * FROM {view}")
    assert [column[0] for column in cursor.description] == COLUMNS[view].split()


def test_history_has_a_row_where_the_value_differs_from_the_snapshot_before(run: Path) -> None:
    with closing(sqlite3.connect(run)) as connection:
        rows = connection.execute(
            "SELECT scope, version, since_version, digest FROM v_history WHERE name = 'w' "
            "ORDER BY scope, version"
        ).fetchall()
    assert rows == [
        ("main", 1, 1, blob("1").digest.hex()),
        ("main", 2, 2, blob("2").digest.hex()),
        ("main", 4, 1, blob("1").digest.hex()),
        ("try", 1, 1, blob("3").digest.hex()),
    ]


def test_history_compares_with_the_snapshot_before_that_still_exists(run: Path) -> None:
    with closing(sqlite3.connect(run)) as connection:
        query = "SELECT version FROM v_history WHERE scope = 'main' AND name = 'w' ORDER BY 1"
        for version, left in ((2, [1, 4]), (3, [1])):
            (row,) = connection.execute(
                "SELECT snapshot_id FROM v_snapshots WHERE scope = 'main' AND version = ?",
                (version,),
            )
            connection.execute("DELETE FROM snapshot_params WHERE snapshot_id = ?", row)
            connection.execute("DELETE FROM snapshots WHERE id = ?", row)
            assert [v for (v,) in connection.execute(query)] == left


def test_sizes_have_one_row_for_each_snapshot_and_parameter(run: Path) -> None:
    with closing(sqlite3.connect(run)) as connection:
        rows = connection.execute(
            "SELECT scope, version, group_concat(name), sum(nbytes) FROM "
            "(SELECT * FROM v_sizes ORDER BY name) GROUP BY scope, version"
        ).fetchall()
        says = connection.execute("SELECT scope, version, nbytes FROM v_snapshots").fetchall()
    assert [row[:3] for row in rows] == [
        ("main", 1, "big,w"),
        ("main", 2, "big,w"),
        ("main", 3, "big"),
        ("main", 4, "big,w"),
        ("try", 1, "big,w"),
    ]
    assert [(scope, version, nbytes) for scope, version, _, nbytes in rows] == sorted(says)


def test_metrics_and_tags_have_one_row_each(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1"}, step=10, metrics={"loss": 0.5, "odd": math.nan}, tags=["a", "moves"])
    line.commit({"w": "2"}, metrics={"loss": 0.25}, tags=["moves"])
    line.commit({"w": "3"})
    Line(line.repository, "try").commit({"w": "1"}, step=7, metrics={"loss": -1.0}, tags=["a"])
    file.close()
    with closing(sqlite3.connect(path)) as connection:
        metrics = connection.execute("SELECT scope, version, step, name, value FROM v_metrics")
        tags = connection.execute("SELECT scope, name, version, step FROM v_tags")
        assert sorted(metrics, key=str) == [
            ("main", 1, 10, "loss", 0.5),
            ("main", 1, 10, "odd", None),
            ("main", 2, None, "loss", 0.25),
            ("try", 1, 7, "loss", -1.0),
        ]
        assert sorted(tags) == [
            ("main", "a", 1, 10),
            ("main", "moves", 2, None),
            ("try", "a", 1, 7),
        ]
        for view in ("v_metrics", "v_tags"):
            rows = connection.execute(
                f"SELECT {view}.created_at = v_snapshots.created_at, "
                f"{view}.version = v_snapshots.version FROM {view} JOIN v_snapshots "
                "USING (snapshot_id)"
            ).fetchall()
            assert set(rows) == {(1, 1)}


@pytest.mark.parametrize("view", ["v_metrics", "v_tags"])
def test_metrics_and_tags_are_found_by_keys(run: Path, view: str) -> None:
    with closing(sqlite3.connect(run)) as connection:
        plan = connection.execute(
            f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE scope = 'main' AND name = 'loss'"
        ).fetchall()
    assert [row[3].split()[0] for row in plan] == ["SEARCH"] * 3, plan


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="the sqlite3 command is not installed")
def test_the_sqlite3_command_alone_reads_a_run_and_takes_a_tensor_out(
    run: Path, tmp_path: Path
) -> None:
    def sqlite(*arguments: str) -> str:
        command = ["sqlite3", "-readonly", str(run), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert sqlite(
        "SELECT scope || '@' || version, step, parent, tags, params, changed FROM v_snapshots"
    ).splitlines() == [
        "main@1|10||a, b, c|2|2",
        "main@2|20|main@1||2|1",
        "main@3||main@2||1|0",
        "main@4||main@3||2|1",
        "try@1||main@4||2|1",
    ]
    (row,) = sqlite("SELECT blob_id FROM v_sizes WHERE name = 'big' LIMIT 1").split()
    parts = [tmp_path / f"{seq}" for seq in range(2)]
    for seq, part in enumerate(parts):
        written = sqlite(
            f"SELECT writefile('{part}', data) FROM chunks WHERE id = ({row} << 20) + {seq}"
        )
        assert int(written) > 0
    whole = b"".join(part.read_bytes() for part in parts)
    stored = blob(b"x" * (CHUNK + 10))
    assert whole == stored.header + b"x" * (CHUNK + 10)
    assert blake3(whole).digest() == stored.digest
