"""Writes the file beside it that the tests read, with whichever Pyro is installed.

pip install --no-deps --target old pyro-ppl==1.8.6
PYTHONPATH=old python -W ignore tests/data/pyro/make.py
"""

from __future__ import annotations

from pathlib import Path

import pyro
import torch
from pyro.distributions import constraints as c
from torch import nn


def main() -> None:
    torch.manual_seed(0)
    store = pyro.get_param_store()
    pyro.param("real", torch.tensor([1.5, -2.0]))
    pyro.param("positive", torch.tensor([0.5, 2.0]), constraint=c.positive)
    pyro.param("interval", torch.tensor(0.25), constraint=c.interval(-1.0, 1.0))
    bound = torch.tensor([0.0, 5.0])
    pyro.param("tensor_bound", bound + 1, constraint=c.greater_than(bound))
    pyro.param("vector", torch.ones(3), constraint=c.independent(c.softplus_positive, 1))
    pyro.param("simplex", torch.tensor([0.2, 0.3, 0.5]), constraint=c.simplex)
    cholesky = torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    pyro.param("cholesky", cholesky, constraint=c.softplus_lower_cholesky)
    pyro.param("ordered", torch.tensor([1.0, 2.0, 4.0]), constraint=c.ordered_vector)
    pyro.param("double", torch.tensor(0.75, dtype=torch.float64), constraint=c.unit_interval)
    pyro.module("net", nn.Linear(2, 3))
    store.save(str(Path(__file__).with_name(f"pyro-{pyro.__version__}.save")))


if __name__ == "__main__":
    main()
