"""Pyro's own parameter store, saved to one file per step.

Must never touch the global store.
"""

from __future__ import annotations

from pathlib import Path

from pyro.params.param_store import ParamStoreDict

from bench import peers
from bench.states import State


class Pyro:
    """``ParamStoreDict.save`` and ``load``, parameters without a constraint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = ParamStoreDict()

    def save(self, state: State, step: int) -> None:
        """Pyro keeps the tensor itself, so the store is filled at the first step."""
        for name, tensor in state.items():
            if name not in self._store:
                self._store.setdefault(name, tensor.detach())
        self._store.save(str(self._path(step)))
        peers.sync(self._path(step))

    def load(self, step: int) -> State:
        store = ParamStoreDict()
        store.load(str(self._path(step)))
        return {name: tensor.detach() for name, tensor in store.named_parameters()}

    def one(self, step: int, name: str) -> State:
        return {name: self.load(step)[name]}

    def forget(self, step: int) -> None:
        peers.remove(self._path(step))

    def close(self) -> None:
        """Nothing stays open."""

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.save"
