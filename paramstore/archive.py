"""Parameter files: what ``save`` writes and ``load`` reads, in one safetensors file.

Reads plain safetensors files and the pickles of Pyro's own ``save`` as well. Must never run code
that a file names, and never believe what a file says about itself before it is checked.

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
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import pickles
from paramstore.constraints import from_spec, to_spec
from paramstore.db.engine import is_open_here
from paramstore.errors import (
    CorruptError,
    InvalidInputError,
    ParamStoreError,
    StorageError,
    UnsupportedFileError,
)
from paramstore.files import path_text, sync_folder
from paramstore.header import DTYPES, check_shape, layout
from paramstore.modes import outside_modes
from paramstore.reader import MapLocation, check_map_location, place
from paramstore.tensors import check_storable, copy_into, encode

Item = tuple[str, Tensor, Constraint]
"""Name, unconstrained value, constraint."""

_VERSION = 1
_METADATA = "__metadata__"
_SQLITE = b"SQLite format 3\0"


# ------------------------------------------------------------------------------------- writing

# Not by safetensors' own writer, which wants every tensor contiguous on the CPU before the first
# byte: of a model on a GPU that is a second copy. Its files (0.8) also have mode 0600 whatever the
# umask says, and their metadata in another order each time.


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write what Pyro's ``get_state`` gives, as :func:`save_file` does."""
    params, constraints = state["params"], state["constraints"]
    save_file(path, ((name, tensor, constraints[name]) for name, tensor in params.items()))


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
        StorageError: the file cannot be written, or is a directory, a pipe or a device.
    """
    path = _checked_file(path)
    if _is_database(path):
        raise UnsupportedFileError(
            f"{path!r} is an SQLite database and is not overwritten; save to another "
            f"file, or commit() into a store"
        )
    plan = _Plan()
    for name, tensor, constraint in items:
        plan.add(name, tensor, constraint)
    with _replacing(path) as file:
        file.write(plan.header())
        for name, tensor in plan.in_file_order():
            file.write(encode(tensor, name=name).data)


def _is_database(path: str) -> bool:
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
        check_storable(tensor, repr(name))
        mark = {"dtype": "C128"} if tensor.dtype == DTYPES["C128"] else {}
        if id(tensor) not in self._placed:
            while name in self._tensors or name == _METADATA:
                name += "'"
            self._tensors[name] = tensor
            self._placed[id(tensor)] = name
        return {"tensor": self._placed[id(tensor)], **mark}

    def in_file_order(self) -> list[tuple[str, Tensor]]:
        """Widest elements first, so that every tensor is aligned without holes."""
        return sorted(self._tensors.items(), key=lambda item: -item[1].element_size())

    def header(self) -> bytes:
        ours = {"version": _VERSION, "params": self._params, "arguments": self._arguments}
        fields: dict[str, Any] = {_METADATA: {"format": "pt", "paramstore": _dumps(ours)}}
        start = 0
        for name, tensor in self.in_file_order():
            text = layout(tensor.dtype, tensor.shape)[0]
            fields[name] = json.loads(text[8:])["value"]
            fields[name]["data_offsets"] = [start, start + tensor.nbytes]
            start += tensor.nbytes
        text = _dumps(fields).encode()
        text += b" " * (-len(text) % 8)  # so that the data is aligned
        return len(text).to_bytes(8, "little") + text


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends without an exception."""
    target = Path(os.path.realpath(path))  # a link stays one
    draft = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    with _storage_errors(f"cannot write {path!r}"):
        try:
            with draft.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


def _checked_file(where: str | os.PathLike[str]) -> str:
    path = path_text(where)
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{path!r} cannot be the name of a file: {error}") from error
    if b"\0" in encoded:
        raise InvalidInputError(f"{path!r} cannot be the name of a file: it holds NUL")
    # A pipe would block for ever, and a device would be replaced by a file.
    with _storage_errors(f"cannot look at {path!r}"):
        odd = Path(path).exists() and not Path(path).is_file()
    if odd:
        raise StorageError(f"{path!r} is no file but a directory, a pipe or a device")
    return path


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------- reading


