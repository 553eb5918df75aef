"""What bad input is tried on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """A store with two snapshots, the first one tagged."""
    with paramstore.open(path) as opened:
        opened["x"] = torch.zeros(3)
        opened.setdefault("scale", torch.ones(3), constraint=constraints.positive)
        opened.commit(step=10, tags=["warm"])
        with torch.no_grad():
            opened["x"].fill_(1.0)
        opened.commit(step=20)
        yield opened
