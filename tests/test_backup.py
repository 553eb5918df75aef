"""backup(): complete while others write, there as a whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore import (
    InvalidInputError,
    ParamStoreDict,
    StorageError,
    StoreBusyError,
    StoreClosedError,
    errors,
)
from paramstore.db import backup as copying
from paramstore.testing import invariants
from paramstore.testing.bits import differences

# Forking with torch's threads about is what users do, and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    with paramstore.open(path) as opened:
        opened["w"] = torch.randn(300_000)
        opened["b"] = torch.randn(3)
        opened.commit(step=1, tags=["first"], extras={"x": [1, (2,)]})
        yield opened


def check(path: Path) -> ParamStoreDict:
    """Open a copy, all of which has to be sound."""
    invariants.check(path)
    store = paramstore.open(path, readonly=True)
    found = store.verify()
    assert found.ok, found
    return store


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith("-journal")}


def _commit_until(path: Path, stop: Any) -> None:
    torch.set_num_threads(1)  # the threads of the parent's pool are not here
    with paramstore.open(path) as store:
        step = 0
        while not stop.is_set():
            with torch.no_grad():
                store["w"].add_(1)
            store.commit(step=step, metrics={"i": step})
            step += 1


@contextmanager
def writer(path: Path) -> Iterator[BaseProcess]:
    """Another process that commits until the block ends."""
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    process = context.Process(target=_commit_until, args=(path, stop), daemon=True)
    process.start()
    try:
        yield process
    finally:
        stop.set()
        process.join()
    assert process.exitcode == 0


def test_a_copy_has_everything_and_verifies(store: ParamStoreDict, tmp_path: Path) -> None:
    target = tmp_path / "copy [1] é?.db"
    assert store.backup(target) == target
    with check(target) as copy:
        assert not differences(dict(copy.items()), dict(store.items()))
        assert copy.log()[0].tags == ("first",)
        assert copy.at("@first").extras == {"x": [1, (2,)]}
    assert files(tmp_path) == {"run.db", "copy [1] é?.db"}
    store["b"] = torch.zeros(3)
    store.commit()
    with paramstore.open(target) as copy:
        assert copy.last is not None
        assert copy.last.version == 1


def test_a_relative_path_and_text_will_do(
    store: ParamStoreDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.backup("here.db") == tmp_path / "here.db"


def test_a_store_in_memory_can_be_kept(tmp_path: Path) -> None:
    private = ParamStoreDict()
    private["x"] = torch.arange(5.0)
    private.commit(step=3)
    with check(private.backup(tmp_path / "kept.db")) as kept:
        assert kept["x"].tolist() == [0, 1, 2, 3, 4]
    private.close()


def test_a_pending_commit_is_in_the_copy(store: ParamStoreDict, tmp_path: Path) -> None:
    store["b"] = torch.ones(3)
    store.commit(wait=False)
    with check(store.backup(tmp_path / "copy.db")) as copy:
        assert copy["b"].tolist() == [1, 1, 1]


def test_what_exists_is_not_overwritten(store: ParamStoreDict, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    target.write_text("mine")
    with pytest.raises(InvalidInputError, match="exists already; give another name"):
        store.backup(target)
    assert target.read_text() == "mine"
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "nowhere" / "x.db")
    with pytest.raises(errors.ParamStoreError):
        store.backup(link)
    with pytest.raises(InvalidInputError, match="exists already"):
        store.backup(tmp_path / "run.db")


@pytest.mark.parametrize("suffix", ["-journal", "-wal"])
def test_what_is_left_of_another_database_is_not_played_into_a_copy(
    store: ParamStoreDict, tmp_path: Path, suffix: str
) -> None:
    # Of a writer that was killed, and of whose database somebody has only removed the file.
    left = tmp_path / f"copy.db{suffix}"
    left.write_bytes(b"what SQLite would roll back, or forward")
    with pytest.raises(InvalidInputError, match=f"copy.db{suffix}' is left of another database"):
        store.backup(tmp_path / "copy.db")
    assert left.read_bytes() == b"what SQLite would roll back, or forward"
    assert not (tmp_path / "copy.db").exists()
    left.write_bytes(b"")  # as every store leaves its own
    check(store.backup(tmp_path / "copy.db")).close()


def test_a_copy_does_not_get_a_name_that_sqlite_would_take_for_a_journal(
    store: ParamStoreDict, path: Path
) -> None:
    with pytest.raises(InvalidInputError, match=r"keeps the journal of .*run.db'"):
        store.backup(path.with_name("run.db-wal"))
    check(store.backup(path.with_name("none.db-wal"))).close()


def test_what_another_process_makes_meanwhile_is_not_overwritten(
    store: ParamStoreDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "copy.db"
    original = copying._copy

    def copy(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        target.write_text("mine")

    monkeypatch.setattr(copying, "_copy", copy)
    with pytest.raises(InvalidInputError, match="exists already"):
        store.backup(target)
    assert target.read_text() == "mine"
    assert files(tmp_path) == {"run.db", "copy.db"}


def test_a_file_system_without_hard_links_will_do(
    store: ParamStoreDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    check(store.backup(tmp_path / "copy [1] *.db")).close()
    assert files(tmp_path) == {"run.db", "copy [1] *.db"}


def test_a_copy_may_have_a_name_as_long_as_a_store(store: ParamStoreDict, tmp_path: Path) -> None:
    name = "é" * 120 + ".db"  # 243 bytes, and a journal's name has some more
    with paramstore.open(tmp_path / name) as found:
        found["x"] = torch.ones(2)
        found.commit()
    (tmp_path / name).unlink()
    check(store.backup(tmp_path / name)).close()
    (tmp_path / name).unlink()
    store.close()
    assert paramstore.salvage(tmp_path / "run.db", tmp_path / name).ok


@pytest.mark.parametrize("where", [":memory:", "sqlite://", "", "postgresql://host/db"])
def test_a_copy_goes_to_a_file(store: ParamStoreDict, where: str) -> None:
    with pytest.raises(InvalidInputError):
        store.backup(where)


def test_a_folder_that_does_not_exist_is_named(store: ParamStoreDict, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="there is no folder"):
        store.backup(tmp_path / "no" / "copy.db")


def test_a_closed_store_is_not_copied(store: ParamStoreDict, tmp_path: Path) -> None:
    store.close()
    with pytest.raises(StoreClosedError):
        store.backup(tmp_path / "copy.db")
    assert files(tmp_path) == {"run.db"}


def test_a_reader_can_copy(store: ParamStoreDict, path: Path, tmp_path: Path) -> None:
    with paramstore.open(path, readonly=True) as reader:
        check(reader.backup(tmp_path / "copy.db")).close()


def test_a_copy_is_no_more_public_than_the_umask_says(
    store: ParamStoreDict, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        target = store.backup(tmp_path / "copy.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (0o440, 0o640), (0o666, 0o644)])
def test_a_copy_is_no_more_public_than_the_store(
    store: ParamStoreDict, path: Path, tmp_path: Path, mode: int, expected: int
) -> None:
    path.chmod(mode)
    before = os.umask(0o022)
    try:
        target = store.backup(tmp_path / "copy.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == expected


def test_an_error_leaves_no_file(
    store: ParamStoreDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(copying._Watch):
        def step(self, status: int, remaining: int, total: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(copying, "_Watch", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        store.backup(tmp_path / "copy.db")
    assert files(tmp_path) == {"run.db"}
    store["b"] = torch.zeros(3)
    assert store.commit().version == 2


@pytest.mark.parametrize("journal", ["truncate", "wal"])
def test_a_copy_made_while_a_process_commits_verifies(
    path: Path, tmp_path: Path, journal: str
) -> None:
    copies: list[Path] = []
    with paramstore.open(path, journal=journal) as store:  # type: ignore[arg-type]
        store["w"] = torch.zeros(100_000)
        before = store.commit().version
        with writer(path) as other:
            for n in range(4):
                while (now := store.log(limit=1)[0].version) < before + 3:
                    assert other.is_alive()
                    time.sleep(0.001)
                before = now
                copies.append(store.backup(tmp_path / f"copy-{n}.db"))
    versions = []
    for target in copies:
        with check(target) as copy:
            assert copy.last is not None
            versions.append(copy.last.version)
            assert copy["w"][0] == copy.last.version - 1
    assert versions == sorted(set(versions))


def test_a_copy_that_others_make_begin_anew_ends(
    store: ParamStoreDict, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes between any two steps; each time more is copied at once."""
    monkeypatch.setattr(copying, "STEP", 1)
    steps = 0

    class Disturbing(copying._Watch):
        def step(self, status: int, remaining: int, total: int) -> None:
            nonlocal steps
            steps += 1
            super().step(status, remaining, total)
            if remaining:
                with closing(sqlite3.connect(path)) as connection:
                    connection.execute(
                        "UPDATE snapshots SET message = coalesce(message, '') || 'x'"
                    )
                    connection.commit()

    monkeypatch.setattr(copying, "_Watch", Disturbing)
    with paramstore.open(store.backup(tmp_path / "copy.db"), scope="look") as copy:
        assert {problem.kind for problem in copy.verify().problems} == {"snapshot"}  # we altered it
    assert 2 < steps < 20


