"""Pyro on a store: ``pyro.param`` reads and writes it, and SVI resumes with the same bits.

Importing it teaches stores Pyro's optimisers and modules; must never change Pyro by that alone.
"""

try:
    import pyro  # noqa: F401 - asked for here, where its absence can be explained
except ModuleNotFoundError as error:
    raise ImportError(
        "paramstore.integrations.pyro needs Pyro: pip install 'paramstore[pyro]'"
    ) from error

from paramstore.integrations.pyro import local, optimisers  # noqa: F401 - they register functions
from paramstore.integrations.pyro.global_store import Installation, install, uninstall
from paramstore.integrations.pyro.resuming import resume

__all__ = ["Installation", "install", "resume", "uninstall"]
