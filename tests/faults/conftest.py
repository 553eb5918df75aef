"""Fault tests come in two sizes: a quick selection for every run, and all of it.

``PARAMSTORE_FAULTS=full`` chooses all.
"""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether every fault is injected, not a sample of them."""
    return os.environ.get("PARAMSTORE_FAULTS") == "full"
