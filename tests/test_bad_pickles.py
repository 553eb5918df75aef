"""Bad input: files that try to run code when they are loaded, and files of something else."""

from __future__ import annotations

import builtins
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict


class _Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _touching(target: Path) -> dict[str, _Calls]:
    return {
        "os.system": _Calls(os.system, f"touch {target}"),
        "eval": _Calls(builtins.eval, f"__import__('pathlib').Path({str(target)!r}).touch()"),
        "method": _Calls(Path.touch, target),
        "torch": _Calls(torch.load, str(target)),
    }


@pytest.mark.parametrize("place", ["state", "params", "constraints"])
@pytest.mark.parametrize("how", ["os.system", "eval", "method", "torch"])
@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_tries_to_run_code_is_refused(
    tmp_path: Path, how: str, place: str, new: bool
) -> None:
    target, file = tmp_path / "ran", tmp_path / "armed.save"
    armed: Any = _touching(target)[how]
    state: Any = {
        "params": {"x": torch.ones(1, requires_grad=True)},
        "constraints": {"x": constraints.real},
    }
    if place == "state":
        state = armed
    else:
        state[place]["armed"] = armed
    torch.save(state, file, _use_new_zipfile_serialization=new)
    store = ParamStoreDict()
    store["kept"] = torch.zeros(1)
    with pytest.raises(paramstore.UnsupportedFileError, match=r"armed\.save"):
        store.load(str(file))
    assert not target.exists()
    assert list(store) == ["kept"]


def test_a_plain_pickle_that_tries_to_run_code_is_refused(tmp_path: Path) -> None:
    target, file = tmp_path / "ran", tmp_path / "armed.save"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        file.write_bytes(pickle.dumps(_touching(target)["method"], protocol))
        with pytest.raises((paramstore.UnsupportedFileError, paramstore.CorruptError)):
            ParamStoreDict().load(str(file))
        assert not target.exists()


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.txt", "nothing")
    with pytest.raises((paramstore.UnsupportedFileError, paramstore.CorruptError), match="other"):
        ParamStoreDict().load(str(file))


def test_loading_leaves_the_process_wide_list_of_allowed_classes_alone(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    file = tmp_path / "pyro.save"
    state = {
        "params": {"x": torch.zeros(1, requires_grad=True)},
        "constraints": {"x": constraints.positive},
    }
    torch.save(state, file)
    ParamStoreDict().load(str(file))
    assert set(torch.serialization.get_safe_globals()) == before  # a set gives them in any order
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
