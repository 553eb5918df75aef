"""salvage(): whatever happened to a file, what is readable is kept, and what is lost is said."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from test_altered_databases import MANIFEST_ALTERATIONS, alter, blob_of, commit_twice
from torch.distributions import constraints

import paramstore
from paramstore import (
    InvalidInputError,
    NotADatabaseError,
    NotFoundError,
    Salvaged,
    StorageError,
    UsageError,
)
from paramstore.testing import invariants
from paramstore.testing.bits import differences

PAGE = 65536
Values = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five snapshots of main, one of another scope; tags, extras, tensors of several chunks."""
    path = tmp_path_factory.mktemp("salvage") / "run.db"
    torch.manual_seed(0)
    with paramstore.open(path) as store:
        store.setdefault("scale", torch.tensor(0.5), constraint=constraints.positive)
        store["still"] = torch.randn(10)
        store["w"] = torch.randn(100, 100)
        store["big"] = torch.randn(270_000)
        for step in range(5):
            with torch.no_grad():
                store["w"].add_(1)
            store["scale"] = torch.tensor(0.5 + step)
            tags = ["warm"] if step == 2 else []
            extras = {"epoch": step, "order": torch.arange(5000) + step}
            store.commit(step=step, metrics={"loss": 1.0 / (step + 1)}, tags=tags, extras=extras)
        store.fork("other")
        store["w"] = torch.zeros(3)
        store.commit()
    return path


@pytest.fixture(scope="module")
def values(original: Path) -> Values:
    """What every snapshot holds."""
    with paramstore.open(original, readonly=True) as store:
        return contents(store)


@pytest.fixture
def damaged(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "damaged.db"))


def contents(store: paramstore.ParamStoreDict) -> Values:
    found = {}
    for scope in store.scopes():
        for snapshot in store.log(scope.name):
            found[snapshot.ref] = dict(store.at(snapshot))
            dict(snapshot.extras)
    return found


def salvage(damaged: Path, values: Values) -> tuple[Salvaged, Values]:
    """Salvage a file, and look at what came out: sound, and nothing wrong under its old name."""
    before = damaged.read_bytes()
    into = damaged.with_name("salvaged.db")
    found = paramstore.salvage(damaged, into)
    assert damaged.read_bytes() == before
    left = {path.name for path in damaged.parent.iterdir()} - {"damaged.db", "salvaged.db"}
    assert not {name for name in left if not name.endswith("-journal")}
    with paramstore.open(into, scope="look", readonly=True) as store:
        verified = store.verify()
        assert verified.ok, verified
        assert verified.orphans == 0
        kept = contents(store)
    for ref, tensors in kept.items():
        scope, _, version = ref.rpartition("@")
        original = values.get(f"{scope.removesuffix(' (salvaged)')}@{version}")
        if "doubtful" not in scope and "lost" not in scope:
            assert original is not None
            assert not differences(tensors, {name: original[name] for name in tensors})
            assert "(salvaged)" in scope or tensors.keys() == original.keys()
    whole = {ref for ref in kept if ref in values}
    assert found.snapshots == len(whole)
    assert {loss.kept_as for loss in found.lost} == kept.keys() - whole
    return found, kept


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def root_of(path: Path, name: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)
        ).fetchone()
    return int(root)


def wipe(path: Path, name: str) -> None:
    """Make the first page of a table, or of an index, unreadable."""
    overwrite(path, (root_of(path, name) - 1) * PAGE, bytes(PAGE))


def test_nothing_is_lost_of_a_sound_store(damaged: Path, values: Values) -> None:
    found, kept = salvage(damaged, values)
    assert found.ok
    assert kept.keys() == values.keys()
    assert (found.snapshots, found.lost, found.notes) == (6, (), ())
    with paramstore.open(damaged.with_name("salvaged.db")) as store:
        invariants.check(damaged.with_name("salvaged.db"))
        assert store.at("@warm").snapshot.step == 2
        assert store.at("main@3").extras["epoch"] == 2
        store["still"] = torch.zeros(10)
        assert store.commit().ref == "main@6"
        assert store.verify().ok


def test_what_other_programs_have_in_the_file_is_named_because_it_is_left(damaged: Path) -> None:
    with closing(sqlite3.connect(damaged)) as connection:
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("CREATE VIEW everybody AS SELECT name FROM users")
    found = paramstore.salvage(damaged, damaged.with_name("salvaged.db"))
    assert found.notes == (
        "view 'everybody' is not the store's, and was left",
        "table 'users' is not the store's, and was left",
    )
    assert not found.lost


