"""LangGraph's SQLite checkpointer as a store of tensors: a channel per tensor, one thread.

Must never be given a pickle.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import torch
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver

from bench.states import State


class LangGraph:
    """``SqliteSaver.put`` and ``get_tuple``: every checkpoint is one value in one row."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "saver.db", check_same_thread=False)
        self._saver = SqliteSaver(self._connection)
        self._saver.setup()
        self._connection.execute("PRAGMA synchronous=FULL")
        self._configs: dict[int, Any] = {}

    def save(self, state: State, step: int) -> None:
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {name: tensor.numpy() for name, tensor in state.items()}
        where = {"configurable": {"thread_id": "run", "checkpoint_ns": ""}}
        metadata = {"source": "loop", "step": step}
        self._configs[step] = self._saver.put(where, checkpoint, metadata, {})

    def load(self, step: int) -> State:
        found = self._saver.get_tuple(self._configs[step])
        values = found.checkpoint["channel_values"]
        return {name: torch.tensor(array) for name, array in values.items()}  # may be written to

    def one(self, step: int, name: str) -> State:
        return {name: self.load(step)[name]}

    def forget(self, step: int) -> None:
        """Kept: forgetting a checkpoint is no part of what it can do."""

    def close(self) -> None:
        self._connection.close()
