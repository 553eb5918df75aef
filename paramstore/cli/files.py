"""Parameter files of others: written from a snapshot, and read into a new one.

Runs no code of a file that it reads; must never overwrite a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from paramstore import archive
from paramstore.db.repository import Repository
from paramstore.errors import (
    InvalidInputError,
    UnsupportedFileError,
    UnsupportedTensorError,
)
from paramstore.files import new_file
from paramstore.pickles import load_saved
from paramstore.progress import progress
from paramstore.reader import Reader, SnapshotView
from paramstore.snapshot import Snapshot
from paramstore.store import ParamStoreDict

KINDS: Final = (".safetensors", ".pt", ".pth", ".save", ".npy")
"""Ends of names by which ``write`` knows what to write."""
_BUFFERS: Final = ("*running_mean", "*running_var", "*num_batches_tracked")
_INSIDE: Final = ("state_dict", "model_state_dict", "model")
"""Under which of these keys a checkpoint has the ``state_dict`` of its module."""
_BETWEEN: Final = "$$$"  # stands between a module's name and the path of a parameter in it


# -- writing -----------------------------------------------------------------------


def write(
    repository: Repository,
    snapshot: Snapshot,
    names: Mapping[str, str],
    path: Path,
    *,
    state_dict: bool = False,
) -> int:
    """Write parameters of a snapshot to a new file, whose name says in which form.

    Args:
        repository: where from.
        snapshot: of which they are.
        names: what each parameter is called in the file.
        path: the file.
        state_dict: whether torch's form is that of a module, and not of Pyro's store.

    Returns:
        How many buffers were left out, because Pyro's store has no place for them.

    Raises:
        InvalidInputError: another ending, several parameters for ``.npy``, or the file exists.
        UnsupportedTensorError: NumPy has no such numbers.
        StorageError: it cannot be written.
    """
    if path.suffix not in KINDS:
        raise InvalidInputError(
            f"{str(path)!r} could be anything; let its name end in one of {', '.join(KINDS)}"
        )
    view = SnapshotView(Reader(repository), repository.manifest(snapshot), snapshot)
    if path.suffix == ".npy":
        if len(names) != 1:
            raise InvalidInputError(
                f"a .npy file holds one array, and {snapshot.ref} has {len(names)} such "
                f"parameters; choose one with --param"
            )
        (name,) = names
        with new_file(path) as draft:
            _write_array(view[name], name, draft)
        return 0
    items = [(names[name], tensor, kind) for name, tensor, kind in _items(view, list(names))]
    with new_file(path) as draft:
        if path.suffix == ".safetensors":
            archive.save_file(draft, items)
            return 0
        if state_dict:
            _save({name: tensor.detach() for name, tensor, _ in items}, draft)
            return 0
        return _write_state(items, draft)


def _items(view: SnapshotView, names: Sequence[str]) -> list[archive.Item]:
    """Read unconstrained values, as the working set would hold them."""
    entries = view.manifest.entries
    items = []
    total = sum(entries[name].nbytes for name in names)
    with progress("reading tensors", total, unit="bytes") as advance:
        for name in names:
            entry = entries[name]
            tensor = view.unconstrained(name)
            if entry.kind == "parameter":
                tensor = nn.Parameter(tensor, requires_grad=entry.requires_grad)
            elif entry.requires_grad:
                tensor.requires_grad_()
            items.append((name, tensor, view.constraint(name)))
            advance(entry.nbytes)
    return items


def _write_state(items: list[archive.Item], draft: Path) -> int:
    """Write what stock Pyro's ``ParamStoreDict.load`` takes: parameters, no buffers."""
    trained = [item for item in items if item[1].requires_grad or isinstance(item[1], nn.Parameter)]
    state = {
        "params": {name: tensor for name, tensor, _ in trained},
        "constraints": {name: constraint for name, _, constraint in trained},
    }
    _save(state, draft)
    return len(items) - len(trained)


def _save(state: object, draft: Path) -> None:
    with draft.open("xb") as file:
        torch.save(state, file)


