"""The file of an open store is deleted, moved away, or another takes its place.

SQLite itself goes on with what it has open, so a commit could be confirmed and lost.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import damage
import pytest
import torch
from tally import count

import paramstore
from paramstore import ParamStoreDict, ParamStoreError, StorageError
from paramstore.testing import invariants


def delete(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def replace_by_another_store(path: Path) -> None:
    other = path.with_name("other.db")
    with paramstore.open(other) as store:
        store["x"] = torch.full((3,), 9.0)
        store.commit(step=9)
    other.replace(path)


def replace_by_nothing_at_all(path: Path) -> None:
    path.with_name("empty").touch()
    path.with_name("empty").replace(path)


def replace_by_a_copy(path: Path) -> None:
    # In another process: closing a descriptor of the file here would drop SQLite's locks.
    subprocess.run(["cp", path, path.with_name("copy")], check=True)
    path.with_name("copy").replace(path)


PAGE = 65536
WAYS: list[Callable[[Path], None]] = [
    delete, move, move_the_folder, replace_by_another_store, replace_by_nothing_at_all,
    replace_by_a_copy,
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that can be moved."""
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "run.db"


@pytest.fixture(params=["truncate", "wal"])
def store(path: Path, request: pytest.FixtureRequest) -> Iterator[ParamStoreDict]:
    with paramstore.open(path, journal=request.param) as opened:
        opened["x"] = torch.zeros(3)
        opened.commit(step=0)
        opened["x"].data.fill_(1.0)
        yield opened


