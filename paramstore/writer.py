"""A commit: what changed is hashed and described on one thread while another writes it.

Reads tensors and writes rows; never changes a tensor, and never makes part of a snapshot visible.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Final

from paramstore.capture import Capture
from paramstore.db.repository import Draft, Entry, NewEntry, StaleEntries
from paramstore.errors import DatabaseError, ExpiredError
from paramstore.jobs import (
    Job,
    batched,
    describe_all,
    nbytes_of,
    pays_for_a_thread,
    values_of,
)
from paramstore.pipeline import ahead
from paramstore.progress import Advance, progress
from paramstore.request import Request
from paramstore.working_set import Item, Stored, WorkingSet

if TYPE_CHECKING:
    from paramstore.db.repository import Repository, Transaction
    from paramstore.snapshot import Snapshot

COPIED_BYTES: Final = 32 << 20
"""Copies of strided or foreign tensors that may wait to be written."""
TRANSACTION_BYTES: Final = 512 << 20
"""One transaction's blobs: each costs five fdatasync, and others have to wait for its end."""


class _Snapshotting:
    """The state of one commit: what is kept, what changed, what has been written."""

    def __init__(self, working_set: WorkingSet, capture: Capture, forced: frozenset[str]) -> None:
        self.working_set = working_set
        self.capture = capture
        self.forced = forced
        """Names that are written although they did not change: their rows are gone."""
        self.carried = {n: working_set.as_in_parent(e) for n, e in capture.carried.items()}
        known = capture.unchanged.items()
        self.kept = {name: working_set.as_in_parent(stored.entry) for name, stored in known}
        self.fingerprints = {name: stored.fingerprint for name, stored in known}
        self.jobs: list[Job] = []
        self.committed = 0
        """How many of them were written by transactions that have ended."""
        self.extra_blobs: dict[int, tuple[int, bytes]] = {}
        self.moved_blobs: Mapping[int, int] = {}
        """Where blobs are that had to be written twice."""

    # -- what changed --------------------------------------------------------------

    def changed(self) -> Iterator[Job]:
        """Look at every tensor and yield those whose bytes or description differ."""
        ws, known = self.working_set, self.capture.unchanged
        for name, item in self.capture.items.items():
            if name in known:
                continue
            job = Job(name, item.tensor, item)
            entry = None if name in self.forced else _holding(job, name, ws)
            if entry is not None and item.is_described_by(entry):
                self.kept[name] = ws.as_in_parent(entry)
                self.fingerprints[name] = job.fingerprint()
            else:
                yield job

    def changed_extras(self) -> Iterator[Job]:
        """Yield the tensors of the extras that the last snapshot did not hold."""
        for seq, tensor in enumerate(self.capture.tensors):
            job = Job(f"tensor {seq} of the extras", tensor, seq=seq)
            known = None if self.forced else self.working_set.extra_blobs.get(job.content())
            if known is None:
                yield job
            else:
                self.extra_blobs[seq] = known

    def moved(self) -> set[str]:
        """The names that hold another stored value than in the parent, or that only one has.

        Known once ``changed`` is exhausted.
        """
        parent = self.working_set.parent_entries
        entries = {**self.carried, **self.kept}
        names = {name for name, entry in entries.items() if parent.get(name) is not entry}
        return names | (parent.keys() - self.capture.items.keys() - self.carried.keys())

    def states_changed(self, jobs: Iterable[Job]) -> bool:
        """Whether attached objects have another state than in the parent."""
        ws = self.working_set
        if {name: text for _, name, text in self.capture.skeletons} != ws.parent_states:
            return True
        digests = {seq: digest for seq, (_, digest) in self.extra_blobs.items()}
        digests |= {job.seq: job.digest for job in jobs}
        return [digests[seq] for seq in range(len(digests))] != ws.parent_digests[: len(digests)]

    # -- the catalogue -------------------------------------------------------------

    def draft(self, tx: Transaction) -> Draft:
        """Describe the snapshot, all of whose tensors have been written."""
        for job in self.jobs:
            if job.item is None:
                self.extra_blobs[job.seq] = (job.blob_id, job.digest)
        entries: dict[str, Entry | NewEntry] = {**self.carried, **self.kept}
        entries |= {job.name: self._entry(job, job.item, tx) for job in self.jobs if job.item}
        ws, request = self.working_set, self.capture.request
        assert ws.scope is not None
        return Draft(
            scope=ws.scope,
            seen_head=ws.head.version if ws.head else 0,
            seen_id=ws.head.id if ws.head else None,
            append=request.append,
            parent_id=ws.parent.id if ws.parent else None,
            step=request.step,
            message=request.message,
            kind=request.kind,
            metrics=request.metrics,
            tags=request.tags,
            entries=entries,
            extras=self.capture.skeletons,
            extra_blobs=[self.extra_blobs[seq] for seq in range(len(self.extra_blobs))],
            blobs_written={job.blob_id: job for job in self.jobs[: self.committed]},
        )

    @staticmethod
    def _entry(job: Job, item: Item, tx: Transaction) -> NewEntry:
        if not item.spec.tensors:
            return job.entry(item, ())
        arguments = [Job(job.name, tensor) for _, tensor in item.spec.tensors]
        for argument in arguments:
            argument.hash()
        return job.entry(item, tuple(tx.put_blobs(arguments)))

    def adopt(self, snapshot: Snapshot, new: Mapping[str, Entry]) -> None:
        """Make the snapshot the one that the working set continues."""
        ws = self.working_set
        entries = {**self.carried, **self.kept, **new}
        # No fingerprint of what changed: it will change again, and is hashed at once then.
        stored = map(Stored, entries.values(), map(self.fingerprints.get, entries))
        carried = {name: ws.stored[name] for name in self.carried}
        ws.stored = dict(zip(entries, stored, strict=True)) | carried
        ws.head = ws.parent = snapshot
        ws.parent_entries = entries
        fresh = {
            job.content(): (self.moved_blobs.get(job.blob_id, job.blob_id), job.digest)
            for job in self.jobs
            if not job.item
        }
        current = {blob_id for blob_id, _ in self.extra_blobs.values()}
        kept = {key: known for key, known in ws.extra_blobs.items() if known[0] in current}
        ws.extra_blobs = kept | fresh
        skeletons = self.capture.skeletons
        ws.parent_states = {name: text for kind, name, text in skeletons if kind == "state"}
        ws.parent_digests = [self.extra_blobs[seq][1] for seq in range(len(self.extra_blobs))]


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
        self, working_set: WorkingSet, capture: Capture, *, only_changes: bool = False
    ) -> Snapshot | None:
        """Write a snapshot; with ``only_changes`` None and nothing written where nothing changed.

        What was captured in copies is written on the calling thread alone, because a training that
        must not be slowed down goes on beside it.

        Raises:
            ConflictError: somebody else committed to the scope.
            UnsupportedTensorError, UnsupportedExtraError: something has no stored form.
            ExpiredError: somebody else expired what this store had still to read, or to compare.
            StoreBusyError, StorageError: the database could not be written.
        """
        forced: frozenset[str] = frozenset()
        while True:
            task = _Snapshotting(working_set, capture, forced)
            try:
                return self._commit(task, only_changes=only_changes)
            except StaleEntries as stale:
                # Another process thinned the history that this working set continues.
                if lost := stale.names & capture.carried.keys():
                    raise _lost(working_set, sorted(lost)) from stale
                if capture.unchanged:  # not copied, and the live tensors may have moved on
                    working_set.forget_fingerprints()
                    raise ExpiredError(
                        "another process has expired the history that this store continues, and "
                        "with it values that had not changed; commit again, which writes them anew"
                    ) from stale
                known, forced = forced, forced | stale.names
                if stale.blobs:  # of extras: any may be gone, and they are few
                    forced |= capture.items.keys()
                if forced == known:
                    raise

    def changed(self, working_set: WorkingSet) -> list[str]:
        """The names whose content is not that of the snapshot the working set continues."""
        task = _Snapshotting(working_set, Capture.of(working_set, Request()), frozenset())
        names = {job.item.name for job in task.changed() if job.item}
        return sorted(names | task.moved())

    def _commit(self, task: _Snapshotting, *, only_changes: bool) -> Snapshot | None:
        source = self._batches(task)
        capture = task.capture
        every = [*(item.tensor for item in capture.items.values()), *capture.tensors]
        nbytes = nbytes_of(every)
        if not self._repository.has_ample_room(nbytes):
            self._check_room(_Snapshotting(task.working_set, capture, task.forced))
        threaded = not capture.is_copied and pays_for_a_thread(nbytes, len(every))
        with ahead(source, _copied, COPIED_BYTES) if threaded else nullcontext(source) as batches:
            first = next(batches, None) or []
            if only_changes and not any(job.item for job in first) and not task.moved():
                rest = [first, *batches]  # the tensors of attached states
                if not task.states_changed(chain.from_iterable(rest)):
                    return None
                batches = iter(rest)
            else:
                batches = chain([first], batches)
            if not threaded:  # quick, or in the background of a training that may print
                return self._write(task, batches)
            with progress("writing tensors", unit="bytes") as advance:
                return self._write(task, _counted(batches, advance))

    def _check_room(self, task: _Snapshotting) -> None:
        """Refuse, before anything is written, what cannot fit: everything is hashed twice then."""
        jobs = chain(task.changed(), task.changed_extras())
        self._repository.check_room({job.hash(): job.nbytes for job in jobs})

    def _batches(self, task: _Snapshotting) -> Iterator[list[Job]]:
        """Hash what changed, in batches; describe each batch after it was handed over."""
        for batch in batched(task.changed()):
            values = values_of(batch)
            yield batch
            if self._statistics:
                describe_all(batch, values)
        yield from batched(task.changed_extras())

    def _write(self, task: _Snapshotting, batches: Iterator[list[Job]]) -> Snapshot:
        scope, head = task.working_set.scope, task.working_set.head
        assert scope is not None
        done: tuple[Snapshot, dict[str, Entry]] | None = None
        try:
            while done is None:
                with self._repository.write() as tx:
                    if not task.capture.request.append:
                        tx.check_head(scope, head.version if head else 0)
                    if _put(tx, task, batches):
                        done = tx.append(task.draft(tx))
                        task.moved_blobs = tx.moved
                task.committed = len(task.jobs)
        except DatabaseError as error:
            if done is not None and self._is_there(done[0]):
                task.adopt(*done)  # or the next commit would take it for somebody else's
                error.add_note(
                    f"{done[0].ref} is in the file all the same, and the next commit continues it; "
                    f"until that succeeds, a power cut may undo both."
                )
            raise
        task.adopt(*done)
        return done[0]

    def _is_there(self, snapshot: Snapshot) -> bool:
        """Whether it can be seen although its commit failed: after that point only a sync is left.

        That sync makes durable that the journal is void; https://sqlite.org/atomiccommit.html
        """
        try:
            head = self._repository.head(snapshot.scope)
        except DatabaseError:
            return False
        return head is not None and (head.id, head.created_at) == (snapshot.id, snapshot.created_at)


