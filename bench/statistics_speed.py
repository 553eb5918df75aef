"""Time the statistics of a commit against torch's own reductions and a bare read of the memory.

Prints medians over interleaved runs; run it on an idle machine:
``python -m bench.statistics_speed [--runs 9]``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform

from paramstore.statistics import describe


def with_torch(tensors: list[Tensor]) -> None:
    """The same numbers by torch's reductions, on as many threads as it likes."""
    for tensor in tensors:
        torch.std_mean(tensor, correction=0)
        torch.linalg.vector_norm(tensor)
        tensor.min()
        tensor.max()


def raw_pass(tensors: list[Tensor]) -> None:
    """Read every byte once: the least that any statistics can take."""
    for tensor in tensors:
        np.maximum.reduce(tensor.view(torch.uint8).numpy())


def cases() -> dict[str, Callable[[], object]]:
    """Name what is timed."""
    large = [torch.randn(1 << 18) for _ in range(256)]
    odd = [tensor.clone() for tensor in large]
    for tensor in odd:
        tensor[:: 1 << 16] = torch.nan
    many = [torch.randn(256) for _ in range(20_000)]
    few = [torch.randn(40) for _ in range(500)]
    half = [tensor.bfloat16() for tensor in large]
    plain: dict[str, list[Tensor]] = {
        "256 x 1 MiB": large,
        "256 x 1 MiB, NaN in every block": odd,
        "256 x 0.5 MiB bfloat16": half,
        "20,000 x 256": many,
        "500 x 40": few,
    }
    found: dict[str, Callable[[], object]] = {}
    for name, tensors in plain.items():
        found[f"{name}: describe"] = partial(describe, [(tensor, None) for tensor in tensors])
        if any(tensors is some for some in (large, many, few)):
            found[f"{name}: torch"] = partial(with_torch, tensors)
            found[f"{name}: raw pass"] = partial(raw_pass, tensors)
    for name, tensors in (("256 x 1 MiB", large), ("20,000 x 256", many)):
        items = [(tensor, ExpTransform()) for tensor in tensors]
        found[f"{name}, positive: describe"] = partial(describe, items)
    return found


def main() -> None:
    """Run every case in turn, as often as asked, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    runs = parser.parse_args().runs
    timed = cases()
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(runs + 1):
        for name, call in timed.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    print(f"torch threads: {torch.get_num_threads()}, runs: {runs} after a warm-up\n")
    for name, found in seconds.items():
        found = found[1:]
        print(
            f"{name:45} {statistics.median(found) * 1e3:8.1f} ms"
            f"  ({min(found) * 1e3:.1f} … {max(found) * 1e3:.1f})"
        )


if __name__ == "__main__":
    main()
