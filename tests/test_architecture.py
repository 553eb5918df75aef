"""The floors of the house, what no module may do, and what the built distributions hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "paramstore"
MODULES = sorted(PACKAGE.rglob("*.py"))
VOCABULARY = [
    "damage", "diff", "errors", "history", "listing", "names", "refs", "retention", "revisions",
    "snapshot", "usage",
]  # fmt: skip

# Calls by which text from a file or a database could turn into code.
RUNS_TEXT = {"__import__", "compile", "eval", "exec", "import_module"}
UNPICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
ALLOWED = {
    # A fixed table of this package's own modules.
    "__init__.py": {"import_module"},
    "cli/group.py": {"import_module"},
}


def in_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """What importing a module imports, apart from what functions import when they are called."""
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            yield from imported(statement)


def called(tree: ast.AST) -> Iterator[str]:
    """The last part of the name of whatever is called: ``import_module`` of ``il.import_module``.

    ``re.compile`` is not counted, nor is any other method of these names but import_module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
                yield node.func.attr


def test_imports_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VOCABULARY)
def test_the_vocabulary_imports_the_standard_library_and_itself_only(name: str) -> None:
    for module in imported_at_once(ast.parse((PACKAGE / f"{name}.py").read_text())):
        top, _, rest = module.partition(".")
        assert top in sys.stdlib_module_names or (top == "paramstore" and rest in VOCABULARY)


@pytest.mark.parametrize("path", MODULES, ids=in_package)
def test_no_module_unpickles_or_runs_text(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not UNPICKLES & {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in UNPICKLES:
            assert {alias.name for alias in node.names} <= {"UnpicklingError"}
    assert not (RUNS_TEXT & set(called(tree))) - ALLOWED.get(in_package(path), set())


@pytest.mark.parametrize("path", MODULES, ids=in_package)
def test_torch_load_reads_weights_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True"


@pytest.mark.parametrize("path", sorted((PACKAGE / "db").glob("*.py")), ids=in_package)
def test_only_sqlite_opens_the_database_file(path: Path) -> None:
    # Closing any other descriptor on the file drops every lock that the process holds on it.
    opened = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "copyfile", "mmap"}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name):
            assert node.func.id not in opened
        elif isinstance(node.func, ast.Attribute):
            assert node.func.attr not in opened - {"open"}


@pytest.mark.parametrize("path", MODULES, ids=in_package)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 600


def test_migrations_never_import_the_package() -> None:
    for path in (ROOT / "migrations" / "versions").glob("*.py"):
        tops = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert "paramstore" not in tops, path


def test_every_package_that_the_package_imports_is_a_dependency() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    runtime = re.search(r"^dependencies = \[(.*?)^\]", declared, re.DOTALL | re.MULTILINE)
    assert runtime
    names = set(re.findall(r'"([a-z0-9]+)', runtime[1]))
    optional = {"hypothesis", "matplotlib", "pandas", "pyro", "pytest"}
    for path in MODULES:
        tops = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
        assert tops - sys.stdlib_module_names - {"paramstore"} <= names | optional, path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The names in the sdist, and in the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        in_wheel = set(wheel.namelist())
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        in_sdist = {name.partition("/")[2] for name in sdist.getnames()}
    return {"wheel": in_wheel, "sdist": in_sdist}


def test_the_wheel_holds_the_package_and_its_migrations(built: dict[str, set[str]]) -> None:
    package = {path.relative_to(ROOT).as_posix() for path in MODULES} | {"paramstore/py.typed"}
    migrations = {
        "paramstore/_migrations/" + path.relative_to(ROOT / "migrations").as_posix()
        for path in (ROOT / "migrations").rglob("*.py")
    }
    assert migrations
    assert package | migrations <= built["wheel"]
    top = {name.partition("/")[0] for name in built["wheel"]}
    assert {name for name in top if not name.endswith(".dist-info")} == {"paramstore"}


def test_the_sdist_holds_what_its_tests_need(built: dict[str, set[str]]) -> None:
    for folder in ("bench", "docs", "examples", "migrations", "paramstore", "scripts", "tests"):
        here = {
            path.relative_to(ROOT).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
        }
        assert here
        assert here <= built["sdist"]
    files = {"CHANGELOG.md", "LICENSE", "README.md", "alembic.ini", "constraints.txt"}
    assert files <= built["sdist"]
