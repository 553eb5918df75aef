from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
from drafts import Line, expire
from sqlalchemy import Select
from sqlalchemy.dialects import sqlite

from paramstore.db.engine import Database
from paramstore.db.queries import HISTORY
from paramstore.db.repository import Repository
from paramstore.db.spans import HELD
from paramstore.snapshot import Snapshot


@pytest.fixture
def memory() -> Iterator[Database]:
    """Not a file: hundreds of commits take hundreds of milliseconds there only to be durable."""
    database = Database.memory()
    yield database
    database.close()


def plan(database: Database, statement: Select[Any], **about: object) -> list[str]:
    dialect = sqlite.dialect(paramstyle="named")
    compiled = statement.compile(dialect=dialect)
    query = compiled.construct_expanded_state({"scope": "main", "name": "w", **about})

    def explain(connection: sqlite3.Connection) -> list[str]:
        text = f"EXPLAIN QUERY PLAN {query.statement}"
        return [row[3] for row in connection.execute(text, dict(query.parameters))]

    return database.outside_transaction(explain)


def test_history_walks_one_index_backwards_and_looks_everything_else_up(file: Database) -> None:
    steps = plan(file, HISTORY, limit=100)
    assert order(steps) == TABLES
    assert not [step for step in steps if "SCAN" in step and "CONSTANT" not in step]
    assert not [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]
    (walked,) = (step for step in steps if step.startswith("SEARCH snapshots "))
    assert walked == "SEARCH snapshots USING INDEX sqlite_autoindex_snapshots_1 (scope_id=?)"


def test_how_long_a_value_was_kept_is_looked_up_from_its_end_backwards(file: Database) -> None:
    steps = plan(file, HELD, values=[7, 9])
    assert [step for step in steps if step.startswith("SCAN")] == ["SCAN ends"]
    assert not [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]
    back = "USING COVERING INDEX sqlite_autoindex_snapshots_1 (scope_id=? AND version<?)"
    assert steps.count(f"SEARCH earlier {back}") == 2
    assert "SEARCH there USING PRIMARY KEY (snapshot_id=? AND param_id=?)" in steps


@pytest.mark.parametrize("seed", range(4))
def test_how_long_a_value_was_kept_is_what_the_snapshots_say(memory: Database, seed: int) -> None:
    chance, line = random.Random(seed), Line(Repository(memory))
    held: dict[int, tuple[int | None, int | None]] = {}  # step and value, by version
    log: list[Snapshot] = []
    for n in range(60):
        value = chance.choice([{"w": str(n)}, {}, {}, {}])
        without = [] if value else chance.choice([["w"], [], [], []])
        snapshot = line.commit({"other": str(n)} | value, without=without, step=n * 10)
        entry = line.entries.get("w")
        held[snapshot.version] = snapshot.step, entry and entry.param_version_id
        if log and chance.random() < 0.3:
            expire(memory, log[-1])
            del held[log[-1].version]
        log.append(snapshot)
    found = line.repository.history("main", "w")
    assert [(r.version, r.until_version, r.until_step, r.removed) for r in found] == spans_of(held)


def spans_of(held: dict[int, tuple[int | None, int | None]]) -> list[tuple[Any, ...]]:
    runs = [(key, list(run)) for key, run in groupby(held.items(), lambda item: item[1][1])]
    following = [key for key, _ in runs[1:]] + [0]
    return [
        (run[0][0], run[-1][0], run[-1][1][0], after is None)
        for (key, run), after in zip(runs, following, strict=True)
        if key is not None
    ]


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
