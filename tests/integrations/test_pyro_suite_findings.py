"""What Pyro's own tests found: where a store looked different from Pyro's to Pyro's own code."""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta

from paramstore import ParamStoreDict
from paramstore.integrations.pyro import install, uninstall


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    pyro.clear_param_store()
    install(ParamStoreDict())
    yield
    uninstall()
    pyro.clear_param_store()


def test_a_guide_of_a_discrete_site_points_to_enumeration() -> None:
    def model() -> None:
        pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)))

    with pytest.raises(ValueError, match=r"Consider enumerating .*enumeration\.html"):
        AutoDelta(model)()
