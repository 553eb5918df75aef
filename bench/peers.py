"""What the store is measured against: raw bytes, safetensors and torch.save, just as durable.

Must never import the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

_SLICE = 8 << 20


def sync(path: Path) -> None:
    """Make a new file durable: its bytes, then its name in the folder."""
    sync_one(path)
    sync_one(path.parent)


def sync_one(path: Path) -> None:
    """Fsync one file or folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file of the last repetition, and let the file system finish with that."""
    path.unlink(missing_ok=True)
    sync_one(path.parent)


def save_raw(path: Path, data: memoryview) -> None:
    """The control of every commit: the bytes into a new file, durable."""
    with path.open("xb", buffering=0) as file:
        file.writelines(data[start : start + _SLICE] for start in range(0, len(data), _SLICE))
    sync(path)


def save_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """``safetensors.torch.save_file``, durable."""
    safetensors.torch.save_file(dict(state), path)
    sync(path)


def save_torch(path: Path, state: Mapping[str, Tensor]) -> None:
    """``torch.save``, durable."""
    torch.save(dict(state), path)
    sync(path)


def read_raw(path: Path, buffer: memoryview) -> int:
    """The control of every restore: the file into memory that is already there."""
    done = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer[done : done + _SLICE]):
            done += count
    return done


def load_safetensors_into(path: Path, state: Mapping[str, Tensor]) -> None:
    """Fill the tensors from a safetensors file, in place."""
    with torch.no_grad():
        for name, tensor in safetensors.torch.load_file(path).items():
            state[name].copy_(tensor)


def load_torch(path: Path) -> dict[str, Tensor]:
    """``torch.load`` into new tensors."""
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def one_safetensor(path: Path, name: str) -> Tensor:
    """One tensor by name out of a safetensors file that is not open yet."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor
