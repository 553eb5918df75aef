"""Orbax: one folder per step, of the same arrays as NumPy has them.

Must only be imported in a process of its own: it starts the threads of JAX and TensorStore.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import orbax.checkpoint as ocp
import torch

from bench import peers
from bench.rivals import sync_tree
from bench.states import State


class Orbax:
    """``StandardCheckpointer``; one array by name as a partial restore of its tree."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = ocp.StandardCheckpointer()
        self._parts = ocp.PyTreeCheckpointer()
        self._arrays: dict[str, Any] = {}

    def save(self, state: State, step: int) -> None:
        self._arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self._whole.save(self._path(step), self._arrays)
        self._whole.wait_until_finished()
        sync_tree(self._path(step))

    def load(self, step: int) -> State:
        return _tensors(self._whole.restore(self._path(step)))

    def one(self, step: int, name: str) -> State:
        wanted = ocp.args.PyTreeRestore(
            item={name: self._arrays[name]},
            restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray)},
            partial_restore=True,
        )
        return _tensors(self._parts.restore(self._path(step), args=wanted))

    def forget(self, step: int) -> None:
        shutil.rmtree(self._path(step), ignore_errors=True)
        peers.sync_one(self._folder)

    def close(self) -> None:
        self._whole.close()
        self._parts.close()

    def _path(self, step: int) -> Path:
        return self._folder.resolve() / f"step-{step}"


def _tensors(arrays: dict[str, Any]) -> State:
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
