"""Restoring against ``torch.load``, and one tensor out of a large store against safetensors.

Reads are warm: every file was just written or read. Nothing is timed that does not end in memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from bench import peers, states, subject
from bench.harness import Case, Settings, interleave, quiet, say
from bench.states import MIB, State
from bench.tables import Row, Table, Target
from paramstore import ParamStoreDict

RAW = "control: warm read of the same bytes"
SAFETENSORS = "safetensors.torch.load_file + copy in place"
TORCH = "torch.load"
CHECKED = "paramstore, in place, checked first"
UNCHECKED = "paramstore, in place, verify=False"
NEW = "paramstore, into new tensors, checked"

_PAGE = 4096 // states.FLOAT  # elements from one page of memory to the next
ONE_RAW = "control: warm read of 1 MiB at its place"
ONE_SAFETENSORS = "safetensors.safe_open + get_tensor"
ONE_STORE = "paramstore, store.at(...)[name]"
ONE_VIEW = "paramstore, view[name] of a view that is there"
ONE_COLD = "paramstore, open + at + name"


def run(settings: Settings) -> list[Table]:
    """Restore of everything, and of one tensor."""
    return [_everything(settings), _one_tensor(settings)]


def _everything(settings: Settings) -> Table:
    number, nbytes = settings.size(256, 4), settings.size(MIB, 64 << 10)
    title = f"Restore of {number} × {nbytes >> 10} KiB"
    say(f"restore: {title}")
    rows, runs = quiet(settings, lambda: _run_everything(settings, number, nbytes), RAW)
    claim = "restore of 256 × 1 MiB, throughput ÷ torch.load"
    bounds = {CHECKED: 0.4, UNCHECKED: 0.8, NEW: 0.55}
    targets = [
        Target(
            claim=f"{claim}: {row.removeprefix('paramstore, ')}",
            row=row,
            peer=TORCH,
            bound=bound,
            kind="throughput",
        )
        for row, bound in bounds.items()
    ]
    note = (
        "Warm. The values in memory are changed before every restore in place; the new tensors "
        "belong to a store that was just opened, and are read by load_all()."
    )
    return Table(
        title=title, unit="ms", rows=rows, control=RAW, targets=targets, note=note, runs=runs
    )


def _run_everything(settings: Settings, number: int, nbytes: int) -> list[Row]:
    folder, state = settings.folder, states.equal_tensors(number, nbytes)
    database, safe, pickled = folder / "run.db", folder / "safe", folder / "torch"
    plain = {name: tensor.detach() for name, tensor in state.items()}
    peers.save_safetensors(safe, plain)
    peers.save_torch(pickled, plain)
    wanted = {name: tensor.clone() for name, tensor in plain.items()}
    size = states.nbytes_of(state)
    buffer = memoryview(bytearray(safe.stat().st_size))
    with subject.new_store(database, state) as store:
        store.commit()

        def spoil() -> None:
            states.change(state.values())

        def same(_: object) -> None:
            _compare(dict(store.named_parameters()), wanted)

        def restore(*, verify: bool) -> Callable[[], object]:
            return lambda: store.restore("main@1", verify=verify)

        cases = [
            Case(label=RAW, run=lambda: peers.read_raw(safe, buffer), nbytes=size),
            Case(
                label=SAFETENSORS,
                before=spoil,
                run=lambda: peers.load_safetensors_into(safe, plain),
                nbytes=size,
            ),
            Case(label=TORCH, run=lambda: peers.load_torch(pickled), nbytes=size),
            Case(label=CHECKED, before=spoil, run=restore(verify=True), after=same, nbytes=size),
            Case(label=UNCHECKED, before=spoil, run=restore(verify=False), after=same, nbytes=size),
            _into_new(database, wanted, size),
        ]
        rows = interleave(cases, settings.repetitions)
    _clean(folder)
    return rows


def _into_new(database: Path, wanted: State, size: int) -> Case:
    stores: list[ParamStoreDict] = []

    def restore() -> State:
        stores[-1].load_all()
        return dict(stores[-1].named_parameters())

    def close(restored: object) -> None:
        assert isinstance(restored, dict)
        _compare(restored, wanted)
        stores.pop().close()

    def reopen() -> None:
        stores.append(subject.open_store(database))

    return Case(label=NEW, before=reopen, run=restore, after=close, nbytes=size)


def _compare(restored: State, wanted: State) -> None:
    """A restore that brought other values would be fast for nothing."""
    for name, tensor in wanted.items():
        if not restored[name].detach().equal(tensor):
            raise RuntimeError(f"{name!r} did not come back as it was committed")


def _one_tensor(settings: Settings) -> Table:
    number, nbytes = settings.size(1024, 8), settings.size(MIB, 64 << 10)
    title = f"One tensor by name out of {number} × {nbytes >> 10} KiB"
    say(f"restore: {title}")
    folder, state = settings.folder, states.equal_tensors(number, nbytes)
    plain = {name: tensor.detach() for name, tensor in state.items()}
    peers.save_safetensors(folder / "safe", plain)
    with subject.new_store(folder / "run.db", state) as store:
        store.commit()
    del state, plain, store
    rows, runs = quiet(settings, lambda: _run_one(settings, number, nbytes), ONE_RAW)
    _clean(folder)
    target = Target(
        claim="one tensor out of a 1 GiB store: time ÷ safetensors by name",
        row=ONE_STORE,
        peer=ONE_SAFETENSORS,
        bound=1.0,
    )
    note = (
        "Warm, another name each time, every page is read afterwards (safetensors maps the "
        "file and would defer the reading). The store is open already where not said otherwise."
    )
    return Table(
        title=title, unit="ms", rows=rows, control=ONE_RAW, targets=[target], note=note, runs=runs
    )


def _run_one(settings: Settings, number: int, nbytes: int) -> list[Row]:
    database, safe = settings.folder / "run.db", settings.folder / "safe"
    dice, loops = random.Random(7), settings.size(50, 3)
    buffer = memoryview(bytearray(nbytes))
    header = safe.stat().st_size - number * nbytes
    with subject.open_store(database) as store:
        names = sorted(store.keys())
        view = store.at("main@latest")

        def some() -> Iterable[str]:
            return dice.sample(names, min(loops, len(names)))

        def raw() -> None:
            with safe.open("rb", buffering=0) as file:
                for _ in range(loops):
                    file.seek(header + dice.randrange(number) * nbytes)
                    file.readinto(buffer)

        def cold(name: str) -> Tensor:
            with subject.open_store(database) as fresh:
                return fresh.at("main@latest")[name]

        reads: dict[str, Callable[[str], Tensor]] = {
            ONE_SAFETENSORS: lambda name: peers.one_safetensor(safe, name),
            ONE_STORE: lambda name: store.at("main@latest")[name],
            ONE_VIEW: lambda name: view[name],
            ONE_COLD: cold,
        }
        cases = [Case(label=ONE_RAW, run=raw, nbytes=nbytes, loops=loops)]
        cases += [
            Case(label=label, run=_each(read, some), nbytes=nbytes, loops=min(loops, number))
            for label, read in reads.items()
        ]
        return interleave(cases, settings.repetitions)


def _each(read: Callable[[str], Tensor], names: Callable[[], Iterable[str]]) -> Callable[[], None]:
    def every() -> None:
        for name in names():
            read(name).detach().numpy()[::_PAGE].max()  # on this thread: torch's would wait

    return every


def _clean(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        peers.remove(file)
