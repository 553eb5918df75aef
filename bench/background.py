"""Saves beside a training loop: how long the loop is held, and what a save costs it in all.

Inline savers hold it until they are durable, background savers while they copy; both are given the
same steps to get in the way of. Must never count a step that no save was beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Protocol

import torch
from torch import Tensor

from bench import states, subject
from bench.harness import Settings, say, warm_memory
from bench.rivals import Rival
from bench.rivals.dcp import Asynchronous, Distributed
from bench.rivals.files import Torch
from bench.states import MIB, State
from bench.tables import Kind, Row, Table, Target
from bench.training import Training, training

COPY = "control: warm copy of the changed bytes"
FILE = "torch.save + fsync, inline"
SAVE = "DCP save, inline"
ASYNC = "DCP async_save"
CACHED = "DCP async_save, cached staging"
STORE = "paramstore, commit(wait=False)"
STEP = 1
_WARM = (
    "Before each save as much memory is touched and freed, so that a growing file does not pay for "
    "the host's fresh pages."
)
_AFTER, _BEFORE = 40, 15  # steps beside a save, and before it to compare with
_FLAT = 16.0  # MiB that count as no growth


class Handle(Protocol):
    """A save under way."""

    def done(self) -> bool:
        """Whether it is durable."""

    def result(self, timeout: float | None = None) -> object:
        """Wait until it is; raises what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saver:
    """One way to save."""

    save: Callable[[], Handle | None]
    """Begin; None when it was durable at once. This is what holds the loop."""
    forget: Callable[[], object] = lambda: None
    """Not timed: remove the file or folder of the last sample."""


def run(settings: Settings) -> list[Table]:
    """With one and with two threads of torch: all changed, then the head alone; then sustained."""
    tables = [table for threads in (1, 2) for table in _measure(settings, threads)]
    return [*tables, *_sustained(settings)]


def _training(settings: Settings) -> Training:
    """256 MiB: 244 tensors of 1 MiB and a head of 12, which is what a step changes."""
    tensors, width = settings.size(244, 8), settings.size(1024, 64)
    return training(tensors=tensors, width=width, nbytes=settings.size(MIB, 64 << 10))


@contextmanager
def _savers(folder: Path, state: State) -> Iterator[dict[str, Saver]]:
    """Every way to save, by its label."""
    plain = {name: tensor.detach() for name, tensor in state.items()}
    places = {label: folder / str(i) for i, label in enumerate((FILE, SAVE, ASYNC, CACHED))}
    for place in places.values():
        place.mkdir()
    inline: dict[str, Rival] = {FILE: Torch(places[FILE]), SAVE: Distributed(places[SAVE])}
    beside = {
        label: Asynchronous(places[label], cached=cached)
        for label, cached in {ASYNC: False, CACHED: True}.items()
    }
    savers = {
        label: Saver(save=partial(rival.save, plain, STEP), forget=partial(rival.forget, STEP))
        for label, rival in inline.items()
    }
    savers |= {
        label: Saver(save=partial(rival.start, plain, STEP), forget=partial(rival.forget, STEP))
        for label, rival in beside.items()
    }
    with ExitStack() as stack:
        for rival in beside.values():
            stack.callback(rival.close)
        store = stack.enter_context(subject.new_store(folder / "run.db", state))
        savers[STORE] = Saver(save=lambda: store.commit(step=STEP, wait=False))
        yield savers


# -- held and lost -----------------------------------------------------------------------------

Samples = dict[str, list[float]]


def _measure(settings: Settings, threads: int) -> list[Table]:
    torch.set_num_threads(threads)
    loop = _training(settings)
    megabytes = states.nbytes_of(loop.state) / 1e6
    regimes = {"all changed": tuple(loop.state), "5 % changed": loop.trained}
    tables, bound = [], None
    with _savers(settings.folder, loop.state) as savers:
        for regime, names in regimes.items():
            about = f"{megabytes:.0f} MB, {regime}, {threads} torch thread{'s'[: threads - 1]}"
            say(f"background: {about}")
            held, lost = _samples(settings, loop, savers, names)
            tables += [_held_table(about, held, bound), _lost_table(about, lost, threads)]
            bound = 0.7 * median(held[STORE])
    subject.empty(settings.folder)
    return tables


def _samples(
    settings: Settings, loop: Training, savers: dict[str, Saver], names: Sequence[str]
) -> tuple[Samples, Samples]:
    """Milliseconds held and lost, by label; after one round that does not count."""
    copy = _copier([loop.state[name] for name in names])
    held: Samples = {label: [] for label in (COPY, *savers)}
    lost: Samples = {label: [] for label in savers}
    labels = list(savers)
    for repetition in range(-1, settings.repetitions):
        turn = repetition % len(labels)
        copied = copy()
        if repetition >= 0:
            held[COPY].append(copied * 1e3)
        for label in (*labels[turn:], *labels[:turn]):
            savers[label].forget()
            states.change(loop.state[name] for name in names)
            seconds, more = _sample(settings, loop, savers[label])
            if repetition >= 0:
                held[label].append(seconds * 1e3)
                lost[label].append((seconds + more) * 1e3)
    return held, lost