def test_a_file_that_stays_locked_is_busy_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    with paramstore.open(path, timeout=0.3) as store:
        store["x"] = torch.ones(2)
        store.commit()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreBusyError):
                store.backup(tmp_path / "copy.db")
        assert files(tmp_path) == {"run.db"}
        check(store.backup(tmp_path / "copy.db")).close()


def test_a_writer_waits_for_one_step_only(
    store: ParamStoreDict, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two steps of a copy no lock is held: a commit that cannot wait goes through."""
    monkeypatch.setattr(copying, "STEP", 1)
    versions: list[int] = []

    class Committing(copying._Watch):
        def step(self, status: int, remaining: int, total: int) -> None:
            if len(versions) < 2:
                with paramstore.open(path, timeout=0) as other:
                    other["b"] = torch.randn(3)
                    versions.append(other.commit().version)
            super().step(status, remaining, total)

    monkeypatch.setattr(copying, "_Watch", Committing)
    with check(store.backup(tmp_path / "copy.db")) as copy:
        assert copy.last is not None
        assert copy.last.version == 3
    assert versions == [2, 3]


def _back_up(path: Path, target: Path) -> None:
    paramstore.open(path, readonly=True).backup(target)


def test_a_killed_copy_leaves_no_file_of_that_name(store: ParamStoreDict, tmp_path: Path) -> None:
    with torch.no_grad():
        store["large"] = torch.randn(12_000_000)
    store.commit()
    target = tmp_path / "copy.db"
    context = multiprocessing.get_context("fork")
    killed = 0
    for _ in range(6):
        child = context.Process(target=_back_up, args=(tmp_path / "run.db", target))
        child.start()
        while child.is_alive() and not list(tmp_path.glob(".copy.db*")):
            time.sleep(0.0005)
        child.kill()
        child.join()
        if child.exitcode == -signal.SIGKILL and not target.exists():
            killed += 1
        elif target.exists():
            check(target).close()
            target.unlink()
    assert killed > 1
    for draft in tmp_path.glob(".copy.db*"):
        draft.unlink()
    check(store.backup(target)).close()


def test_a_thread_may_commit_meanwhile(store: ParamStoreDict, path: Path, tmp_path: Path) -> None:
    stop, failed = threading.Event(), []

    def train() -> None:
        try:
            with paramstore.open(path, scope="mine") as mine:
                mine["w"] = torch.zeros(1000)
                while not stop.is_set():
                    with torch.no_grad():
                        mine["w"].add_(1)
                    mine.commit()
        except Exception as error:  # noqa: BLE001  # it is the answer
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for i in range(5):
            check(store.backup(tmp_path / f"{i}.db")).close()
    finally:
        stop.set()
        thread.join()
    assert not failed
