"""Collecting garbage: everything that nothing holds goes, nothing else, at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from drafts import Line, blob, new_entry

from paramstore import errors
from paramstore.db import collection
from paramstore.db.collection import collect, size
from paramstore.db.engine import Database
from paramstore.db.expiry import expire
from paramstore.db.occupancy import usage
from paramstore.db.records import Draft
from paramstore.db.repository import Repository
from paramstore.retention import KeepEvery, KeepLast
from paramstore.testing import invariants

# Other tests of the same run may have left threads behind; Python 3.12 warns of a fork then.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

MIB = 1 << 20


def row_count(database: Database, table: str) -> int:
    with database.write() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def pragma(path: Path, name: str) -> Any:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def grow(line: Line, count: int, nbytes: int = 100) -> None:
    for step in range(count):
        values = {name: f"{name} {step} ".encode() * (nbytes // 4) for name in "ab"}
        line.commit(values, step=step, extra_tensors=[b"moment %d" % step])


def thinned(line: Line, count: int = 8, nbytes: int = 100) -> Database:
    """A database with some snapshots left of many, and all of their bytes."""
    grow(line, count, nbytes)
    expire(line.repository.database, KeepLast(1) | KeepEvery(steps=3))
    return line.repository.database


def test_what_no_snapshot_holds_is_freed(line: Line, database: Database) -> None:
    thinned(line)
    kept = line.repository.log("main")
    values = {s.version: line.value(s, "a") for s in kept}
    found = collect(database)
    assert (found.param_versions, found.blobs) == (2 * 4, 3 * 4)
    assert row_count(database, "blobs") == row_count(database, "chunks") == 3 * 4
    assert {s.version: line.value(s, "a") for s in kept} == values
    invariants.nothing_is_left_to_collect(database)
    assert collect(database).nbytes == 0


def test_a_dry_run_changes_nothing_and_tells_the_same(line: Line, database: Database) -> None:
    thinned(line)
    told = collect(database, dry_run=True)
    assert (told.dry_run, told.file_before) == (True, told.file_after)
    assert row_count(database, "blobs") == 3 * 8
    done = collect(database)
    assert (told.nbytes, told.blobs) == (done.nbytes, done.blobs)
    assert told.param_versions == done.param_versions


def test_a_reader_may_only_ask(file: Database, path: Path) -> None:
    thinned(Line(Repository(file)))
    reader = Database.open(path, readonly=True)
    assert collect(reader, dry_run=True).blobs == 3 * 4
    assert usage(reader).unused_nbytes > 0
    for compact in (False, True):
        with pytest.raises(errors.ReadOnlyError):
            collect(reader, compact=compact)
    reader.close()


LOST_ROWS = {
    "what snapshots hold": "DELETE FROM snapshot_params",
    "one of them": "DELETE FROM snapshot_params WHERE snapshot_id = 1 AND param_id = 1",
    "which value": "UPDATE snapshot_params SET param_version_id = 99 WHERE param_version_id = 1",
    "one value for another": "UPDATE snapshot_params SET param_version_id = 3 WHERE "
    "snapshot_id = 1 AND param_id = 1",
    "a value": "DELETE FROM param_versions WHERE id = 1",
    "which tensor": "UPDATE param_versions SET blob_id = 99 WHERE id = 1",
    "tensors": "DELETE FROM blobs",
    "constraints": "DELETE FROM constraints",
    "a constraint's tensor": "INSERT INTO constraint_blobs VALUES (1, 0, 99)",
    "which tensor of the extras": "UPDATE extra_blobs SET blob_id = 99 WHERE snapshot_id = 1",
}


@pytest.mark.parametrize("what", LOST_ROWS)
def test_what_only_looks_like_garbage_because_rows_are_lost_is_left_for_salvage(
    file: Database, what: str
) -> None:
    grow(Line(Repository(file)), 3)
    with file.write(foreign_keys=False) as connection:
        connection.exec_driver_sql(LOST_ROWS[what])
    tables = ("blobs", "chunks", "param_versions")
    before = [row_count(file, table) for table in tables]
    for compact in (False, True):
        with pytest.raises(errors.CorruptError, match=r"main@1.*Nothing was freed.*salvage") as e:
            collect(file, compact=compact)
        assert "main@1" in e.value.snapshots
    assert [row_count(file, table) for table in tables] == before


def test_an_empty_database_has_nothing_to_collect(database: Database) -> None:
    found = collect(database)
    assert (found.nbytes, found.blobs, found.param_versions) == (0, 0, 0)


def test_constraints_and_their_tensors_go_with_the_last_value_that_has_them(
    line: Line, repository: Repository, database: Database
) -> None:
    bounds = [blob(b"b" * 70_000), blob(b"c" * 70_000)]
    for bound in bounds:
        with repository.write() as transaction:
            (row,) = transaction.put_blobs([bound])
        spec = json.dumps({"kind": "greater_than", "lower_bound": bound.digest.hex()})
        line.commit({"w": spec}, entry={"spec": spec, "spec_blobs": (row,)})
    assert collect(database).blobs == 0
    assert expire(database, KeepLast(1)).nbytes > 70_000
    assert collect(database).blobs == 2
    assert row_count(database, "constraints") == row_count(database, "constraint_blobs") == 1
    digest = bounds[1].digest.hex()
    assert repository.constraint_blob(line.entries["w"].constraint_id, digest)


def test_names_go_with_their_last_snapshot(line: Line, database: Database) -> None:
    line.commit({"old": "1", "kept": "1"})
    line.commit(without=["old"])
    fork = Line(line.repository, "fork")
    fork.commit({"old": "of the fork"})
    expire(database, KeepLast(1))
    collect(database)
    assert row_count(database, "params") == 2
    with pytest.raises(errors.ParamNotFoundError):
        line.repository.history("main", "old")
    line.commit({"old": "2"})
    assert len(line.repository.history("main", "old")) == 1


def test_a_name_stays_while_a_value_is_known_by_it_in_another_scope(
    line: Line, database: Database
) -> None:
    line.commit({"w": "1"})
    fork = Line(line.repository, "fork")
    fork.parent, fork.entries = line.parent, line.entries
    made = fork.commit()
    line.commit({"other": "2"}, without=["w"])
    expire(database, KeepLast(1))
    collect(database)
    assert fork.value(made, "w") == b"1"
    assert [v.since_version for v in line.repository.history("fork", "w")] == [1]


def test_the_file_shrinks_to_what_is_left(file: Database, path: Path) -> None:
    line = Line(Repository(file))
    grow(line, 12, MIB)
    before = path.stat().st_size
    assert before > 24 * MIB
    expire(file, KeepLast(2))
    found = collect(file)
    assert (found.file_before, found.file_after) == (before, path.stat().st_size)
    assert found.nbytes > 20 * MIB
    assert path.stat().st_size < 7 * MIB
    assert size(file).free == 0
    invariants.check(file)


@pytest.mark.parametrize("compact", [False, True])
def test_a_write_ahead_log_shrinks_too(path: Path, compact: bool) -> None:
    database = Database.open(path, journal="wal")
    line = Line(Repository(database))
    grow(line, 6, MIB)
    expire(database, KeepLast(1))
    collect(database, compact=compact)
    files = [p.stat().st_size for p in path.parent.glob("run.db*") if not p.name.endswith("-shm")]
    assert sum(files) < 4 * MIB
    invariants.nothing_is_left_to_collect(database)
    database.close()
    assert pragma(path, "journal_mode") == "wal"


# -- compact -----------------------------------------------------------------------


def test_compacting_leaves_a_file_like_a_new_one(file: Database, path: Path) -> None:
    thinned(Line(Repository(file)), 40, 20_000)
    loose = collect(file)
    tight = collect(file, compact=True)
    assert tight.file_after == path.stat().st_size <= loose.file_after
    assert (pragma(path, "page_size"), pragma(path, "auto_vacuum")) == (65536, 2)
    invariants.check(file)
    grow(Line(Repository(file), "more"), 3)


def test_compacting_gives_a_file_back_what_another_program_took(file: Database, path: Path) -> None:
    thinned(Line(Repository(file)))
    file.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA auto_vacuum=NONE; PRAGMA page_size=4096; VACUUM")
    assert (pragma(path, "page_size"), pragma(path, "auto_vacuum")) == (4096, 0)
    database = Database.open(path)
    assert collect(database).blobs > 0  # whose pages stay
    collect(database, compact=True)
    assert (pragma(path, "page_size"), pragma(path, "auto_vacuum")) == (65536, 2)
    invariants.nothing_is_left_to_collect(database)
    database.close()


def test_compacting_works_in_memory() -> None:
    database = Database.memory()
    line = Line(Repository(database))
    thinned(line, 20, 100_000)
    found = collect(database, compact=True)
    assert found.file_after < found.file_before
    invariants.check(database)
    invariants.nothing_is_left_to_collect(database)


@pytest.mark.parametrize("scarce", ["beside", "temporary", "both on one device"])
def test_a_file_that_cannot_be_rewritten_is_left_alone(
    file: Database, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scarce: str
) -> None:
    thinned(Line(Repository(file)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    needed = path.stat().st_size
    usage_of = namedtuple("usage_of", "total used free")
    free = {"beside": (needed - 1, 9 * needed), "temporary": (9 * needed, needed // 2)}
    beside, temporary = free.get(scarce, (needed + 1, needed + 1))
    if scarce == "both on one device":
        monkeypatch.setattr(collection, "_temporary", lambda: path.parent)
    else:
        monkeypatch.setattr(collection, "_temporary", lambda: Path("/proc"))  # another device
    monkeypatch.setattr(
        shutil, "disk_usage", lambda p: usage_of(0, 0, beside if p == path.parent else temporary)
    )
    with pytest.raises(errors.StorageError, match=r"cannot be rewritten: that takes .* are free"):
        collect(file, compact=True)
    assert collect(file, dry_run=True).blobs > 0
    assert collect(file).blobs > 0


def test_the_folder_of_temporary_files_is_the_one_that_sqlite_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SQLITE_TMPDIR", raising=False)
    assert collection._temporary() == tmp_path
    monkeypatch.setenv("SQLITE_TMPDIR", str(tmp_path / "missing"))
    assert collection._temporary() == tmp_path
    monkeypatch.delenv("TMPDIR")
    assert collection._temporary().is_dir()


# -- interrupted -------------------------------------------------------------------


class Stop(BaseException):
    """Ends gc at a place of our choice, as Ctrl-C does."""


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each transaction of gc free as little as it can."""
    monkeypatch.setattr(collection, "HELD", -1.0)
    monkeypatch.setattr(collection, "_IDS", 2)
    monkeypatch.setattr(collection, "_BLOBS_AFTER", collection._BLOBS_AFTER.limit(2))


def stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Let the ``at``-th thing that touches the database for writing fail."""
    calls = 0
    for name in ("write", "outside_transaction"):
        original = getattr(Database, name)

        def counted(self: Database, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Stop
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Database, name, counted)


@pytest.mark.parametrize("compact", [False, True])
def test_gc_interrupted_anywhere_loses_nothing_and_can_be_run_again(
    file: Database, path: Path, tmp_path: Path, slowly: None, compact: bool
) -> None:
    line = Line(Repository(file))
    thinned(line, 9, 200_000)
    values = {s.version: line.value(s, "a") for s in line.repository.log("main")}
    file.close()
    for at in range(1, 100):
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)
        database = Database.open(copy)
        with pytest.MonkeyPatch.context() as patch:
            stopping(patch, at)
            try:
                collect(database, compact=compact)
                break
            except Stop:
                pass
        invariants.check(database)
        reader = Line(Repository(database))
        assert {s.version: reader.value(s, "a") for s in reader.repository.log("main")} == values
        collect(database, compact=compact)
        invariants.nothing_is_left_to_collect(database)
        database.close()
    assert at > 8
    database.close()


def _collect(path: Path) -> None:
    collection.HELD = -1.0  # type: ignore[misc]  # this process only
    database = Database.open(path)
    path.with_name("ready").touch()
    collect(database)


def test_gc_killed_at_any_moment_loses_nothing_and_can_be_run_again(
    file: Database, path: Path, tmp_path: Path
) -> None:
    line = Line(Repository(file))
    thinned(line, 30, 300_000)
    values = {s.version: line.value(s, "a") for s in line.repository.log("main")}
    file.close()
    for delay in (0.0, 0.005, 0.015, 0.04):
        copy = tmp_path / "copy.db"
        shutil.copy(path, copy)
        process = multiprocessing.get_context("fork").Process(target=_collect, args=(copy,))
        process.start()
        while not copy.with_name("ready").exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        copy.with_name("ready").unlink()
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database = Database.open(copy)
        invariants.check(database)
        reader = Line(Repository(database))
        assert {s.version: reader.value(s, "a") for s in reader.repository.log("main")} == values
        collect(database)
        invariants.nothing_is_left_to_collect(database)
        database.close()


# -- beside others -----------------------------------------------------------------


def test_commits_come_in_between(
    file: Database, path: Path, slowly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transaction of gc is followed by a commit of somebody else."""
    line = Line(Repository(file))
    thinned(line, 9, 100_000)
    other = Database.open(path, timeout=0.0)
    rival = Line(Repository(other), "rival")
    free_some = collection._free_some
    commits = 0

    def with_a_commit(*args: Any) -> Any:
        nonlocal commits
        commits += 1
        return free_some(*args)

    gaps = collection._gaps

    def between(*args: Any) -> Iterator[Any]:
        for found in gaps(*args):
            rival.commit({"w": f"{commits}"})
            yield found

    monkeypatch.setattr(collection, "_free_some", with_a_commit)
    monkeypatch.setattr(collection, "_gaps", between)
    collect(file)
    assert rival.head > 5
    invariants.check(file)
    invariants.nothing_is_left_to_collect(file)
    assert rival.value(rival.repository.log("rival")[-1], "w") == b"0"
    other.close()