def _put(tx: Transaction, task: _Snapshotting, batches: Iterator[list[Job]]) -> bool:
    """Write batches into one transaction; whether that was all."""
    room = TRANSACTION_BYTES
    for batch in batches:
        for job, blob_id in zip(batch, tx.put_blobs(batch), strict=True):
            job.written(blob_id)
            room -= job.nbytes
        task.jobs += batch
        if room <= 0:
            return False
    return True


def _holding(job: Job, name: str, ws: WorkingSet) -> Entry | None:
    """The row that has the bytes of the job: the one last seen under its name, or the parent's."""
    parent = ws.parent_entries.get(name)
    if stored := ws.stored.get(name):
        entry, known = stored
        if known == job.fingerprint() if known else entry.digest == job.hash():
            return entry
        if parent is entry:
            return None
    return parent if parent is not None and parent.digest == job.hash() else None


def _lost(ws: WorkingSet, names: list[str]) -> ExpiredError:
    """The error for values that nobody holds any more; buffers without a module are given up."""
    for name in names:
        if name not in ws.params:
            del ws.stored[name]
    return ExpiredError(
        f"another process has expired and freed values that this store was to carry on unread: "
        f"{', '.join(map(repr, names[:5]))}{' …' if len(names) > 5 else ''}. Give parameters new "
        f"values, or delete them; bind the module of a buffer, or commit again without it; or take "
        f"the newest snapshot with store.resume()"
    )


def _counted(batches: Iterator[list[Job]], advance: Advance) -> Iterator[list[Job]]:
    for batch in batches:
        yield batch
        advance(sum(job.nbytes for job in batch))


def _copied(batch: list[Job]) -> int:
    return sum(job.copied for job in batch)


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python from looking for cycles: a commit of many tensors makes many objects and none.

    For 20,000 small tensors that search took half of the commit.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
