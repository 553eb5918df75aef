"""One side of a comparison: a peer and the tensors that it saves; every verb tells its seconds.

The seconds are taken here, so that a side in another process is timed like one in this.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from bench import states
from bench.rivals import Entry, installed
from bench.states import State

Recipe = Callable[[], State]
_PAGE = 4096 // states.FLOAT  # elements from one page of memory to the next


class Side(Protocol):
    """What a comparison may ask of a side."""

    def change(self, names: Sequence[str]) -> None:
        """Change those tensors in place."""

    def save(self, step: int) -> float:
        """Seconds of a durable save."""

    def load(self, step: int) -> float:
        """Seconds until everything is in memory; fails where it is not what was saved."""

    def one(self, step: int, names: Sequence[str]) -> float:
        """Seconds until each of them was read, one by one."""

    def history(self, name: str, steps: Sequence[int]) -> float:
        """Seconds until the statistics of one tensor at every one of those steps are there."""

    def forget(self, step: int) -> None:
        """Make room."""

    def close(self) -> None:
        """Finish."""


class Here:
    """A peer in this process, on tensors that it may share with others."""

    def __init__(self, entry: Entry, folder: Path, state: State) -> None:
        self._state = {name: tensor.detach() for name, tensor in state.items()}
        self._rival = entry.open(folder)

    def change(self, names: Sequence[str]) -> None:
        states.change(self._state[name] for name in names)

    def save(self, step: int) -> float:
        start = perf_counter()
        self._rival.save(self._state, step)
        return perf_counter() - start

    def load(self, step: int) -> float:
        start = perf_counter()
        loaded = self._rival.load(step)
        seconds = perf_counter() - start
        for name, tensor in self._state.items():
            if not loaded[name].equal(tensor):
                raise RuntimeError(f"{name!r} did not come back as it was saved")
        return seconds

    def one(self, step: int, names: Sequence[str]) -> float:
        start = perf_counter()
        for name in names:
            touch(self._rival.one(step, name)[name])
        return perf_counter() - start

    def history(self, name: str, steps: Sequence[int]) -> float:
        start = perf_counter()
        rows = [(step, *statistics(self._rival.one(step, name)[name])) for step in steps]
        seconds = perf_counter() - start
        if len({row[2] for row in rows}) != len(steps):
            raise RuntimeError(f"{name!r} was the same at two steps: not its history")
        return seconds

    def forget(self, step: int) -> None:
        self._rival.forget(step)

    def close(self) -> None:
        self._rival.close()


class Apart:
    """A peer in a process of its own, on tensors of its own, told over a pipe what to do."""

    def __init__(self, entry: Entry, folder: Path, recipe: Recipe) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(entry, folder, recipe, other), daemon=True
        )
        self._process.start()
        other.close()
        self._answer()  # ready

    def change(self, names: Sequence[str]) -> None:
        self._ask("change", names)

    def save(self, step: int) -> float:
        return float(self._ask("save", step))

    def load(self, step: int) -> float:
        return float(self._ask("load", step))

    def one(self, step: int, names: Sequence[str]) -> float:
        return float(self._ask("one", step, names))

    def history(self, name: str, steps: Sequence[int]) -> float:
        return float(self._ask("history", name, steps))

    def forget(self, step: int) -> None:
        self._ask("forget", step)

    def close(self) -> None:
        self._ask("close")
        self._process.join()

    def _ask(self, verb: str, *arguments: object) -> Any:
        self._pipe.send((verb, arguments))
        return self._answer()

    def _answer(self) -> Any:
        failure, found = self._pipe.recv()
        if failure:
            raise RuntimeError(f"the process of a peer failed: {failure}")
        return found


def _serve(entry: Entry, folder: Path, recipe: Recipe, pipe: Connection) -> None:
    try:
        side = Here(entry, folder, recipe())
        pipe.send(("", None))
        verb = ""
        while verb != "close":
            verb, arguments = pipe.recv()
            pipe.send(("", getattr(side, verb)(*arguments)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other process tells it
        pipe.send((f"{type(error).__name__}: {error}", None))


@contextmanager
def opened(folder: Path, state: State, recipe: Recipe) -> Iterator[dict[str, Side]]:
    """Every peer that is installed, by label, each on a folder of its own.

    Those in this process share ``state``; one apart makes its own by ``recipe``.
    """
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for number, entry in enumerate(installed()):
            place = folder / f"peer-{number}"
            side = Apart(entry, place, recipe) if entry.apart else Here(entry, place, state)
            stack.callback(side.close)
            sides[entry.label] = side
        yield sides


def touch(tensor: Tensor) -> None:
    """Read a byte of every page, on this thread: a mapped file would defer the reading."""
    tensor.detach().numpy()[::_PAGE].max()


def statistics(tensor: Tensor) -> tuple[float, float, float, float, int]:
    """What a history tells of a tensor: norm, mean, least, largest, and how many are NaN.

    By NumPy on this thread: torch's threads may wait for each other for longer than that takes.
    """
    array = tensor.detach().numpy().ravel()
    norm = math.sqrt(float(np.dot(array, array)))
    return (
        norm,
        float(array.mean()),
        float(array.min()),
        float(array.max()),
        int(np.isnan(array).sum()),
    )
