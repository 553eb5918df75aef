from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from drafts import Line

from paramstore.db.engine import Database
from paramstore.db.repository import Repository
from paramstore.testing import invariants

DAMAGE = {
    "versions_ascend_to_the_head": [
        "UPDATE snapshots SET version = 9 WHERE version = 2",
        "UPDATE snapshots SET version = -1 WHERE version = 1",
        "UPDATE scopes SET head_version = 3",
        "INSERT INTO scopes VALUES (9, 'empty', 0, '')",
    ],
    "parents_come_earlier": [
        "UPDATE snapshots SET parent_id = 99 WHERE version = 2",
        "UPDATE snapshots SET parent_id = 0 WHERE version = 2",
        "UPDATE snapshots SET parent_id = id",
    ],
    "references_resolve": [
        "DELETE FROM params WHERE name = 'w'",
        "DELETE FROM param_versions WHERE id = 1",
        "DELETE FROM constraints",
        "DELETE FROM blobs WHERE id = 1",
        "INSERT INTO constraint_blobs VALUES (77, 0, 1)",
        "UPDATE tags SET snapshot_id = 99",
        "UPDATE extra_blobs SET blob_id = 99",
        "UPDATE params SET scope_id = 2, name = 'moved' WHERE id = 1",
    ],
    "blobs_match_their_digests": [
        "UPDATE chunks SET data = zeroblob(length(data)) WHERE id = 1 << 20",
        "UPDATE chunks SET data = data || x'00' WHERE id = 1 << 20",
        "DELETE FROM chunks WHERE id = 1 << 20",
        "UPDATE blobs SET digest = zeroblob(32) WHERE id = 1",
        "UPDATE blobs SET nbytes = nbytes + 1 WHERE id = 1",
        "UPDATE blobs SET dtype = 'F32' WHERE id = 1",
    ],
    "no_chunk_is_beyond_its_blob": [
        "INSERT INTO chunks VALUES (77 << 20, x'00')",
        "INSERT INTO chunks VALUES ((1 << 20) + 1, x'00')",
    ],
    "large_blobs_are_stored_once": [
        "DROP INDEX uq_blobs_digest; UPDATE blobs SET nbytes = 65536, digest = zeroblob(32)",
    ],
    "constraints_match_their_digests": ["UPDATE constraints SET spec = '{}'"],
    "manifests_match_their_digests": [
        "UPDATE params SET name = 'v' WHERE name = 'w'",
        "UPDATE snapshots SET digest = zeroblob(32)",
        "UPDATE metrics SET value = 7",
        "DELETE FROM extras",
        "UPDATE param_versions SET blob_id = 2 WHERE id = 1",
    ],
    "history_is_what_changed_between_snapshots": [
        "DROP VIEW v_history; CREATE VIEW v_history AS SELECT scopes.name AS scope, params.name AS "
        "name, 1 AS version, 0 AS step, '2026-01-01T00:00:00.000000Z' AS created_at, 1 AS "
        "since_version, 'tensor' AS kind, 1 AS requires_grad, 'U8' AS dtype, '[1]' AS shape, 1 AS "
        "nbytes, '{}' AS constraint_spec, '' AS digest, 0 AS norm, 0 AS mean, 0 AS std, 0 AS min, "
        "0 AS max, 0 AS nan_count, 0 AS inf_count, NULL AS value, 0 AS unconstrained, "
        "1 AS param_version_id FROM scopes JOIN params ON params.scope_id = scopes.id",
    ],
}


@pytest.fixture
def whole(file: Database) -> Database:
    """A database in which every table has rows."""
    line = Line(Repository(file))
    extras = [("extra", "epoch", "3")]
    line.commit({"w": "1", "b": "2"}, tags=["a"], metrics={"m": 1.0}, extras=extras)
    line.commit({"w": "3"}, extras=extras, extra_tensors=[b"4"])
    fork = Line(line.repository, "try")
    fork.parent, fork.entries = line.parent, line.entries
    fork.commit({"b": "5"})
    return file


def test_a_sound_database_passes(whole: Database, path: Path) -> None:
    invariants.check(whole)
    invariants.check(path)
    invariants.check(str(path))


def test_every_invariant_is_checked_and_tested() -> None:
    assert DAMAGE.keys() == {invariant.__name__ for invariant in invariants.ALL}


@pytest.mark.parametrize(
    ("name", "script"), [(name, script) for name, scripts in DAMAGE.items() for script in scripts]
)
def test_what_breaks_an_invariant_is_found_by_it(whole: Database, name: str, script: str) -> None:
    def damage(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.executescript(script)

    whole.outside_transaction(damage)
    with pytest.raises(AssertionError):
        getattr(invariants, name)(whole)
