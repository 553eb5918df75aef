"""verify(): damage of every kind is found and named; of what is sound nobody complains."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from test_altered_databases import (
    BLOB_ALTERATIONS,
    MANIFEST_ALTERATIONS,
    alter,
    blob_of,
    commit_twice,
)
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import InvalidInputError, ParamStoreDict, StoreClosedError, Verified
from paramstore.db import soundness
from paramstore.db.engine import Database
from paramstore.db.verification import verify as verify_without_torch

# Forking with torch's threads about is what users do, and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

LARGE = 600_000  # numbers of a tensor of several chunks


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """Two snapshots; both hold the same "still"; the tensors of the extras are stored."""
    with paramstore.open(path) as opened:
        opened["still"] = torch.arange(4.0)
        opened["moving"] = torch.zeros(4)
        opened["large"] = torch.arange(float(LARGE))
        opened.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        bound = torch.arange(2000.0)
        opened.setdefault("bounded", bound + 1, constraint=constraints.greater_than(bound))
        opened.commit(step=1, metrics={"loss": 1.0}, extras={"epoch": 1}, message="first")
        with torch.no_grad():
            opened["moving"].fill_(1.0)
        opened.commit(step=2, extras={"state": torch.arange(5000.0)}, tags=["warm"])
        yield opened


def kinds(found: Verified) -> set[str]:
    return {problem.kind for problem in found.problems}


def test_a_sound_store_has_no_problem_and_says_what_was_checked(store: ParamStoreDict) -> None:
    found = store.verify()
    assert found.ok
    assert found.problems == ()
    assert (found.snapshots, found.tensors, found.stored_tensors) == (2, 8, 8)
    assert found.statistics == 6
    assert found.nbytes > LARGE * 4
    assert (found.orphans, found.orphan_nbytes) == (0, 0)
    assert "no problem" in str(found)
    assert "2 snapshots, 8 of 8 stored tensors" in str(found)


def test_everything_that_can_be_stored_verifies(path: Path) -> None:
    with paramstore.open(path) as store:
        store["f16"] = torch.randn(100, 7).half()
        store["f64"] = torch.full((5,), 1e300, dtype=torch.float64)
        store["c64"] = torch.randn(9, dtype=torch.complex64)
        store["c128"] = torch.randn(9, dtype=torch.complex128)
        store["odd"] = torch.tensor([float("nan"), float("inf"), 1.0])
        store["none"] = torch.zeros(0, 3)
        store["one"] = torch.tensor(-0.0)
        store["strided"] = torch.randn(6, 5).t()
        for name, value, constraint in (
            ("simplex", torch.full((4,), 0.25), constraints.simplex),
            ("positive", torch.rand(300, 300) + 0.1, constraints.positive),
            ("tri", torch.eye(3), constraints.lower_cholesky),
            ("inside", torch.tensor(0.5), constraints.interval(0.0, 1.0)),
        ):
            store.setdefault(name, value, constraint=constraint)
        store.module("net", nn.BatchNorm1d(3))
        store.commit()
        store.fork("other")
        store.rename("f16", "half")
        store["one"] = torch.tensor(3.0)
        store.commit(extras={"text": "x", "deep": [{"t": torch.arange(9999)}]})
        found = store.verify()
    assert found.ok, found
    assert found.statistics is not None
    assert found.statistics > 15


@pytest.mark.parametrize("what", BLOB_ALTERATIONS)
def test_an_altered_tensor_is_named_with_its_parameters_and_snapshots(
    store: ParamStoreDict, path: Path, what: str
) -> None:
    alter(path, BLOB_ALTERATIONS[what].format(blob=blob_of(path, "still", 1)))
    found = store.verify()
    (problem,) = found.problems
    assert problem.kind == "bytes"
    assert problem.params == ("still",)
    assert problem.snapshots == ("main@1", "main@2")
    assert "'still'" in problem.message
    assert "salvage" in problem.advice
    assert str(problem) in str(found)


def test_a_chunk_in_the_middle_is_missed(store: ParamStoreDict, path: Path) -> None:
    alter(path, f"DELETE FROM chunks WHERE id = ({blob_of(path, 'large', 1)} << 20) + 1")
    (problem,) = store.verify().problems
    assert (problem.kind, problem.params) == ("bytes", ("large",))


def test_altered_tensors_of_constraints_and_extras_are_named(
    store: ParamStoreDict, path: Path
) -> None:
    for table in ("constraint_blobs", "extra_blobs"):
        blob = f"(SELECT blob_id FROM {table})"
        alter(path, f"UPDATE chunks SET data = zeroblob(length(data)) WHERE id = {blob} << 20")
    by_params = {problem.params: problem for problem in store.verify().problems}
    assert by_params.keys() == {("bounded",), ()}
    assert by_params["bounded",].snapshots == ("main@1", "main@2")
    assert by_params[()].snapshots == ("main@2",)


@pytest.mark.parametrize("what", MANIFEST_ALTERATIONS)
def test_an_altered_row_is_named_with_its_snapshot(path: Path, what: str) -> None:
    with paramstore.open(path) as store:
        commit_twice(store)
        alter(path, MANIFEST_ALTERATIONS[what])
        found = store.verify()
    assert any(p.kind == "snapshot" and "main@1" in p.snapshots for p in found.problems), found


@pytest.mark.parametrize(
    ("statement", "kind", "word"),
    [
        ("DELETE FROM snapshots WHERE version = 1", "row", "snapshot_params"),
        ("DELETE FROM snapshots WHERE version = 2", "version", "main@2"),
        ("DELETE FROM scopes", "row", "scopes"),
        ("UPDATE scopes SET head_version = 7", "version", "main@7"),
        ("UPDATE scopes SET created_at = 'once'", "row", "once"),
        ("UPDATE snapshots SET version = 3 WHERE version = 1", "version", "higher version"),
        ("UPDATE snapshots SET parent_id = 9 WHERE version = 2", "parent", "main@2"),
        ("UPDATE tags SET snapshot_id = 9", "tag", "'warm'"),
        ("UPDATE tags SET name = 'latest'", "tag", "'latest'"),
        ("UPDATE tags SET name = x'7761726d'", "tag", "bytes"),
        ("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'snapshots'", "row", "'snapshots'"),
        ("UPDATE sqlite_sequence SET name = 'blocks' WHERE name = 'blobs'", "row", "'blocks'"),
        ("DELETE FROM sqlite_sequence WHERE name = 'params'", "row", "0 rows of 'params'"),
        ("UPDATE sqlite_sequence SET seq = 1 << 43 WHERE name = 'blobs'", "row", "'blobs'"),
        ("UPDATE param_versions SET version = 0 WHERE param_id = 1", "history", "main@0"),
        ("UPDATE param_versions SET version = 9 WHERE param_id = 1", "history", "main@9"),
        ("UPDATE constraints SET spec = '{}' WHERE id = 1", "constraint", "constraint 1"),
        ("UPDATE constraint_blobs SET blob_id = 99", "constraint", "'bounded'"),
        ("UPDATE param_versions SET version = 2 WHERE param_id = 2", "history", "'moving'"),
        ("UPDATE param_versions SET norm = 0 WHERE norm > 1e8", "statistics", "'large'"),
        ("UPDATE param_versions SET mean = NULL WHERE norm > 1e8", "statistics", "mean"),
        ("UPDATE param_versions SET std = 1, min = 5 WHERE norm > 1e8", "statistics", "std, min"),
        ("UPDATE param_versions SET nan_count = 1 WHERE norm > 1e8", "statistics", "nan_count"),
        ("UPDATE param_versions SET max = 'much' WHERE norm > 1e8", "statistics", "'large'"),
        ("UPDATE param_versions SET std = std * 1.0001 WHERE norm > 1e8", "statistics", "std"),
        (
            "UPDATE param_versions SET norm = norm * (1 + 1e-12) WHERE norm > 1e8",
            "statistics",
            "norm",
        ),
        ("UPDATE param_versions SET max = max - 1e-9 WHERE norm > 1e8", "statistics", "max"),
        ("UPDATE param_versions SET inf_count = NULL WHERE norm > 1e8", "statistics", "inf_count"),
        ("UPDATE param_versions SET unconstrained = 1 WHERE norm > 1e8", "statistics", "'large'"),
        ("UPDATE param_versions SET shape = '[3]' WHERE norm > 1e8", "statistics", "shape"),
        ("UPDATE blobs SET dtype = 'I32' WHERE nbytes > 1e6", "bytes", "its row says I32"),
        ("UPDATE blobs SET shape = '[1]' WHERE nbytes > 1e6", "bytes", "its row says F32 [1]"),
        ("UPDATE blobs SET nbytes = 'much' WHERE nbytes > 1e6", "bytes", "holds no length"),
        ("UPDATE params SET name = CAST(x'ff' AS TEXT) WHERE name = 'still'", "snapshot", "main@1"),
    ],
)
def test_every_other_altered_row_is_found(
    store: ParamStoreDict, path: Path, statement: str, kind: str, word: str
) -> None:
    alter(path, statement)
    found = store.verify()
    assert kind in kinds(found), found
    assert word in str(found)


def test_a_value_with_another_number_than_its_bytes_give_is_found(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.tensor(2.5)
        store.commit()
        alter(path, "UPDATE param_versions SET value = '2.25'")
        (problem,) = store.verify().problems
    assert (problem.kind, problem.params, problem.snapshots) == ("statistics", ("x",), ("main@1",))
    assert "value" in problem.message


def test_a_value_that_is_no_number_is_found(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.tensor(2.5)
        store.commit()
        alter(path, "UPDATE param_versions SET value = '2_5'")
        assert kinds(store.verify()) == {"statistics"}


def test_a_version_later_than_a_snapshot_that_has_the_value_is_found(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"], store["i"] = torch.zeros(3), torch.tensor(0.0)
        for i in range(4):
            store["i"] = torch.tensor(float(i))
            store.commit()
        store.expire(paramstore.KeepLast(2))
        assert store.verify().ok
        alter(path, "UPDATE param_versions SET version = 4 WHERE shape = '[3]'")
        assert any("main@3 has it already" in p.message for p in store.verify().problems)


def test_statistics_of_another_processor_are_no_problem(path: Path) -> None:
    """Other kernels of OpenBLAS and torch, and denormals flushed: what this machine can pretend."""
    code = f"""
