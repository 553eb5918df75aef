"""Who committed a snapshot: kept with it, shown, and no part of its digest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from drafts import Line
from sqlalchemy import text

from paramstore.db import origin
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.testing import invariants

_ORIGINS = text("SELECT origin FROM v_snapshots")


def test_a_snapshot_says_who_committed_it(line: Line) -> None:
    made = line.commit({"w": "1"})
    assert made.origin == f"{os.uname().nodename}:{os.getpid()}"
    assert line.repository.head("main") == made
    assert made.origin not in str(made)
    ((stored,),) = line.repository.database.fetch(_ORIGINS)
    assert stored == made.origin


def test_a_child_of_a_fork_says_that_it_was_itself(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1"})
    child = os.fork()
    if child == 0:
        try:
            line.commit({"w": "2"})
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    newest, first = line.repository.log("main")
    assert (first.origin or "").endswith(f":{os.getpid()}")
    assert (newest.origin or "").endswith(f":{child}")


def test_the_origin_is_no_part_of_the_digest(line: Line) -> None:
    line.commit({"w": "1"})
    line.commit({"w": "2"})
    with line.repository.database.write() as connection:
        connection.exec_driver_sql("UPDATE snapshots SET origin = NULL WHERE version = 1")
        connection.exec_driver_sql("UPDATE snapshots SET origin = 'elsewhere' WHERE version = 2")
    assert [s.origin for s in line.repository.log("main")] == ["elsewhere", None]
    invariants.check(line.repository.database)


@pytest.fixture
def forget_the_host() -> Iterator[None]:
    origin._host.cache_clear()
    yield
    origin._host.cache_clear()


@pytest.mark.usefixtures("forget_the_host")
@pytest.mark.parametrize("name", ["\udcff", "a\nb", "ü", "\x1b[2J", ""])
def test_a_host_of_any_name_can_be_stored_and_printed(
    line: Line, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=name))
    made = line.commit({"w": "1"})
    assert made.origin
    assert made.origin.isascii()
    assert made.origin.isprintable()
    assert line.repository.head("main") == made
