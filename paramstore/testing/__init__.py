"""What proves that a store is right: conformance suite, invariants, strategies, state machines.

For tests of this package and of anything that builds on it; must never be imported by the rest
of the package, because it needs pytest and hypothesis.
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
    import pytest as _pytest
except ImportError as error:
    raise ImportError(
        "paramstore.testing needs pytest and hypothesis; install them with "
        "\"pip install 'paramstore[testing]'\""
    ) from error

# Their assertions are the test's output: pytest has to know before they are imported.
_pytest.register_assert_rewrite(
    "paramstore.testing.bits",
    "paramstore.testing.conformance",
    "paramstore.testing.invariants",
    "paramstore.testing.stateful",
)
