"""Parameter files: what ``save`` writes and ``load`` reads, in one safetensors file.

Reads plain safetensors files and the pickles of Pyro's own ``save`` as well. Must never run code
that a file names, and never trust a length that a file claims.

A file of ours is a valid safetensors file of the unconstrained values
(https://github.com/huggingface/safetensors#format), tensors in order of falling alignment. Its
metadata holds ``"format": "pt"`` and, under ``"paramstore"``, JSON::

    {"version": 1,
     "params": {"scale": {"constraint": {"kind": "positive"}}, …},
     "arguments": {"<digest>": {"tensor": "<its name in the file>"}}}

``params`` is in the order of the dictionary. An entry may also have ``"kind": "parameter"``,
``"requires_grad": false``, ``"dtype": "C128"`` (stored as its real view) and ``"tensor"``, the
tensor's name in the file where it differs: one tensor of several names is written once.
``arguments`` are the large tensor arguments of constraints.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import pickles
from paramstore.constraints import from_spec, to_spec
from paramstore.db.engine import is_open_here
from paramstore.errors import CorruptError, ParamStoreError, StorageError, UnsupportedFileError
from paramstore.header import DTYPES, parse_header
from paramstore.modes import outside_modes
from paramstore.reader import MapLocation, place
from paramstore.tensors import CHUNK, Filler, empty, encode

Item = tuple[str, Tensor, Constraint]
"""Name, unconstrained value, constraint."""

_VERSION = 1
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
_SQLITE = b"SQLite format 3\0"
_WIDEST = 8  # bytes of the widest element, and the alignment of the data


# ------------------------------------------------------------------------------------- writing


def save_file(path: str | os.PathLike[str], items: Iterable[Item]) -> None:
    """Write parameters to one safetensors file, atomically and durably.

    The file is complete under its name, or what was there before still is. Memory: one copy of
    the largest tensor that is not contiguous on the CPU.

    Args:
        path: The file; replaced if it exists.
        items: Name, unconstrained value and constraint of each parameter.

    Raises:
        UnsupportedTensorError: a tensor without a stored form.
        UnknownConstraintError: a constraint without a spec.
        UnsupportedFileError: the file is an SQLite database, a store perhaps.
        StorageError: the file cannot be written.
    """
    if _is_database(path):
        raise UnsupportedFileError(
            f"{os.fspath(path)!r} is an SQLite database and is not overwritten; save to another "
            f"file, or commit() into a store"
        )
    plan = _Plan()
    for name, tensor, constraint in items:
        plan.add(name, tensor, constraint)
    with _replacing(path) as file:
        file.write(plan.header())
        for name, tensor in plan.in_file_order():
            file.write(encode(tensor, name=name).data)


def _is_database(path: str | os.PathLike[str]) -> bool:
    if is_open_here(path):
        return True
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:  # nothing there, as a rule; what else it is the writing will find
        return False


class _Plan:
    """Where each tensor goes, before the first byte is written."""

    def __init__(self) -> None:
        self._params: dict[str, dict[str, Any]] = {}
        self._arguments: dict[str, dict[str, Any]] = {}
        self._tensors: dict[str, Tensor] = {}
        self._entries: dict[str, dict[str, Any]] = {}
        self._placed: dict[int, str] = {}

    def add(self, name: str, tensor: Tensor, constraint: Constraint) -> None:
        spec = to_spec(constraint)
        for digest, argument in spec.tensors:
            if digest not in self._arguments:
                self._arguments[digest] = self._place(f"$argument:{digest}", argument)
        entry = {"constraint": json.loads(spec.text), **self._place(name, tensor)}
        if entry["tensor"] == name:
            del entry["tensor"]
        if isinstance(tensor, nn.Parameter):
            entry["kind"] = "parameter"
        if not tensor.requires_grad:
            entry["requires_grad"] = False
        self._params[name] = entry

    def _place(self, name: str, tensor: Tensor) -> dict[str, Any]:
        """Give a tensor its place in the file, once; return what leads to it."""
        encoded = encode(tensor, name=name)
        mark = {"dtype": "C128"} if encoded.dtype == "C128" else {}
        if id(tensor) not in self._placed:
            while name in self._tensors or name == _METADATA:
                name += "'"
            self._entries[name] = json.loads(encoded.header[8:])["value"]
            self._tensors[name] = tensor
            self._placed[id(tensor)] = name
        return {"tensor": self._placed[id(tensor)], **mark}

    def in_file_order(self) -> Iterator[tuple[str, Tensor]]:
        """Widest elements first, so that every tensor is aligned without holes."""
        return iter(sorted(self._tensors.items(), key=lambda item: -_width(item[1])))

    def header(self) -> bytes:
        start = 0
        for name, _ in self.in_file_order():
            length = self._entries[name]["data_offsets"][1]
            self._entries[name]["data_offsets"] = [start, start + length]
            start += length
        ours = {"version": _VERSION, "params": self._params, "arguments": self._arguments}
        fields = {_METADATA: {"format": "pt", "paramstore": _dumps(ours)}, **self._entries}
        return _frame(fields)


def _frame(fields: Mapping[str, object]) -> bytes:
    """Write a header: the length of its JSON, and that, padded so that the data is aligned."""
    text = _dumps(fields).encode()
    text += b" " * (-len(text) % _WIDEST)
    return len(text).to_bytes(8, "little") + text


def _width(tensor: Tensor) -> int:
    return min(tensor.element_size(), _WIDEST)


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends without an exception."""
    target = Path(os.path.realpath(path))  # a link stays one
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    with _storage_errors(f"cannot write {os.fspath(path)!r}"):
        try:
            with draft.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only when the folder itself has been written.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------- reading


