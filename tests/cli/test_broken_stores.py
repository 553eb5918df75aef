"""Every verb on stores that are missing, newer, older, foreign, damaged or not to be written to."""

from __future__ import annotations

import lzma
import os
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from shell_runs import Ran, Run

from paramstore.cli.entry import run as run_command

READING = [
    ["log"],
    ["log", "--graph", "--json"],
    ["show", "--values"],
    ["history", "*", "--where", "nan > 0"],
    ["diff", "@1", "--json"],
    ["best", "loss"],
    ["scopes"],
    ["du"],
    ["verify", "--statistics"],
    ["expire", "--keep-last", "1", "--dry-run"],
    ["gc", "--dry-run"],
    ["drop", "main", "--dry-run"],
    ["backup", "new.db"],
    ["export", "@1", "new.safetensors"],
    ["db", "current"],
    ["db", "check"],
]
WRITING = [
    ["tag", "x"],
    ["untag", "warm"],
    ["copy", "main", "other"],
    ["copy", "main", "--to-db", "new.db"],
    ["rename", "main", "other"],
    ["drop", "main", "--yes"],
    ["expire", "--keep-last", "1"],
    ["gc"],
    ["gc", "--compact"],
]
VERBS = READING + WRITING
_NOBODY = 65534


@pytest.fixture
def attempt(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ran]:
    """Run a command in a folder of its own; it ends without a traceback, whatever it meets."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def attempt(db: Path, arguments: list[str]) -> Ran:
        for left in folder.iterdir():
            left.unlink()
        capsys.readouterr()
        code = run_command([*arguments, "--db", str(db)])
        out, err = capsys.readouterr()
        assert "this is a fault of paramstore" not in err
        assert err.count("\n") <= 1
        return Ran(code, out, err)

    return attempt


@pytest.mark.parametrize("arguments", VERBS, ids=" ".join)
def test_what_is_no_store_of_this_version_is_refused(
    attempt: Callable[..., Ran], arguments: list[str], db: Path, tmp_path: Path
) -> None:
    newer, older, foreign, text = (tmp_path / f"{n}.db" for n in ("new", "old", "foreign", "text"))
    newer.write_bytes(db.read_bytes())
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE paramstore_alembic_version SET version_num = '9999'")
    connection.close()
    museum = Path(__file__).parents[1] / "museum" / "0001.db.xz"
    older.write_bytes(lzma.decompress(museum.read_bytes()))
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    connection.close()
    text.write_text("no database " * 10_000)
    before = {path: path.read_bytes() for path in (newer, older, foreign, text)}
    said = {
        newer: "upgrade paramstore",
        older: "paramstore db upgrade",
        foreign: "another program",
        text: "not a",
        tmp_path / "nowhere.db": "there is no store",
        tmp_path: "is a directory; give the path of a file in it",
        tmp_path / "pipe": "is no file but a pipe",
    }
    os.mkfifo(tmp_path / "pipe")
    for path, wanted in said.items():
        found = attempt(path, arguments)
        if arguments[0] == "db" and path in (newer, older):  # they say which revision it is
            continue
        assert found.code == 1, path
        assert wanted in found.err, found.err
        assert found.out == ""
    assert {path: path.read_bytes() for path in before} == before
    assert not (tmp_path / "nowhere.db").exists()


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_store_ends_no_verb_with_a_traceback(
    attempt: Callable[..., Ran], seed: int, db: Path, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    data = bytearray(db.read_bytes())
    kind = seed % 4
    if kind == 0:  # cut off
        del data[dice.randrange(65536, len(data)) :]
    elif kind == 1:  # a page of zeros
        page = dice.randrange(1, len(data) // 65536)
        data[page * 65536 : (page + 1) * 65536] = bytes(65536)
    elif kind == 2:  # a page of noise
        page = dice.randrange(1, len(data) // 65536)
        data[page * 65536 : (page + 1) * 65536] = dice.randbytes(65536)
    else:  # some bits
        for _ in range(200):
            data[dice.randrange(100, len(data))] ^= 1 << dice.randrange(8)
    for arguments in [*VERBS, ["doctor"], ["salvage", "damaged.db", "saved.db"]]:
        path = tmp_path / "damaged.db"
        path.write_bytes(data)
        here = [str(path) if word == path.name else word for word in arguments]
        found = attempt(path, here)
        assert found.code in (0, 1)


def test_a_store_without_snapshots_is_no_error(run: Run, tmp_path: Path) -> None:
    import paramstore

    paramstore.open(tmp_path / "empty.db").close()
    at = ("--db", tmp_path / "empty.db")
    assert run("scopes", *at).out == "no scopes\n"
    assert run("scopes", "--json", *at).json == []
    assert "no scope 'main'" in run("log", *at, code=1).err
    assert run("log", "--graph", *at).out == ""
    for verb in (["verify"], ["du"], ["gc"], ["doctor"], ["expire", "--keep-last", "1"]):
        assert run(*verb, *at).out


# -- without write permission ------------------------------------------------------


@pytest.fixture
def sealed(db: Path) -> Iterator[Path]:
    """A store that an ordinary user may only read, in a folder likewise."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.db"
        path.write_bytes(db.read_bytes())
        path.chmod(0o444)
        Path(name).chmod(0o555)
        yield path
        Path(name).chmod(0o755)


def as_ordinary_user(arguments: list[str], folder: Path) -> Ran:
    """Run a command in a child without root's rights."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.chdir(folder)
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(_NOBODY)
                    os.setuid(_NOBODY)
                import sys

                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
                code = run_command(arguments)
                sys.stdout.flush()
                sys.stderr.flush()
            except PermissionError:
                code = 98
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 98:
            pytest.skip("neither an ordinary user nor allowed to become one")
        out.seek(0)
        err.seek(0)
        return Ran(code, out.read(), err.read())


def test_a_store_that_may_only_be_read_is_read_and_not_written(
    run: Run, sealed: Path, db: Path
) -> None:
    for arguments in VERBS:
        if arguments[0] in ("backup", "export") or "--to-db" in arguments:
            continue  # these write elsewhere
        run(*arguments, "--db", db, "--help")  # imports what a child could not read any more
        found = as_ordinary_user([*arguments, "--db", str(sealed)], sealed.parent)
        reads = arguments in READING
        where = " ".join(arguments)
        assert found.code == (1 if "nan > 0" in arguments or not reads else 0), (where, found.err)
        assert found.err.count("\n") <= 1, where
    found = as_ordinary_user(["doctor", "--db", str(sealed)], sealed.parent)
    assert "this user may read and not write" in found.out
