"""``db``: current, check, upgrade and downgrade, on a store of the first schema revision."""

from __future__ import annotations

import lzma
import sqlite3
from pathlib import Path

import pytest
from shell_runs import Run

from paramstore.db.schema import REVISION

OLD = Path(__file__).parents[1] / "museum" / "0001.db.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of a store of the first revision."""
    path = tmp_path / "old.db"
    path.write_bytes(lzma.decompress(OLD.read_bytes()))
    return path


def test_an_old_store_is_refused_with_the_command_that_upgrades_it(run: Run, old: Path) -> None:
    assert f"paramstore db upgrade {old}" in run("log", "--db", old, code=1).err
    assert run("db", "current", old, "--json").json == {"revision": "0001", "newest": REVISION}
    assert "next: paramstore db upgrade" in run("db", "check", "--db", old, code=1).out
    advice = run("doctor", "--quick", "--db", old, code=1).out
    assert "→ paramstore db upgrade" in advice


def test_an_upgrade_keeps_a_copy_and_a_downgrade_goes_back(run: Run, old: Path) -> None:
    done = run("db", "upgrade", old, "--json").json
    assert (done["before"], done["after"]) == ("0001", REVISION)
    assert Path(done["backup"]).exists()
    assert run("log", "--db", old).lines
    assert run("db", "check", old, "--json").json["drift"] == []
    back = run("db", "downgrade", "0001", old, "--no-backup").out
    assert f"{REVISION} → 0001" in back
    assert run("db", "current", "--db", old, "--json").json["revision"] == "0001"
    assert "cannot go back to '7'" in run("db", "downgrade", "7", old, code=1).err


def test_check_names_what_differs(run: Run, db: Path) -> None:
    with sqlite3.connect(db) as connection:
        connection.execute("DROP VIEW v_sizes")
    connection.close()
    assert "view 'v_sizes' is missing" in run("db", "check", db, code=1).out
    assert "v_sizes" in run("doctor", "--quick", "--db", db, "--json", code=1).out


def test_upgrading_what_is_new_does_nothing(run: Run, db: Path) -> None:
    before = db.read_bytes()
    assert "there is nothing to do" in run("db", "upgrade", db).out
    assert db.read_bytes() == before
