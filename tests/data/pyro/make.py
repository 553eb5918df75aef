"""Writes the files beside it that the tests read, with whichever Pyro is installed.

pip install --no-deps --target old pyro-ppl==1.8.6
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1  # or Pyro 1.8 cannot load what it saved
PYTHONPATH=old python -W ignore tests/data/pyro/make.py

``.save`` is what its store saves, ``.values`` the constrained and unconstrained values that its
store has after it loaded that.
"""

from __future__ import annotations

from pathlib import Path

import pyro
import torch
from pyro.distributions import constraints as c
from safetensors.torch import save_file
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
    file = Path(__file__).with_name(f"pyro-{pyro.__version__}.save")
    store.save(str(file))
    store.clear()
    store.load(str(file))
    values = {f"constrained {name}": value.detach().clone() for name, value in store.items()}
    values |= {f"unconstrained {name}": p.detach().clone() for name, p in store.named_parameters()}
    save_file(values, file.with_suffix(".values"))


if __name__ == "__main__":
    main()