def load_state(path: str | os.PathLike[str], map_location: MapLocation = None) -> dict[str, Any]:
    """Read a file as :func:`load_file` does, into what Pyro's ``get_state`` gives."""
    items = load_file(path, map_location)
    return {
        "params": {name: tensor for name, tensor, _ in items},
        "constraints": {name: constraint for name, _, constraint in items},
    }


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
        StorageError: it does not exist, cannot be read, or is a directory, a pipe or a device.
        InvalidInputError: no path, or ``map_location`` is no device of this machine.
    """
    check_map_location(map_location)
    return outside_modes(_load, _checked_file(path), map_location)


def _load(path: str, map_location: MapLocation) -> list[Item]:
    if is_open_here(path):
        raise UnsupportedFileError(f"{path!r} is no parameter file: {_kind(_SQLITE)}")
    with _storage_errors(f"cannot read {path!r}"), Path(path).open("rb") as file:
        start = file.read(16)
        file.seek(0)
        if start[8:9] == b"{":
            return _load_safetensors(path, file, map_location)
        if start.startswith((b"PK\x03\x04", b"\x80")):
            return pickles.load_pyro(path, file, map_location)
    raise UnsupportedFileError(f"{path!r} is no parameter file: {_kind(start)}")


def _kind(start: bytes) -> str:
    if not start:
        return "it is empty"
    if start.startswith(_SQLITE):
        return "it is an SQLite database; a store is opened with paramstore.open(path)"
    if start.startswith(b"\x93NUMPY"):
        return (
            "it is an array of NumPy; make a safetensors file of it: "
            "safetensors.numpy.save_file({'name': numpy.load('in.npy')}, 'out.safetensors')"
        )
    return f"it is neither safetensors nor a pickle of torch.save (it begins with {start!r})"


def _load_safetensors(path: str, file: BinaryIO, map_location: MapLocation) -> list[Item]:
    # By number: this is the file that was looked at, and safetensors takes only names in UTF-8.
    name = f"/dev/fd/{file.fileno()}"
    try:
        with safe_open(name, framework="pt", device="cpu") as opened:
            return _Archive(path, opened).items(map_location)
    except ParamStoreError:
        raise
    except SafetensorError as error:
        if "unknown variant" in str(error):  # how its parser says it
            raise UnsupportedFileError(f"{path!r} has a dtype unknown here: {error}") from error
        raise CorruptError(f"{path!r} is cut off or altered: {error}") from error
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptError(
            f"{path!r} is altered: its description of the parameters is malformed ({error!r})"
        ) from error


class _Archive:
    """A safetensors file being read: the library has checked its header, we check our metadata."""

    def __init__(self, path: str, opened: Any) -> None:
        self._path = path
        self._opened = opened

    def items(self, map_location: MapLocation) -> list[Item]:
        metadata = self._opened.metadata() or {}
        if "paramstore" in metadata:
            return self._ours(json.loads(metadata["paramstore"]), map_location)
        return [
            (name, _trained(place(self._tensor(name), map_location)), constraints.real)
            for name in self._opened.offset_keys()
        ]

    def _ours(self, ours: Mapping[str, Any], map_location: MapLocation) -> list[Item]:
        if ours["version"] != _VERSION:
            raise UnsupportedFileError(
                f"{self._path!r} has format {repr(ours['version'])[:99]} of a newer paramstore; "
                f"this one reads {_VERSION}: pip install -U paramstore"
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
        """Copy a tensor out of the file, which lies in memory as a map and may change later."""
        part = self._opened.get_slice(name)
        dtype, shape = part.get_dtype(), tuple(part.get_shape())
        if dtype not in DTYPES:
            raise UnsupportedFileError(
                f"{name!r} in {self._path!r} has dtype {dtype!r}, which torch cannot hold"
            )
        check_shape(dtype, shape)
        mapped = self._opened.get_tensor(name)
        if mark:
            if (mark, dtype, shape[-1:]) != ("C128", "F64", (2,)):
                raise ValueError(f"{name!r} of dtype {dtype} and shape {shape} is no {mark!r}")
            mapped = torch.view_as_complex(mapped)
        own = torch.empty_like(mapped)
        copy_into(own, mapped)
        return own


def _key(entry: Mapping[str, str], name: str) -> tuple[str, str]:
    return entry.get("tensor", name), entry.get("dtype", "")


def _trained(tensor: Tensor) -> Tensor:
    floating = tensor.is_floating_point() or tensor.is_complex()
    return tensor.requires_grad_() if floating else tensor