def _sample(settings: Settings, loop: Training, saver: Saver) -> tuple[float, float]:
    """Seconds that the loop was held, and seconds that its next steps took longer than usual."""
    before = settings.size(_BEFORE, 2)
    warm_memory(states.nbytes_of(loop.state))
    usual = loop.steps(before) / before
    start = perf_counter()
    handle = saver.save()
    held = perf_counter() - start
    done = handle.done if handle is not None else lambda: True
    number, seconds = loop.steps_until(done, settings.size(_AFTER, 4))
    if handle is not None:
        handle.result(timeout=0)
    return held, seconds - number * usual


def _copier(tensors: Sequence[Tensor]) -> Callable[[], float]:
    """The least for which a background save can hold its caller: a copy into memory in use."""
    pairs = [(tensor.detach().clone(), tensor.detach()) for tensor in tensors]

    def seconds() -> float:
        start = perf_counter()
        for copy, tensor in pairs:
            copy.copy_(tensor)
        return perf_counter() - start

    return seconds


def _held_table(about: str, held: Samples, bound: float | None) -> Table:
    wanted = {FILE: 0.1, CACHED: 0.4}
    if not bound:
        wanted[COPY] = 1.3  # what has not changed is not copied, but has to be looked at
    targets = [
        Target(claim=f"held, {about}: ÷ {peer}", row=STORE, peer=peer, bound=most)
        for peer, most in wanted.items()
    ]
    if bound:
        claim = f"held, {about}: ms (0.7 × of all changed)"
        targets.append(Target(claim=claim, row=STORE, bound=bound, kind="median"))
    note = "Milliseconds until the call returns. Ours copies what changed, the peers everything."
    return _table(f"Training held by a save: {about}", held, COPY, targets, note)


def _lost_table(about: str, lost: Samples, threads: int) -> Table:
    wanted = {FILE: 0.5 if threads == 1 else 1.0, CACHED: 1.0}
    targets = [
        Target(claim=f"lost, {about}: ÷ {peer}", row=STORE, peer=peer, bound=most)
        for peer, most in wanted.items()
    ]
    note = (
        f"Milliseconds held, and by which the steps until the save is durable ({_AFTER} at least, "
        f"of about 20 ms) took longer than the {_BEFORE} before it. {_WARM}"
    )
    return _table(f"Training time lost by a save: {about}", lost, None, targets, note)


def _table(
    title: str, samples: Samples, control: str | None, targets: list[Target], note: str
) -> Table:
    return Table(
        title=title,
        unit="ms",
        rows=[Row(label=label, values=values) for label, values in samples.items()],
        control=control,
        ours=STORE,
        targets=targets,
        note=note,
    )


# -- sustained ---------------------------------------------------------------------------------


def _sustained(settings: Settings) -> list[Table]:
    """A commit every second for a minute, everything changed each time: it keeps up where none is
    pending for long, so that the line never gets full.
    """
    commits, every = settings.size(60, 5), 0.2 if settings.quick else 1.0
    torch.set_num_threads(1)
    loop = _training(settings)
    say(f"background: {commits} commits, one every {every:g} s")
    path = settings.folder / "run.db"
    pending: list[tuple[float, Handle]] = []
    took: list[float] = []
    waiting: list[float] = []
    memory: list[float] = []

    def is_over(end: float) -> bool:
        while pending and pending[0][1].done():
            start, handle = pending.pop(0)
            handle.result(timeout=0)
            took.append(perf_counter() - start)
        return perf_counter() >= end

    with subject.new_store(path, loop.state) as store:
        due = perf_counter()
        for step in range(commits):
            states.change(loop.state.values())
            warm_memory(states.nbytes_of(loop.state))
            loop.steps_until(partial(is_over, due), least=1)
            waiting.append(len(pending))
            pending.append((perf_counter(), store.commit(step=step, wait=False)))
            memory.append(states.resident_bytes() / MIB)
            due += every
        loop.steps_until(lambda: is_over(0.0) and not pending, least=1)
    subject.remove_store(path)
    about = f"{states.nbytes_of(loop.state) / 1e6:.0f} MB, a commit every {every:g} s"
    growth = [size - memory[2] for size in memory[3:]]
    return [
        _one_row(
            f"Until a commit is durable: {about}", "s", "until durable", took, every, "median"
        ),
        _one_row(
            f"Pending when the next commit is due: {about}", "commits", "pending", waiting, 1.0
        ),
        _one_row(
            f"Resident memory above that after the third commit: {about}",
            "MiB",
            "growth of memory",
            growth,
            _FLAT,
        ),
    ]


def _one_row(
    title: str, unit: str, claim: str, values: list[float], bound: float, kind: Kind = "worst"
) -> Table:
    target = Target(claim=f"sustained: {claim}, {unit}", row=STORE, bound=bound, kind=kind)
    row = Row(label=STORE, values=values)
    return Table(title=title, unit=unit, rows=[row], targets=[target])