import paramstore, torch
from torch.distributions import constraints
torch.manual_seed(0)
torch.set_flush_denormal(True)
with paramstore.open({str(path)!r}) as store:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        for size in (1, 7, 100, 20_000):
            values = torch.randn(size, dtype=dtype)
            store[f"normal {{dtype}} {{size}}"] = values
            store[f"two {{dtype}} {{size}}"] = torch.where(values.real > 1, 0.7, 0.1).to(dtype)
            store[f"far {{dtype}} {{size}}"] = (100 + values / 100).to(dtype)
            store[f"tiny {{dtype}} {{size}}"] = (values.to(torch.complex128) * 1e-39).real.float()
            if not dtype.is_complex and size < 20_000:
                inside = values.abs() / 10 + 0.01
                for constraint in (constraints.positive, constraints.interval(-1e4, 1e4)):
                    name = f"{{constraint}} {{dtype}} {{size}}"
                    store.setdefault(name, inside, constraint=constraint)
    store.commit()
"""
    other = {"OPENBLAS_CORETYPE": "Nehalem", "ATEN_CPU_CAPABILITY": "default"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **other}, check=True)
    with paramstore.open(path, readonly=True) as store:
        found = store.verify()
    assert found.ok, found
    assert found.statistics is not None
    assert found.statistics > 90


def test_values_without_statistics_are_no_problem(path: Path) -> None:
    with paramstore.open(path, statistics=False) as store:
        store["x"] = torch.randn(5)
        store.commit()
        assert store.verify().ok


def test_a_constraint_that_is_not_known_here_is_no_problem(path: Path) -> None:
    with paramstore.open(path) as store:
        store.setdefault("x", torch.ones(3), constraint=constraints.positive)
        store.commit()
        alter(path, 'UPDATE constraints SET spec = \'{"kind":"even"}\'')
        assert kinds(store.verify()) == {"constraint", "snapshot"}


def test_an_index_that_lacks_a_row_is_found(store: ParamStoreDict, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_params_1'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 65536)
        page = file.read(65536)
        file.seek((root - 1) * 65536)
        file.write(page.replace(b"still", b"stilt"))
    with paramstore.open(path, readonly=True, scope="look") as damaged:
        found = damaged.verify()
    assert kinds(found) == {"file"}
    assert "index" in found.problems[0].message


def test_a_page_that_cannot_be_read_is_a_problem_and_the_others_are_checked(
    path: Path,
) -> None:
    with paramstore.open(path) as store:
        for name in ("a", "b", "c"):
            store[name] = torch.randn(60_000)
        store.commit()
    with closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'metrics'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 65536)
        file.write(b"\x07" * 65536)
    with paramstore.open(path, readonly=True, scope="look") as damaged:
        found = damaged.verify()
    assert "file" in kinds(found)
    assert found.tensors == 3


def test_tensors_of_no_snapshot_are_counted_and_no_problem(
    store: ParamStoreDict, path: Path
) -> None:
    # As a commit leaves them that was killed before its last transaction.
    alter(path, "INSERT INTO blobs SELECT 100, x'01', nbytes, dtype, shape FROM blobs WHERE id = 1")
    alter(path, "INSERT INTO chunks SELECT 100 << 20, data FROM chunks WHERE id = 1 << 20")
    alter(path, "UPDATE blobs SET digest = (SELECT digest FROM blobs WHERE id = 1) WHERE id = 100")
    found = store.verify()
    assert found.ok
    assert found.orphans == 1
    assert found.orphan_nbytes > 0
    assert "gc() frees them" in str(found)


def test_a_damaged_tensor_of_no_snapshot_says_to_free_it(store: ParamStoreDict, path: Path) -> None:
    alter(path, "INSERT INTO blobs SELECT 100, digest, nbytes, dtype, shape FROM blobs LIMIT 1")
    (problem,) = store.verify().problems
    assert "of no snapshot" in problem.message
    assert "gc()" in problem.advice


# -- how it looks ------------------------------------------------------------------


def test_a_sample_reads_some_tensors_and_all_rows(path: Path) -> None:
    with paramstore.open(path) as store:
        for i in range(400):
            store[f"p{i}"] = torch.tensor(float(i))
        store.commit()
        half = store.verify(sample=0.5)
        assert 100 < half.tensors < 300
        assert half.statistics == half.tensors
        assert half.snapshots == 1
        none = store.verify(sample=0)
        assert (none.tensors, none.nbytes, none.snapshots) == (0, 0, 1)
        alter(path, "UPDATE chunks SET data = zeroblob(3)")
        assert store.verify(sample=0).ok
        assert len(store.verify(sample=0.5).problems) > 100
        alter(path, "UPDATE snapshots SET step = 3")
        assert kinds(store.verify(sample=0)) == {"snapshot"}


def test_a_sample_touches_no_generator_of_the_run(store: ParamStoreDict) -> None:
    import random

    import numpy as np

    def states() -> list[object]:
        numpy_state = np.random.get_state()
        return [random.getstate(), torch.get_rng_state().tolist(), str(numpy_state)]

    before = states()
    store.verify(sample=0.5)
    assert states() == before


@pytest.mark.parametrize("sample", [-0.1, 1.5, float("nan")])
def test_a_sample_is_a_fraction(store: ParamStoreDict, sample: float) -> None:
    with pytest.raises(InvalidInputError, match="from 0 to 1"):
        store.verify(sample=sample)


def test_verify_reads_only_and_leaves_the_working_set_alone(
    store: ParamStoreDict, path: Path
) -> None:
    with paramstore.open(path, readonly=True) as reader:
        assert reader.verify().ok
        assert all(value is not None for value in reader.values())
    assert store.changed() == ()


def test_verify_of_a_closed_store_is_refused(store: ParamStoreDict) -> None:
    store.close()
    with pytest.raises(StoreClosedError):
        store.verify()


def test_a_store_that_was_never_committed_verifies() -> None:
    found = ParamStoreDict().verify()
    assert found.ok
    assert found.tensors == 0


def test_a_store_with_a_damaged_newest_snapshot_can_be_checked(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    alter(path, "UPDATE snapshots SET step = 9 WHERE version = 2")
    with paramstore.open(path, scope="look", readonly=True) as damaged:
        (problem,) = damaged.verify().problems
    assert problem.snapshots == ("main@2",)


def test_a_large_file_is_checked_table_by_table(
    store: ParamStoreDict, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "_AT_ONCE", 0)
    assert store.verify().ok
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master "
            "WHERE name = 'uq_blobs_digest') WHERE name = 'sqlite_autoindex_scopes_1'"
        )
        connection.commit()
    store.close()
    database = Database.open(path, readonly=True)
    try:
        assert "file" in kinds(verify_without_torch(database))
    finally:
        database.close()


def test_what_is_expired_meanwhile_is_no_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two queries another process forgets a snapshot and frees its tensors."""
    store = paramstore.open(path)
    store["still"], store["moving"] = torch.arange(4.0), torch.zeros(20_000)
    store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
    store.commit(metrics={"loss": 1.0}, extras={"epoch": 1, "state": torch.zeros(5000)})
    with torch.no_grad():
        store["moving"].fill_(1.0)
    store.commit(tags=["warm"])
    database = store._session.backend.database
    fetch, calls = Database.fetch, 0

    def expire() -> None:
        for table in ("snapshot_params", "metrics", "extras", "extra_blobs"):
            one = f"DELETE FROM {table} WHERE snapshot_id = 1"
            with closing(sqlite3.connect(path, timeout=30)) as connection:
                connection.execute(one)
                connection.commit()
        alter(path, "DELETE FROM snapshots WHERE id = 1")
        unused = "SELECT id FROM param_versions EXCEPT SELECT param_version_id FROM snapshot_params"
        alter(path, f"DELETE FROM param_versions WHERE id IN ({unused})")
        alter(
            path,
            "DELETE FROM blobs WHERE id IN (SELECT id FROM blobs EXCEPT SELECT blob_id FROM "
            "param_versions EXCEPT SELECT blob_id FROM extra_blobs EXCEPT SELECT blob_id FROM "
            "constraint_blobs)",
        )
        alter(path, "DELETE FROM chunks WHERE id >> 20 NOT IN (SELECT id FROM blobs)")

    def interrupted(self: Database, *arguments: object, **more: object) -> object:
        nonlocal calls
        calls += 1
        found = fetch(self, *arguments, **more)  # type: ignore[arg-type]
        if self is database and calls == when:
            expire()
        return found

    backup = store.backup(path.with_name("copy.db")).read_bytes()
    monkeypatch.setattr(Database, "fetch", interrupted)
    when = 0
    store.verify()
    for when in range(1, calls + 1):
        store.close()
        path.write_bytes(backup)
        store = paramstore.open(path)
        database, calls = store._session.backend.database, 0
        found = store.verify()
        assert found.ok, (when, found)
    store.close()
    assert calls > 20


