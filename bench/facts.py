"""The machine and the versions that a figure belongs to.

Must never tell a host name, a user or a path.
"""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "safetensors", "sqlalchemy", "blake3", "xxhash", "numpy", "pyro-ppl")
_PEERS = ("orbax-checkpoint", "jax", "diskcache", "langgraph-checkpoint-sqlite")


def facts(folder: Path) -> dict[str, str]:
    """Cores, memory, file system of ``folder``, and the versions of everything that is timed."""
    found = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory_gib():.0f} GiB",
        "file system": file_system(folder),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    return found | {name: _version(name) for name in (*_PACKAGES, *_PEERS)}


def file_system(folder: Path) -> str:
    """Type of the file system that holds ``folder``, e.g. ``ext4``; ``unknown`` off Linux."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    for line in mounts.read_text().splitlines():
        _, place, name = line.split()[:3]
        if len(place) >= len(best) and folder.resolve().is_relative_to(place):
            best, kind = place, name
    return kind


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
