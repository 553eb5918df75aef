"""The peers: every one saves, loads and forgets the same tensors behind the same few verbs.

One module per package, imported on demand; none of them may import the store.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from bench import peers
from bench.states import State

INSTALL = "pip install -e '.[bench]'"


class Rival(Protocol):
    """One peer on one empty folder. Steps are whole numbers that grow."""

    def save(self, state: State, step: int) -> None:
        """Save these tensors, none of which needs a gradient, as the peer's documentation says.

        When this returns they are durable.
        """

    def load(self, step: int) -> State:
        """Every tensor of that step, in memory."""

    def one(self, step: int, name: str) -> State:
        """At least that tensor of that step: the least that the peer can read."""

    def forget(self, step: int) -> None:
        """Make room for the next sample, where the peer keeps a step by itself."""

    def close(self) -> None:
        """Finish what is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A peer that may take part."""

    label: str
    """What it is called in tables."""
    package: str
    """The module that must be installed for it."""
    place: str
    """``module:class`` below this package."""
    apart: bool = False
    """Whether it runs in a process of its own (:mod:`bench.rivals.side`)."""

    def open(self, folder: Path) -> Rival:
        """The peer on that folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        module, name = self.place.split(":")
        rival: Rival = getattr(importlib.import_module(f"bench.rivals.{module}"), name)(folder)
        return rival


SAFETENSORS = "safetensors"
TORCH = "torch.save / load"
PYRO = "Pyro's ParamStoreDict.save / load"
DCP = "torch.distributed.checkpoint"
ORBAX = "Orbax"
DISKCACHE = "diskcache"
LANGGRAPH = "LangGraph's SQLite saver"

# JAX and TensorStore bring some twenty threads and an allocator of their own: in the process of
# the others they would share the interpreter lock and the caches with every sample beside them.
ENTRIES = (
    Entry(label=SAFETENSORS, package="safetensors", place="files:Safetensors"),
    Entry(label=TORCH, package="torch", place="files:Torch"),
    Entry(label=DCP, package="torch", place="dcp:Distributed"),
    Entry(label=PYRO, package="pyro", place="pyro_file:Pyro"),
    Entry(label=ORBAX, package="orbax", place="orbax_tree:Orbax", apart=True),
    Entry(label=DISKCACHE, package="diskcache", place="disk_cache:DiskCache"),
    Entry(label=LANGGRAPH, package="langgraph", place="lang_graph:LangGraph"),
)


def installed() -> list[Entry]:
    """The peers whose package is there."""
    return [entry for entry in ENTRIES if find_spec(entry.package)]


def absent() -> str:
    """A sentence about the peers that are not there, and how to install them; else empty."""
    missing = [entry.label for entry in ENTRIES if not find_spec(entry.package)]
    return f" Left out, not installed: {', '.join(missing)} (`{INSTALL}`)." if missing else ""


def sync_tree(folder: Path) -> None:
    """Make a folder that a peer wrote durable: every file, every folder, and its own name."""
    for path in (*files_below(folder), *folders_below(folder), folder.parent):
        peers.sync_one(path)


def files_below(folder: Path) -> list[Path]:
    """Every file below that folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def folders_below(folder: Path) -> list[Path]:
    """That folder and every folder below it."""
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())]


def stored_bytes(folder: Path) -> int:
    """Bytes of all files below that folder."""
    return sum(path.stat().st_size for path in files_below(folder))
