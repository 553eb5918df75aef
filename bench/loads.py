"""Restoring everything, and one parameter by its name, against every peer.

Reads are warm: every file was just written or read. Nothing is timed that does not end in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from bench import peers, rivals, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.rivals.side import Side, opened, touch
from bench.saves import PAR, STEP
from bench.states import MIB, State
from bench.tables import Table, Target
from paramstore import ParamStoreDict

RAW = "control: warm read of the same bytes"
CHECKED = "paramstore, restore in place, every digest checked"
UNCHECKED = "paramstore, restore in place, verify=False"
ONE = "paramstore, store.at(...)[name]"

_CHECKS = "checks the digest of every tensor before it fills the first; verify=False does not"
_ONE_CHECKS = "asks the catalogue, copies out of the database and checks the digest"


def run(settings: Settings) -> list[Table]:
    """Everything, then one tensor after another by name."""
    number, nbytes = settings.size(256, 8), settings.size(MIB, 64 << 10)
    folder, size = settings.folder, f"{number} × {nbytes >> 10} KiB"
    recipe = partial(states.equal_tensors, number, nbytes)
    state = recipe()
    with (
        subject.new_store(folder / "run.db", state) as store,
        opened(folder, state, recipe) as sides,
    ):
        store.commit(step=STEP)
        for side in sides.values():
            side.save(STEP)
        peers.save_raw(folder / "raw", memoryview(bytes(number * nbytes)))
        title = f"One parameter by name out of {size}"
        one = _table(settings, title, _one_by_name(settings, store, state, sides))
        title = f"Restore of {size}"
        return [_table(settings, title, _everything(settings, store, state, sides)), one]


def _table(settings: Settings, title: str, cases: list[Case]) -> Table:
    say(f"loads: {title}")
    rows, runs = quiet(settings, partial(interleave, cases, settings.repetitions), RAW)
    labels = [row.label for row in rows]
    ours, reason = (CHECKED, _CHECKS) if CHECKED in labels else (ONE, _ONE_CHECKS)
    targets = [
        Target(
            claim=f"time ÷ {label}",
            row=ours,
            peer=label,
            bound=PAR,
            group=f"{title}: time ÷ each peer's",
            reason=reason,
        )
        for label in labels
        if label not in (RAW, CHECKED, UNCHECKED, ONE)
    ]
    note = (
        "Warm, into memory: what only maps a file is copied or touched, page by page. Only ours "
        "checks digests. A peer that cannot read less than everything has to." + rivals.absent()
    )
    return Table(
        title=title,
        unit="ms",
        rows=rows,
        control=RAW,
        ours=ours,
        targets=targets,
        note=note,
        runs=runs,
    )


def _everything(
    settings: Settings, store: ParamStoreDict, state: State, sides: dict[str, Side]
) -> list[Case]:
    wanted = {name: tensor.detach().clone() for name, tensor in state.items()}
    size, path = states.nbytes_of(state), settings.folder / "raw"
    buffer = memoryview(bytearray(size))

    def restore(*, verify: bool) -> Callable[[], object]:
        return lambda: store.restore(f"main@step={STEP}", verify=verify)

    def same(_: object) -> None:
        if not all(tensor.detach().equal(wanted[name]) for name, tensor in state.items()):
            raise RuntimeError("a tensor did not come back as it was committed")

    def spoil() -> None:
        states.change(state.values())

    return [
        Case(label=RAW, run=lambda: peers.read_raw(path, buffer), nbytes=size),
        *(
            Case(label=label, run=partial(side.load, STEP), clocked=True, nbytes=size)
            for label, side in sides.items()
        ),
        *(
            Case(label=label, before=spoil, run=restore(verify=verify), after=same, nbytes=size)
            for label, verify in {CHECKED: True, UNCHECKED: False}.items()
        ),
    ]


def _one_by_name(
    settings: Settings, store: ParamStoreDict, state: State, sides: dict[str, Side]
) -> list[Case]:
    names, dice = sorted(state), random.Random(7)
    nbytes, path = state[names[0]].nbytes, settings.folder / "raw"
    buffer = memoryview(bytearray(nbytes))
    asked = dice.sample(names, settings.size(5, 2))

    def raw() -> None:
        with path.open("rb", buffering=0) as file:
            for name in asked:
                file.seek(names.index(name) * nbytes)
                file.readinto(buffer)

    def read(names: Sequence[str]) -> None:
        for name in names:
            tensor: Tensor = store.at("main@latest")[name]
            touch(tensor)

    loops = len(asked)
    return [
        Case(label=RAW, run=raw, nbytes=nbytes, loops=loops),
        *(
            Case(
                label=label,
                run=partial(side.one, STEP, asked),
                clocked=True,
                nbytes=nbytes,
                loops=loops,
            )
            for label, side in sides.items()
        ),
        Case(label=ONE, run=lambda: read(asked), nbytes=nbytes, loops=loops),
    ]
