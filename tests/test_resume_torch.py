"""A run that was killed and resumed ends with the bits of one that never was: plain torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import paramstore
from paramstore.testing.exact import exactly_equal

STEPS = 12
EVERY = 3  # steps between commits

Optimiser = Callable[[list[Any]], torch.optim.Optimizer]
Scheduler = Callable[[Any], Any]


def two_groups(p: list[Any]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [{"params": p[:2]}, {"params": p[2:], "lr": 0.1}]
    return torch.optim.AdamW(groups)


OPTIMISERS: dict[str, Optimiser] = {
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "Adam, fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "Adam, tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "AdamW": two_groups,
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.05, t0=2),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "LBFGS, line search": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
    "Muon": lambda p: torch.optim.Muon([t for t in p if t.dim() == 2], lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SGD, plain": lambda p: torch.optim.SGD(p, lr=0.05),
    "SparseAdam": lambda p: torch.optim.SparseAdam(p, lr=0.05),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and wait long for a busy one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Decay:
    """A callable object, whose attributes LambdaLR stores."""

    def __init__(self) -> None:
        self.calls = {0: 0}

    def __call__(self, step: int) -> float:
        self.calls[0] += 1
        return 0.9**step


def sequential(optim: Any) -> Any:
    parts = [lr_scheduler.LinearLR(optim, total_iters=4), lr_scheduler.ExponentialLR(optim, 0.8)]
    return lr_scheduler.SequentialLR(optim, parts, milestones=[5])


def chained(optim: Any) -> Any:
    parts = [lr_scheduler.ConstantLR(optim, total_iters=4), lr_scheduler.StepLR(optim, 3)]
    return lr_scheduler.ChainedScheduler(parts, optim)


SCHEDULERS: dict[str, Scheduler] = {
    "ChainedScheduler": chained,
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, mode="exp_range", gamma=0.9),
    "CyclicLR, function": lambda o: lr_scheduler.CyclicLR(
        o, 0.01, 0.1, 2, scale_fn=lambda x: 1 / (x + 1), scale_mode="iterations"
    ),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "LambdaLR, object": lambda o: lr_scheduler.LambdaLR(o, Decay()),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=8),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 5, 9]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=STEPS),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=5),
    "SequentialLR": sequential,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
}


class Net(nn.Module):
    """Running statistics, dropout and a shared weight: what makes continuing hard."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8, sparse=sparse)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(8, 10)
        if not sparse:
            self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.dropout(self.norm(self.embedding(tokens))))  # type: ignore[no-any-return]


class State(NamedTuple):
    """Everything that a run leaves behind."""

    net: dict[str, Tensor]
    optimiser: dict[str, Any]
    scheduler: dict[str, Any] | None
    torch: Tensor
    python: tuple[Any, ...]


class Run:
    """One process's part of a run: built from nothing, at a seed of its own."""

    def __init__(
        self, path: Path, optimiser: str, scheduler: str | None = None, *, seed: int
    ) -> None:
        torch.manual_seed(seed)
        random.seed(seed)
        sparse = optimiser == "SparseAdam"
        self.store = paramstore.open(path)
        self.net = Net(sparse=sparse)
        self.store.module("net", self.net)
        trained = self.net.embedding if sparse else self.net
        self.optimiser = OPTIMISERS[optimiser](list(trained.parameters()))
        self.scheduler = SCHEDULERS[scheduler](self.optimiser) if scheduler else None
        attached = {"scheduler": self.scheduler} if scheduler else {}
        self.store.attach(optimiser=self.optimiser, rng=True, **attached)
        last = self.store.resume()
        self.done = last.step or 0 if last else 0

    def until(self, end: int) -> State:
        """Train up to a step, with a commit every few; nobody says goodbye after it."""
        for step in range(self.done + 1, end + 1):
            self.step()
            if step % EVERY == 0:
                self.store.commit(step=step)
        self.store.close()
        return State(
            net=self.net.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scheduler=self.scheduler.state_dict() if self.scheduler else None,
            torch=torch.get_rng_state(),
            python=random.getstate(),
        )

    def step(self) -> None:
        tokens = torch.randint(10, (16,))
        shift = random.randrange(10)

        def closure() -> float:
            self.optimiser.zero_grad()
            loss = cross_entropy(self.net(tokens), (tokens + shift) % 10)
            loss.backward()
            return loss.item()

        loss = self.optimiser.step(closure)
        if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
            assert loss is not None
            self.scheduler.step(loss)
        elif self.scheduler:
            self.scheduler.step()


def assert_continues(folder: Path, optimiser: str, scheduler: str | None = None) -> None:
    whole = Run(folder / "whole.db", optimiser, scheduler, seed=0).until(STEPS)

    kill_at = random.Random(f"{optimiser} {scheduler}").randrange(EVERY, STEPS)
    Run(folder / "killed.db", optimiser, scheduler, seed=0).until(kill_at)
    resumed = Run(folder / "killed.db", optimiser, scheduler, seed=1)
    assert resumed.done == kill_at // EVERY * EVERY

    for found, wanted, what in zip(resumed.until(STEPS), whole, State._fields, strict=True):
        assert exactly_equal(found, wanted), f"{what} differs after a kill at step {kill_at}"


def concrete(module: object, base: type) -> Iterator[str]:
    for name, cls in vars(module).items():
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base:
            yield name


def covered(names: dict[str, Any]) -> set[str]:
    return {name.partition(",")[0] for name in names}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_continues_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert_continues(tmp_path, name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_continues_bit_for_bit(tmp_path: Path, name: str) -> None:
    assert_continues(tmp_path, "SGD", name)


def test_no_optimiser_of_torch_is_left_out() -> None:
    assert covered(OPTIMISERS) == set(concrete(torch.optim, torch.optim.Optimizer))


def test_no_scheduler_of_torch_is_left_out() -> None:
    found = set(concrete(lr_scheduler, lr_scheduler.LRScheduler)) - {"_LRScheduler"}
    assert covered(SCHEDULERS) - {"SWALR"} == found


def test_a_run_without_restored_generators_would_differ(tmp_path: Path) -> None:
    """The comparison itself sees a difference: another seed, other bits."""
    one = Run(tmp_path / "one.db", "SGD", seed=0).until(STEPS)
    other = Run(tmp_path / "other.db", "SGD", seed=1).until(STEPS)
    assert not exactly_equal(one.net, other.net)
