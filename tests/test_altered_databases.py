"""Bad input: databases whose bytes were altered behind our back.

Each alteration is one UPDATE or DELETE of the plain sqlite3 module. It has to be found, named with
the snapshots that it spoils, and nothing in the working set may have changed then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import CorruptError, ParamStoreDict
from paramstore.testing.bits import differences


def alter(path: Path, statement: str) -> None:
    """Run one statement that has to change something."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
        assert connection.execute(statement).rowcount > 0, statement
        connection.commit()


def blob_of(path: Path, name: str, version: int) -> int:
    """The row id of the bytes of a parameter as of a version of main."""
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute(
            "SELECT blob_id FROM v_sizes WHERE scope = 'main' AND name = ? AND version = ?",
            (name, version),
        ).fetchone()
    return int(found)


def commit_twice(store: ParamStoreDict) -> None:
    """Two snapshots; both hold the same "still", "moving" differs."""
    store["still"] = torch.arange(4.0)
    store["moving"] = torch.zeros(4)
    store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
    store.commit(step=1, metrics={"loss": 1.0}, extras={"epoch": 1}, message="first")
    with torch.no_grad():
        store["moving"].fill_(1.0)
    store.commit(step=2, metrics={"loss": 0.5}, extras={"epoch": 2})


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """Two snapshots; everything is in memory, and has moved since."""
    with paramstore.open(path) as opened:
        commit_twice(opened)
        with torch.no_grad():
            for _, value in opened.named_parameters():
                value.fill_(7.0)
        yield opened


def values(store: ParamStoreDict) -> dict[str, torch.Tensor]:
    """A copy of the working set."""
    return {name: value.detach().clone() for name, value in store.named_parameters()}


BLOB_ALTERATIONS = {
    "another last byte": "UPDATE chunks SET data = CAST(substr(data, 1, length(data) - 1) || x'01' "
    "AS BLOB) WHERE id = {blob} << 20",
    "a header of another dtype": "UPDATE chunks SET data = CAST(substr(data, 1, instr(data, "
    "CAST('F32' AS BLOB)) - 1) || x'493332' || substr(data, instr(data, CAST('F32' AS BLOB)) + 3) "
    "AS BLOB) WHERE id = {blob} << 20",
    "cut off": "UPDATE chunks SET data = substr(data, 1, length(data) - 4) WHERE id = {blob} << 20",
    "longer": "UPDATE chunks SET data = CAST(data || x'00' AS BLOB) WHERE id = {blob} << 20",
    "empty": "UPDATE chunks SET data = x'' WHERE id = {blob} << 20",
    "gone": "DELETE FROM chunks WHERE id = {blob} << 20",
    "a number": "UPDATE chunks SET data = 3 WHERE id = {blob} << 20",
    "text": "UPDATE chunks SET data = data || x'01' WHERE id = {blob} << 20",
}


@pytest.mark.parametrize("what", BLOB_ALTERATIONS)
def test_an_altered_blob_is_named_with_its_snapshots_and_nothing_changes(
    store: ParamStoreDict, path: Path, what: str
) -> None:
    blob = blob_of(path, "moving", 1)
    alter(path, BLOB_ALTERATIONS[what].format(blob=blob))
    before = values(store)
    with pytest.raises(CorruptError, match="'moving'") as caught:
        store.restore(1)
    assert caught.value.params == ("moving",)
    assert caught.value.snapshots == ("main@1",)
    assert "main@1" in str(caught.value)
    assert not differences(values(store), before)
    with pytest.raises(CorruptError, match="'moving'"):
        store.at(1)["moving"]
    assert store.at(1)["still"].tolist() == [0.0, 1.0, 2.0, 3.0]
    store.restore(1, exclude=["moving"])
    assert store["still"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert store["moving"].tolist() == [7.0] * 4
    store.restore(2)
    assert store["moving"].tolist() == [1.0] * 4


def test_every_snapshot_that_an_altered_blob_spoils_is_named(
    store: ParamStoreDict, path: Path
) -> None:
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob_of(path, "still", 1)))
    with pytest.raises(CorruptError) as caught:
        store.restore(1)
    assert set(caught.value.snapshots) == {"main@1", "main@2"}
    assert caught.value.params == ("still",)


def test_an_altered_blob_is_found_when_a_reopened_store_first_touches_it(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob_of(path, "moving", 2)))
    with paramstore.open(path) as again:
        assert set(again) == {"still", "moving", "scale"}
        assert again["still"].tolist() == [0.0, 1.0, 2.0, 3.0]
        for touch in (
            lambda: again["moving"],
            lambda: list(again.items()),
            lambda: again.setdefault("moving", nn.Parameter(torch.zeros(4))),
            again.load_all,
            again.resume,
        ):
            with pytest.raises(CorruptError, match="'moving'"):
                touch()


def test_an_altered_blob_leaves_a_module_that_is_being_bound_alone(path: Path) -> None:
    with paramstore.open(path) as store:
        store.module("net", nn.Linear(2, 2))
        store.commit()
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob_of(path, "net$$$bias", 1)))
    with paramstore.open(path) as store:
        net = nn.Linear(2, 2)
        before = {name: value.detach().clone() for name, value in net.named_parameters()}
        with pytest.raises(CorruptError, match=r"net\$\$\$bias"):
            store.module("net", net)
        assert not differences(dict(net.named_parameters()), before)


def test_a_restore_without_verification_reads_what_is_there(
    store: ParamStoreDict, path: Path
) -> None:
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob_of(path, "moving", 1)))
    store.restore(1, verify=False)
    assert store["moving"].tolist() != [7.0] * 4


