"""The few calls by which the benchmarks use the store, in one place.

Must never time anything.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

import paramstore
from bench import peers
from paramstore import ParamStoreDict


def open_store(path: Path, **options: bool | str) -> ParamStoreDict:
    """A store on that file."""
    return paramstore.open(path, **options)  # type: ignore[arg-type]  # as open takes them


def fill(store: ParamStoreDict, state: Mapping[str, Tensor]) -> None:
    """Put the leaves into the working set; they stay the objects they are."""
    for name, tensor in state.items():
        store[name] = tensor
    if any(live is not state[name] for name, live in store.named_parameters()):
        raise RuntimeError("the store did not keep the leaves: the peers would save other bytes")


def new_store(path: Path, state: Mapping[str, Tensor], **options: bool | str) -> ParamStoreDict:
    """A store on a new file, with these leaves in its working set and nothing committed."""
    remove_store(path)
    store = open_store(path, **options)
    fill(store, state)
    return store


def remove_store(path: Path) -> None:
    """Remove a database and whatever SQLite left beside it."""
    for file in sorted(path.parent.glob(f"{path.name}*")):
        peers.remove(file)


def empty(folder: Path) -> None:
    """Remove everything in the folder of a benchmark."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            peers.remove(entry)
