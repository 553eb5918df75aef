"""Commits without torch: what the store floor would hand to the repository, made of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from paramstore.db.engine import Database
from paramstore.db.repository import Draft, Entry, NewBlob, NewEntry, Repository
from paramstore.db.schema import blobs, chunks, param_versions
from paramstore.snapshot import Snapshot, Statistics

CHUNK = 1 << 20
REAL = '{"kind":"real"}'
STATISTICS = Statistics(norm=5.0, mean=3.5, std=0.5, min=3.0, max=4.0)


@dataclass(frozen=True)
class Bytes:
    """A `NewBlob` that has its data."""

    digest: bytes
    header: bytes
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def chunks(self) -> Iterator[memoryview]:
        """Cut the data."""
        yield memoryview(self.data)[:CHUNK]
        for start in range(CHUNK, len(self.data), CHUNK):
            yield memoryview(self.data)[start : start + CHUNK]


def blob(value: bytes | str) -> NewBlob:
    """The safetensors bytes of a tensor of uint8."""
    data = value.encode() if isinstance(value, str) else value
    fields = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    text = json.dumps({"value": fields}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text

    return Bytes(
        digest=blake3(header + data).digest(),
        header=header,
        nbytes=len(header) + len(data),
        dtype="U8",
        shape=(len(data),),
        data=data,
    )


def new_entry(name: str, blob_id: int, written: NewBlob, **fields: Any) -> NewEntry:
    """An entry for a blob that was written."""
    given: dict[str, Any] = {
        "name": name,
        "kind": "tensor",
        "requires_grad": True,
        "blob_id": blob_id,
        "digest": written.digest,
        "nbytes": written.nbytes,
        "dtype": written.dtype,
        "stored_shape": written.shape,
        "spec": REAL,
        "spec_blobs": (),
        "shape": written.shape,
        "statistics": STATISTICS,
    }
    return NewEntry(**given | fields)


class Line:
    """One writer on one scope: remembers what it committed last, as a working set does."""

    def __init__(self, repository: Repository, scope: str = "main") -> None:
        self.repository = repository
        self.scope = scope
        self.head = 0
        self.parent: Snapshot | None = None
        self.entries: dict[str, Entry] = {}

    def commit(
        self,
        changes: Mapping[str, bytes | str] | None = None,
        *,
        without: Sequence[str] = (),
        extra_tensors: Sequence[bytes] = (),
        entry: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Snapshot:
        """Commit new values, keep the others but those ``without``; more fields of the draft."""
        values = {name: blob(value) for name, value in (changes or {}).items()}
        tensors = [blob(data) for data in extra_tensors]
        written = [*values.values(), *tensors]
        kept = {n: e for n, e in self.entries.items() if n not in values and n not in without}
        with self.repository.write() as transaction:
            ids = transaction.put_blobs(written)
            rows = dict(zip(values, ids, strict=False))
            new = {n: new_entry(n, rows[n], b, **entry or {}) for n, b in values.items()}
            extra_ids = ids[len(values) :]
            given: dict[str, Any] = {
                "scope": self.scope,
                "seen_head": self.head,
                "parent_id": self.parent.id if self.parent else None,
                "entries": {**kept, **new},
                "extra_blobs": [(i, b.digest) for i, b in zip(extra_ids, tensors, strict=True)],
                "blobs_written": dict(zip(ids, written, strict=True)),
            }
            snapshot, entries = transaction.append(Draft(**given | fields))
        self.head, self.parent, self.entries = snapshot.version, snapshot, entries
        return snapshot

    def value(self, snapshot: Snapshot, name: str) -> bytes:
        """Read the data of one tensor back."""
        entry = self.repository.manifest(snapshot).entries[name]
        data = b"".join(chunk for _, _, chunk in self.repository.read_blobs([entry.blob_id]))
        return data[8 + int.from_bytes(data[:8], "little") :]


def gc(database: Database, *ids: int) -> None:
    """Free blobs and the values made of them, as another process may between two transactions."""
    with database.write() as connection:
        for row_id in ids:
            connection.execute(blobs.delete().where(blobs.c.id == row_id))
            connection.execute(
                chunks.delete().where(chunks.c.id.between(row_id << 20, (row_id + 1 << 20) - 1))
            )
            connection.execute(param_versions.delete().where(param_versions.c.blob_id == row_id))


def expire(database: Database, snapshot: Snapshot) -> None:
    """Forget a snapshot, as another process may."""
    with database.write() as connection:
        for table in ("snapshot_params", "metrics", "extras", "extra_blobs"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE snapshot_id = {snapshot.id}")
        connection.exec_driver_sql(f"DELETE FROM snapshots WHERE id = {snapshot.id}")