def load_file(path: str | os.PathLike[str], map_location: MapLocation = None) -> list[Item]:
    """Read the parameters of a file: ours, a plain safetensors file, or one of Pyro's.

    No code of the file runs. A plain safetensors file has no constraints: all are ``real``.

    Args:
        path: The file.
        map_location: Where the tensors go, as for ``torch.load``.

    Returns:
        Name, unconstrained value and constraint of each parameter, all checked.

    Raises:
        UnsupportedFileError: a file that holds something else, says what it is.
        CorruptError: a file of a known kind that is cut off or altered.
        UnknownConstraintError: a constraint that is not registered here.
        StorageError: the file does not exist or cannot be read.
    """
    return outside_modes(_load, os.fspath(path), map_location)


def _load(path: str, map_location: MapLocation) -> list[Item]:
    if is_open_here(path):
        raise UnsupportedFileError(f"{path!r} is no parameter file: {_kind(_SQLITE)}")
    with _storage_errors(f"cannot read {path!r}"), Path(path).open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if start[8:9] == b"{":
            return _Archive(path, file).items(map_location)
        if start.startswith((b"PK\x03\x04", b"\x80")):
            return pickles.load_pyro(path, file, map_location)
    raise UnsupportedFileError(f"{path!r} is no parameter file: {_kind(start)}")


def _kind(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.startswith(_SQLITE):
        return "it is an SQLite database; a store is opened with paramstore.open(path)"
    return f"it is neither safetensors nor a pickle of torch.save (it begins with {start!r})"


class _Archive:
    """A safetensors file that is being read; nothing in it is believed before it is checked."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER, size - 8):
            self._refuse(f"its header would have {length} bytes, and the file has {size}")
        fields = self._parse(file.read(length))
        self._metadata = fields.pop(_METADATA, {})
        self._entries = fields
        self._start = 8 + length
        self._check_offsets(size - self._start)

    def items(self, map_location: MapLocation) -> list[Item]:
        try:
            if "paramstore" in self._metadata:
                return self._ours(self._parse(self._metadata["paramstore"]), map_location)
            return [
                (name, _trained(place(self._tensor(name), map_location)), constraints.real)
                for name in self._entries
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ParamStoreError):
                raise
            self._refuse(f"its description of the parameters is malformed ({error!r})")

    def _ours(self, ours: Mapping[str, Any], map_location: MapLocation) -> list[Item]:
        if ours["version"] != _VERSION:
            raise UnsupportedFileError(
                f"{self._path!r} has format {ours['version']!r} of a newer paramstore; this one "
                f"reads {_VERSION}: pip install -U paramstore"
            )
        found: dict[tuple[str, str], Tensor] = {}
        items = []
        for name, entry in ours["params"].items():
            key = _key(entry, name)
            if key not in found:
                found[key] = self._as_saved(place(self._tensor(*key), map_location), entry)
            constraint = from_spec(
                json.dumps(entry["constraint"]),
                lambda digest: self._tensor(*_key(ours["arguments"][digest], digest)),
                device=found[key].device,
            )
            items.append((name, found[key], constraint))
        return items

    @staticmethod
    def _as_saved(tensor: Tensor, entry: Mapping[str, Any]) -> Tensor:
        if entry.get("kind") == "parameter":
            tensor = nn.Parameter(tensor, requires_grad=False)
        return tensor.requires_grad_() if entry.get("requires_grad", True) else tensor

    def _tensor(self, name: str, mark: str = "") -> Tensor:
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        self._check_dtype(name, entry["dtype"])
        value = {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [0, end - start]}
        header = _frame({_METADATA: {"dtype": mark}, "value": value} if mark else {"value": value})
        dtype, shape, _ = parse_header(header)  # strict, so the length fits dtype and shape
        target = empty(dtype, shape)
        self._fill(target, header, start, end)
        return target

    def _check_dtype(self, name: str, dtype: str) -> None:
        if dtype not in DTYPES:
            raise UnsupportedFileError(
                f"{name!r} in {self._path!r} has dtype {dtype!r}, which torch cannot hold"
            )

    def _fill(self, target: Tensor, header: bytes, start: int, end: int) -> None:
        filler = Filler(target)
        filler.write(header)
        self._file.seek(self._start + start)
        for left in range(end - start, 0, -CHUNK):
            filler.write(self._file.read(min(CHUNK, left)))
        filler.close()

    def _check_offsets(self, size: int) -> None:
        """Tensors cover the data without a hole and without overlap, as the format demands."""
        try:
            spans = sorted((*entry["data_offsets"],) for entry in self._entries.values())
            ends = [0, *(end for _, end in spans)]
            whole = ends[:-1] == [start for start, _ in spans] and ends == sorted(ends)
        except (KeyError, TypeError, ValueError) as error:
            self._refuse(f"an entry of its header is malformed ({error!r})")
        if not whole or ends[-1] != size:
            self._refuse(f"its tensors should take {ends[-1]} bytes, and {size} are there")

    def _parse(self, text: bytes | str) -> dict[str, Any]:
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._refuse(f"its header is not JSON ({error})")
        if not isinstance(fields, dict):
            self._refuse("its header is not a JSON object")
        return fields

    def _refuse(self, why: str) -> NoReturn:
        raise CorruptError(f"{self._path!r} is cut off or altered: {why}")


def _key(entry: Mapping[str, str], name: str) -> tuple[str, str]:
    return entry.get("tensor", name), entry.get("dtype", "")


def _trained(tensor: Tensor) -> Tensor:
    floating = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if floating else tensor
