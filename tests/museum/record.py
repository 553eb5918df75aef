"""All that a store holds, as JSON in which equal text means equal bits.

Reads through the public interface and changes nothing. What is None is left out, so that what a
later revision adds does not change the record of an older store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

import paramstore
from paramstore import ParamStoreDict, ParamVersion, SnapshotView
from paramstore.testing.bits import bits

Json = dict[str, Any]

# What a store of any revision tells. Names of their own, so that what the classes gain is not
# missed in older records.
_SNAPSHOT: Final = (
    "id scope version parent step created_at message kind metrics tags params changed nbytes "
    "added_nbytes extras origin"
)
_VERSION: Final = (
    "name scope version step created_at since_version kind requires_grad dtype shape nbytes "
    "constraint digest"
)
_STATISTICS: Final = "norm mean std min max nan_count inf_count value unconstrained"
_NESTED: Final = 5
"""Levels of the record that have a line for each of their items."""
_SHOWN: Final = 64
"""Bytes from which a digest stands for the bits, and elements that are shown as numbers."""


def text(found: object, depth: int = 0) -> str:
    """Return JSON in lines that a diff can show: one for each value, version or field."""
    if not isinstance(found, dict) or not found or depth == _NESTED:
        return json.dumps(found, ensure_ascii=False, sort_keys=True)
    margin = " " * depth
    items = sorted(found.items())
    lines = (
        f"{margin} {json.dumps(k, ensure_ascii=False)}: {text(v, depth + 1)}" for k, v in items
    )
    return "{\n" + ",\n".join(lines) + f"\n{margin}}}"


def record(path: Path) -> Json:
    """Everything in the store: scopes, snapshots, values, extras, attached states, history."""
    with paramstore.open(path, readonly=True) as store:
        return {scope.name: _scope(store, scope.name) for scope in store.scopes()}


def _scope(store: ParamStoreDict, name: str) -> Json:
    log = store.log(name)
    views = [store.at(snapshot.ref) for snapshot in log]
    names = sorted({param for view in views for param in view})
    return {
        "snapshots": {view.snapshot.ref: _snapshot(view) for view in views},
        "history": {
            param: [_version(row) for row in store.history(param, scope=name)] for param in names
        },
    }


def _snapshot(view: SnapshotView) -> Json:
    states = [name for kind, name, _ in view.manifest.extras if kind == "state"]
    return {
        **_fields(view.snapshot, _SNAPSHOT),
        "digest": view.manifest.digest.hex(),
        "values": {name: _value(view, name) for name in view},
        "states": {name: exact(view.state(name)) for name in states},
    }


def _version(row: ParamVersion) -> Json:
    statistics = _fields(row.statistics, _STATISTICS) if row.statistics else {}
    return _fields(row, _VERSION) | statistics


def _value(view: SnapshotView, name: str) -> Json:
    entry = view.manifest.entries[name]
    return {
        "unconstrained": exact(view.unconstrained(name)),
        "value": _numbers(view[name]),
        "constraint": entry.spec,
        "kind": entry.kind,
        "requires_grad": entry.requires_grad,
        "shape": list(entry.shape),
        "since_version": entry.since_version,
        "digest": entry.digest.hex(),
    }


def _numbers(value: Tensor) -> object:
    """Show the constrained value, whose last bits depend on the processor."""
    if value.numel() > _SHOWN or not value.is_floating_point():
        return None
    return [f"{number:.4g}" for number in value.double().flatten().tolist()]


def _fields(row: object, names: str) -> Json:
    found = {name: getattr(row, name) for name in names.split()}
    return {name: exact(value) for name, value in found.items() if value is not None}


def exact(value: object) -> Any:
    """Return a value of the extras as JSON that tells its type and every bit.

    Raises:
        TypeError: of a type that extras cannot hold.
    """
    if isinstance(value, Tensor):
        return [f"tensor {value.dtype} {tuple(value.shape)}", _bits(bits(value))]
    if isinstance(value, np.ndarray | np.generic):
        return [f"{type(value).__name__} {value.dtype.str} {value.shape}", _bits(value.tobytes())]
    kind = type(value).__name__
    if isinstance(value, Mapping):
        kind = kind if isinstance(value, dict) else "mapping"
        return [kind, [[exact(key), exact(item)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return [kind, [exact(item) for item in value]]
    return _leaf(value, kind)


def _leaf(value: object, kind: str) -> Any:
    if value is None or type(value) in (str, bool, int):
        return value
    if isinstance(value, float):
        return [kind, "nan" if math.isnan(value) else value.hex()]
    if isinstance(value, complex):
        return [kind, value.real.hex(), value.imag.hex()]
    if isinstance(value, bytes):
        return [kind, _bits(value)]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, torch.dtype | torch.device):
        return [kind, str(value)]
    raise TypeError(f"{value!r} is nothing that extras can hold")


def _bits(data: bytes) -> str:
    return data.hex() if len(data) <= _SHOWN else f"blake3 {blake3(data).hexdigest()}"