@pytest.mark.parametrize("nbytes", [100, 100_000, 3 * MIB])
def test_what_a_commit_has_written_and_not_yet_named_is_written_again(
    database: Database, repository: Repository, line: Line, nbytes: int
) -> None:
    """The second case finds one of its tensors in what an expired snapshot left behind."""
    line.commit({"w": b"x" * nbytes})
    line.commit({"w": "changed"})
    values = {"w": blob(b"x" * nbytes), "v": blob(b"y" * nbytes), "m": blob(b"moment")}
    with repository.write() as transaction:
        rows = dict(zip(values, transaction.put_blobs(list(values.values())), strict=True))
    expire(database, KeepLast(1))
    collect(database)
    assert row_count(database, "blobs") == 1
    with repository.write() as transaction:
        made, entries = transaction.append(
            Draft(
                scope="other",
                seen_head=0,
                entries={n: new_entry(n, rows[n], values[n]) for n in "wv"},
                extras=[("extra", "x", "0")],
                extra_blobs=[(rows["m"], values["m"].digest)],
                blobs_written={rows[n]: values[n] for n in values},
            )
        )
    assert min(entry.blob_id for entry in entries.values()) > max(rows.values())
    assert line.value(made, "w") == b"x" * nbytes
    assert collect(database).blobs == 0
    invariants.nothing_is_left_to_collect(database)


