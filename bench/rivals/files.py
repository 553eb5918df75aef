"""``torch.save`` and safetensors: one file per step.

Must never write outside their folder.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from bench import peers
from bench.states import State


class Torch:
    """``torch.save`` and ``torch.load(weights_only=True)``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> None:
        peers.save_torch(self._path(step), state)

    def load(self, step: int) -> State:
        return peers.load_torch(self._path(step))

    def one(self, step: int, name: str) -> State:
        """Mapped, so that only the pickle and this tensor are read."""
        state: State = torch.load(self._path(step), weights_only=True, mmap=True)
        return {name: state[name]}

    def forget(self, step: int) -> None:
        peers.remove(self._path(step))

    def close(self) -> None:
        """Nothing stays open."""

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.pt"


class Safetensors:
    """``save_file``, ``load_file`` and ``safe_open``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, state: State, step: int) -> None:
        peers.save_safetensors(self._path(step), state)

    def load(self, step: int) -> State:
        """Copied, because ``load_file`` only maps the file: nothing would have been read."""
        mapped = safetensors.torch.load_file(self._path(step))
        return {name: tensor.clone() for name, tensor in mapped.items()}

    def one(self, step: int, name: str) -> State:
        return {name: peers.one_safetensor(self._path(step), name)}

    def forget(self, step: int) -> None:
        peers.remove(self._path(step))

    def close(self) -> None:
        """Nothing stays open."""

    def _path(self, step: int) -> Path:
        return self._folder / f"{step}.safetensors"