def _commit_until(path: Path, stop: Any) -> None:
    torch.set_num_threads(1)  # the threads of the parent's pool are not here
    with paramstore.open(path) as store:
        while not stop.is_set():
            with torch.no_grad():
                store["w"].add_(1)
            store.commit(metrics={"i": 1}, tags=["newest"])


def test_verify_beside_a_committing_process_finds_nothing(path: Path) -> None:
    with paramstore.open(path) as store:
        store["w"] = torch.zeros(50_000)
        store.commit()
        context = multiprocessing.get_context("fork")
        stop = context.Event()
        process = context.Process(target=_commit_until, args=(path, stop), daemon=True)
        process.start()
        for _ in range(10):
            before = len(store.log())
            while len(store.log()) < before + 2:
                assert process.is_alive()
                time.sleep(0.001)
            found = store.verify()
            assert found.ok, found
        stop.set()
        process.join()
        assert process.exitcode == 0
        assert store.verify().snapshots == len(store.log()) > 20


def test_without_torch_everything_but_statistics_is_checked(
    store: ParamStoreDict, path: Path
) -> None:
    alter(path, "UPDATE chunks SET data = zeroblob(3) WHERE id = "
          f"{blob_of(path, 'moving', 1)} << 20")  # fmt: skip
    alter(path, "UPDATE param_versions SET norm = 0")
    code = f"""
import sys
from paramstore.db.engine import Database
from paramstore.db.verification import verify
database = Database.open({str(path)!r}, readonly=True)
found = verify(database)
print(sorted({{"torch", "numpy"}} & set(sys.modules)), found.statistics, len(found.problems))
print(found.problems[0].params)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[] None 1", "('moving',)"]


def test_a_hostile_name_is_printed_escaped(path: Path) -> None:
    with paramstore.open(path) as store:
        store["a\x1b[2J"] = torch.ones(2)
        store.commit()
        alter(path, "UPDATE chunks SET data = zeroblob(3)")
        assert "\x1b" not in str(store.verify())