def test_rows_are_never_given_twice_though_the_newest_are_freed(
    database: Database, line: Line
) -> None:
    line.commit({"w": "1"})
    with line.repository.write() as transaction:
        (freed,) = transaction.put_blobs([blob("of a commit that failed")])
    collect(database)
    with line.repository.write() as transaction:
        (row,) = transaction.put_blobs([blob("of another one")])
    assert row > freed
    collect(database)


def test_chunks_without_a_blob_are_found_wherever_they_lie(database: Database, line: Line) -> None:
    """As an interrupted gc leaves them: before, between and behind the blobs that exist."""
    line.commit({name: name * 3 * MIB for name in "abcd"})
    rows = sorted(entry.blob_id for entry in line.entries.values())
    line.commit({"a": "1", "b": "2", "d": "4"})
    expire(database, KeepLast(1))
    with database.write() as connection:
        for row in (rows[0], rows[1], rows[3]):
            connection.exec_driver_sql(f"DELETE FROM param_versions WHERE blob_id = {row}")
            connection.exec_driver_sql(f"DELETE FROM blobs WHERE id = {row}")
    assert row_count(database, "chunks") > 12
    collect(database)
    invariants.nothing_is_left_to_collect(database)
    assert row_count(database, "chunks") == 3 + 3  # of c, and of the other three names