FIRST = "(SELECT id FROM snapshots WHERE version = 1)"
PARAM = "(SELECT id FROM params WHERE name = '{}')"
MANIFEST_ALTERATIONS: dict[str, str] = {
    "another version of the value": "UPDATE snapshot_params SET param_version_id = "
    f"(SELECT max(id) FROM param_versions) WHERE snapshot_id = {FIRST} "
    f"AND param_id = {PARAM.format('moving')}",
    "the value of another name": "UPDATE snapshot_params SET param_version_id = (SELECT "
    f"param_version_id FROM snapshot_params WHERE snapshot_id = {FIRST} AND param_id = "
    f"{PARAM.format('still')}) WHERE snapshot_id = {FIRST} AND param_id = {PARAM.format('moving')}",
    "a value that does not exist": "UPDATE snapshot_params SET param_version_id = 12345 "
    f"WHERE snapshot_id = {FIRST} AND param_id = {PARAM.format('moving')}",
    "a row gone": f"DELETE FROM snapshot_params WHERE snapshot_id = {FIRST} "
    f"AND param_id = {PARAM.format('moving')}",
    "the bytes of another value": "UPDATE param_versions SET blob_id = "
    f"(SELECT max(id) FROM blobs) WHERE param_id = {PARAM.format('moving')} AND version = 1",
    "another digest": "UPDATE blobs SET digest = randomblob(32) WHERE id = "
    f"(SELECT blob_id FROM param_versions WHERE param_id = {PARAM.format('moving')} "
    "AND version = 1)",
    "another name": "UPDATE params SET name = 'renamed' WHERE name = 'still'",
    "another constraint": "UPDATE param_versions SET constraint_id = (SELECT constraint_id FROM "
    f"param_versions WHERE param_id = {PARAM.format('scale')}) WHERE param_id = "
    f"{PARAM.format('still')}",
    "another spec": """UPDATE constraints SET spec = '{"kind":"real"}' """
    """WHERE spec <> '{"kind":"real"}'""",
    "another kind": f"UPDATE param_versions SET kind = 'parameter' WHERE param_id = "
    f"{PARAM.format('still')}",
    "no gradient": f"UPDATE param_versions SET requires_grad = 0 WHERE param_id = "
    f"{PARAM.format('still')}",
    "another step": "UPDATE snapshots SET step = 9 WHERE version = 1",
    "another message": "UPDATE snapshots SET message = 'best' WHERE version = 1",
    "another time": "UPDATE snapshots SET created_at = '2001-01-01T00:00:00.000000Z' "
    "WHERE version = 1",
    "another digest of the snapshot": "UPDATE snapshots SET digest = randomblob(32) "
    "WHERE version = 1",
    "another metric": f"UPDATE metrics SET value = 0.1 WHERE snapshot_id = {FIRST}",
    "a metric more": f"INSERT INTO metrics (snapshot_id, name, value) VALUES ({FIRST}, 'x', 1)",
    "another extra": f"UPDATE extras SET skeleton = '7' WHERE snapshot_id = {FIRST}",
    "an extra gone": f"DELETE FROM extras WHERE snapshot_id = {FIRST}",
}


@pytest.mark.parametrize("what", MANIFEST_ALTERATIONS)
def test_an_altered_row_is_named_with_its_snapshot_and_nothing_changes(
    store: ParamStoreDict, path: Path, what: str
) -> None:
    alter(path, MANIFEST_ALTERATIONS[what])
    before = values(store)
    calls: list[Callable[[], object]] = [
        lambda: store.restore(1),
        lambda: store.restore(1, include=["moving"]),
        lambda: store.restore(1, verify=False),
        lambda: store.at(1),
        lambda: store.diff(1, 2),
    ]
    for call in calls:
        with pytest.raises(CorruptError, match="main@1") as caught:
            call()
        assert "main@1" in caught.value.snapshots
    assert not differences(values(store), before)
    assert store._constraints["scale"] is constraints.positive
    assert store.commit().version == 3
    if what != "another spec":  # every snapshot with that constraint shares its row
        view = store.at(3)
        assert not differences({name: view.unconstrained(name) for name in view}, before)


def test_a_store_whose_newest_snapshot_is_altered_can_be_opened_at_an_older_one(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    alter(path, "UPDATE snapshots SET step = 9 WHERE version = 2")
    with pytest.raises(CorruptError, match="main@2"):
        paramstore.open(path)
    with paramstore.open(path, scope="rescue", start="main@1") as rescue:
        assert rescue["moving"].tolist() == [0.0] * 4
        assert rescue.commit().ref == "rescue@1"


def test_altered_tensors_of_extras_are_found_when_they_are_read(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(1)
        store.commit(extras={"large": torch.arange(10_000.0)})
    with closing(sqlite3.connect(path)) as connection:
        (blob,) = connection.execute("SELECT blob_id FROM extra_blobs").fetchone()
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob))
    with paramstore.open(path) as store:
        assert store["x"].item() == 0.0
        with pytest.raises(CorruptError, match="main@1"):
            dict(store.at(1).extras)


def test_an_altered_tensor_of_a_constraint_is_found(path: Path) -> None:
    bound = torch.arange(10_000.0)
    with paramstore.open(path) as store:
        constraint = constraints.greater_than(bound)
        store.setdefault("x", bound + 1, constraint=constraint)
        store.commit()
    with closing(sqlite3.connect(path)) as connection:
        (blob,) = connection.execute("SELECT blob_id FROM constraint_blobs").fetchone()
    alter(path, BLOB_ALTERATIONS["another last byte"].format(blob=blob))
    with pytest.raises(CorruptError, match="'x'"):
        paramstore.open(path).load_all()
