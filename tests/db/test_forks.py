from __future__ import annotations

import gc
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from drafts import Line
from processes import at_once, in_child, is_sound
from sqlalchemy import text
from sqlalchemy.exc import StatementError

from paramstore import errors
from paramstore.db import forks
from paramstore.db.engine import Database
from paramstore.db.repository import Repository

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    # Forking with threads about is what is tested, and Python 3.12 warns.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
COUNT = text("SELECT count(*) FROM snapshots")


def spill(connection: Any) -> None:
    """Write more than the page cache holds, so that the transaction is in the file by halves."""
    for number in range(8):
        row = (9 << 40) + number, bytes([number]) * (1 << 20)
        connection.exec_driver_sql("INSERT INTO chunks VALUES (?, ?)", row)


def is_whole(path: Path) -> None:
    """What `spill` wrote was committed; takes it away again."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT id, data FROM chunks WHERE id >= 9 << 40").fetchall()
        assert rows == [((9 << 40) + n, bytes([n]) * (1 << 20)) for n in range(8)]
        connection.execute("DELETE FROM chunks WHERE id >= 9 << 40")
        connection.commit()
    is_sound(path)


def use(database: Database, scope: str) -> None:
    """Read and write as any process may."""
    Line(Repository(database), scope).commit({"w": scope})
    assert Repository(database).head(scope) is not None


@pytest.mark.parametrize("journal", ["truncate", "wal"])
def test_parent_and_child_go_on_after_a_fork(path: Path, journal: Any) -> None:
    database = Database.open(path, journal=journal)
    use(database, "before")
    for number in range(3):
        assert in_child(lambda n=number: use(database, f"child {n}")) == 0  # type: ignore[misc]
        use(database, f"parent {number}")
    assert database.fetch(COUNT)[0][0] == 7
    database.close()
    is_sound(path)


def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1"})

    def child() -> None:
        for call in (lambda: file.fetch(COUNT), lambda: Database.open(path)):
            with pytest.raises(errors.UsageError, match="middle of a transaction"):
                call()
        with pytest.raises(StatementError, match="middle of a transaction"):
            connection.exec_driver_sql("DELETE FROM snapshots")
        with pytest.raises(errors.UsageError, match="middle of a transaction"):
            driver.commit()
        driver.rollback()
        driver.close()
        file.close()
        gc.collect()

    with file.write() as connection:
        driver: Any = connection.connection.dbapi_connection
        spill(connection)
        assert in_child(child) == 0
    assert line.commit({"w": "2"}).version == 2
    file.close()
    is_whole(path)


SCRIPT = """
import os, sys
sys.path[:0] = sys.argv[2:]
from test_forks import Database, Line, Repository, spill

database = Database.open(sys.argv[1])
line = Line(Repository(database))
line.commit({"w": "1"})
with database.write() as connection:
    spill(connection)
    child = os.fork()
    if child == 0:
        sys.exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