# -- du ----------------------------------------------------------------------------


def test_du_says_what_each_scope_holds(line: Line, database: Database) -> None:
    line.commit({"w": "x" * 70_000, "b": "1"})
    other = Line(line.repository, "other")
    other.commit({"v": "x" * 70_000, "c": "22"}, extra_tensors=[b"moment"])
    line.commit({"b": "333"})
    large, ones = blob("x" * 70_000).nbytes, [blob("1").nbytes, blob("333").nbytes]
    found = usage(database)
    theirs = blob("22").nbytes + blob("moment").nbytes
    main, second = found.scopes
    assert (main.name, main.snapshots, main.params) == ("main", 2, 2)
    assert (main.nbytes, main.own_nbytes) == (large + sum(ones), sum(ones))
    assert (second.nbytes, second.own_nbytes) == (large + theirs, theirs)
    assert found.tensor_nbytes == large + sum(ones) + theirs
    assert found.unused_nbytes == 0
    expire(database, KeepLast(1))
    found = usage(database)
    assert found.unused_nbytes == ones[0]
    assert collect(database).nbytes == ones[0]
    found = usage(database)
    assert (found.unused_nbytes, found.free_nbytes) == (0, 0)
    assert found.file_nbytes == size(database).file
    assert found.other_nbytes > 0


def test_du_counts_the_tensors_of_constraints(repository: Repository, line: Line) -> None:
    bound = blob(b"b" * 70_000)
    with repository.write() as transaction:
        (row,) = transaction.put_blobs([bound])
    spec = json.dumps({"kind": "greater_than", "lower_bound": bound.digest.hex()})
    made = line.commit({"w": "1"}, entry={"spec": spec, "spec_blobs": (row,)})
    (scope,) = usage(repository.database).scopes
    assert scope.nbytes == made.nbytes + bound.nbytes
    assert usage(repository.database).unused_nbytes == 0


def test_du_of_an_empty_database_is_its_file(database: Database) -> None:
    found = usage(database)
    assert (found.scopes, found.tensor_nbytes, found.unused_nbytes) == ((), 0, 0)
    assert str(found).splitlines()[0] == "part                              bytes"


def test_du_prints_as_tables(line: Line, database: Database) -> None:
    line.commit({"w": "1"})
    lines = str(usage(database)).splitlines()
    assert lines[0] == "scope  snapshots  params  tensors  of its own"
    assert lines[1].split()[:3] == ["main", "1", "1"]
    assert lines[-1].startswith("the file")
    assert "shrunk" in str(collect(database))
    assert "would free 0 B" in str(collect(database, dry_run=True))


def test_gc_reports_what_it_is_doing(file: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(Repository(file))
    thinned(line, 6, MIB)
    told: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, what: str, total: int, **_: Any) -> None:
            self.done = told.setdefault(f"{what} {total}", [])

        def __enter__(self) -> Any:
            return self.done.append

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(collection, "progress", Bar)
    collect(file)
    assert all(sum(done) == int(what.split()[-1]) for what, done in told.items()), told
    assert [what.rpartition(" ")[0] for what in told] == ["freeing tensors", "giving space back"]


def test_nothing_here_needs_torch(path: Path) -> None:
    code = (
        "import sys; from paramstore.db.engine import Database; from paramstore.db import "
        "collection, expiry, occupancy; from paramstore import KeepLast; "
        f"database = Database.open({str(path)!r}); expiry.expire(database, KeepLast(1)); "
        "collection.collect(database); occupancy.usage(database); "
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"
