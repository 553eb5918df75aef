"""Pyro's own parameter files: pickles of ``ParamStoreDict.save``, read without running any of it.

``torch.load(weights_only=True)`` runs nothing but a short list of constructors; the classes of
constraints join that list as empty stand-ins, only while one file is read. Before that the file is
held against :mod:`paramstore.pickle_rules`. Must never import Pyro, and never let a stand-in out.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Mapping
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from paramstore.constraints import from_spec, to_spec
from paramstore.errors import (
    CorruptError,
    ParamStoreError,
    UnknownConstraintError,
    UnsupportedFileError,
)
from paramstore.kinds import known_classes
from paramstore.pickle_rules import check_pickle

_PYRO = "pyro.distributions.constraints"
_PYRO_KINDS = {
    "_CorrMatrix": "corr_matrix",
    "_Integer": "integer",
    "_OrderedVector": "ordered_vector",
    "_PositiveOrderedVector": "positive_ordered_vector",
    "_SoftplusLowerCholesky": "softplus_lower_cholesky",
    "_SoftplusPositive": "softplus_positive",
    "_Sphere": "sphere",
    "_UnitLowerCholesky": "unit_lower_cholesky",
}
"""Kinds of Pyro's constraints (pyro-ppl 1.8 and 1.9) by the class that their pickles name."""

_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
"""What torch.save wrote first, pickled, before its files were zip archives."""

_OTHER_ARCHIVE = re.compile(
    r'file in archive is not in a subdirectory: (.*)|Expected hasRecord\("version"\)'
)
"""How torch's reader says that torch.save did not write a zip archive."""

_LOCK = threading.Lock()  # torch's list of safe globals belongs to the process


class _StandIn:
    """What a pickled constraint becomes: its attributes, and no method that could run."""

    real: ClassVar[type[Constraint]] = Constraint
    """The class that it stands for: torch's, or one that was registered."""
    kind: ClassVar[str] = ""
    """Or the kind of a constraint of Pyro, which may not be installed."""


def _stand_ins() -> dict[type[_StandIn], str]:
    """Make a stand-in for each class of constraints; by it, the class's full name."""
    found: dict[type[_StandIn], str] = {}
    for cls in known_classes():
        if cls.__module__ != _PYRO:
            stand_in = type(cls.__name__, (_StandIn,), {"real": cls})
            found[stand_in] = f"{cls.__module__}.{cls.__qualname__}"
    for name, kind in _PYRO_KINDS.items():
        found[type(name, (_StandIn,), {"kind": kind})] = f"{_PYRO}.{name}"
    return found


def load_pyro(path: str, file: BinaryIO, map_location: Any) -> list[tuple[str, Tensor, Constraint]]:
    """Read the parameters of a file that Pyro's ``ParamStoreDict.save`` wrote.

    Args:
        path: What errors call the file.
        file: The file, open at its start.
        map_location: Where the tensors go, as for ``torch.load``.

    Raises:
        UnsupportedFileError: a pickle of anything else; nothing of it was run.
        CorruptError: a file that is cut off or altered.
        UnknownConstraintError: a constraint that is not registered here.
    """
    state = load_saved(path, file, map_location)
    if not isinstance(state, dict):
        raise UnsupportedFileError(
            f"{path!r} is no parameter file: it holds {_describe(state)}, and no names; set "
            f"tensors one by one: store['name'] = tensor"
        )
    if set(state) != {"params", "constraints"}:
        raise UnsupportedFileError(
            f"{path!r} is no parameter file: it holds {_describe(state)}, not what "
            f"ParamStoreDict.save of Pyro writes. For the state_dict of a module, load it into the "
            f"module and bind that with store.module(name, module)"
        )
    params, found = state["params"], state["constraints"]
    if not isinstance(params, dict) or not isinstance(found, dict):
        raise UnsupportedFileError(f"{path!r} has params or constraints that are no dictionary")
    return [_item(path, name, tensor, found) for name, tensor in params.items()]


def load_saved(path: str, file: BinaryIO, map_location: Any) -> object:
    """Read what ``torch.save`` wrote, if it is made of tensors; constraints become stand-ins.

    Raises:
        UnsupportedFileError: it is made of something else, or another program's; nothing was run.
        CorruptError: a file that is cut off or altered.
    """
    if (start := file.read(64)).startswith(b"\x80") and _MAGIC not in start:
        raise UnsupportedFileError(
            f"{path!r} is a plain pickle, not a file of torch.save, and reading it could run any "
            f"code; where you trust it, load it yourself and torch.save what is in it"
        )
    file.seek(0)
    try:
        stand_ins = _stand_ins()
        check_pickle(path, file, stand_ins.values())
        with _LOCK, torch.serialization.safe_globals(list(stand_ins.items())):
            return torch.load(file, map_location, weights_only=True)
    except ParamStoreError:
        raise
    except Exception as error:
        # A file that was cut off has nothing where torch's reader seeks: an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        if other := _OTHER_ARCHIVE.search(str(error)):
            raise UnsupportedFileError(
                f"{path!r} is no parameter file: it is {_archive(other[1] or '')}"
            ) from error
        raise CorruptError(f"{path!r} is cut off or altered: {_first_line(error)}") from error


def _archive(name: str) -> str:
    """Say what a zip archive is, of which torch's reader names a file."""
    if not name.endswith(".npy"):
        return "a zip archive, and torch.save did not write it"
    return (
        "an archive of NumPy; make a safetensors file of it: "
        "safetensors.numpy.save_file(dict(numpy.load('in.npz')), 'out.safetensors')"
    )


def _item(
    path: str, name: object, tensor: object, found: Mapping[object, object]
) -> tuple[str, Tensor, Constraint]:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        raise UnsupportedFileError(
            f"{path!r} holds {_describe(tensor)} as parameter {name!r}, not a tensor"
        )
    if name not in found:
        raise UnsupportedFileError(f"{path!r} has no constraint for parameter {name!r}")
    # A store of ours that was pickled carries its back references as empty dictionaries.
    vars(tensor).pop("unconstrained", None)
    return name, tensor, _constraint(path, name, found[name], tensor.device)


def _constraint(path: str, name: str, found: object, device: torch.device) -> Constraint:
    """Build the constraint anew from its spec; what came out of the pickle is dropped."""
    try:
        spec = to_spec(_real(found))
        return from_spec(spec.text, dict(spec.tensors).__getitem__, device=device)
    except UnknownConstraintError as error:
        raise UnknownConstraintError(f"parameter {name!r} in {path!r}: {error}") from error
    except (ParamStoreError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise UnsupportedFileError(
            f"{path!r} holds {_describe(found)} as constraint of {name!r}: {error}"
        ) from error


def _real(found: object) -> Any:
    """Turn stand-ins into the constraints they stand for, nested ones first."""
    if isinstance(found, list):
        return [_real(part) for part in found]
    if not isinstance(found, Constraint | _StandIn):
        return found
    if isinstance(found, _StandIn) and found.kind:
        return from_spec(f'{{"kind":"{found.kind}"}}')
    cls = found.real if isinstance(found, _StandIn) else type(found)
    made = cls.__new__(cls)
    vars(made).update({name: _real(value) for name, value in vars(found).items()})
    return made


def _describe(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, _StandIn):
        return f"a constraint {kind.lstrip('_')}"
    if isinstance(value, Mapping) and value:
        keys = [repr(key) for key in list(value)[:4]]
        more = f", … ({len(value)} in all)" if len(value) > 4 else ""
        return f"a {kind} with the keys {', '.join(keys)}{more}"
    return f"a {kind}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