def test_of_a_damaged_tensor_all_others_are_kept(damaged: Path, values: Values) -> None:
    alter(damaged, f"UPDATE chunks SET data = zeroblob(9) WHERE id = "
          f"{blob_of(damaged, 'w', 2)} << 20")  # fmt: skip
    found, kept = salvage(damaged, values)
    (loss,) = found.lost
    assert (loss.snapshot, loss.kept_as) == ("main@2", "main (salvaged)@2")
    assert (loss.params, loss.extras, loss.kept, loss.is_doubtful) == (("w",), (), 3, False)
    assert kept["main (salvaged)@2"].keys() == {"scale", "still", "big"}
    assert "'w'" in str(found)
    with paramstore.open(damaged.with_name("salvaged.db")) as store:
        snapshot = store.at("main (salvaged)@2").snapshot
        assert (snapshot.step, dict(snapshot.metrics)) == (1, {"loss": 0.5})
        assert snapshot.extras["epoch"] == 1
        assert [s.version for s in store.log()] == [5, 4, 3, 1]


def test_a_tensor_that_all_share_spoils_no_other(damaged: Path, values: Values) -> None:
    blob = blob_of(damaged, "big", 1)
    alter(damaged, f"DELETE FROM chunks WHERE id = ({blob} << 20) + 1")
    found, kept = salvage(damaged, values)
    assert found.snapshots == 0
    assert {loss.params for loss in found.lost} == {("big",)}
    assert len(kept) == 6
    with paramstore.open(damaged.with_name("salvaged.db"), scope="main (salvaged)") as store:
        assert store.latest is not None
        assert store.latest.version == 5
        assert store.at("@warm").snapshot.version == 3
        assert len(store.history("w")) == 5


def test_a_damaged_tensor_of_the_extras_takes_what_names_it(damaged: Path, values: Values) -> None:
    alter(damaged, "UPDATE chunks SET data = zeroblob(3) WHERE id IN "
          "(SELECT blob_id << 20 FROM extra_blobs WHERE snapshot_id = 1)")  # fmt: skip
    found, _ = salvage(damaged, values)
    (loss,) = found.lost
    assert (loss.kept_as, loss.params, loss.extras) == ("main (salvaged)@1", (), ("order",))
    with paramstore.open(damaged.with_name("salvaged.db")) as store:
        assert dict(store.at("main (salvaged)@1").extras) == {"epoch": 0}


def test_rows_that_were_altered_make_a_snapshot_doubtful(damaged: Path, values: Values) -> None:
    alter(damaged, "UPDATE snapshots SET message = 'best' WHERE version = 2")
    found, kept = salvage(damaged, values)
    (loss,) = found.lost
    assert (loss.kept_as, loss.is_doubtful, loss.kept) == ("main (doubtful)@2", True, 4)
    assert not differences(kept["main (doubtful)@2"], values["main@2"])
    assert "doubtful" in str(found)


@pytest.mark.parametrize("what", MANIFEST_ALTERATIONS)
def test_no_altered_row_gets_in_under_a_name_that_was_committed(path: Path, what: str) -> None:
    with paramstore.open(path) as store:
        commit_twice(store)
        values = contents(store)
    damaged = path.rename(path.with_name("damaged.db"))
    alter(damaged, MANIFEST_ALTERATIONS[what])
    salvage(damaged, values)


REBUILT = {
    "its parameters": "DELETE FROM snapshot_params WHERE snapshot_id = 3",
    "all parameters": "DELETE FROM snapshot_params",
    "a constraint": "UPDATE constraints SET spec = '{}'",
    "a letter of a constraint": "UPDATE constraints SET spec = replace(spec, 'ea', 'es')",
    "rows of tensors": "DELETE FROM blobs WHERE id < 9",
    "the name of main": "DELETE FROM scopes WHERE name = 'main'",
}


@pytest.mark.parametrize("what", REBUILT)
def test_what_follows_from_other_rows_is_put_together_again(
    damaged: Path, values: Values, what: str
) -> None:
    alter(damaged, REBUILT[what])
    found, kept = salvage(damaged, values)
    assert found.snapshots == 6
    for ref, tensors in kept.items():
        assert not differences(tensors, values[ref])