@pytest.mark.parametrize("way", WAYS)
def test_no_call_succeeds_on_a_file_that_is_gone_and_the_error_names_it(
    store: ParamStoreDict, path: Path, way: Callable[[Path], None]
) -> None:
    way(path)
    what = "replaced by another" if way.__name__.startswith("replace") else "deleted or moved"
    calls: list[Callable[[], object]] = [
        lambda: store.commit(step=1),
        lambda: store.commit(step=1, wait=False).result(),
        store.log,
        lambda: store.at(1),
        store.resume,
        lambda: store.tag("best"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=rf"run\.db' was {what}.*store\.save"):
            call()
    assert store["x"].tolist() == [1.0] * 3
    saved = path.parent.with_name("kept.safetensors")
    store.save(saved)
    assert saved.stat().st_size > 0
    if what == "deleted or moved":
        assert not path.exists()
    count("files")


@pytest.mark.parametrize("way", [move, move_the_folder])
def test_a_file_that_is_put_back_takes_the_next_commit(
    store: ParamStoreDict, path: Path, way: Callable[[Path], None]
) -> None:
    way(path)
    with pytest.raises(StorageError):
        store.commit(step=1)
    if way is move:
        path.with_name("elsewhere.db").rename(path)
    else:
        path.parent.with_name("elsewhere").rename(path.parent)
    assert store.commit(step=2).version == 2
    store.close()
    with paramstore.open(path, readonly=True) as again:
        assert [snapshot.step for snapshot in again.log()] == [2, 0]
        assert again["x"].tolist() == [1.0] * 3
    invariants.check(path)


@pytest.mark.parametrize("way", [delete, move, replace_by_another_store, replace_by_a_copy])
@pytest.mark.parametrize("before_the_end", [True, False])
def test_a_commit_whose_file_goes_while_it_is_written_is_not_confirmed(
    store: ParamStoreDict,
    path: Path,
    way: Callable[[Path], None],
    before_the_end: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    database, head = store._session.backend.database, store.last
    assert head is not None
    if before_the_end:
        commit = database._on_commit

        def disturbed(connection: Any) -> None:
            way(path)
            commit(connection)

        monkeypatch.setattr(database, "_on_commit", disturbed)
        database._engine.dispose()
        database._engine = database._make_engine()  # it was told of the other one
        with pytest.raises(StorageError, match="went with it"):
            store.commit(step=1)
    else:
        with pytest.raises(StorageError), store._session.repository.write() as transaction:
            way(path)
            transaction.check_head("main", head.version)
    with pytest.raises(StorageError, match="nothing was done"):
        store.commit(step=1)
    count("files")


def test_a_new_connection_does_not_make_the_file_anew(store: ParamStoreDict, path: Path) -> None:
    store._session.backend.database.before_fork()  # closes what is idle
    path.unlink()
    for call in (store.log, lambda: store.commit(step=1)):
        with pytest.raises(StorageError, match="deleted or moved"):
            call()
    assert not path.exists()


@pytest.mark.parametrize("before_the_end", [True, False])
def test_no_commit_is_confirmed_to_a_write_ahead_log_that_was_deleted(
    path: Path, before_the_end: bool
) -> None:
    with paramstore.open(path, journal="wal") as store:
        commit_one(store, 1.0)
        log = path.with_name("run.db-wal")
        if before_the_end:
            head = store.last
            assert head is not None
            with (
                pytest.raises(StorageError, match=r"run\.db-wal' was deleted.*went with it"),
                store._session.repository.write() as transaction,
            ):
                log.unlink()
                transaction.check_head("main", head.version)
        else:
            log.unlink()
        with pytest.raises(StorageError, match=r"run\.db-wal' was deleted"):
            commit_one(store, 2.0)
    with paramstore.open(path) as store:
        assert store["x"].tolist() == [1.0]
        commit_one(store, 3.0)
    invariants.check(path)
    count("files")


def test_a_store_that_is_read_only_says_so_too(path: Path, store: ParamStoreDict) -> None:
    with paramstore.open(path, readonly=True) as reader:
        replace_by_another_store(path)
        for call in (reader.log, lambda: reader["x"]):
            with pytest.raises(StorageError, match="replaced by another"):
                call()


def test_a_link_that_leads_elsewhere_now_changes_nothing(tmp_path: Path) -> None:
    for name in ("one", "other"):
        with paramstore.open(tmp_path / f"{name}.db") as made:
            made["x"] = torch.zeros(1)
            made.commit(message=name)
    link = tmp_path / "link.db"
    link.symlink_to("one.db")
    with paramstore.open(link) as store:
        link.unlink()
        link.symlink_to("other.db")
        store.commit(message="to one")
    with paramstore.open(tmp_path / "one.db") as one, paramstore.open(link) as other:
        assert [len(store.log()) for store in (one, other)] == [2, 1]


# -- the journal of a writer that was killed -----------------------------------------------


def delete_everything(store: ParamStoreDict) -> None:
    with store._session.repository.database.write(foreign_keys=False) as connection:
        for table in ("snapshot_params", "snapshots", "chunks"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        spill(connection)


def spill(connection: Any) -> None:
    """Write four times what the page cache holds."""
    for number in range(8):
        row = (9 << 40) + number, bytes([number]) * (1 << 20)
        connection.exec_driver_sql("INSERT INTO chunks VALUES (?, ?)", row)


def commit_much(store: ParamStoreDict) -> None:
    for number in range(8):
        store[f"w{number}"] = torch.full((250_000,), float(number))
    store["moving"].data.zero_()
    store.commit(step=30)


@pytest.fixture(params=[delete_everything, commit_much])
def interrupted(path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path, dict[str, object]]:
    """A store, the same with a transaction half written and its journal, and what is true."""
    damage.make(path)
    answers = damage.truth(path)
    half = path.parent / "half"
    half.mkdir()
    with paramstore.open(path) as store:
        store.load_all()
        database = store._session.backend.database

        def copied(connection: Any) -> None:
            files = [path, path.with_name("run.db-journal")]
            subprocess.run(["cp", *files, half], check=True)
            raise KeyboardInterrupt

        database._on_commit = copied  # type: ignore[method-assign]
        database._engine.dispose()
        database._engine = database._make_engine()
        with pytest.raises(KeyboardInterrupt):
            request.param(store)
    assert (half / "run.db-journal").stat().st_size > PAGE
    return path, half / "run.db", answers


def test_a_journal_undoes_what_its_writer_left_half_done(
    interrupted: tuple[Path, Path, dict[str, object]],
) -> None:
    _, half, answers = interrupted
    outcome = damage.examine(half, answers)
    assert not outcome.errors
    assert not outcome.wrong
    invariants.check(half)
    count("files")


def test_a_journal_that_was_deleted_makes_no_read_wrong(
    interrupted: tuple[Path, Path, dict[str, object]],
) -> None:
    _, half, answers = interrupted
    half.with_name("run.db-journal").unlink()
    outcome = damage.examine(half, answers)
    assert not outcome.wrong
    count("files")


def test_a_journal_that_was_cut_off_or_changed_makes_no_read_wrong(
    interrupted: tuple[Path, Path, dict[str, object]], full: bool
) -> None:
    _, half, answers = interrupted
    journal = half.with_name("run.db-journal")
    data, written, rng = half.read_bytes(), journal.read_bytes(), random.Random(7)
    times = 200 if full else 5
    for _ in range(times):
        half.write_bytes(data)
        journal.write_bytes(written[: rng.randrange(len(written))])
        assert not damage.examine(half, answers).wrong
        half.write_bytes(data)
        changed = bytearray(written)
        changed[rng.randrange(len(written))] ^= 1 << rng.randrange(8)
        journal.write_bytes(changed)
        assert not damage.examine(half, answers).wrong
    count("files", 2 * times)


def test_a_journal_left_beside_the_backup_of_its_file_undoes_nothing_else(
    interrupted: tuple[Path, Path, dict[str, object]],
) -> None:
    backup, half, answers = interrupted
    shutil.copy(backup, half)
    outcome = damage.examine(half, answers)
    assert not outcome.wrong
    assert not outcome.errors
    count("files")


def test_a_journal_left_beside_an_older_backup_makes_no_read_wrong(path: Path) -> None:
    old, half = path.parent / "old.db", path.parent / "half"
    half.mkdir()
    with paramstore.open(path) as store:
        for step in range(1, 5):
            for number in range(4):
                store[f"w{number}"] = torch.full((100_000,), float(step + number))
            store.commit(step=step)
            if step == 2:
                subprocess.run(["cp", path, old], check=True)
        database = store._session.repository.database
        with suppress(KeyboardInterrupt), database.write(foreign_keys=False) as connection:
            for table in ("snapshot_params", "snapshots", "param_versions", "chunks", "scopes"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
            spill(connection)
            subprocess.run(["cp", path.with_name("run.db-journal"), half], check=True)
            raise KeyboardInterrupt
    shutil.copy(old, half / "run.db")
    with suppress(ParamStoreError), paramstore.open(half / "run.db", readonly=True) as store:
        for step in range(1, 5):
            for number in range(4):
                with suppress(ParamStoreError):
                    view = store.at(step)
                    assert view.snapshot.step == step
                    assert view[f"w{number}"].unique().tolist() == [step + number]
    count("files")


def test_a_journal_left_beside_a_new_file_undoes_nothing_in_it(path: Path) -> None:
    journal, kept = path.with_name("run.db-journal"), path.with_name("kept")
    with paramstore.open(path) as store:
        commit_one(store, 1.0)
        database = store._session.repository.database
        with suppress(KeyboardInterrupt), database.write() as connection:
            spill(connection)
            subprocess.run(["cp", journal, kept], check=True)
            raise KeyboardInterrupt
    path.unlink()
    kept.replace(journal)
    with paramstore.open(path) as store:
        assert store.resume() is None
        commit_one(store, 2.0)
    with paramstore.open(path) as store:
        assert store["x"].tolist() == [2.0]
    invariants.check(path)
    count("files")


def commit_one(store: ParamStoreDict, value: float) -> None:
    store["x"] = torch.full((1,), value)
    store.commit()
