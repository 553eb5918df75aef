from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import pytest
from drafts import Line
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

from paramstore.db.engine import Database
from paramstore.db.queries import HISTORY
from paramstore.db.repository import Repository
from paramstore.db.spans import PRESENCE


@pytest.fixture
def memory() -> Iterator[Database]:
    """Not a file: hundreds of commits take hundreds of milliseconds there only to be durable."""
    database = Database.memory()
    yield database
    database.close()


def plan(database: Database, statement: Select[Any], **about: object) -> list[str]:
    dialect = sqlite.dialect(paramstyle="named")
    query = statement.compile(dialect=dialect)
    values = query.construct_params({"scope": "main", "name": "w", **about})

    def explain(connection: sqlite3.Connection) -> list[str]:
        return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", values)]

    return database.outside_transaction(explain)


def test_history_walks_one_index_backwards_and_looks_everything_else_up(file: Database) -> None:
    steps = plan(file, HISTORY, limit=100)
    assert order(steps) == TABLES
    assert not [step for step in steps if "SCAN" in step and "CONSTANT" not in step]
    assert not [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]
    (walked,) = (step for step in steps if step.startswith("SEARCH snapshots "))
    assert walked == "SEARCH snapshots USING INDEX sqlite_autoindex_snapshots_1 (scope_id=?)"


def test_how_long_a_value_was_kept_walks_one_index_and_looks_the_rest_up(file: Database) -> None:
    steps = plan(file, PRESENCE, first=1)
    walked, looked_up = steps[0], next(step for step in steps if "snapshot_params" in step)
    assert walked == (
        "SEARCH snapshots USING INDEX sqlite_autoindex_snapshots_1 (scope_id=? AND version>?)"
    )
    assert "USING PRIMARY KEY (snapshot_id=? AND param_id=?)" in looked_up
    assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step]


def order(steps: list[str]) -> list[str]:
    """The tables of the outer query, from the outermost loop to the innermost."""
    return [name for step in steps if (name := step.split()[1]) in TABLES]


TABLES = [
    "scopes",
    "params",
    "snapshots",
    "snapshot_params",
    "param_versions",
    "blobs",
    "constraints",
]


def test_statistics_of_the_planner_do_not_change_the_order(file: Database) -> None:
    line = Line(Repository(file))
    for version in range(50):
        line.commit({"w": str(version), "b": str(version), "c": str(version)})
    with file.write() as connection:
        connection.exec_driver_sql("ANALYZE")
    file.close()
    again = Database.open(file.path or "")
    assert order(plan(again, HISTORY, limit=100)) == TABLES
    again.close()


@pytest.mark.parametrize("limit", [1, 100])
def test_the_last_versions_cost_the_same_however_many_there_are(
    memory: Database, limit: int
) -> None:
    line = Line(Repository(memory))
    work = []
    for version in range(1, 401):
        line.commit({"w": str(version)})
        if version in (100, 400):
            work.append(rows_visited(memory, limit))
    assert work[1] <= 1.1 * work[0] + 50


def rows_visited(database: Database, limit: int) -> int:
    """Count the steps of SQLite's virtual machine, in units of ten, for one history query."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def run(connection: sqlite3.Connection) -> None:
        sql = "SELECT * FROM v_history WHERE scope = 'main' AND name = 'w' ORDER BY version DESC"
        connection.set_progress_handler(count, 10)
        connection.execute(f"{sql} LIMIT {limit}").fetchall()
        connection.set_progress_handler(None, 10)

    database.outside_transaction(run)
    return steps


def test_a_long_history_is_read_in_milliseconds(memory: Database) -> None:
    line = Line(Repository(memory))
    for version in range(300):
        line.commit({f"p{i}": f"{version} {i}" for i in range(20)})
    spent = []
    for _ in range(9):
        start = time.perf_counter()
        assert len(line.repository.history("main", "p7", 100)) == 100
        spent.append(time.perf_counter() - start)
    assert min(spent) < 0.02  # ten times what it takes on a machine that has nothing else to do
