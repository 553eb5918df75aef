from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from drafts import Line, blob
from sqlalchemy import text

from paramstore import errors
from paramstore.db import sqlite
from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.testing import invariants

ROOT = Path(__file__).parents[2]
NOT_TO_BE_CREATED: list[dict[str, Any]] = [{"create": False}, {"readonly": True}]
COUNT = text("SELECT count(*) FROM snapshots")


def pragma(database: Database, name: str) -> Any:
    return database.outside_transaction(lambda c: c.execute(f"PRAGMA {name}").fetchone()[0])


# -- opening -----------------------------------------------------------------------


def test_a_new_file_has_the_pragmas_that_cannot_be_set_later(path: Path) -> None:
    Database.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA page_size").fetchone() == (65536,)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("journal_mode", "truncate"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("secure_delete", 0),
        ("trusted_schema", 0),
        ("busy_timeout", 0),
    ],
)
def test_every_connection_has_the_pragmas(file: Database, name: str, value: object) -> None:
    def on_another_thread() -> None:
        found.append(pragma(file, name))

    found: list[object] = []
    thread = threading.Thread(target=on_another_thread)
    thread.start()
    thread.join()
    assert [*found, pragma(file, name)] == [value, value]


def test_the_page_cache_keeps_its_default(file: Database) -> None:
    with closing(sqlite3.connect(":memory:")) as plain:
        assert pragma(file, "cache_size") == plain.execute("PRAGMA cache_size").fetchone()[0]


def test_wal_is_opted_in_and_then_left_as_it_is(path: Path) -> None:
    database = Database.open(path, journal="wal")
    Line(Repository(database)).commit({"w": "1"})
    assert pragma(database, "journal_mode") == "wal"
    assert pragma(database, "page_size") == 65536
    assert pragma(database, "auto_vacuum") == 2
    database.close()
    options: dict[str, Any]
    for options in ({}, {"journal": "wal"}, {"readonly": True}):
        database = Database.open(path, **options)
        assert pragma(database, "journal_mode") == "wal"
        assert database.fetch(COUNT)[0][0] == 1
        database.close()
    database = Database.open(path, journal="truncate")
    assert pragma(database, "journal_mode") == "truncate"
    database.close()
    invariants.check(path)
    with pytest.raises(errors.InvalidInputError, match="'fast'"):
        Database.open(path, journal="fast")  # type: ignore[arg-type]