LOST = {
    "a snapshot": "DELETE FROM snapshots WHERE id = 3",
    "the newest snapshot": "DELETE FROM snapshots WHERE id = 5",
    "all snapshots": "DELETE FROM snapshots",
    "all scopes": "DELETE FROM scopes",
    "all names": "DELETE FROM params",
    "a name": "DELETE FROM params WHERE id = 1",
    "all metrics": "DELETE FROM metrics",
    "all extras": "DELETE FROM extras",
    "their tensors": "DELETE FROM extra_blobs",
    "all constraints": "DELETE FROM constraints",
    "a value": "DELETE FROM param_versions WHERE id = 3",
    "all values": "DELETE FROM param_versions",
    "all bytes": "DELETE FROM chunks",
    "a time": "UPDATE snapshots SET created_at = 'then'",
    "a text that is none": "UPDATE params SET name = CAST(x'ff' AS TEXT) WHERE id = 2",
    "a number that is none": "UPDATE snapshots SET nbytes = 'much' WHERE id = 2",
    "a version": "UPDATE snapshots SET version = -7 WHERE id = 4",
    "a parent": "UPDATE snapshots SET parent_id = 77 WHERE id = 4",
    "a head": "UPDATE scopes SET head_version = 1",
    "a tag": "UPDATE tags SET snapshot_id = 99",
    "owners": "UPDATE param_versions SET param_id = 99",
}


@pytest.mark.parametrize("what", LOST)
def test_whatever_rows_are_lost_the_rest_is_sound(damaged: Path, values: Values, what: str) -> None:
    alter(damaged, LOST[what])
    found, kept = salvage(damaged, values)
    if what not in ("a head", "owners"):
        assert not found.ok, found
    assert len(kept) >= 5


def test_lost_constraints_leave_unconstrained_values(damaged: Path, values: Values) -> None:
    alter(damaged, "DELETE FROM constraints")
    found, kept = salvage(damaged, values)
    assert any("constraint" in note for note in found.notes)
    before = values["main@1"]["scale"]
    assert torch.allclose(kept["main (doubtful)@1"]["scale"].exp(), before)


# -- the file itself ---------------------------------------------------------------

