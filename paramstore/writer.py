"""A commit: what changed is hashed and described on one thread while another writes it.

Reads tensors and writes rows; never changes a tensor, and never makes part of a snapshot visible.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

from torch import Tensor

from paramstore import extras, tensors
from paramstore.attached import capture_all
from paramstore.db.repository import Draft, Entry, NewBlob, NewEntry, StaleEntries
from paramstore.errors import InvalidInputError
from paramstore.pipeline import ahead
from paramstore.refs import check_param_name, check_tag_name, is_encodable
from paramstore.statistics import describe
from paramstore.working_set import Item, Stored, WorkingSet

if TYPE_CHECKING:
    from torch.distributions.transforms import Transform

    from paramstore.db.repository import Repository, Transaction
    from paramstore.snapshot import Snapshot, Statistics

BATCH_BYTES: Final = 8 << 20
"""Tensors hashed and handed over together; the first write waits for one such batch."""
BATCH_TENSORS: Final = 4096
COPIED_BYTES: Final = 32 << 20
"""Copies of strided or foreign tensors that may wait to be written."""
TRANSACTION_BYTES: Final = 128 << 20
"""One transaction's blobs: each costs five fdatasync, and none may grow the page cache for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a caller says about a snapshot."""

    step: int | None = None
    message: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Sequence[str] = ()
    extras: Mapping[str, object] = field(default_factory=dict)
    append: bool = False
    """Commit although another writer moved the head of the scope."""

    @classmethod
    def checked(
        cls,
        *,
        step: int | None,
        message: str | None,
        metrics: Mapping[str, float],
        tags: Iterable[str],
        extras: Mapping[str, object],
        on_conflict: str,
    ) -> Request:
        """Check what a caller says, before anything is written.

        Raises:
            InvalidInputError, InvalidNameError: names the argument and what it should be.
        """
        if on_conflict not in ("raise", "append"):
            raise InvalidInputError(f"on_conflict is 'raise' or 'append', got {on_conflict!r}")
        if isinstance(tags, str):
            raise InvalidInputError(f"tags is a list of names; write tags=[{tags!r}]")
        for what, names in (("metric", metrics), ("extra", extras)):
            for name in names:
                check_param_name(name, what)
        return cls(
            step=None if step is None else _integer("step", step),
            message=None if message is None else _text("message", message),
            metrics={name: _number(name, value) for name, value in metrics.items()},
            tags=[check_tag_name(name) for name in tags],
            extras=dict(extras),
            append=on_conflict == "append",
        )


def _integer(name: str, value: object) -> int:
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInputError(f"{name} is a whole number, got {value!r}") from None
    if not -(2**63) <= found < 2**63:
        raise InvalidInputError(f"{name} is a 64-bit number, got {found}")
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or "\0" in value or not is_encodable(value):
        raise InvalidInputError(f"{name} is text without NUL or lone surrogates, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    try:
        # float() of a tensor that requires a gradient warns; a loss often is one.
        return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"metric {name!r} is a number, got {value!r}") from error


class _Job:
    """One tensor on its way into the database."""

    __slots__ = ("digest", "encoded", "fingerprint", "blob_id", "item", "name", "nbytes", "seq",
                 "statistics", "tensor")  # fmt: skip

    def __init__(self, name: str, tensor: Tensor, *, item: Item | None = None, seq: int = -1):
        self.name = name
        self.tensor = tensor
        self.item = item
        """The parameter that it is the value of; None for a tensor of the extras."""
        self.seq = seq
        """Its place among the tensors of the extras."""
        self.encoded: tensors.Encoded | None = tensors.encode(tensor, name=name)
        self.fingerprint = self.encoded.fingerprint()
        self.nbytes = self.encoded.nbytes
        self.digest = b""
        self.statistics: Statistics | None = None
        self.blob_id = 0

    def encode(self) -> tensors.Encoded:
        """The encoded tensor, made again where the copy has been released."""
        return self.encoded or tensors.encode(self.tensor, name=self.name)

    def blob(self) -> NewBlob:
        return NewBlob(
            digest=self.digest,
            nbytes=self.nbytes,
            dtype=tensors.dtype_name(self.tensor.dtype),
            shape=tuple(self.tensor.shape),
            chunks=lambda: self.encode().chunks(),
        )

    def content(self) -> tuple[bytes, int]:
        return self.fingerprint, self.nbytes

    def copied(self) -> int:
        """Bytes of a copy that waits to be written; none for a view of the live tensor."""
        if self.encoded is None or self.encoded.owner is self.tensor:
            return 0
        return self.nbytes

    def release(self) -> None:
        """Let go of a copy; a view costs nothing."""
        if self.copied():
            self.encoded = None


