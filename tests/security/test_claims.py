"""Numbers in a file are believed only as far as the file is large: no memory on a row's word."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest
import torch

import paramstore
from paramstore import CorruptError
from paramstore.db import reading
from paramstore.db.engine import Database
from paramstore.skeletons import decode

HUGE = {
    "of 10 GB": ("[2500000000]", 10_000_000_084),
    "of 4 EB": ("[1000000000000000000]", 4 << 60),
    "whose product overflows": ("[4294967296,4294967296,4294967296]", 84),
    "of another length than its dtype and shape": ("[2500000000]", 84),
    "without elements, of dimensions that torch refuses": ("[0,9223372036854775807,3]", 84),
    "of a length that is negative": ("[3]", -1),
}


@pytest.fixture
def made(path: Path) -> Path:
    with paramstore.open(path) as store:
        store["x"] = torch.arange(3.0)
        store["y"] = torch.arange(4.0)
        store.commit()
    return path


def lie(path: Path, shape: str, nbytes: int, name: str = "x") -> None:
    """Say that a tensor is another, with digests that fit: a stranger can compute them."""
    with closing(sqlite3.connect(path)) as connection:
        (blob,) = connection.execute(
            "SELECT blob_id FROM v_sizes WHERE name = ?", (name,)
        ).fetchone()
        connection.execute(
            "UPDATE blobs SET shape = ?, nbytes = ? WHERE id = ?", (shape, nbytes, blob)
        )
        connection.execute("UPDATE snapshots SET nbytes = (SELECT sum(nbytes) FROM blobs)")
        connection.commit()
    sign(path)


def sign(path: Path) -> None:
    """Give the newest snapshot the digest of its rows as they are now."""
    database = Database.open(path)
    rows = reading.read_rows(database.fetch, 1)
    assert rows is not None
    entries = [reading.entry_of(rows.header.id, row) for row in rows.entries]
    digest = rows.digest(sorted(entries))
    database.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE snapshots SET digest = ?", (digest,))
        connection.commit()


@pytest.mark.parametrize("what", HUGE)
def test_a_tensor_that_is_larger_than_the_file_asks_for_no_memory(
    made: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie(made, *HUGE[what])
    asked: list[int] = []
    empty = torch.empty

    def counting(*args: object, **kwargs: object) -> torch.Tensor:
        found: torch.Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        asked.append(found.nbytes)
        return found

    monkeypatch.setattr(torch, "empty", counting)
    with paramstore.open(made) as store:
        for read in (lambda: store["x"], store.load_all, lambda: store.at(1)["x"]):
            with pytest.raises(CorruptError, match="'x'"):
                read()
        assert store.at(1)["y"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert max(asked, default=0) < 1 << 20


def test_tensors_that_are_together_larger_than_the_file_ask_for_no_memory(path: Path) -> None:
    with paramstore.open(path) as store:
        for i in range(2):
            store[f"{i}"] = torch.zeros(5 << 20, dtype=torch.uint8).float() + i
        store.commit()
    for i in range(2):
        lie(path, "[6291456]", (6 << 22) + 84, f"{i}")
    with paramstore.open(path) as store, pytest.raises(CorruptError, match="'0', '1'"):
        store.load_all()


def test_a_large_tensor_that_is_there_is_read(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.ones(5 << 20)
        store["same"] = torch.ones(5 << 20)
        store.commit()
    with paramstore.open(path) as store:
        store.load_all()
        assert store["same"].sum() == 5 << 20


# Skeletons of extras, and specs: text that says how large something is.
SKELETONS = {
    "tensor": '{"$tensor":{"dtype":"F32","shape":[2500000000],"data":""}}',
    "overflow": '{"$tensor":{"dtype":"F32","shape":[4294967296,4294967296,2],"data":""}}',
    "negative": '{"$tensor":{"dtype":"F32","shape":[-1,-4],"data":"AAAAAAAAAAAAAAAAAAAAAA=="}}',
    "strides": '{"$tensor":{"dtype":"F32","shape":[2],"strides":[99999999999],"data":"AAAAAAAA"}}',
    "array": '{"$array":{"dtype":"<f8","shape":[2500000000],"data":""}}',
    "text array": '{"$array":{"dtype":"<U2000000000","shape":[0],"data":""}}',
    "empty array": '{"$array":{"dtype":"<f8","shape":[0,9223372036854775807,9],"data":""}}',
    "scalar": '{"$scalar":{"dtype":"<U2000000000","data":""}}',
    "several dtypes": '{"$array":{"dtype":"(' + "9" * 5000 + ')f8,f8","shape":[0],"data":""}}',
    "void": '{"$scalar":{"dtype":"V2000000000","data":""}}',
    "size": '{"$size":[1e400]}',
    "int": '{"$int":"0x' + "f" * 100_000 + 'g"}',
    "digits": "9" * 100_000,
    "nesting": "[" * 100_000,
    "closed nesting": "[" * 100_000 + "]" * 100_000,
    "tagged nesting": '{"$tuple":[' * 20_000 + "]}" * 20_000,
    "objects": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "bytes": '{"$bytes":9223372036854775807}',
    "a number of a tensor": '{"$tensor":{"dtype":"F32","shape":[1],"data":1e308}}',
    "device": '{"$device":"cuda:99999999999999999999"}',
}


@pytest.mark.parametrize("what", SKELETONS)
def test_a_skeleton_that_claims_too_much_is_damage_and_takes_no_memory(what: str) -> None:
    def fetch(number: int) -> torch.Tensor:
        raise CorruptError(f"no tensor {number}")

    tracemalloc.start()
    try:
        with pytest.raises(CorruptError) as caught:
            decode(SKELETONS[what], fetch)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
