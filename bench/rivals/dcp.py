"""torch's distributed checkpoint in a single process: one folder per step.

Must never start a process group.
"""

from __future__ import annotations

import shutil
import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from bench import peers
from bench.rivals import sync_tree
from bench.states import State

warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Distributed:
    """``save`` and ``load`` with the file system writer, whose files are fsynced."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shapes: dict[str, torch.Size] = {}

    def save(self, state: State, step: int) -> None:
        self._shapes = {name: tensor.shape for name, tensor in state.items()}
        writer = FileSystemWriter(self.path(step), sync_files=True)
        save(dict(state), storage_writer=writer, no_dist=True)
        sync_tree(self.path(step))

    def load(self, step: int) -> State:
        return self._read(step, {name: torch.empty(shape) for name, shape in self._shapes.items()})

    def one(self, step: int, name: str) -> State:
        return self._read(step, {name: torch.empty(self._shapes[name])})

    def forget(self, step: int) -> None:
        shutil.rmtree(self.path(step), ignore_errors=True)
        peers.sync_one(self._folder)

    def close(self) -> None:
        """Nothing stays open."""

    def path(self, step: int) -> Path:
        """The folder of that step."""
        return self._folder / str(step)

    def _read(self, step: int, wanted: State) -> State:
        load(wanted, storage_reader=FileSystemReader(self.path(step)), no_dist=True)
        return wanted


class Asynchronous(Distributed):
    """``async_save``: copies on the calling thread, writes on another.

    ``cached``: a stager that is kept gives its memory to the next save. (The writer's own
    ``cache_staged_state_dict`` asks for pinned memory, and fails without an accelerator.)
    """

    def __init__(self, folder: Path, *, cached: bool) -> None:
        super().__init__(folder)
        options = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(options) if cached else None

    def start(self, state: State, step: int) -> Future[Any]:
        """Begin a save; the future is done when the files are durable."""
        writer = FileSystemWriter(self.path(step), sync_files=True)
        saved = async_save(
            dict(state), storage_writer=writer, async_stager=self._stager, no_dist=True
        )
        if not isinstance(saved, Future):
            raise TypeError(f"async_save returned {type(saved).__name__}, not the future of a save")
        return saved

    def close(self) -> None:
        if self._stager is not None:
            self._stager.close()