class _Snapshotting:
    """The state of one commit: what is kept, what changed, what has been written."""

    def __init__(self, working_set: WorkingSet, request: Request, forced: frozenset[str]) -> None:
        self.working_set = working_set
        self.request = request
        self.forced = forced
        """Names that are written although they did not change: their rows are gone."""
        self.live = {item.name: item for item in working_set.items()}
        self.carried = working_set.carried(self.live)
        self.kept: dict[str, Entry] = {}
        self.fingerprints: dict[str, bytes] = {}
        self.jobs: list[_Job] = []
        self.encoder = extras.Encoder()
        self.skeletons = self._skeletons()
        self.extra_blobs: dict[int, tuple[int, bytes]] = {}

    def _skeletons(self) -> list[tuple[str, str, str]]:
        states = capture_all(self.working_set.attached, rng=self.working_set.rng)
        return [
            ("extra", name, self.encoder.encode(value, f"extras[{name!r}]"))
            for name, value in self.request.extras.items()
        ] + [
            ("state", name, self.encoder.encode(value, f"attached {name!r}"))
            for name, value in states.items()
        ]

    # -- what changed --------------------------------------------------------------

    def changed(self) -> Iterator[_Job]:
        """Look at every live tensor and yield those whose bytes or description differ."""
        for item in self.live.values():
            job = _Job(item.name, item.tensor, item=item)
            self.fingerprints[item.name] = job.fingerprint
            entry = self._unchanged(item, job)
            if entry is not None:
                self.kept[item.name] = entry
            else:
                yield job

    def _unchanged(self, item: Item, job: _Job) -> Entry | None:
        stored = self.working_set.stored.get(item.name)
        if stored is None or item.name in self.forced or not _holds(stored, job):
            return None
        entry = stored.entry
        same = (
            entry.kind == item.kind
            and entry.requires_grad == item.tensor.requires_grad
            and entry.spec == item.spec.text
        )
        return entry if same else None

    def changed_extras(self) -> Iterator[_Job]:
        """Yield the tensors of the extras that the last snapshot did not hold."""
        for seq, tensor in enumerate(self.encoder.tensors):
            job = _Job(f"tensor {seq} of the extras", tensor, seq=seq)
            known = None if self.forced else self.working_set.extra_blobs.get(job.content())
            if known is None:
                yield job
            else:
                self.extra_blobs[seq] = known

    def removed(self) -> bool:
        """Whether a name of the parent is gone."""
        return any(
            name not in self.live and name not in self.carried
            for name in self.working_set.parent_versions
        )

    # -- the catalogue -------------------------------------------------------------

    def draft(self, tx: Transaction) -> Draft:
        """Describe the snapshot, all of whose tensors have been written."""
        for job in self.jobs:
            if job.item is None:
                self.extra_blobs[job.seq] = (job.blob_id, job.digest)
        entries: dict[str, Entry | NewEntry] = {**self.carried, **self.kept}
        entries |= {job.item.name: _entry(job.item, job, tx) for job in self.jobs if job.item}
        ws, request = self.working_set, self.request
        assert ws.scope is not None
        return Draft(
            scope=ws.scope,
            seen_head=ws.head.version if ws.head else 0,
            append=request.append,
            parent_id=ws.parent.id if ws.parent else None,
            step=request.step,
            message=request.message,
            metrics=request.metrics,
            tags=request.tags,
            entries=entries,
            extras=self.skeletons,
            extra_blobs=[self.extra_blobs[seq] for seq in range(len(self.extra_blobs))],
            blobs_written={job.blob_id: job.blob() for job in self.jobs},
        )

    def adopt(self, snapshot: Snapshot, new: Mapping[str, Entry]) -> None:
        """Make the snapshot the one that the working set continues."""
        ws = self.working_set
        entries = {**self.carried, **self.kept, **new}
        before = ws.stored
        ws.stored = {
            name: Stored(entry, self.fingerprints.get(name) or before[name].fingerprint)
            for name, entry in entries.items()
        }
        ws.head = ws.parent = snapshot
        ws.parent_versions = {name: entry.param_version_id for name, entry in entries.items()}
        fresh = {job.content(): (job.blob_id, job.digest) for job in self.jobs if not job.item}
        current = {blob_id for blob_id, _ in self.extra_blobs.values()}
        kept = {key: known for key, known in ws.extra_blobs.items() if known[0] in current}
        ws.extra_blobs = kept | fresh


