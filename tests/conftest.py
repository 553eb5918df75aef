"""What every test shares: hypothesis profiles, fixed seeds, no store left over from another test.

``--hypothesis-profile=thorough`` (or ``HYPOTHESIS_PROFILE=thorough``) searches ten times longer.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import paramstore
from paramstore import ParamStoreDict

# Nothing times out: a disk that stalls for a second is no failure of ours.
_COMMON = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _COMMON, max_examples=40, stateful_step_count=30)
settings.register_profile("thorough", _COMMON, max_examples=400, stateful_step_count=60)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


# The tests commit thousands of times, and each commit waits for the disk five times: minutes when
# it is busy. None of them can see whether a sync reached the disk. TMPDIR chooses another place.
_MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK):
    _ROOMY = shutil.disk_usage(_MEMORY).free > 4 << 30
    tempfile.tempdir = str(_MEMORY) if _ROOMY else None

# A shell lets what it starts in its background ignore Ctrl-C, children included; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARAMSTORE_URL", raising=False)
    monkeypatch.setattr("paramstore.default._current", None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a database that does not exist yet."""
    return tmp_path / "run.db"


@pytest.fixture
def store(path: Path) -> Iterator[ParamStoreDict]:
    """A new store there."""
    with paramstore.open(path) as opened:
        yield opened


@pytest.fixture
def stock_pyro() -> Iterator[None]:
    """Pyro as it came, before and after each test."""
    import pyro  # not for the tests that need none of it

    from paramstore.integrations.pyro import uninstall

    pyro.clear_param_store()
    yield
    uninstall()
    pyro.clear_param_store()


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether every fault is injected, not a sample: ``PARAMSTORE_FAULTS=full``."""
    return os.environ.get("PARAMSTORE_FAULTS") == "full"
