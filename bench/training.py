"""A training loop beside the saves: steps of about 20 ms on a head, over a large frozen base.

Knows nothing of who saves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from bench import states
from bench.states import MIB, State

WIDTH = 1024  # a square layer is 4 MiB of float32
_STEP = 0.020  # seconds that a step should take


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The tensors that are saved, and the step that trains the last of them."""

    state: State
    """All parameters, the trained ones among them."""
    trained: tuple[str, ...]
    """Names of those that every step changes."""
    step: Callable[[], None]
    """One step: forward, backward, optimiser."""

    def steps(self, number: int) -> float:
        """Seconds of that many steps."""
        start = perf_counter()
        for _ in range(number):
            self.step()
        return perf_counter() - start

    def steps_until(self, done: Callable[[], bool], least: int) -> tuple[int, float]:
        """Train until ``done`` and for ``least`` steps at least: how many, and their seconds."""
        start, number = perf_counter(), 0
        while number < least or not done():
            self.step()
            number += 1
        return number, perf_counter() - start


def training(*, tensors: int, width: int = WIDTH, nbytes: int = MIB) -> Training:
    """A frozen base of ``tensors`` of ``nbytes`` bytes, and a head of three square layers."""
    head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
    head.append(nn.Linear(width, width))
    own = {f"head.{name}": param for name, param in head.named_parameters()}
    optimiser = torch.optim.SGD(head.parameters(), lr=1e-4)

    def step(rows: int) -> None:
        optimiser.zero_grad()
        head(torch.randn(rows, width)).square().mean().backward()
        optimiser.step()

    rows = _rows(step)
    state = {f"base.{name}": leaf for name, leaf in states.equal_tensors(tensors, nbytes).items()}
    return Training(state=state | own, trained=tuple(own), step=lambda: step(rows))


def _rows(step: Callable[[int], None]) -> int:
    """How large a batch makes a step of the wanted length on this machine, with these threads."""
    rows = 8
    while rows < 4096:
        step(rows)
        start = perf_counter()
        for _ in range(3):
            step(rows)
        if perf_counter() - start > 3 * _STEP:
            break
        rows = rows * 5 // 4
    return rows
