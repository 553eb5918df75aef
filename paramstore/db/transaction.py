"""A write transaction as the store floor sees it: blobs first, then one snapshot.

Puts together what `blobs` and `catalogue` do; must never be used after its block has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection

from paramstore.db import blobs
from paramstore.db.catalogue import Catalogue, head_version
from paramstore.db.checks import checked
from paramstore.db.records import Draft, Entry, NewBlob, NewEntry
from paramstore.errors import ConflictError
from paramstore.snapshot import Snapshot


class Transaction:
    """What can be written between BEGIN and COMMIT; made by ``Repository.write``.

    **Threads**: one, the one that entered the block.

    **Ownership**: borrows the connection until the block ends; keeps no bytes.

    **Durability**: everything, or nothing, when the block ends. Blobs that are written in one
    transaction and named in another may be freed in between; ``append`` writes those again.
    """

    def __init__(self, connection: Connection, unclaimed: dict[int, int]) -> None:
        """Begin.

        Args:
            connection: inside a write transaction.
            unclaimed: bytes, by row, of blobs that were added for a snapshot that is still to
                come; updated.
        """
        self._connection = connection
        self._seen: dict[int, bytes] = {}
        """Digests of the blobs that this transaction wrote or found, by row."""
        self._rows: dict[bytes, int] = {}
        """The same the other way round."""
        self._unclaimed = unclaimed
        self.moved: dict[int, int] = {}
        """New rows of blobs that another process has freed, by the row that they had."""

    def put_blobs(self, new: Sequence[NewBlob]) -> list[int]:
        """Write blobs, those that are stored already excepted, and return their rows.

        Raises:
            StorageError: the disk is full.
        """
        unknown = [blob for blob in new if blob.digest not in self._rows]
        rows, added = blobs.put(self._connection, unknown)
        self._rows |= rows
        self._seen |= {row_id: digest for digest, row_id in rows.items()}
        self._unclaimed |= added
        return [self._rows[blob.digest] for blob in new]

    def check_head(self, scope: str, seen: int) -> None:
        """Refuse early where another writer has moved the head of the scope.

        Raises:
            ConflictError: it has.
        """
        found = head_version(self._connection, scope)
        if found != seen:
            raise ConflictError(scope, seen=seen, found=found)

    def append(self, draft: Draft) -> tuple[Snapshot, dict[str, Entry]]:
        """Append a snapshot to its scope, which is made where it does not exist.

        Returns:
            The snapshot, and its entries by name.

        Raises:
            ConflictError: another writer has moved the head of the scope.
            StaleEntries: unchanged values, or tensors of the extras, are gone from the database.
            InvalidInputError, InvalidNameError: something in the draft cannot be stored.
        """
        draft = self._with_lost_blobs(checked(draft))
        written = draft.blobs_written
        claimed = [i for i in self._unclaimed if i in self._seen or i in written]
        added = sum(self._unclaimed.pop(row_id) for row_id in claimed)
        return Catalogue(self._connection, draft, self._seen).append(added)

    def _with_lost_blobs(self, draft: Draft) -> Draft:
        """Write again what earlier transactions wrote and another process has freed since."""
        earlier = draft.blobs_written.keys() - self._seen.keys()
        found = blobs.digests(self._connection, earlier)
        lost = [i for i in sorted(earlier) if found.get(i) != draft.blobs_written[i].digest]
        self._seen |= {i: found[i] for i in earlier.difference(lost)}
        if not lost:
            return draft
        rows = dict(zip(lost, self.put_blobs([draft.blobs_written[i] for i in lost]), strict=True))
        self.moved = rows
        return replace(
            draft,
            blobs_written={i: b for i, b in draft.blobs_written.items() if i not in rows},
            entries={name: _moved(entry, rows) for name, entry in draft.entries.items()},
            extra_blobs=[(rows.get(i, i), digest) for i, digest in draft.extra_blobs],
        )


def _moved(entry: Entry | NewEntry, rows: Mapping[int, int]) -> Entry | NewEntry:
    if isinstance(entry, Entry):
        return entry
    return entry._replace(
        blob_id=rows.get(entry.blob_id, entry.blob_id),
        spec_blobs=tuple(rows.get(row_id, row_id) for row_id in entry.spec_blobs),
    )