line.commit({"w": "2"})
sys.exit(status)
"""


def test_a_child_that_exits_as_scripts_do_finalises_nothing(path: Path) -> None:
    here = Path(__file__).parent
    folders = map(str, (here, here.parent, here.parents[1]))
    command = [sys.executable, "-c", SCRIPT, str(path), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    is_whole(path)


def test_a_child_that_leaves_the_block_of_its_parent_commits_nothing(
    file: Database, path: Path
) -> None:
    Line(Repository(file)).commit({"w": "1"})
    with pytest.raises(ZeroDivisionError), file.write() as connection:
        connection.exec_driver_sql("DELETE FROM tags")
        connection.exec_driver_sql("UPDATE snapshots SET step = 77")
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
            raise ZeroDivisionError
        try:
            with file.write():
                os._exit(1)
        except errors.UsageError:
            os._exit(3)
        finally:
            os._exit(2)
    is_sound(path)


def test_a_child_unwinds_out_of_the_block_without_touching_the_file(
    file: Database, path: Path
) -> None:
    Line(Repository(file)).commit({"w": "1"})

    def block() -> None:
        with file.write() as connection:
            spill(connection)
            child = os.fork()
            if child:
                os.waitpid(child, 0)

    parent = os.getpid()
    try:
        block()
    except BaseException as error:
        if os.getpid() == parent:
            raise
        os._exit(0 if isinstance(error, errors.UsageError) else 1)
    if os.getpid() != parent:
        os._exit(1)
    file.close()
    is_whole(path)


def test_a_fork_waits_for_the_transaction_of_another_thread(file: Database, path: Path) -> None:
    inside, order = threading.Event(), []

    def write() -> None:
        with file.write() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS x (a)")
            connection.exec_driver_sql("DROP TABLE x")
            inside.set()
            time.sleep(0.2)
            order.append("transaction")

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    assert in_child(lambda: use(file, "child")) == 0
    order.append("fork")
    thread.join()
    assert order == ["transaction", "fork"]
    file.close()
    is_sound(path)


def test_a_thread_that_is_needed_inside_gets_in_while_a_fork_waits(file: Database) -> None:
    waiting = threading.Event()

    def write() -> None:
        with forks.GATE:
            waiting.set()
            time.sleep(0.1)  # the fork is waiting by now
            helper = threading.Thread(target=lambda: file.fetch(COUNT))
            helper.start()
            helper.join()

    thread = threading.Thread(target=write)
    thread.start()
    waiting.wait()
    start = time.monotonic()
    assert in_child(lambda: None) == 0
    thread.join()
    assert time.monotonic() - start < 20


def test_a_fork_gets_its_turn_while_a_thread_writes_without_pause(
    file: Database, path: Path
) -> None:
    stop = threading.Event()
    line = Line(Repository(file))

    def write() -> None:
        while not stop.is_set():
            line.commit({"w": str(line.head)})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        statuses = [in_child(lambda n=n: use(file, f"child {n}")) for n in range(5)]  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert statuses == [0] * 5
    file.close()
    is_sound(path)


def test_a_fork_that_waited_in_vain_cannot_use_what_others_were_inside(
    file: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "LONGEST_WAIT", 0.1)
    inside, leave = threading.Event(), threading.Event()

    def write() -> None:
        with file.write():
            inside.set()
            leave.wait()

    def child() -> None:
        with pytest.raises(errors.UsageError):
            file.fetch(COUNT)

    thread = threading.Thread(target=write)
    thread.start()
    inside.wait()
    status = in_child(child)
    leave.set()
    thread.join()
    assert status == 0


def test_a_database_in_memory_is_a_copy_in_the_child() -> None:
    database = Database.memory()
    use(database, "before")
    assert in_child(lambda: use(database, "child")) == 0
    with database.write() as connection:
        assert in_child(lambda: connection.exec_driver_sql("DELETE FROM tags")) == 0
    assert database.fetch(COUNT)[0][0] == 1
    database.close()


def test_a_child_inherits_no_open_file(file: Database, path: Path) -> None:
    use(file, "before")

    def child() -> None:
        assert not [name for name in open_files() if name.startswith(str(path))]

    if sys.platform == "linux":
        assert in_child(child) == 0
    use(file, "after")


def open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:
            continue
    return found


def create(path: Path, barrier: Any, number: int) -> None:
    barrier.wait()
    database = Database.open(path)
    use(database, f"worker {number}")
    database.close()


def test_eight_processes_create_one_store(path: Path) -> None:
    at_once(8, create, path)
    is_sound(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM scopes").fetchone() == (8,)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA page_size").fetchone() == (65536,)


def contend(path: Path, barrier: Any, number: int) -> None:
    database = Database.open(path)
    line = Line(Repository(database))
    barrier.wait()
    for step in range(20):
        while True:
            try:
                line.commit({f"w{number}": f"{number} {step}"})
                break
            except errors.ConflictError as conflict:
                line.head = conflict.found
    database.close()


def test_one_of_two_writers_always_wins_and_nothing_is_lost(path: Path) -> None:
    Database.open(path).close()
    at_once(3, contend, path)
    is_sound(path)
    database = Database.open(path, readonly=True)
    assert Repository(database).head_version("main") == 60
    database.close()
