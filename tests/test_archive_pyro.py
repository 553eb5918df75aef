"""Files of stock Pyro: read without running what they name, and equal to what Pyro reads."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from pyro.params.param_store import ParamStoreDict as StockStore
from safetensors.torch import load_file as read_values
from torch import Tensor, nn
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

import paramstore
from paramstore import (
    UnknownConstraintError,
    UnsupportedFileError,
)
from paramstore.archive import load_file
from paramstore.constraints import to_spec
from paramstore.testing.bits import same_bits

MUSEUM = Path(__file__).parent / "data" / "pyro"


def leaf(*values: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("file", ["pyro-1.8.6.save", "pyro-1.9.2.save"])
def test_files_of_pyro_load_as_pyro_loads_them(file: str) -> None:
    stock = torch.load(MUSEUM / file, weights_only=False)

    found = load_file(MUSEUM / file)

    assert [name for name, _, _ in found] == list(stock["params"])
    for name, tensor, constraint in found:
        wanted = stock["params"][name]
        assert same_bits(tensor, wanted)
        assert type(tensor) is type(wanted)
        assert tensor.requires_grad
        assert tensor.is_leaf
        other = transform_to(stock["constraints"][name])(wanted)
        assert torch.equal(transform_to(constraint)(tensor), other)
    by_name = {name: constraint for name, _, constraint in found}
    assert by_name["real"] is constraints.real
    assert by_name["positive"] is constraints.positive
    assert by_name["cholesky"] is constraints.softplus_lower_cholesky
    assert by_name["vector"].base_constraint is constraints.softplus_positive  # type: ignore[attr-defined]
    assert torch.equal(by_name["tensor_bound"].lower_bound, torch.tensor([0.0, 5.0]))  # type: ignore[attr-defined]


def everything(folder: Path) -> Path:
    """A file of the Pyro that is installed: each of its constraints, a module, an autoguide."""
    stock, matrix = StockStore(), torch.eye(3) + torch.ones(3, 3).tril(-1) / 4
    for name, value in {
        "softplus_positive": torch.tensor([0.5, 2.0]),
        "softplus_lower_cholesky": matrix,
        "unit_lower_cholesky": matrix,
        "corr_matrix": torch.eye(3) * 0.5 + 0.5,
        "corr_cholesky": torch.linalg.cholesky(torch.eye(3) * 0.5 + 0.5),
        "ordered_vector": torch.tensor([-1.0, 0.5, 2.0]),
        "positive_ordered_vector": torch.tensor([0.25, 0.5, 2.0]),
        "sphere": torch.tensor([0.6, 0.0, -0.8]),
        "positive_definite": matrix @ matrix.T,
        "simplex": torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    }.items():
        stock.setdefault(name, value, getattr(constraints, name))
    nested = constraints.independent(constraints.softplus_positive, 1)
    stock.setdefault("nested", torch.ones(2, 3), nested)
    for name, parameter in nn.Linear(2, 3).named_parameters():
        stock.setdefault(f"net$$${name}", parameter)
    pyro.clear_param_store()
    AutoLowRankMultivariateNormal(lambda: pyro.sample("x", dist.Normal(torch.ones(4), 1)))()
    stock.set_state(pyro.get_param_store().get_state())
    pyro.clear_param_store()
    stock.save(str(folder / "pyro.save"))
    return folder / "pyro.save"


LOAD = """
import sys
if sys.argv[3] == "without Pyro":
    sys.modules["pyro"] = None
import paramstore
from safetensors.torch import save_file
store = paramstore.ParamStoreDict()
store.load(sys.argv[1])
values = {f"constrained {name}": value.detach().clone() for name, value in store.items()}
values |= {f"unconstrained {name}": p.detach().clone() for name, p in store.named_parameters()}
save_file(values, sys.argv[2])
assert ("pyro" in sys.modules and sys.modules["pyro"] is not None) == (sys.argv[3] == "with Pyro")
"""


@pytest.mark.parametrize("where", ["with Pyro", "without Pyro"])
@pytest.mark.parametrize("version", ["1.8.6", "1.9.2", "of today"])
def test_the_values_are_those_of_pyros_own_load(tmp_path: Path, version: str, where: str) -> None:
    file = MUSEUM / f"pyro-{version}.save" if version != "of today" else everything(tmp_path)
    stock: Any = StockStore()
    stock.load(str(file))
    wanted = {f"constrained {name}": value.detach().clone() for name, value in stock.items()}
    wanted |= {f"unconstrained {name}": p.detach().clone() for name, p in stock.named_parameters()}

    subprocess.run([sys.executable, "-c", LOAD, file, tmp_path / "values", where], check=True)

    found = read_values(tmp_path / "values")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert same_bits(found[name], value), name
    if version != "of today":  # and of the version that wrote it
        museum = read_values(MUSEUM / f"pyro-{version}.values")
        assert museum.keys() == wanted.keys()
        for name, value in museum.items():  # computed on another machine
            torch.testing.assert_close(found[name], value)


EVERY_PYRO_CONSTRAINT = [
    constraints.corr_matrix,
    constraints.integer,
    constraints.ordered_vector,
    constraints.positive_ordered_vector,
    constraints.softplus_lower_cholesky,
    constraints.softplus_positive,
    constraints.sphere,
    constraints.unit_lower_cholesky,
    constraints.cat([constraints.positive, constraints.sphere], 0, [1, 2]),
    constraints.stack([constraints.softplus_positive, constraints.less_than(2)], -1),
    constraints.independent(constraints.independent(constraints.softplus_positive, 1), 1),
    MixtureSameFamilyConstraint(constraints.softplus_positive),
    constraints.dependent(is_discrete=False, event_dim=1),
    constraints.integer_interval(0, 5),
    constraints.multinomial(4),
    constraints.half_open_interval(0.0, torch.tensor(2.0)),
]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_constraint_survives_a_pickle_of_pyro(tmp_path: Path, zipped: bool) -> None:
    state = {
        "params": {str(i): leaf(0.5) for i in range(len(EVERY_PYRO_CONSTRAINT))},
        "constraints": {str(i): c for i, c in enumerate(EVERY_PYRO_CONSTRAINT)},
    }
    torch.save(state, tmp_path / "f", _use_new_zipfile_serialization=zipped)

    found = load_file(tmp_path / "f")

    for (_, _, constraint), wanted in zip(found, EVERY_PYRO_CONSTRAINT, strict=True):
        assert type(constraint) is type(wanted)
        assert to_spec(constraint).text == to_spec(wanted).text


def test_a_pyro_file_with_torch_constraints_needs_no_pyro(tmp_path: Path) -> None:
    state = {"params": {"a": leaf(0.5)}, "constraints": {"a": constraints.positive}}
    torch.save(state, tmp_path / "f")
    code = f"""
