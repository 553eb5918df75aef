"""diskcache as a store of tensors: one key per step and name, all of a step in one transaction.

Must never let it evict.
"""

from __future__ import annotations

from pathlib import Path

import diskcache
import torch

from bench import peers
from bench.states import State

_ROOM = 1 << 50
_FULL = 2  # PRAGMA synchronous


class DiskCache:
    """``Cache`` of tensor bytes. It writes values of more than 32 KiB to files, without fsync."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cache = diskcache.Cache(
            str(folder), eviction_policy="none", size_limit=_ROOM, sqlite_synchronous=_FULL
        )
        self._shapes: dict[str, torch.Size] = {}
        self._synced: set[Path] = set()

    def save(self, state: State, step: int) -> None:
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        with self._cache.transact():
            for name, tensor in state.items():
                self._cache[(step, name)] = tensor.numpy().tobytes()
        self._sync_values()

    def load(self, step: int) -> State:
        return {name: self._read(step, name) for name in self._shapes}

    def one(self, step: int, name: str) -> State:
        return {name: self._read(step, name)}

    def forget(self, step: int) -> None:
        with self._cache.transact():
            for name in self._shapes:
                self._cache.delete((step, name))

    def close(self) -> None:
        self._cache.close()

    def _sync_values(self) -> None:
        """Only value files: closing a descriptor of the database would drop SQLite's locks."""
        new = set(self._folder.rglob("*.val")) - self._synced
        for path in new | {folder for file in new for folder in list(file.parents)[:3]}:
            peers.sync_one(path)
        self._synced |= new

    def _read(self, step: int, name: str) -> torch.Tensor:
        """Copied: the bytes of an object that nobody may write are no parameter."""
        found = bytearray(self._cache[(step, name)])
        return torch.frombuffer(found, dtype=torch.float32).view(self._shapes[name])
