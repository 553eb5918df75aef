"""Nothing that data says is run: the package's text shows it, and hostile data is watched at it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "paramstore"
MODULES = sorted(PACKAGE.rglob("*.py"))

RUNS = {
    "__import__",
    "import_module",
    "breakpoint",
    "compile",
    "eval",
    "exec",
    "globals",
    "input",
    "locals",
}
LOOKS_UP = {"delattr", "getattr", "setattr"}
METHODS = {
    "enable_load_extension", "exec_module", "execl", "execv", "execve", "find_spec",
    "import_module", "load_extension", "load_module", "popen", "run_module", "set_authorizer",
    "spawnl", "spawnv", "system",
}  # fmt: skip
IMPORTS = {
    "cloudpickle", "code", "codeop", "ctypes", "dill", "imp", "importlib", "jinja2", "joblib",
    "marshal", "multiprocessing", "pickle", "pickletools", "pkgutil", "pty", "runpy", "shelve",
    "subprocess", "yaml",
}  # fmt: skip
ALLOWED = {
    "__init__.py": {
        "import importlib": "for the next",
        "import_module": "modules of this package, from a table in it: names of the public face",
        "getattr": "the same names",
        "globals": "where they are kept",
    },
    "attached.py": {"getattr": "two methods, named there"},
    "cli/demo.py": {"import subprocess": "runs the demo's own script"},
    "cli/examine.py": {"import importlib": "versions of what is installed"},
    "cli/group.py": {
        "import importlib": "for the next",
        "import_module": "verbs of this package, from a table in it",
        "getattr": "the same names",
    },
    "constraints.py": {"getattr": "torch's singletons, from a table"},
    "db/engine.py": {"import ctypes": "keeps what a fork inherited from being finalised"},
    "db/verification.py": {"getattr": "fields of our own records and errors"},
    "db/writeback.py": {"import ctypes": "one system call"},
    "frames.py": {"getattr": "fields of our own records"},
    "integrations/pyro/global_store.py": {
        "getattr": "Pyro's own places, from a table",
        "setattr": "the same places",
    },
    "kinds.py": {"getattr": "attributes and singletons whose names stand in tables there"},
    "one_thread.py": {"import ctypes": "functions of torch's own libraries, named there"},
    "pickle_rules.py": {"import pickletools": "takes a pickle apart, and makes nothing of it"},
    "rounding.py": {"getattr": "fields of our own records"},
    "staging.py": {"import ctypes": "copies of memory that a tensor owns"},
    "statistics.py": {"getattr": "fields of our own records", "setattr": "memory, by its use"},
    "tensors.py": {"import ctypes": "views of memory that a tensor owns"},
}
"""By module: what of the above it uses, and why no data decides what that does."""


def dangerous(tree: ast.AST) -> Iterator[str]:
    """Name whatever could run, import or look up what a text says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in RUNS:
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr in METHODS:
            yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            tops = {str(name).partition(".")[0] for name in names}
            yield from (f"import {top}" for top in tops & IMPORTS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            looks_up = node.func.id in LOOKS_UP and not isinstance(node.args[1], ast.Constant)
            yield from [node.func.id] * looks_up


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_uses_only_what_no_data_can_reach(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if name.startswith("testing/"):  # tests, which make data and read none
        return
    found = set(dangerous(ast.parse(path.read_text())))
    assert found <= ALLOWED.get(name, {}).keys()


# What a hostile input might make Python do, and how the fuzzing names it.
DEEDS = {
    "eval('1 + 1')": "compile",
    "exec(compile('x = 1', 'x', 'exec'))": "exec",
    "import wave": "import wave",
    "import os; os.system('true')": "os.system",
    "import subprocess; subprocess.run(['true'])": "subprocess.Popen",
    "import socket; socket.socket()": "socket",
    "import pickle; pickle.loads(b'cposix\\ngetpid\\n.')": "pickle.find_class",
    "open('/dev/null', 'w').close()": "open /dev/null",
    "import sqlite3; sqlite3.connect('/dev/shm/elsewhere.db').close()": "sqlite3.connect",
    "import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)": "os.posix_spawn",
    "pass": "",
}
WATCHED = """
import json, sys
deeds = [compile(deed, "deed", "exec") for deed in json.loads(sys.argv[2])]
sys.path.insert(0, sys.argv[1])
import fuzz
fuzz.watch()
for deed in deeds:
    fuzz.VIOLATIONS.clear()
    exec(deed)
    print(json.dumps(fuzz.VIOLATIONS[1:]))  # but for the line above
"""


def test_the_fuzzing_sees_whatever_would_run_import_or_write() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(Path(__file__).parent), json.dumps(list(DEEDS))],
        capture_output=True,
        text=True,
        check=True,
    )
    for seen, (deed, wanted) in zip(done.stdout.splitlines(), DEEDS.items(), strict=True):
        assert (wanted in seen) if wanted else seen == "[]", deed