import sys
sys.modules["pyro"] = None
from torch.distributions import constraints
from paramstore.archive import load_file
[(name, tensor, constraint)] = load_file({str(tmp_path / "f")!r})
assert (name, tensor.tolist()) == ("a", [0.5]) and constraint is constraints.positive
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_pickle_of_our_own_state_loads(tmp_path: Path) -> None:
    tensor = leaf(0.5)
    tensor.unconstrained = OrderedDict()  # type: ignore[attr-defined]
    torch.save({"params": {"a": tensor}, "constraints": {"a": constraints.real}}, tmp_path / "f")

    [(_, found, _)] = load_file(tmp_path / "f")

    assert not hasattr(found, "unconstrained")


def test_the_list_of_safe_globals_is_as_before() -> None:
    mine: Any = [type(constraints.positive), torch.nn.Linear]
    torch.serialization.add_safe_globals(mine)
    try:
        before = torch.serialization.get_safe_globals()
        load_file(MUSEUM / "pyro-1.9.2.save")
        assert set(torch.serialization.get_safe_globals()) == set(before)
    finally:
        torch.serialization.clear_safe_globals()


# -- what is refused ---------------------------------------------------------------------------


class Runs:
    """A pickle that would call a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (exec, "exec"), (pickle.loads, "pickle.loads")],
)
def test_a_pickle_that_would_run_code_is_refused_by_name(
    tmp_path: Path, function: Callable[..., object], name: str, zipped: bool
) -> None:
    ran = tmp_path / "ran"
    evil: Any = Runs(function, f"touch {ran}" if function is os.system else f"open({str(ran)!r})")
    state = {"params": {"a": leaf(1.0), "b": evil}, "constraints": {"a": constraints.real}}
    torch.save(state, tmp_path / "f", _use_new_zipfile_serialization=zipped)

    with pytest.raises(UnsupportedFileError, match=name.replace(".", r"\.")):
        load_file(tmp_path / "f")
    assert not ran.exists()


def test_an_unknown_class_of_constraint_is_refused_by_name(tmp_path: Path) -> None:
    class Mine(Constraint):
        pass

    Mine.__qualname__ = "Mine"
    sys.modules[__name__].Mine = Mine  # type: ignore[attr-defined]
    torch.save({"params": {"a": leaf(1.0)}, "constraints": {"a": Mine()}}, tmp_path / "f")

    with pytest.raises(UnsupportedFileError, match=r"test_archive_pyro\.Mine"):
        load_file(tmp_path / "f")


class Even(Constraint):
    """A user's own."""

    def __init__(self, step: float = 2) -> None:
        self.step = step


def test_a_registered_constraint_loads_from_a_pickle(tmp_path: Path) -> None:
    paramstore.register_constraint(Even, "test_archive_pyro.even")
    torch.save({"params": {"a": leaf(1.0)}, "constraints": {"a": Even(4.0)}}, tmp_path / "f")

    [(_, _, constraint)] = load_file(tmp_path / "f")

    assert isinstance(constraint, Even)
    assert constraint.step == 4.0


def test_hostile_attributes_of_constraints_are_refused(tmp_path: Path) -> None:
    loop: Any = constraints.independent(constraints.real, 1)
    loop.base_constraint = loop
    wrong: Any = constraints.independent(constraints.real, 1)
    wrong.base_constraint = {"a": 1}
    bare: Any = constraints.interval(0, 1)
    del bare.lower_bound
    for hostile in (loop, wrong, bare, "real", None):
        torch.save({"params": {"a": leaf(1.0)}, "constraints": {"a": hostile}}, tmp_path / "f")
        with pytest.raises((UnsupportedFileError, UnknownConstraintError), match="'a'"):
            load_file(tmp_path / "f")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (nn.Linear(2, 3).state_dict(), "OrderedDict with the keys 'weight', 'bias'"),
        ({"params": {}, "constraints": {}, "extra": 1}, "a dict with the keys 'params'"),
        (torch.ones(3), "a Tensor"),
        ({"params": [1], "constraints": {}}, "no dictionary"),
        ({"params": {"a": [1]}, "constraints": {}}, "a list as parameter 'a'"),
        ({"params": {"a": torch.ones(1)}, "constraints": {}}, "no constraint for parameter 'a'"),
    ],
)
def test_pickles_of_anything_else_say_what_they_hold(
    tmp_path: Path, content: object, named: str
) -> None:
    torch.save(content, tmp_path / "f")
    with pytest.raises(UnsupportedFileError, match=named):
        load_file(tmp_path / "f")
