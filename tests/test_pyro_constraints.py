"""The constraints that stand in for Pyro's where it is not installed: the same in every bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from pyro.distributions import constraints as pyros
from torch import Tensor
from torch.distributions import transform_to

from paramstore import pyro_constraints as ours
from paramstore.kinds import PYRO_SINGLETONS
from paramstore.testing.bits import same_bits

MATRIX = torch.tensor([[1.0, 0.0, 0.0], [0.25, 1.0, 0.0], [-0.5, 2.0, 1.0]])
CORRELATION = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, 0.125, 1.0]])
VALUES = [
    torch.tensor(0.5),
    torch.tensor([1.0]),
    torch.tensor([0.5, 2.0, 3.0]),
    torch.tensor([2.0, 0.5, 0.5]),
    torch.tensor([-0.5, 0.0, 1.5]),
    torch.tensor([0.6, 0.0, -0.8], dtype=torch.float64),
    torch.zeros(2, 3),
    MATRIX,
    2 * MATRIX,
    MATRIX.T.contiguous(),
    CORRELATION,
    2 * CORRELATION,
    torch.stack([CORRELATION, torch.eye(3)]),
]


def outcome(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor | None:
    """What it gives; None where it does not take such a shape."""
    try:
        return function(value.clone())
    except (IndexError, RuntimeError, ValueError):
        return None


@pytest.mark.parametrize("name", PYRO_SINGLETONS)
@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(tuple(value.shape)))
def test_a_stand_in_does_what_pyros_constraint_does(name: str, value: Tensor) -> None:
    mine, real = getattr(ours, name), getattr(pyros, name)
    assert type(mine).__qualname__ == type(real).__qualname__
    assert (mine.event_dim, mine.is_discrete) == (real.event_dim, real.is_discrete)
    pairs = [(mine.check, real.check)]
    if name != "integer":  # which has no transform
        there, wanted = transform_to(mine), transform_to(real)
        assert there.domain.event_dim == wanted.domain.event_dim
        assert there.codomain.event_dim == wanted.codomain.event_dim
        pairs += [(there, wanted), (there.inv, wanted.inv)]
    for function, peer in pairs:
        found, expected = outcome(function, value), outcome(peer, value)
        if found is None or expected is None:
            assert found is expected
        else:
            assert same_bits(found, expected)


def test_without_pyro_its_constraints_go_to_a_file_and_back() -> None:
    program = f"""
import sys
sys.modules["pyro"] = None  # as if it were not installed
from paramstore.constraints import from_spec, to_spec
for name in {PYRO_SINGLETONS!r}:
    text = '{{"kind":"' + name + '"}}'
    constraint = from_spec(text)
    assert from_spec(text) is constraint and to_spec(constraint).text == text
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_where_pyro_is_installed_its_own_constraints_are_used() -> None:
    from paramstore.constraints import from_spec

    for name in PYRO_SINGLETONS:
        assert from_spec(f'{{"kind":"{name}"}}') is getattr(pyros, name)
