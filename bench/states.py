"""The tensors that are committed and restored, and the in-place change before every commit.

Must never write a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

FLOAT = 4  # bytes of float32
MIB = 1 << 20

State = dict[str, Tensor]


def equal_tensors(count: int, nbytes: int) -> State:
    """``count`` float32 leaves of ``nbytes`` bytes each."""
    width = len(str(count - 1))
    return {f"p{i:0{width}}": leaf(nbytes // FLOAT) for i in range(count)}


def gpt2(*, width: int = 768, layers: int = 12, words: int = 50257, places: int = 1024) -> State:
    """The shapes of GPT-2 small: 148 tensors, 498 MB in float32."""
    state = {"wte.weight": leaf(words, width), "wpe.weight": leaf(places, width)}
    for i in range(layers):
        for name, shape in _block(width).items():
            state[f"h.{i}.{name}"] = leaf(*shape)
    state |= {"ln_f.weight": leaf(width), "ln_f.bias": leaf(width)}
    return state


def _block(width: int) -> dict[str, tuple[int, ...]]:
    linear = {
        "attn.c_attn": (1, 3),
        "attn.c_proj": (1, 1),
        "mlp.c_fc": (1, 4),
        "mlp.c_proj": (4, 1),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name, (rows, columns) in linear.items():
        shapes[f"{name}.weight"] = (rows * width, columns * width)
        shapes[f"{name}.bias"] = (columns * width,)
    return shapes


def leaf(*shape: int) -> Tensor:
    """A trainable float32 leaf of normal noise, which nothing on the way can compress."""
    return torch.randn(*shape).requires_grad_()


def network(params: int, width: int = 8) -> nn.Module:
    """A module of ``params`` parameters."""
    if params % 2:
        raise ValueError(f"a linear layer has two parameters, so {params} cannot be reached")
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(params // 2)))


def change(tensors: Iterable[Tensor]) -> None:
    """Change every element in place to a value that it has not had before.

    Adding never comes back to an earlier value (flipping signs would, and would be deduplicated).
    """
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(1 / 64)


def nbytes_of(state: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