def _write_array(value: Tensor, name: str, draft: Path) -> None:
    try:
        array = value.detach().numpy()
    except TypeError as error:
        raise UnsupportedTensorError(
            f"NumPy has no {value.dtype}, which {name!r} is made of; export it to .safetensors"
        ) from error
    with draft.open("xb") as file:
        np.save(file, array, allow_pickle=False)


# -- reading -----------------------------------------------------------------------


def read(path: Path, buffers: Sequence[str] = ()) -> tuple[list[archive.Item], list[str]]:
    """Read a safetensors file, a file of Pyro's, or a ``state_dict`` that torch saved.

    Args:
        path: The file.
        buffers: Patterns for the names of buffers, which a ``state_dict`` does not tell from
            parameters; those of torch's normalisation layers are known.

    Returns:
        What it holds, and the keys of what was left out: all that lies beside a ``state_dict``.

    Raises:
        UnsupportedFileError, CorruptError, StorageError: as `archive.load_file`.
    """
    try:
        return archive.load_file(path), []
    except UnsupportedFileError as error:
        found = _saved(path)
        if isinstance(found, Tensor | list | tuple):
            what = "a tensor" if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise UnsupportedFileError(
                f"{str(path)!r} holds {what}, and no names; save a dictionary: "
                f"torch.save({{'name': tensor}}, path)"
            ) from error
        if not isinstance(found, dict):
            raise
        inside = next((key for key in _INSIDE if isinstance(found.get(key), dict)), None)
        state = found if inside is None else found[inside]
        if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
            raise
        if not state:
            raise UnsupportedFileError(f"{str(path)!r} holds no tensors") from error
        items: list[archive.Item] = [
            (name, _leaf(tensor, buffer=_matches(name, (*_BUFFERS, *buffers))), constraints.real)
            for name, tensor in state.items()
        ]
        return items, [] if inside is None else [str(key) for key in found if key != inside]


def _saved(path: Path) -> object:
    """What torch saved in a file; None where that cannot be read, or another program made it."""
    with path.open("rb") as file:
        if not file.read(4).startswith((b"PK\x03\x04", b"\x80")):
            return None
        file.seek(0)
        try:
            return load_saved(str(path), file, "cpu")
        except UnsupportedFileError:
            return None


def _leaf(tensor: Tensor, *, buffer: bool) -> Tensor:
    tensor = tensor.detach()
    trained = not buffer and (tensor.is_floating_point() or tensor.is_complex())
    return nn.Parameter(tensor) if trained else tensor


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def put(store: ParamStoreDict, items: Iterable[archive.Item], *, module: str | None = None) -> None:
    """Put what was read into the working set of a store, in place of what is in it.

    Args:
        store: where to.
        items: name, unconstrained value and constraint.
        module: the name of the module whose parameters and buffers they are.

    Raises:
        InvalidInputError: something that the store cannot hold.
    """
    store.clear()
    plain: dict[str, archive.Item] = {}
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor, constraint in items:
        full = name if module is None else f"{module}{_BETWEEN}{name}"
        owner, between, path = full.partition(_BETWEEN)
        of_module = isinstance(tensor, nn.Parameter) or not tensor.requires_grad
        if between and path and (of_module or module is not None):
            modules[owner][path] = tensor
        elif tensor.is_floating_point() or tensor.is_complex():
            plain[full] = (full, tensor, constraint)
        else:
            raise InvalidInputError(
                f"{name!r} has dtype {tensor.dtype}, so that it is a buffer of a module; name the "
                f"module with --module NAME"
            )
    store.set_state(
        {
            "params": {name: tensor for name, tensor, _ in plain.values()},
            "constraints": {name: constraint for name, _, constraint in plain.values()},
        }
    )
    for owner, tensors in modules.items():
        store.module(owner, _module(owner, tensors))


def _module(owner: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Build a module that has these parameters and buffers at these paths."""
    root = nn.Module()
    for path, tensor in tensors.items():
        *parts, last = path.split(".")
        place = root
        try:
            for part in parts:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            if tensor.requires_grad or isinstance(tensor, nn.Parameter):
                own = nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
                place.register_parameter(last, own)
            else:
                place.register_buffer(last, tensor.detach())
        except (AttributeError, KeyError) as error:
            raise InvalidInputError(
                f"{path!r} cannot be the path of a parameter in module {owner!r}: {error}"
            ) from error
    return root
