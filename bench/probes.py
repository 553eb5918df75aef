"""What has to be measured in a process of its own: opening, and peak memory.

``python -m bench.probes NAME JSON`` prints one line of JSON; the benchmarks use :func:`call`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from bench import peers, states, subject
from bench.states import MIB, State

SAFETENSORS, TORCH = "safetensors, 256 × 1 MiB", "torch, 256 × 1 MiB"
PEERS = (SAFETENSORS, TORCH)
MANY, ONE, SMALL = "256 × 1 MiB", "1 × 256 MiB", "20,000 × 1 KiB"
STRIDED, POSITIVE = "128 × 1 MiB + 1 transposed", "128 × 1 MiB + 1 positive"
NEW, NEW_ONE = "256 × 1 MiB into new tensors", "1 × 256 MiB into new tensors"
COMMITS = (*PEERS, MANY, ONE, SMALL, STRIDED, POSITIVE)
RESTORES = (*PEERS, MANY, NEW, ONE, NEW_ONE, SMALL, STRIDED, POSITIVE)
QUICK = (TORCH, NEW, STRIDED)

_ROOT = Path(__file__).resolve().parent.parent
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def call(probe: str, **arguments: object) -> dict[str, Any]:
    """Run a probe in a fresh process.

    Raises:
        RuntimeError: the process failed; its standard error is in the text.
    """
    command = [sys.executable, "-m", "bench.probes", probe, json.dumps(arguments, default=str)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"probe {probe!r} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probe_modules(path: str) -> dict[str, object]:
    """The modules that opening a store and reading one param imports."""
    before = set(sys.modules)
    _open_and_read(Path(path))
    return {"modules": sorted(set(sys.modules) - before)}


def probe_open(*, path: str, modules: list[str], control_first: bool) -> dict[str, float]:
    """Seconds that opening takes, first, again, and with one param read; and the control."""
    for module in modules:
        importlib.import_module(module)
    control = _seconds(lambda: _newest(path)) if control_first else 0.0
    first = _seconds(lambda: subject.open_store(Path(path)).close())
    again = _seconds(lambda: subject.open_store(Path(path)).close())
    read = _seconds(lambda: _open_and_read(Path(path)))
    control = control or _seconds(lambda: _newest(path))
    return {"control": control, "first": first, "again": again, "read": read}


def probe_memory(
    *, path: str, case: str, verb: str, quick: bool, repetitions: int
) -> dict[str, object]:
    """Peaks above the tensors in MiB, and the one copy that the case is allowed."""
    shrink = 64 if quick else 1
    if case in PEERS:
        return {"peaks": _peer_peaks(Path(path), case, verb, shrink, repetitions), "copy": 0}
    peaks = _commit_peaks if verb == "commit" else _restore_peaks
    copy = 64 / shrink if case in (STRIDED, POSITIVE) else 0
    return {"peaks": peaks(Path(path), case, shrink, repetitions), "copy": copy}


def _newest(path: str) -> None:
    connection = sqlite3.connect(path)
    query = "SELECT version, step FROM snapshots ORDER BY id DESC LIMIT 1"
    connection.execute(query).fetchall()
    connection.close()


def _open_and_read(path: Path) -> None:
    with subject.open_store(path) as store:
        float(store["small.p007"].detach().sum())


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _commit_peaks(path: Path, case: str, shrink: int, repetitions: int) -> list[float]:
    with _filled(path, case, shrink) as store:
        live = list(dict(store.named_parameters()).values())
        peaks = []
        for _ in range(repetitions):
            states.change(live)
            peaks.append(_peak(store.commit))
        return peaks


def _restore_peaks(path: Path, case: str, shrink: int, repetitions: int) -> list[float]:
    with _filled(path, case, shrink) as store:
        if case in (NEW, NEW_ONE):
            return [_new_peak(path) for _ in range(repetitions)]
        live = list(dict(store.named_parameters()).values())
        peaks = []
        for _ in range(repetitions):
            states.change(live)
            peaks.append(_peak(lambda: store.restore("main@1")))
        return peaks


def _new_peak(path: Path) -> float:
    with subject.open_store(path) as fresh:
        kept: list[State] = []

        def restore() -> None:
            fresh.restore("main@1")
            kept.append(dict(fresh.named_parameters()))

        return _peak(restore) - states.nbytes_of(kept[0]) / MIB


def _peer_peaks(path: Path, case: str, verb: str, shrink: int, repetitions: int) -> list[float]:
    state = states.equal_tensors(256, MIB // shrink)
    plain = {name: tensor.detach() for name, tensor in state.items()}
    save = peers.save_torch if case == TORCH else peers.save_safetensors
    peaks = []
    for _ in range(repetitions):
        peaks.append(_peak(lambda: save(path, plain)))
        if verb == "restore":
            peaks[-1] = _peer_restore_peak(path, case, plain)
        peers.remove(path)
    return peaks


def _peer_restore_peak(path: Path, case: str, plain: State) -> float:
    if case == SAFETENSORS:
        return _peak(lambda: peers.load_safetensors_into(path, plain))
    kept: list[State] = []
    return _peak(lambda: kept.append(peers.load_torch(path))) - states.nbytes_of(plain) / MIB


@contextmanager
def _filled(path: Path, case: str, shrink: int) -> Iterator[Any]:
    """A store on a new file whose first snapshot holds the tensors of the case."""
    subject.remove_store(path)
    with subject.open_store(path) as store:
        for name, value in _layout(case, shrink):
            constraint = constraints.positive if name == "positive" else constraints.real
            store.setdefault(name, value, constraint=constraint)
        store.commit()
        yield store
    subject.remove_store(path)


def _layout(case: str, shrink: int) -> Iterable[tuple[str, Tensor]]:
    if case in (ONE, NEW_ONE):
        return states.equal_tensors(1, 256 * MIB // shrink).items()
    if case == SMALL:
        return states.equal_tensors(20_000 // shrink, 1 << 10).items()
    if case in (MANY, NEW):
        return states.equal_tensors(256, MIB // shrink).items()
    some = states.equal_tensors(128, MIB // shrink)
    side = 4096 * 4096 // shrink
    if case == STRIDED:
        some["strided"] = torch.randn(4096, side // 4096).t().requires_grad_()
    else:
        some["positive"] = torch.rand(side).add_(0.5)
    return some.items()


def _peak(action: Callable[[], object]) -> float:
    """How far resident memory rises above what is resident now, in MiB."""
    gc.collect()
    _give_back()
    before = _resident("VmRSS")
    try:
        _RESET.write_text("5")  # resets VmHWM, proc(5)
    except OSError:
        return _sampled_peak(action) - before
    action()
    return _resident("VmHWM") - before


def _sampled_peak(action: Callable[[], object]) -> float:
    highest, done = [_resident("VmRSS")], Event()

    def sample() -> None:
        while not done.wait(0.001):
            highest.append(max(highest.pop(), _resident("VmRSS")))

    thread = Thread(target=sample)
    thread.start()
    try:
        action()
    finally:
        done.set()
        thread.join()
    return highest[0]


def _resident(field: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"{_STATUS} has no {field}: this probe needs Linux")


def _give_back() -> None:
    """Free pages that malloc holds would hide what the action takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "modules": probe_modules,
    "open": probe_open,
    "memory": probe_memory,
}

if __name__ == "__main__":
    print(json.dumps(_PROBES[sys.argv[1]](**json.loads(sys.argv[2]))))
