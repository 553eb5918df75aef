"""The public names: sorted, complete, and imported only when used."""

from __future__ import annotations

import subprocess
import sys
from inspect import isclass
from pathlib import Path

import pytest

import paramstore
from paramstore import errors

FUNCTIONS = {
    "clear_param_store",
    "get_param_store",
    "module",
    "module_from_param_with_module_name",
    "normalize_param_name",
    "open",
    "param",
    "param_with_module_name",
    "register_constraint",
    "salvage",
    "set_param_store",
    "user_param_name",
}
CLASSES = {
    "Autosave",
    "Change",
    "Collected",
    "Diff",
    "Expired",
    "History",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepTagged",
    "KeepWithin",
    "Kept",
    "Log",
    "Loss",
    "ParamStoreDict",
    "ParamVersion",
    "PendingCommit",
    "Policy",
    "Problem",
    "Salvaged",
    "ScopeInfo",
    "ScopeUsage",
    "Snapshot",
    "SnapshotView",
    "StateDict",
    "Statistics",
    "Usage",
    "Verified",
}
ERRORS = {
    name for name, value in vars(errors).items() if isclass(value) and issubclass(value, Exception)
}


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_public_names_are_sorted() -> None:
    assert paramstore.__all__ == sorted(paramstore.__all__)


def test_the_public_names_are_exactly_these() -> None:
    assert set(paramstore.__all__) == FUNCTIONS | CLASSES | ERRORS | {"__version__"}


@pytest.mark.parametrize("name", paramstore.__all__)
def test_every_public_name_resolves_to_a_thing_of_that_name(name: str) -> None:
    value = getattr(paramstore, name)
    assert value is getattr(paramstore, name)
    if name != "__version__":
        assert value.__name__ == name
        assert value.__doc__


def test_dir_lists_every_public_name() -> None:
    assert set(paramstore.__all__) <= set(dir(paramstore))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        paramstore.opne  # noqa: B018
    assert not hasattr(paramstore, "__wrapped__")


def test_a_star_import_gives_the_public_names() -> None:
    code = "from paramstore import *; import paramstore as p; print(set(p.__all__) - set(dir()))"
    assert run(code) == "set()"


def test_the_vocabulary_and_the_sql_leg_work_without_torch() -> None:
    code = """
import sys
import paramstore, paramstore.db
from paramstore.db import engine, manifest, migrate, repository, schema
from paramstore import diff, errors, listing, names, refs, snapshot
from paramstore import CorruptError, Diff, Snapshot, param_with_module_name
print(sorted({"torch", "numpy", "pyro", "safetensors"} & set(sys.modules)))
"""
    assert run(code) == "[]"


def test_opening_a_store_that_exists_imports_neither_pyro_nor_alembic(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    run(f"import paramstore; paramstore.open({path!r}).close()")
    code = f"""
import sys
import paramstore
paramstore.open({path!r}).close()
print(sorted({{"alembic", "lightning", "pyro"}} & set(sys.modules)))
"""
    assert run(code) == "[]"
