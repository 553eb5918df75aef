"""The dictionary methods against Pyro's own class, on the same names, values and constraints.

Nothing here touches the disk inside the timed part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Any

import torch
from pyro.params.param_store import ParamStoreDict as PyroStore
from torch import Tensor
from torch.distributions import constraints

from bench import states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict

CONTROL = "control: reading every key of a plain dict"
SIDES = ("Pyro", "private", "on a file", "validate=False")
OPERATIONS = ("get", "set", "setdefault", "items", "match", "named_parameters")

Store = Any  # Pyro's class or ours: the same methods, no common base


def run(settings: Settings) -> list[Table]:
    """One table per constraint and per module size."""
    tables = []
    positive = torch.linspace(0.5, 2.0, 8)
    values = {
        "identity": (constraints.real, torch.linspace(-1.0, 1.0, 8)),
        "positive": (constraints.positive, positive),
        "simplex": (constraints.simplex, positive / positive.sum()),
    }
    for kind, (constraint, value) in values.items():
        title = f"10 params, {kind} constraint"
        tables.append(_measure(settings, title, _filled(10, constraint, value), value, constraint))
    for params in (10, settings.size(500, 20)):
        value = torch.zeros(8, 8)
        title = f"a module of {params} params"
        tables.append(_measure(settings, title, _bound(params), value, constraints.real))
    return tables


Fill = Callable[[Store], object]


def _filled(number: int, constraint: constraints.Constraint, value: Tensor) -> Fill:
    def fill(store: Store) -> None:
        for i in range(number):
            store.setdefault(f"p{i}", value.clone(), constraint)

    return fill


def _bound(params: int) -> Fill:
    def fill(store: Store) -> None:
        net = states.network(params)
        if isinstance(store, ParamStoreDict):
            store.module("net", net)
            return
        for path, parameter in net.named_parameters():
            store.setdefault(f"net$$${path}", parameter)

    return fill


def _measure(
    settings: Settings,
    title: str,
    fill: Fill,
    value: Tensor,
    constraint: constraints.Constraint,
) -> Table:
    say(f"dictionary: {title}")
    path = settings.folder / "dictionary.db"
    with subject.open_store(path) as opened:
        sides: dict[str, Store] = {"Pyro": PyroStore(), "private": ParamStoreDict()}
        sides["on a file"] = opened
        sides["validate=False"] = ParamStoreDict(validate=False)
        for store in sides.values():
            fill(store)
        opened.commit()
        rows, runs = quiet(settings, lambda: _one_run(settings, sides, value, constraint), CONTROL)
    subject.remove_store(path)
    return Table(
        title=f"Dictionary: {title}",
        unit="µs",
        rows=rows,
        control=CONTROL,
        targets=_targets(title),
        note="`items`, `match` and `named_parameters` go through all of them; the others take one. "
        "`set` asks the constraint whether it admits the value, unless validate=False; Pyro's "
        "class never does.",
        runs=runs,
    )


def _targets(title: str) -> list[Target]:
    return [
        Target(
            claim=f"{title}, {operation}: {side} ÷ Pyro's class",
            row=f"{operation}, {side}",
            peer=f"{operation}, Pyro",
            bound=1.0,
            group="dictionary operations, time ÷ Pyro's class",
        )
        for operation in OPERATIONS
        for side in SIDES[1:]
    ]


def _one_run(
    settings: Settings,
    sides: dict[str, Store],
    value: Tensor,
    constraint: constraints.Constraint,
) -> list[Row]:
    name = max(sides["Pyro"].keys())
    plain, names = dict(sides["Pyro"].named_parameters()), list(sides["Pyro"].keys())
    cases = [_case(settings, CONTROL, lambda: deque(map(plain.__getitem__, names), 0))]
    for operation in OPERATIONS:
        loops = None
        for side, store in sides.items():
            act = _action(operation, store, name, value, constraint)
            case = _case(settings, f"{operation}, {side}", act, loops)
            loops = case.loops
            cases.append(case)
    return interleave(cases, settings.repetitions, scale=1e6)


def _action(
    operation: str, store: Store, name: str, value: Tensor, constraint: constraints.Constraint
) -> Callable[[], object]:
    values = [value.clone() for _ in range(16)]  # setting what is there would be too easy

    def assign() -> None:
        values.append(values.pop(0))
        store[name] = values[0]

    return {
        "get": lambda: store[name],
        "set": assign,
        "setdefault": lambda: store.setdefault(name, value, constraint),
        "items": lambda: _exhaust(store.items()),
        "match": lambda: store.match(".*"),
        "named_parameters": lambda: _exhaust(store.named_parameters()),
    }[operation]


def _exhaust(pairs: Iterable[tuple[str, Tensor]]) -> None:
    for _ in pairs:
        pass


def _case(
    settings: Settings, label: str, act: Callable[[], object], loops: int | None = None
) -> Case:
    """A sample of about 20 ms, and as many loops for every side of one operation."""
    number = loops or _loops(act, settings.size(20_000, 200) / 1e6)

    def repeat() -> None:
        for _ in range(number):
            act()

    return Case(label=label, run=repeat, loops=number)


def _loops(act: Callable[[], object], seconds: float) -> int:
    act()
    start, number = perf_counter(), 0
    while perf_counter() - start < seconds:
        act()
        number += 1
    return max(1, number)
