"""What the doctor finds, and what it advises."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shell_runs import Run

import paramstore
from paramstore.cli import examine as examination
from paramstore.db import facts


def found(run: Run, db: Path, *arguments: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Findings by what was looked at; the worst of each."""
    rows = run("doctor", "--db", db, "--json", *arguments, code=code).json
    ranks = ["ok", "note", "wrong"]
    return {row["what"]: row for row in sorted(rows, key=lambda row: ranks.index(row["level"]))}


def test_a_sound_store_is_well(run: Run, db: Path) -> None:
    findings = found(run, db)
    assert {row["level"] for row in findings.values()} <= {"ok", "note"}
    assert {"paramstore", "SQLite", "file", "file system", "settings", "schema", "pages"} <= set(
        findings
    )
    assert findings["newest snapshots"]["level"] == "ok"
    assert "pages" not in found(run, db, "--quick")


@pytest.mark.parametrize(
    ("kind", "level", "advice"),
    [
        ("nfs4", "wrong", "local disk"),
        ("cifs", "wrong", "local disk"),
        ("fuse.sshfs", "wrong", "local disk"),
        ("tmpfs", "note", "use a disk"),
        ("overlay", "note", "volume"),
        ("xfs", "ok", ""),
    ],
)
def test_the_kind_of_file_system_matters(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: str, advice: str
) -> None:
    monkeypatch.setattr(examination, "file_system", lambda path: kind)
    row = found(run, db, code=int(level == "wrong"))["file system"]
    assert row["level"] == level
    assert advice in row["advice"]


def test_the_file_system_of_a_path_is_that_of_the_innermost_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = f"root / ext4 rw 0 0\nshare {tmp_path}/my\\040data nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda *a, **k: mounts)
    assert examination.file_system(tmp_path / "my data" / "run.db") == "nfs4"
    assert examination.file_system(tmp_path / "run.db") == "ext4"


def test_a_full_disk_is_wrong(run: Run, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4096))
    row = found(run, db, code=1)["free space"]
    assert (row["level"], row["found"]) == ("wrong", "4.0 KiB")


def test_wal_with_an_sqlite_that_corrupts_it_is_wrong(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "wal.db"
    paramstore.open(path, journal="wal").close()
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 45, 0))
    assert "WAL" in found(run, path, code=1)["SQLite"]["found"]
    monkeypatch.setattr(sqlite3, "sqlite_version_info", facts.WAL_FIXED)
    assert found(run, path)["SQLite"]["level"] == "ok"


def test_settings_that_a_new_store_would_not_have_are_noted(run: Run, db: Path) -> None:
    connection = sqlite3.connect(db)
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.close()
    row = found(run, db)["settings"]
    assert row["level"] == "note"
    assert "auto_vacuum" in row["found"]


def test_what_a_killed_writer_left_is_noted(run: Run, db: Path) -> None:
    script = f"""
import sqlite3, os, signal
connection = sqlite3.connect({str(db)!r}, isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("PRAGMA cache_spill = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE chunks SET data = zeroblob(length(data))")
connection.execute("CREATE TABLE big AS SELECT zeroblob(1000000)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert db.with_name(f"{db.name}-journal").stat().st_size
    row = found(run, db)["journal"]
    assert (row["level"], "nothing to do" in row["advice"]) == ("note", True)
    assert "journal" not in found(run, db)  # looking at the store has undone it


def test_an_altered_snapshot_is_wrong(run: Run, db: Path) -> None:
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE snapshots SET step = 7 WHERE version = 4")
    connection.close()
    row = found(run, db, code=1)["newest snapshots"]
    assert "main@4 is damaged" in row["found"]
    assert "salvage" in row["advice"]


def test_a_folder_that_is_no_file_is_wrong(run: Run, tmp_path: Path) -> None:
    assert "is a directory" in found(run, tmp_path, code=1)["file"]["found"]
    told = run("doctor", "--db", tmp_path / "no" / "run.db", code=1).out
    assert "the folder has to exist" in told
