"""Pyro with a store installed against stock Pyro: steps of SVI, commits on the way, plain states.

Both sides train the same tensors with the same SVI object, block by block in turn: only the
dictionary behind ``pyro.param`` changes hands. Must never count an install or an uninstall.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from pyro.params.param_store import ParamStoreDict as PyroStore
from torch import Tensor, nn
from torch.distributions import constraints

from bench import states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict
from paramstore.integrations.pyro import install, uninstall

CONTROL = "control: Adam on as many tensors in plain torch"
STOCK = "stock Pyro"
PRIVATE = "paramstore installed, private"
ON_FILE = "paramstore installed, on a file"
COMMITS = "paramstore installed, a commit every 100 steps"
SCOPE_CONTROL = "control: reading every key of a plain dict"
EVERY = 100  # steps between commits
FIRST = ", for the first time"

Step = Callable[[], object]


def run(settings: Settings) -> list[Table]:
    """Steps at two sizes, the auto-encoder with commits, and the plain states."""
    sizes = [(10, settings.size(50, 3)), (settings.size(500, 20), settings.size(10, 2))]
    tables = [_steps(settings, sites, block) for sites, block in sizes]
    return [*tables, _commits(settings), *_scopes(settings)]


# -- steps of SVI ------------------------------------------------------------------------------


def _steps(settings: Settings, sites: int, block: int) -> Table:
    say(f"svi: {sites} parameter sites")
    svi = _many_sites(sites)
    svi.step()
    with _stores(settings) as stores:
        cases = [
            Case(label=CONTROL, run=partial(_repeat, _plain_torch(sites), block), loops=block),
            Case(label=STOCK, run=partial(_repeat, svi.step, block), loops=block),
            *(_installed(label, stores[label], svi.step, block) for label in (PRIVATE, ON_FILE)),
        ]
        rows, runs = quiet(settings, lambda: interleave(cases, settings.repetitions), CONTROL)
    targets = [
        _throughput(f"SVI steps per second, {sites} sites, {where}: ÷ stock Pyro's", label, 1.0)
        for where, label in (("private", PRIVATE), ("on a file", ON_FILE))
    ]
    title = f"A step of SVI, {sites} parameter sites, committing nothing"
    note = f"Blocks of {block} steps in turn; half of the sites are constrained to be positive."
    return _table(title, "ms", rows, CONTROL, targets, note, runs)


def _commits(settings: Settings) -> Table:
    say("svi: the auto-encoder with commits")
    block = settings.size(EVERY, 2)
    svi, x = _auto_encoder()
    numbers = count(1)

    def step() -> None:
        svi.step(x)

    def steps_and_commit(store: ParamStoreDict) -> None:
        loss = sum(svi.step(x) for _ in range(block)) / block
        store.commit(step=next(numbers) * block, metrics={"loss": loss})

    step()
    with _stores(settings) as stores:
        stores[COMMITS].attach(optim=svi.optim, rng=True)
        commits = _installed(COMMITS, stores[COMMITS], step, block)
        cases = [
            Case(label=CONTROL, run=partial(_repeat, _plain_torch(8), block), loops=block),
            Case(label=STOCK, run=partial(_repeat, step, block), loops=block),
            _installed(ON_FILE, stores[ON_FILE], step, block),
            Case(
                label=COMMITS,
                before=commits.before,
                run=partial(steps_and_commit, stores[COMMITS]),
                after=commits.after,
                loops=block,
            ),
        ]
        rows, runs = quiet(settings, lambda: interleave(cases, settings.repetitions), CONTROL)
    claim = "SVI steps per second of the auto-encoder"
    targets = [
        _throughput(f"{claim}, committing nothing: ÷ stock Pyro's", ON_FILE, 1.0),
        _throughput(f"{claim}, a commit every 100 steps: ÷ stock Pyro's", COMMITS, 0.95),
    ]
    note = (
        f"The model of `examples/vae.py`, 128 digits a step; blocks of {block} steps in turn. Each "
        "commit is durable and takes the optimiser and the generators with it."
    )
    return _table("A step of the auto-encoder", "ms", rows, CONTROL, targets, note, runs)


def _many_sites(sites: int) -> SVI:
    pyro.clear_param_store()
    names = [f"z{i}" for i in range(sites // 2)]

    def model() -> None:
        for name in names:
            pyro.sample(name, dist.Normal(0.0, 1.0))

    def guide() -> None:
        for name in names:
            loc = pyro.param(f"{name}.loc", lambda: torch.tensor(1.0))
            scale = pyro.param(
                f"{name}.scale", lambda: torch.tensor(0.5), constraint=constraints.positive
            )
            pyro.sample(name, dist.Normal(loc, scale))

    return SVI(model, guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())


def _auto_encoder() -> tuple[SVI, Tensor]:
    pyro.clear_param_store()
    path = Path(__file__).resolve().parent.parent / "examples" / "vae.py"
    spec = importlib.util.spec_from_file_location("vae", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    vae = example.Vae()
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())
    return svi, torch.rand(example.BATCH, example.PIXELS)


def _plain_torch(tensors: int) -> Step:
    params = [states.leaf(8) for _ in range(tensors)]
    optim = torch.optim.Adam(params, lr=1e-3)

    def step() -> None:
        optim.zero_grad()
        torch.stack(params).square().sum().backward()
        optim.step()

    return step


@contextmanager
def _stores(settings: Settings) -> Iterator[dict[str, ParamStoreDict]]:
    paths = {ON_FILE: settings.folder / "svi.db", COMMITS: settings.folder / "commits.db"}
    stores = {label: subject.open_store(path) for label, path in paths.items()}
    try:
        yield {PRIVATE: ParamStoreDict(), **stores}
    finally:
        for label, path in paths.items():
            stores[label].close()
            subject.remove_store(path)
        pyro.clear_param_store()


def _installed(label: str, store: ParamStoreDict, step: Step, block: int) -> Case:
    """Steps with ``store`` installed; Pyro has the same tensors in its own store before and after.

    What the store holds from the last time are those very tensors.
    """

    def before() -> None:
        if len(store):
            pyro.clear_param_store()
        install(store)

    return Case(
        label=label,
        before=before,
        run=partial(_repeat, step, block),
        after=lambda _: uninstall(),
        loops=block,
    )


def _repeat(step: Step, times: int) -> None:
    for _ in range(times):
        step()


# -- plain states ------------------------------------------------------------------------------


def _scopes(settings: Settings) -> list[Table]:
    many = settings.size(500, 20)
    return [_scope(settings, outer, inner) for outer in (0, many) for inner in (0, many)]


def _scope(settings: Settings, outer: int, inner: int) -> Table:
    title = f"scope(state): a plain state of {inner} params, {outer} around it"
    say(f"svi: {title}")
    loops = settings.size(200 if outer or inner else 5000, 10)
    with _stores(settings) as stores:
        sides: dict[str, Any] = {STOCK: PyroStore(), PRIVATE: stores[PRIVATE]}
        sides[ON_FILE] = stores[ON_FILE]
        plain = {f"p{i}": i for i in range(100)}
        control = Case(label=SCOPE_CONTROL, run=partial(_read, plain, loops), loops=loops)
        cases = [control]
        for label, store in sides.items():
            for i in range(outer):
                store.setdefault(f"outer{i}", torch.zeros(3))
            cases += _visits(label, store, inner, loops)
        rows, runs = quiet(
            settings, lambda: interleave(cases, settings.repetitions, scale=1e6), SCOPE_CONTROL
        )
    targets = [
        Target(
            claim=f"{title}{when}, {label}: time ÷ Pyro's",
            row=f"{label}{when}",
            peer=f"{STOCK}{when}",
            bound=1.0,
            group=f"entering and leaving scope(state){when or ' again'}: time ÷ Pyro's",
        )
        for label in (PRIVATE, ON_FILE)
        for when in ("", FIRST)
    ]
    note = "PyroModule with module-local parameters enters one at every forward call."
    return _table(title, "µs", rows, SCOPE_CONTROL, targets, note, runs)


def _visits(label: str, store: Any, inner: int, loops: int) -> list[Case]:
    known, new = _state(inner), [_state(inner)]

    def make_new() -> None:
        new[:] = [_state(inner) for _ in range(loops)]

    def again() -> None:
        for _ in range(loops):
            with store.scope(known):
                pass

    def first() -> None:
        for state in new:
            with store.scope(state):
                pass

    return [
        Case(label=label, run=again, loops=loops),
        Case(label=f"{label}{FIRST}", before=make_new, run=first, loops=loops),
    ]


def _state(params: int) -> dict[str, Any]:
    names = [f"inner{i}" for i in range(params)]
    return {
        "params": {name: nn.Parameter(torch.zeros(3)) for name in names},
        "constraints": dict.fromkeys(names, constraints.real),
    }


def _read(plain: dict[str, int], loops: int) -> None:
    for _ in range(loops):
        for name in plain:
            plain[name]


def _throughput(claim: str, row: str, bound: float) -> Target:
    return Target(claim=claim, row=row, peer=STOCK, bound=bound, kind="throughput")


def _table(
    title: str,
    unit: str,
    rows: list[Row],
    control: str,
    targets: list[Target],
    note: str,
    runs: int,
) -> Table:
    return Table(
        title=title, unit=unit, rows=rows, control=control, targets=targets, note=note, runs=runs
    )
