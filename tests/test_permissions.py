"""Bad input: files and folders that the user may not read or write.

Each test runs in a child process without root's rights, because root passes every permission.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import paramstore

_NOBODY = 65534


def as_ordinary_user(function: Callable[[], object]) -> BaseException | None:
    """Call ``function`` in a child process without root's rights; return what it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, _outcome(function))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    found = pickle.loads(answer)
    if found == "cannot drop rights":
        pytest.skip("neither an ordinary user nor allowed to become one")
    return found  # type: ignore[no-any-return]


def _outcome(function: Callable[[], object]) -> bytes:
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    except OSError:
        return pickle.dumps("cannot drop rights")
    try:
        function()
    except BaseException as error:  # noqa: BLE001  # it is the answer
        return pickle.dumps(error)
    return pickle.dumps(None)


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that an ordinary user may enter, but not write to; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="paramstore-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_a_file_without_permission_to_read_is_refused(public_folder: Path) -> None:
    path = public_folder / "run.db"
    paramstore.open(path).close()
    path.chmod(0o000)
    for readonly in (False, True):
        error = as_ordinary_user(partial(paramstore.open, path, readonly=readonly))
        assert isinstance(error, paramstore.StorageError), error
        assert "run.db" in str(error)
        assert "permi" in str(error).lower()


def test_a_folder_without_permission_to_write_is_refused(public_folder: Path) -> None:
    public_folder.chmod(0o555)
    error = as_ordinary_user(lambda: paramstore.open(public_folder / "run.db").close())
    assert isinstance(error, paramstore.StorageError), error
    assert "run.db" in str(error)


def test_a_file_without_permission_to_write_reads_and_refuses_a_commit(
    public_folder: Path,
) -> None:
    path = public_folder / "run.db"
    with paramstore.open(path) as store:
        store["x"] = torch.full((2,), 3.0)
        store.commit()
    path.chmod(0o444)
    public_folder.chmod(0o555)

    def read() -> None:
        with paramstore.open(path, readonly=True) as reader:
            assert reader["x"].tolist() == [3.0, 3.0]

    def write() -> None:
        with paramstore.open(path) as writer:
            writer["x"] = torch.zeros(2)
            writer.commit()

    assert as_ordinary_user(read) is None
    error = as_ordinary_user(write)
    assert isinstance(error, paramstore.StorageError | paramstore.ReadOnlyError), error
    assert "run.db" in str(error)