NAMES = [
    "run.db",
    "100% ? # & = ; .db",
    "%20",
    'it\'s "odd".db',
    "ünïcödé 🏳️.db",
    "line\nbreak",
    "file:run.db",
    " run.db ",
    os.fsdecode(b"\xff\xfe.db"),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_of_any_name_can_be_a_store(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Database.open(path).close()
    assert {file.name for file in tmp_path.iterdir()} <= {name, f"{name}-journal"}
    for where in (path, str(path)):
        database = Database.open(where, readonly=True)
        assert database.path == path
        database.close()


def test_a_relative_path_and_a_url_name_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database.open("run.db")
    Line(Repository(database)).commit({"w": "1"})
    database.close()
    monkeypatch.chdir("/")
    for where in (f"sqlite:///{tmp_path}/run.db", f"sqlite+pysqlite:///{tmp_path}/run.db"):
        database = Database.open(where, create=False)
        assert database.fetch(COUNT)[0][0] == 1
        database.close()


@pytest.mark.parametrize("where", [":memory:", "sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_its_own(where: str) -> None:
    one, other = Database.open(where), Database.open(where)
    Line(Repository(one)).commit({"w": "1"})
    assert (one.path, one.fetch(COUNT)[0][0], other.fetch(COUNT)[0][0]) == (None, 1, 0)
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("", "not the path"),
        ("a\0b", "not the path"),
        (b"run.db", "is no path; give text or a pathlib.Path"),
        (3, "3 is no path"),
        ("postgresql://user:secret@host/db", "only SQLite"),
        ("sqlite:///run.db?mode=ro", "options"),
        ("://", "neither a path nor"),
        ("nonsense://x", "only SQLite"),
    ],
)
def test_what_cannot_be_a_database_is_refused(where: Any, text: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=text) as caught:
        Database.open(where)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_a_database_is_refused_and_left_alone(path: Path) -> None:
    for content in (b"x" * 10_000, b"SQLite format 3\0" + b"\xff" * 5000, b"short"):
        path.write_bytes(content)
        for readonly in (False, True):
            with pytest.raises(errors.NotADatabaseError, match=r"run\.db"):
                Database.open(path, readonly=readonly)
        assert path.read_bytes() == content


def test_a_directory_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.StorageError, match="is a directory"):
        Database.open(tmp_path)
    with pytest.raises(errors.StorageError, match="no folder"):
        Database.open(tmp_path / "missing" / "run.db")
    for options in NOT_TO_BE_CREATED:
        with pytest.raises(errors.NotFoundError, match="no store"):
            Database.open(tmp_path / "run.db", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    for where in (":memory:", path):
        with pytest.raises(errors.DatabaseError, match=r"3\.35\.0 or newer"):
            Database.open(where)


def test_a_database_that_fails_to_open_leaves_no_connection(path: Path) -> None:
    path.write_bytes(b"x" * 10_000)
    with pytest.raises(errors.NotADatabaseError):
        Database.open(path)
    assert not [link for link in open_files() if link.endswith("run.db")]


def open_files() -> Iterator[str]:
    folder = Path("/proc/self/fd")
    for link in folder.iterdir() if folder.is_dir() else ():
        try:
            yield str(link.readlink())
        except OSError:
            continue


# -- using -------------------------------------------------------------------------


def test_a_closed_database_says_so_and_closes_twice(database: Database) -> None:
    other = Database.memory() if database.path is None else Database.open(database.path)
    other.close()
    other.close()
    with pytest.raises(errors.StoreClosedError, match="closed"):
        other.fetch(COUNT)
    with pytest.raises(errors.StoreClosedError, match="closed"), other.write():
        pass


def test_a_readonly_database_refuses_to_write_and_sees_what_others_write(
    file: Database, path: Path
) -> None:
    reader = Database.open(path, readonly=True)
    Line(Repository(file)).commit({"w": "1"})
    assert reader.fetch(COUNT)[0][0] == 1
    with pytest.raises(errors.ReadOnlyError, match=r"run\.db"), reader.write():
        pass
    with pytest.raises(errors.StorageError):
        reader.fetch(text("DELETE FROM snapshots RETURNING id"))
    reader.close()


def test_threads_read_while_one_writes(database: Database) -> None:
    line = Line(Repository(database))
    line.commit({"w": "0"})
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                head = line.repository.head("main")
                assert head is not None
                assert len(line.repository.manifest(head).entries) == 1
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for step in range(30):
        line.commit({"w": str(step)})
    done.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_writers_of_two_threads_wait_for_each_other(database: Database) -> None:
    failures: list[BaseException] = []

    def write(scope: str) -> None:
        line = Line(Repository(database), scope)
        try:
            for step in range(15):
                line.commit({"w": str(step)})
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            failures.append(error)

    threads = [threading.Thread(target=write, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [scope.head_version for scope in Repository(database).scopes()] == [15] * 4


# -- other processes ---------------------------------------------------------------


@contextmanager
def stranger(path: Path, *statements: str) -> Iterator[sqlite3.Connection]:
    """Another program in the middle of something."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection


def test_a_writer_waits_for_the_lock_and_then_gives_up(file: Database, path: Path) -> None:
    file.timeout = 0.2
    line = Line(Repository(file))
    with stranger(path, "BEGIN IMMEDIATE"):
        start = time.monotonic()
        with pytest.raises(errors.StoreBusyError, match="longer timeout"):
            line.commit({"w": "1"})
        assert time.monotonic() - start >= 0.2
    assert line.commit({"w": "1"}).version == 1


def test_a_writer_gets_the_lock_when_it_is_free(file: Database, path: Path) -> None:
    with stranger(path, "BEGIN IMMEDIATE") as other:
        thread = threading.Thread(target=lambda: Line(Repository(file)).commit({"w": "1"}))
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
        other.execute("ROLLBACK")
        thread.join(10)
    assert file.fetch(COUNT)[0][0] == 1


def test_a_reader_waits_for_a_writer_in_its_commit(file: Database, path: Path) -> None:
    file.timeout = 0.2
    with stranger(path, "BEGIN EXCLUSIVE") as other:
        with pytest.raises(errors.StoreBusyError):
            file.fetch(COUNT)
        file.timeout = 30
        thread = threading.Thread(target=lambda: file.fetch(COUNT))
        thread.start()
        time.sleep(0.05)
        other.execute("COMMIT")
        thread.join(10)
        assert not thread.is_alive()


def half_read(connection: sqlite3.Connection) -> sqlite3.Cursor:
    """A query whose rows nobody takes: it keeps the shared lock."""
    cursor = connection.execute("SELECT a.name FROM sqlite_master a, sqlite_master b")
    cursor.fetchone()
    return cursor


def test_a_half_read_query_of_a_stranger_delays_nothing_but_the_commit(
    file: Database, path: Path
) -> None:
    file.timeout = 0.5
    line = Line(Repository(file))
    values = {f"p{i}": bytes([i]) * (1 << 20) for i in range(12)}  # six times the page cache
    with stranger(path) as other:
        cursor = half_read(other)
        with pytest.raises(errors.StoreBusyError):
            line.commit(values)
        cursor.close()
    assert file.fetch(COUNT)[0][0] == 0
    made = line.commit(values)
    assert line.value(made, "p3") == values["p3"]
    invariants.check(file)


def test_a_commit_is_repeated_until_the_stranger_has_read_on(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    with stranger(path) as other:
        cursor = half_read(other)
        thread = threading.Thread(target=lambda: line.commit({"w": "1"}))
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
        cursor.fetchall()
        thread.join(10)
    assert line.head == 1


def test_our_readers_hold_no_lock_between_queries(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    made = line.commit({f"p{i}": bytes([i]) * (1 << 20) for i in range(20)})
    ids = [entry.blob_id for entry in line.repository.manifest(made).entries.values()]
    chunks = line.repository.read_blobs(ids)
    next(chunks)
    with stranger(path, "BEGIN EXCLUSIVE") as other:
        other.execute("ROLLBACK")
    assert len(list(chunks)) == 19


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from paramstore.db.engine import Database
database = Database.open(sys.argv[1])
with database.write() as connection:
    connection.exec_driver_sql("DELETE FROM snapshot_params")
    connection.exec_driver_sql("DELETE FROM snapshots")
    for number in range(8):
        row = (1 << 50) + number, bytes(1 << 20)
        connection.exec_driver_sql("INSERT INTO chunks VALUES (?, ?)", row)
    print("spilt", flush=True)
    time.sleep(60)
"""


def kill_a_writer(path: Path) -> None:
    """Leave a journal that has to be rolled back."""
    command = [sys.executable, "-c", WRITER, str(path), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "spilt\n"
        writer.kill()
    assert path.with_name(path.name + "-journal").stat().st_size > 0


@pytest.fixture
def interrupted(file: Database, path: Path) -> Path:
    """A store with one snapshot, whose next writer was killed."""
    Line(Repository(file)).commit({"w": "1"})
    file.close()
    kill_a_writer(path)
    return path


@pytest.mark.parametrize("readonly", [False, True])
def test_what_a_killed_writer_left_is_undone(interrupted: Path, readonly: bool) -> None:
    database = Database.open(interrupted, readonly=readonly)
    assert database.fetch(COUNT)[0][0] == 1
    invariants.check(database)
    database.close()


def test_a_reader_that_is_open_already_undoes_it_too(file: Database, path: Path) -> None:
    Line(Repository(file)).commit({"w": "1"})
    reader = Database.open(path, readonly=True)
    kill_a_writer(path)
    assert reader.fetch(COUNT)[0][0] == 1
    reader.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_reader_without_permission_says_what_to_do(interrupted: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from paramstore.db import migrate, strangers\n"  # what open() imports: it could not later
        "from paramstore.db.engine import Database\n"
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from paramstore.errors import StorageError\n"
        "try: Database.open(sys.argv[1], readonly=True)\n"
        "except StorageError as error: print(error)\n"
    )
    folder = interrupted.parent
    for parent in (folder, *folder.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    journal = interrupted.with_name(interrupted.name + "-journal")
    for file in (interrupted, journal):
        file.chmod(0o644)
    before = journal.stat().st_size
    command = [sys.executable, "-c", code, str(interrupted), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "killed writer" in done.stdout, done
    assert "write permission" in done.stdout
    assert journal.stat().st_size == before


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(file: Database) -> None:
    line = Line(Repository(file))
    line.commit({"w": "1"})
    pages = pragma(file, "page_count")
    file.outside_transaction(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchall())
    with pytest.raises(errors.StorageError, match="full"):
        line.commit({"big": bytes(4 << 20)})
    file.outside_transaction(lambda c: c.execute("PRAGMA max_page_count=1000000").fetchall())
    assert line.commit({"big": bytes(4 << 20)}).version == 2
    invariants.check(file)


def test_a_damaged_page_is_a_corrupt_database(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    line.commit({f"p{i}": "x" * 900 for i in range(400)})
    file.close()
    whole = path.read_bytes()
    for start in range(65536, len(whole), 65536):
        damaged = bytearray(whole)
        damaged[start : start + 65536] = b"\xa5" * 65536
        path.write_bytes(damaged)
        try:
            database = Database.open(path)
            try:
                for snapshot in Repository(database).log("main"):
                    entries = Repository(database).manifest(snapshot).entries
                    list(Repository(database).read_blobs([e.blob_id for e in entries.values()]))
            finally:
                database.close()
        except errors.ParamStoreError:
            continue  # one of ours, whatever the page held


def test_a_connection_is_set_up_before_anybody_uses_it(path: Path) -> None:
    Database.open(path).close()
    for mode in get_args(sqlite.Mode):
        connection = sqlite.connect(path, mode)
        assert connection.isolation_level is None
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
        connection.close()


def test_blobs_survive_the_process(path: Path) -> None:
    database = Database.open(path)
    line = Line(Repository(database))
    made = line.commit({"w": "abc"})
    database.close()
    again = Database.open(path)
    assert Line(Repository(again)).value(made, "w") == b"abc"
    assert Repository(again).head("main") == made
    assert blob("abc").digest == Repository(again).manifest(made).entries["w"].digest
    again.close()
