"""The commands for developers that CONTRIBUTING.md shows, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paramstore.db.engine import Database
from paramstore.db.schema import REVISION, VERSION_TABLE

ROOT = Path(__file__).parents[2]
NEXT = f"{int(REVISION) + 1:04}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "alembic.ini", tmp_path)
    shutil.copytree(ROOT / "migrations", tmp_path / "migrations")
    return tmp_path


def shell(checkout: Path, line: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line],
        cwd=checkout,
        env=os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def documented() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^(?:\.venv/bin/)?(alembic .*?)(?:  +#.*)?$", text, re.MULTILINE)


def test_the_documented_commands_work(checkout: Path) -> None:
    lines = documented()
    assert len(lines) >= 4
    for line in lines:
        done = shell(checkout, line)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    (made,) = (checkout / "migrations" / "versions").glob(f"{NEXT}_*.py")
    assert f"down_revision = '{REVISION}'" in made.read_text()
    database = Database(checkout / "scratch.db", mode="ro", timeout=0)
    assert VERSION_TABLE in dict(
        database.outside_transaction(
            lambda c: c.execute("SELECT name, 1 FROM sqlite_master").fetchall()
        )
    )
    database.close()


def test_a_table_that_is_not_what_the_schema_says_is_found(checkout: Path) -> None:
    prefix = "alembic -x path=scratch.db"
    assert shell(checkout, f"{prefix} upgrade head").returncode == 0
    assert shell(checkout, f"{prefix} check").returncode == 0
    assert shell(checkout, f"{prefix} downgrade 0001").returncode == 0
    script = next((checkout / "migrations" / "versions").glob("0002_*.py"))
    script.write_text(script.read_text().replace('op.add_column("snapshots"', "(lambda *_: 0)(0"))
    script.write_text(script.read_text().replace("_v_snapshots(_ORIGIN)", '_v_snapshots("")'))
    assert shell(checkout, f"{prefix} upgrade head").returncode == 0
    done = shell(checkout, f"{prefix} check")
    assert done.returncode != 0
    assert "origin" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "line", ["alembic upgrade head", "alembic -x path=x.db upgrade head --sql"]
)
def test_without_a_scratch_store_nothing_runs(checkout: Path, line: str) -> None:
    done = shell(checkout, line)
    assert done.returncode != 0
    assert "alembic -x path=scratch.db" in done.stderr
    assert not (checkout / "x.db").exists()
