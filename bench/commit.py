"""Durable commits against safetensors and ``torch.save``, made just as durable.

Every timed commit has really changed values; the change itself is not timed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from pathlib import Path

from torch import Tensor

from bench import peers, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.states import MIB, State
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict

RAW = "control: write + fsync of the same bytes"
SAFETENSORS = "safetensors.torch.save_file + fsync"
TORCH = "torch.save + fsync"
STORE = "paramstore, next commit in one file"
FIRST = "paramstore, first commit into a new file"
BARE = "paramstore, next commit, statistics=False"

Change = Callable[[], Iterable[Tensor]]


def run(settings: Settings) -> list[Table]:
    """All tables of the durable commit."""
    return [
        _large(settings),
        _few_changed(settings),
        _gpt2(settings),
        _many_small(settings),
    ]


def _large(settings: Settings) -> Table:
    count, nbytes = settings.size(256, 4), settings.size(MIB, 64 << 10)
    state = states.equal_tensors(count, nbytes)
    claim = "commit of 256 × 1 MiB, all changed: throughput"
    return _measure(
        settings,
        f"Durable commit of {count} × {nbytes >> 10} KiB, all changed",
        state,
        state.values,
        _against(claim, safetensors=0.6, torch_save=0.75),
        bare=True,
    )


def _few_changed(settings: Settings) -> Table:
    count, nbytes = settings.size(256, 20), settings.size(MIB, 64 << 10)
    state = states.equal_tensors(count, nbytes)
    names, dice = sorted(state), random.Random(5)
    few = max(1, round(count * 0.05))
    claim = "commit of 256 × 1 MiB, 5 % changed: throughput"
    return _measure(
        settings,
        f"Durable commit of {count} × {nbytes >> 10} KiB, {few} of them changed",
        state,
        lambda: [state[name] for name in dice.sample(names, few)],
        _against(claim, safetensors=3.0, torch_save=3.0),
        others=tuple,
    )


def _gpt2(settings: Settings) -> Table:
    state = states.gpt2(width=16, layers=2, words=64, places=8) if settings.quick else states.gpt2()
    claim = "commit of a GPT-2-small-like state (148 tensors, 498 MB): throughput"
    return _measure(
        settings,
        f"Durable commit of a GPT-2-small-like state: {len(state)} tensors, all changed",
        state,
        state.values,
        _against(claim, safetensors=0.8, torch_save=0.8),
    )


def _many_small(settings: Settings) -> Table:
    count = settings.size(20_000, 50)
    state = states.equal_tensors(count, 1 << 10)
    claim = "commit of 20,000 × 1 KiB, all changed: time ÷ torch.save + fsync"
    target = Target(claim=claim, row=STORE, peer=TORCH, bound=1.0)
    title = f"Durable commit of {count:,} × 1 KiB, all changed"
    return _measure(settings, title, state, state.values, [target])


def _against(claim: str, *, safetensors: float, torch_save: float) -> list[Target]:
    """What is wanted of a commit: so many times the throughput of each of the two."""
    wanted = (("safetensors + fsync", SAFETENSORS, safetensors), (TORCH, TORCH, torch_save))
    return [
        Target(claim=f"{claim} ÷ {name}", row=STORE, peer=peer, bound=bound, kind="throughput")
        for name, peer, bound in wanted
    ]


def _measure(
    settings: Settings,
    title: str,
    state: State,
    changing: Change,
    targets: list[Target],
    *,
    others: Change | None = None,
    bare: bool = False,
) -> Table:
    """Measure one table.

    Args:
        settings: How much, and where.
        title: What is committed.
        state: The leaves that every side saves.
        changing: What is changed before the store under test commits.
        targets: What is asked.
        others: What is changed before the others save; the same by default. All share the leaves,
            so where few are to have changed since the last commit the others must change none.
        bare: Whether a store without statistics takes part.
    """
    say(f"commit: {title}")
    others = others or changing

    def measure() -> list[Row]:
        return _one_run(settings, state, changing, others, bare=bare)

    rows, runs = quiet(settings, measure, RAW)
    note = (
        "Digests and statistics included; the peers do neither. Files and folders are fsynced on "
        "every side; MB/s counts the bytes of the whole state. Before each sample as much memory "
        "is touched and freed, so that a growing file does not pay for the host's fresh pages."
    )
    return Table(
        title=title, unit="ms", rows=rows, control=RAW, targets=targets, note=note, runs=runs
    )


def _one_run(
    settings: Settings, state: State, changing: Change, others: Change, *, bare: bool
) -> list[Row]:
    folder, size = settings.folder, states.nbytes_of(state)

    def before() -> None:
        states.change(changing())

    def before_others(path: Path) -> None:
        peers.remove(path)
        states.change(others())

    cases = _peer_cases(folder, state, before_others)
    stores = [subject.new_store(folder / "next.db", state)]
    cases.append(_commit_case(STORE, stores[0], before, size))
    if bare:
        stores.append(subject.new_store(folder / "bare.db", state, statistics=False))
        cases.append(_commit_case(BARE, stores[1], before, size))
    cases.append(_first_case(folder / "first.db", state, before_others, size))
    for store in stores:
        store.commit()
    try:
        return interleave(cases, settings.repetitions)
    finally:
        for store in stores:
            store.close()
        _clean(folder)


def _peer_cases(folder: Path, state: State, before: Callable[[Path], None]) -> list[Case]:
    size = states.nbytes_of(state)
    plain = {name: tensor.detach() for name, tensor in state.items()}  # the same memory
    noise = memoryview(bytearray(os.urandom(min(size, MIB)) * (size // MIB + 1)))[:size]
    files = {label: folder / f"peer-{i}" for i, label in enumerate((RAW, SAFETENSORS, TORCH))}
    saves: dict[str, Callable[[], None]] = {
        RAW: lambda: peers.save_raw(files[RAW], noise),
        SAFETENSORS: lambda: peers.save_safetensors(files[SAFETENSORS], plain),
        TORCH: lambda: peers.save_torch(files[TORCH], plain),
    }
    return [
        Case(label=label, before=partial(before, files[label]), run=save, nbytes=size)
        for label, save in saves.items()
    ]


def _commit_case(label: str, store: ParamStoreDict, before: Callable[[], None], size: int) -> Case:
    steps = count(1)
    return Case(label=label, before=before, run=lambda: store.commit(step=next(steps)), nbytes=size)


def _first_case(path: Path, state: State, before: Callable[[Path], None], size: int) -> Case:
    store: ParamStoreDict | None = None

    def fresh() -> None:
        nonlocal store
        before(path)
        store = subject.new_store(path, state)

    def commit() -> None:
        assert store is not None
        store.commit(step=0)

    def close(_: object) -> None:
        assert store is not None
        store.close()

    return Case(label=FIRST, before=fresh, run=commit, after=close, nbytes=size)


def _clean(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        peers.remove(file)
