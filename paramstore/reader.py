"""Tensors out of snapshots: checked, filled in place, or read one by one.

Never writes to the database and never touches a tensor that it was not given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from blake3 import blake3
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from paramstore import extras, tensors
from paramstore.constraints import from_spec, is_identity, is_static, transform_of
from paramstore.errors import (
    CorruptError,
    DatabaseError,
    ExpiredError,
    InvalidInputError,
    ParamNotFoundError,
    RestoreInterruptedError,
)
from paramstore.header import check_shape, data_bytes
from paramstore.listing import some
from paramstore.modes import outside_modes
from paramstore.optimisers import without_owner
from paramstore.progress import Advance, progress, uncounted
from paramstore.refs import suggest
from paramstore.tensors import Filler

if TYPE_CHECKING:
    from torch.distributions.transforms import Transform

    from paramstore.db.repository import Entry, Manifest, Repository
    from paramstore.snapshot import Snapshot

MapLocation = str | torch.device | Mapping[str, str] | Callable[[Tensor, str], Tensor] | None
"""Where tensors are put, in the forms that ``torch.load`` takes; they are stored on ``cpu``."""

_READERS = 2
_PARALLEL_FROM = 8 << 20  # bytes; below, two threads cost more than they bring
_BELIEVED = 16 << 20  # bytes that may be asked for on the word of a row

T = TypeVar("T")


class Reader:
    """Reads stored tensors.

    **Threads**: any; holds no state but a cache of constraints.
    """

    def __init__(self, repository: Repository, map_location: MapLocation = None) -> None:
        self._repository = repository
        self._map_location = map_location
        self._constraints: dict[str, Constraint] = {}
        """By spec: those of which many parameters may share one."""

    # -- tensors -------------------------------------------------------------------

    def tensor(self, entry: Entry, *, snapshot: Snapshot | None = None) -> Tensor:
        """Read one tensor, checked: the unconstrained value, a leaf without gradient.

        Raises:
            CorruptError: missing or altered bytes.
        """
        (found,) = self._fresh([entry], snapshot)
        return place(found, self._map_location)

    def read(self, entries: Sequence[Entry], *, snapshot: Snapshot | None = None) -> list[Tensor]:
        """Read tensors, checked, as the working set holds them.

        Raises:
            CorruptError: missing or altered bytes.
        """
        found = zip(entries, self._fresh(entries, snapshot), strict=True)
        return [_as_stored(place(tensor, self._map_location), entry) for entry, tensor in found]

    def _fresh(self, entries: Sequence[Entry], snapshot: Snapshot | None) -> list[Tensor]:
        impossible = self._impossible(entries)
        if impossible:
            raise self._corrupt(entries, impossible, snapshot)
        targets = [tensors.empty(entry.dtype, entry.stored_shape) for entry in entries]
        damaged = self._copy(list(zip(entries, targets, strict=True)), [], verify=True)
        if damaged:
            raise self._unreadable(entries, damaged, snapshot)
        return targets

    def _impossible(self, entries: Sequence[Entry]) -> set[int]:
        """Return the blobs that claim more than they can hold, before memory is asked for.

        Whoever wrote the file may have written any number of bytes, and a digest that fits.
        """
        found = {entry.blob_id for entry in entries if not _is_possible(entry)}
        sizes = _sizes(entries)
        if not found and sum(sizes.values()) > _BELIEVED:
            room = self._repository.database.nbytes()
            if sum(sizes.values()) > room:  # blobs do not overlap
                found = {row for row, nbytes in sizes.items() if nbytes > room} or set(sizes)
        return found

    def check(self, entries: Sequence[Entry], *, snapshot: Snapshot | None) -> None:
        """Compare the stored bytes of ``entries`` with their digests; changes nothing.

        Raises:
            CorruptError: naming every parameter whose bytes are missing or altered.
        """
        digests = {entry.blob_id: entry.digest for entry in entries}

        def bad(sizes: Mapping[int, int], advance: Advance) -> list[int]:
            found = {blob_id: _digest(chunks) for blob_id, chunks in self._blobs(sizes, advance)}
            return [blob_id for blob_id in sizes if found.get(blob_id) != digests[blob_id]]

        damaged = set(_in_parallel("checking tensors", bad, _sizes(entries)))
        if damaged:
            raise self._unreadable(entries, damaged, snapshot)

    def fill(
        self, pairs: Sequence[tuple[Entry, Tensor]], *, snapshot: Snapshot | None = None
    ) -> None:
        """Copy stored tensors into live ones of the same dtype and shape, whatever their strides.

        Digests are not compared: :meth:`check` does that before anything is overwritten.

        Raises:
            CorruptError: bytes missing or of another length; no tensor has been changed.
            RestoreInterruptedError: the same, found after tensors were changed; ``params`` names
                those, one that is half written included.
        """
        touched: list[str] = []
        damaged = self._copy(pairs, touched, verify=False)
        if damaged:
            entries = [entry for entry, _ in pairs]
            if not touched:
                raise self._unreadable(entries, damaged, snapshot)
            raise _interrupted(self._corrupt(entries, damaged, snapshot), touched)

    def _copy(
        self, pairs: Sequence[tuple[Entry, Tensor]], touched: list[str], *, verify: bool
    ) -> set[int]:
        """Copy what can be; return the blobs that could not, add changed names to ``touched``."""
        targets: dict[int, list[tuple[Entry, Tensor]]] = defaultdict(list)
        for entry, tensor in pairs:
            targets[entry.blob_id].append((entry, tensor))

        def unfilled(sizes: Mapping[int, int], advance: Advance) -> list[int]:
            left = dict.fromkeys(sizes)
            for blob_id, chunks in self._blobs(sizes, advance):
                fillers = [(entry.name, Filler(tensor)) for entry, tensor in targets[blob_id]]
                digest = targets[blob_id][0][0].digest if verify else None
                if tensors.fill([filler for _, filler in fillers], chunks, digest):
                    del left[blob_id]
                touched.extend(name for name, filler in fillers if filler.touched)
            return list(left)

        sizes = _sizes(entry for entry, _ in pairs)
        return set(_in_parallel("reading tensors", unfilled, sizes))

    def _blobs(
        self, sizes: Mapping[int, int], advance: Advance
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        rows = self._repository.read_blobs(sizes)
        for blob_id, group in groupby(rows, key=itemgetter(0)):
            yield blob_id, _counted(group, advance)

    def _unreadable(
        self,
        entries: Sequence[Entry],
        damaged: set[int],
        snapshot: Snapshot | None,
        what: str | None = None,
    ) -> DatabaseError:
        """The error for bytes that are not there, or not those that were written."""
        lost = [entry for entry in entries if entry.blob_id in damaged]
        if snapshot is None and not self._repository.any_exists(lost):
            return ExpiredError(
                f"{some(repr(entry.name) for entry in lost)} had not been read yet when another "
                f"process expired the snapshot and freed it; store.resume() continues the newest "
                f"one"
            )
        if snapshot is not None and not self._repository.exists(snapshot):
            return ExpiredError(
                f"{snapshot.ref} has been expired by another process, and freed; take one that "
                f"store.log() lists"
            )
        return self._corrupt(entries, damaged, snapshot, what)

    def _corrupt(
        self,
        entries: Sequence[Entry],
        damaged: set[int],
        snapshot: Snapshot | None,
        what: str | None = None,
    ) -> CorruptError:
        names = [entry.name for entry in entries if entry.blob_id in damaged]
        affected = [snapshot.ref] if snapshot else []
        with suppress(CorruptError):  # what leads from blobs to snapshots may be damaged as well
            for blob_id in damaged:
                affected += self._repository.affected(blob_id)
        affected = list(dict.fromkeys(affected))
        return CorruptError(
            f"the stored bytes of {what or some(map(repr, names))} are missing or altered; "
            f"snapshots that hold them: {some(affected)}. Nothing has been changed; "
            f"restore another snapshot, or leave these out with exclude=[…]",
            params=names,
            snapshots=affected,
        )

    # -- constraints and extras ----------------------------------------------------

    def constraint(self, entry: Entry) -> Constraint:
        """Build the constraint of a stored parameter.

        Raises:
            UnknownConstraintError: of a kind that is not registered here.
        """
        known = self._constraints.get(entry.spec)
        if known is not None:
            return known
        device = place(torch.empty(0), self._map_location).device
        found = from_spec(entry.spec, lambda d: self._argument(entry, d), device=device)
        if is_static(found):
            self._constraints[entry.spec] = found
        return found

    def _argument(self, entry: Entry, digest: str) -> Tensor:
        blob = self._repository.constraint_blob(entry.constraint_id, digest)
        if blake3(blob).hexdigest() != digest:
            raise CorruptError(
                f"an argument of the constraint of {entry.name!r} is altered", params=[entry.name]
            )
        return tensors.decode(blob)

    def extras(self, manifest: Manifest, kind: str) -> dict[str, object]:
        """Decode the extras (``extra``) or the attached state (``state``) of a snapshot.

        Raises:
            CorruptError: altered bytes.
        """
        what = "extras" if kind == "extra" else "attached state"

        def fetch(seq: int) -> Tensor:
            if not 0 <= seq < len(manifest.extra_blobs):
                raise CorruptError(
                    f"the {what} of {manifest.snapshot.ref} names a tensor that is not stored",
                    snapshots=[manifest.snapshot.ref],
                )
            blob_id, digest, nbytes = manifest.extra_blobs[seq]
            chunks = [chunk for _, _, chunk in self._repository.read_blobs({blob_id: nbytes})]
            if _digest(chunks) != digest:
                raise self._unreadable([], {blob_id}, manifest.snapshot, f"the {what}")
            return tensors.decode(b"".join(chunks))

        return {
            name: extras.decode(skeleton, fetch)
            for row_kind, name, skeleton in manifest.extras
            if row_kind == kind
        }

    def lazy_extras(self, snapshot: Snapshot) -> Mapping[str, object]:
        """The extras of a snapshot, read when first looked at."""
        return LazyExtras(lambda: self.extras(self._repository.manifest(snapshot), "extra"))


class LazyExtras(Mapping[str, object]):
    """The extras of one snapshot; the database is asked when they are first looked at."""

    __slots__ = ("_load", "_values")

    def __init__(self, load: Callable[[], dict[str, object]]) -> None:
        self._load = load
        self._values: dict[str, object] | None = None

    def _read(self) -> dict[str, object]:
        if self._values is None:
            self._values = outside_modes(self._load)
        return self._values

    def __getitem__(self, name: str) -> object:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __repr__(self) -> str:
        return repr(self._read())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self._read()),)


class SnapshotView(Mapping[str, Tensor]):
    """One snapshot, read-only: constrained values by name, each read when asked for.

    Holds buffers and frozen parameters too. Every tensor is checked against its digest.

    **Threads**: any. **Ownership**: each call returns a new tensor.
    """

    def __init__(self, reader: Reader, manifest: Manifest, snapshot: Snapshot) -> None:
        self._reader = reader
        self.manifest = manifest
        """Its catalogue, checked."""
        self.snapshot = snapshot
        """The snapshot that is looked at."""

    def __getitem__(self, name: str) -> Tensor:
        return outside_modes(self._constrained, self._entry(name))

    def _constrained(self, entry: Entry) -> Tensor:
        constraint = self._reader.constraint(entry)
        value = self._reader.tensor(entry, snapshot=self.snapshot)
        return value if is_identity(constraint) else _constrain(transform_of(constraint), value)

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.entries)

    def __len__(self) -> int:
        return len(self.manifest.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.entries

    def __repr__(self) -> str:
        return f"<SnapshotView of {self.snapshot.ref}: {len(self)} parameters>"

    def unconstrained(self, name: str) -> Tensor:
        """Read the unconstrained value of a parameter, as it was trained.

        Raises:
            ParamNotFoundError: the snapshot has no such parameter.
            CorruptError: its bytes are missing or altered.
        """
        entry = self._entry(name)
        return outside_modes(lambda: self._reader.tensor(entry, snapshot=self.snapshot))

    def constraint(self, name: str) -> Constraint:
        """Return the constraint of a parameter.

        Raises:
            ParamNotFoundError: the snapshot has no such parameter.
            UnknownConstraintError: a kind that is not registered here.
        """
        entry = self._entry(name)
        return outside_modes(lambda: self._reader.constraint(entry))

    @property
    def extras(self) -> Mapping[str, object]:
        """The extras given to the commit."""
        return self.snapshot.extras

    def state(self, name: str) -> object:
        """Return the state of an attached object as it was at the commit.

        Raises:
            ParamNotFoundError: nothing was attached by that name.
        """
        states = outside_modes(lambda: self._reader.extras(self.manifest, "state"))
        if name not in states:
            raise ParamNotFoundError(
                f"nothing was attached as {name!r} in {self.snapshot.ref}{suggest(name, states)}"
            )
        return without_owner(states[name])

    def _entry(self, name: str) -> Entry:
        try:
            return self.manifest.entries[name]
        except (KeyError, TypeError):
            raise ParamNotFoundError(
                f"{self.snapshot.ref} has no parameter {name!r}"
                f"{suggest(name, self.manifest.entries)}"
            ) from None


def _constrain(transform: Transform, value: Tensor) -> Tensor:
    with torch.no_grad():
        return transform(value)  # type: ignore[no-any-return]


def check_map_location(map_location: MapLocation) -> None:
    """Refuse what :func:`place` could not do, before anything is read.

    Raises:
        InvalidInputError: no form that ``torch.load`` takes, or a device that is not here.
    """
    where = map_location.get("cpu", "cpu") if isinstance(map_location, Mapping) else map_location
    if not isinstance(where, str | torch.device):  # which can be called as well
        if where is None or callable(where):
            return
        raise InvalidInputError(
            f"map_location is a device such as 'cpu' or 'cuda:0', a dictionary of them, or a "
            f"function, got {map_location!r}"
        )
    try:
        device = torch.device(where)
    except RuntimeError as error:
        raise InvalidInputError(
            f"map_location={where!r} is no device; name one such as 'cpu' or 'cuda:0'"
        ) from error
    if not _is_here(device):
        raise InvalidInputError(
            f"map_location={str(device)!r}: this process has no such device; pass "
            f"map_location='cpu'"
        )


def _is_here(device: torch.device) -> bool:
    if device.type == "cuda":  # asked without a context on it, which costs memory and seconds
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    try:
        torch.empty(0, device=device)
    except (AssertionError, ImportError, RuntimeError):  # as that kind of device says it
        return False
    return True


def place(tensor: Tensor, map_location: MapLocation) -> Tensor:
    """Move a tensor that was read on the CPU to where ``map_location`` says."""
    if map_location is None:
        return tensor
    if isinstance(map_location, str | torch.device):
        return tensor.to(map_location)
    if isinstance(map_location, Mapping):
        return tensor.to(map_location.get("cpu", "cpu"))
    return map_location(tensor, "cpu")


def _as_stored(tensor: Tensor, entry: Entry) -> Tensor:
    if entry.kind == "parameter":
        return nn.Parameter(tensor, requires_grad=entry.requires_grad)
    return tensor.requires_grad_(entry.requires_grad)


def _digest(chunks: Iterable[bytes]) -> bytes:
    hasher = blake3()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.digest()


def _interrupted(error: CorruptError, touched: list[str]) -> RestoreInterruptedError:
    return RestoreInterruptedError(
        f"stopped half way: the stored bytes of {some(map(repr, error.params))} vanished or are "
        f"not whole; snapshots that hold them: {some(error.snapshots)}. Overwritten by then, one "
        f"maybe in part: {some(map(repr, touched))}; restore another snapshot before you train "
        f"on or commit",
        params=touched,
        snapshots=error.snapshots,
    )


def _is_possible(entry: Entry) -> bool:
    try:
        check_shape(entry.dtype, entry.stored_shape)
        needed = data_bytes(entry.dtype, entry.stored_shape)
    except (CorruptError, KeyError):  # no such shape, no such dtype
        return False
    return needed < entry.nbytes


def _sizes(entries: Iterable[Entry]) -> dict[int, int]:
    return {entry.blob_id: entry.nbytes for entry in entries}


def _counted(rows: Iterable[tuple[int, int, bytes]], advance: Advance) -> Iterator[bytes]:
    for _, _, chunk in rows:
        yield chunk
        advance(len(chunk))


def _in_parallel(
    what: str, work: Callable[[Mapping[int, int], Advance], list[T]], sizes: Mapping[int, int]
) -> list[T]:
    """Run ``work`` on blobs and their lengths, in order of row, halved by bytes where large."""
    total = sum(sizes.values())
    if total < _PARALLEL_FROM:
        return work(dict(sorted(sizes.items())), uncounted)
    with progress(what, total, unit="bytes") as advance:
        if len(sizes) < _READERS:
            return work(sizes, advance)
        parts: list[dict[int, int]] = [{} for _ in range(_READERS)]
        done = 0
        for blob_id, nbytes in sorted(sizes.items()):
            parts[min(done * _READERS // total, _READERS - 1)][blob_id] = nbytes
            done += nbytes
        with ThreadPoolExecutor(_READERS, "paramstore-reader") as pool:
            return [found for part in pool.map(work, parts) for found in part]