HEADERS: dict[str, Callable[[Path], None]] = {
    "no header": lambda path: overwrite(path, 0, bytes(100)),
    "another page size": lambda path: overwrite(path, 16, b"\x02\x00"),
    "another length": lambda path: overwrite(path, 28, b"\x00\x00\x00\x05"),
    "no first page": lambda path: overwrite(path, 0, bytes(PAGE)),
    "no schema": lambda path: overwrite(path, 100, b"\xff" * 8),
    "no pointer map": lambda path: overwrite(path, PAGE, bytes(PAGE)),
    "more at the end": lambda path: overwrite(path, path.stat().st_size, b"x" * 1000),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_damaged_beginning_loses_nothing(damaged: Path, values: Values, what: str) -> None:
    HEADERS[what](damaged)
    found, kept = salvage(damaged, values)
    assert found.ok, found
    assert kept.keys() == values.keys()


def test_a_compacted_file_may_have_lost_its_beginning_too(damaged: Path, values: Values) -> None:
    with closing(sqlite3.connect(damaged)) as connection:
        connection.execute("VACUUM")
    overwrite(damaged, 0, bytes(PAGE))
    found, _ = salvage(damaged, values)
    assert found.ok, found


INDEXES = [
    "sqlite_autoindex_scopes_1",
    "sqlite_autoindex_snapshots_1",
    "sqlite_autoindex_params_1",
    "sqlite_autoindex_constraints_1",
    "uq_blobs_digest",
]


@pytest.mark.parametrize("name", INDEXES)
def test_a_broken_index_loses_nothing(damaged: Path, values: Values, name: str) -> None:
    wipe(damaged, name)
    found, _ = salvage(damaged, values)
    assert found.ok, found


def test_an_unreadable_page_anywhere_leaves_the_rest(damaged: Path, values: Values) -> None:
    original = damaged.read_bytes()
    kept = []
    for at in range(0, len(original), 5 * PAGE):
        damaged.write_bytes(original)
        overwrite(damaged, at, b"\xa5" * PAGE)
        found, _ = salvage(damaged, values)
        kept.append(found.snapshots)
        damaged.with_name("salvaged.db").unlink()
    assert 6 in kept
    assert len(set(kept)) > 1


@pytest.mark.parametrize("part", [0.95, 0.5, 0.3])
def test_a_file_that_was_cut_off_gives_what_is_left(
    damaged: Path, values: Values, part: float
) -> None:
    size = int(damaged.stat().st_size * part)
    with damaged.open("r+b") as file:
        file.truncate(size)
    found, kept = salvage(damaged, values)
    assert found.lost
    assert len(kept) == 6


def test_rows_behind_an_unreadable_page_of_a_long_table_are_found(
    path: Path, tmp_path: Path
) -> None:
    with paramstore.open(path) as store:
        for i in range(800):
            store[f"p{i:04}" + 300 * "x"] = torch.tensor(float(i))
        store.commit()
        values = contents(store)
    damaged = path.rename(tmp_path / "damaged.db")
    data = damaged.read_bytes()
    pages = [at for at in range(0, len(data), PAGE) if b"p0400" in data[at : at + PAGE]]
    assert pages
    for at in pages:
        overwrite(damaged, at, bytes(PAGE))
    into = tmp_path / "salvaged.db"
    found = paramstore.salvage(damaged, into)
    (loss,) = found.lost
    assert loss.kept == 800
    with paramstore.open(into, scope="look") as store:
        kept = contents(store)[loss.kept_as or ""]
        assert store.verify().ok
    named = [name for name in kept if name.startswith("p")]
    assert 200 < len(named) < 800
    for name in named:
        assert kept[name] == values["main@1"][name]


def test_what_a_killed_writer_left_half_done_is_undone_in_the_copy(
    original: Path, damaged: Path, values: Values
) -> None:
    with closing(sqlite3.connect(damaged, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=2")
        connection.execute("BEGIN")
        connection.execute("UPDATE chunks SET data = zeroblob(length(data))")
        half = damaged.read_bytes()
        journal = damaged.with_name("damaged.db-journal").read_bytes()
        connection.execute("ROLLBACK")
    damaged.write_bytes(half)
    damaged.with_name("damaged.db-journal").write_bytes(journal)
    assert half != original.read_bytes()
    found, _ = salvage(damaged, values)
    assert found.ok
    assert damaged.with_name("damaged.db-journal").read_bytes() == journal


def test_a_write_ahead_log_is_read(path: Path, tmp_path: Path) -> None:
    with paramstore.open(path, journal="wal") as store:
        store["x"] = torch.arange(3.0)
        store.commit()
        damaged = Path(shutil.copy(path, tmp_path / "damaged.db"))
        shutil.copy(f"{path}-wal", f"{damaged}-wal")
    found = paramstore.salvage(damaged, tmp_path / "salvaged.db")
    assert found.ok
    assert found.snapshots == 1


# -- refusals ----------------------------------------------------------------------


def test_what_never_was_a_store_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "text.db"
    for data in (b"", b"hello", b"hello" * 100_000):
        damaged.write_bytes(data)
        with pytest.raises(NotADatabaseError, match=r"text\.db"):
            paramstore.salvage(damaged, tmp_path / "into.db")
        assert {path.name for path in tmp_path.iterdir()} == {"text.db"}


def test_a_store_that_is_open_here_is_refused(path: Path, tmp_path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.ones(1)
        store.commit()
        with pytest.raises(UsageError, match="close the store first"):
            paramstore.salvage(path, tmp_path / "into.db")
    assert paramstore.salvage(path, tmp_path / "into.db").ok


def test_nobody_may_read_more_than_the_damaged_file(damaged: Path, tmp_path: Path) -> None:
    damaged.chmod(0o600)
    paramstore.salvage(damaged, tmp_path / "saved.db")
    assert stat.S_IMODE((tmp_path / "saved.db").stat().st_mode) == 0o600


def test_files_that_exist_and_files_that_do_not_are_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        paramstore.salvage(tmp_path / "none.db", tmp_path / "into.db")
    with pytest.raises(StorageError, match="is a directory"):
        paramstore.salvage(tmp_path, tmp_path / "into.db")
    with pytest.raises(InvalidInputError, match="exists already"):
        paramstore.salvage(damaged, damaged)
    (tmp_path / "into.db-wal").write_bytes(b"of a database that is gone")
    with pytest.raises(InvalidInputError, match="is left of another database"):
        paramstore.salvage(damaged, tmp_path / "into.db")
    with pytest.raises(InvalidInputError, match="give their paths"):
        paramstore.salvage(damaged, ":memory:")