class Writer:
    """Commits working sets to one database.

    **Threads**: one commit at a time, under the store's lock. Tensors must not change while a
    commit runs; one that does is stored under a digest that its bytes do not have.

    **Durability**: when ``commit`` returns, the snapshot is on the disk; before, no reader sees
    any of it. A commit that fails leaves at most unreferenced blobs, which ``gc`` frees.
    """

    def __init__(self, repository: Repository, *, statistics: bool = True) -> None:
        self._repository = repository
        self._statistics = statistics

    def commit(
        self, working_set: WorkingSet, request: Request, *, only_changes: bool = False
    ) -> Snapshot | None:
        """Write a snapshot; with ``only_changes`` None and nothing written where nothing changed.

        Raises:
            ConflictError: somebody else committed to the scope.
            UnsupportedTensorError, UnsupportedExtraError: something has no stored form.
            StoreBusyError, StorageError: the database could not be written.
        """
        forced: frozenset[str] = frozenset()
        while True:
            task = _Snapshotting(working_set, request, forced)
            try:
                return self._commit(task, only_changes=only_changes)
            except StaleEntries as stale:
                # Another process thinned the history that this working set continues.
                if forced:
                    raise
                forced = frozenset(task.live) | frozenset(stale.names)

    def changed(self, working_set: WorkingSet) -> list[str]:
        """The names whose content is not that of the snapshot the working set continues."""
        task = _Snapshotting(working_set, Request(), frozenset())
        names = {job.item.name for job in task.changed() if job.item}
        entries = {**task.carried, **task.kept}
        before = working_set.parent_versions
        names |= {n for n, entry in entries.items() if before.get(n) != entry.param_version_id}
        names |= before.keys() - task.live.keys() - task.carried.keys()
        return sorted(names)

    def _commit(self, task: _Snapshotting, *, only_changes: bool) -> Snapshot | None:
        source = self._batches(task)
        large = _is_large(task)
        # Two threads cost more than they bring for a few kilobytes.
        running = ahead(source, _copied, COPIED_BYTES) if large else nullcontext(source)
        with running as batches:
            first = next(batches, None)
            if only_changes and first is None and not task.removed():
                return None
            return self._write(task, chain([first] if first else [], batches))

    def _batches(self, task: _Snapshotting) -> Iterator[list[_Job]]:
        """Hash what changed, in batches; describe each batch after it was handed over."""
        for batch in _batched(task.changed()):
            values = [(job.encode().owner, job.item) for job in batch]
            yield _hashed(batch)
            if self._statistics:
                _describe(batch, values)
        for batch in _batched(task.changed_extras()):
            yield _hashed(batch)

    def _write(self, task: _Snapshotting, batches: Iterator[list[_Job]]) -> Snapshot:
        scope, head = task.working_set.scope, task.working_set.head
        assert scope is not None
        while True:
            with self._repository.write() as tx:
                if not task.request.append:
                    tx.check_head(scope, head.version if head else 0)
                if _put(tx, task, batches):
                    snapshot, new = tx.append(task.draft(tx))
                    break
        task.adopt(snapshot, new)
        return snapshot


def _put(tx: Transaction, task: _Snapshotting, batches: Iterator[list[_Job]]) -> bool:
    """Write batches into one transaction; whether that was all."""
    room = TRANSACTION_BYTES
    for batch in batches:
        ids = tx.put_blobs([job.blob() for job in batch])
        for job, blob_id in zip(batch, ids, strict=True):
            job.blob_id = blob_id
            room -= job.nbytes
            job.release()
        task.jobs += batch
        if room <= 0:
            return False
    return True


def _entry(item: Item, job: _Job, tx: Transaction) -> NewEntry:
    arguments = _hashed([_Job(item.name, tensor) for _, tensor in item.spec.tensors])
    shape = tuple(job.tensor.shape)
    return NewEntry(
        name=item.name,
        kind=item.kind,
        requires_grad=job.tensor.requires_grad,
        blob_id=job.blob_id,
        digest=job.digest,
        nbytes=job.nbytes,
        dtype=tensors.dtype_name(job.tensor.dtype),
        stored_shape=shape,
        spec=item.spec.text,
        spec_blobs=tuple(tx.put_blobs([job.blob() for job in arguments]) if arguments else ()),
        shape=shape if item.transform is None else _value_shape(item.transform, shape),
        statistics=job.statistics,
    )


def _value_shape(transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(transform.forward_shape(shape))


def _holds(stored: Stored, job: _Job) -> bool:
    """Whether the stored bytes are those of the job."""
    if stored.fingerprint is None:  # never read: its name was set unseen
        return job.encode().digest() == stored.entry.digest
    return stored.fingerprint == job.fingerprint


def _hashed(batch: list[_Job]) -> list[_Job]:
    for job in batch:
        job.digest = job.encode().digest()
    return batch


def _describe(batch: list[_Job], values: list[tuple[Tensor, Item | None]]) -> None:
    found = describe([(tensor, item.transform if item else None) for tensor, item in values])
    for job, statistics in zip(batch, found, strict=True):
        job.statistics = statistics


def _copied(batch: list[_Job]) -> int:
    return sum(job.copied() for job in batch)


def _is_large(task: _Snapshotting) -> bool:
    # Not nbytes: a sparse tensor has none, and has yet to be refused by name.
    every = [*(item.tensor for item in task.live.values()), *task.encoder.tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in every) > BATCH_BYTES


def _batched(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    batch: list[_Job] = []
    nbytes = 0
    for job in jobs:
        batch.append(job)
        nbytes += job.nbytes
        if nbytes >= BATCH_BYTES or len(batch) >= BATCH_TENSORS:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch
