"""Bad input: files that are no stores, paths, URLs and devices, and stores that cannot write."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore import ParamStoreDict

# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [b"loss,step\n1.0,2\n", b"\x00" * 8192, b"SQLite format 3\x00" + b"\xff" * 8192],
    ids=["text", "zeros", "a header and rubbish"],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_file_that_is_not_a_database_is_refused_and_left_alone(
    path: Path, content: bytes, readonly: bool
) -> None:
    path.write_bytes(content)
    with pytest.raises(paramstore.NotADatabaseError, match=path.name):
        paramstore.open(path, readonly=readonly)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_database_cut_off_in_the_middle_is_refused(store: ParamStoreDict, path: Path) -> None:
    store.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(paramstore.DatabaseError):
        paramstore.open(path).load_all()


@pytest.mark.parametrize(
    "table",
    ["runs", "params", "alembic_version"],
    ids=["of other tables", "with a table of our name", "of another alembic project"],
)
def test_a_database_that_is_not_ours_is_refused_and_left_alone(path: Path, table: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, version_num TEXT)")
    connection.execute(f"INSERT INTO {table} VALUES (1, 'abc')")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(paramstore.ForeignDatabaseError, match=path.name):
        paramstore.open(path)
    assert path.read_bytes() == content


def test_a_database_with_a_newer_schema_is_refused_and_names_both_revisions(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    connection = sqlite3.connect(path)
    (ours,) = connection.execute("SELECT version_num FROM paramstore_alembic_version").fetchone()
    connection.execute("UPDATE paramstore_alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(paramstore.SchemaTooNewError, match="9999") as caught:
        paramstore.open(path)
    assert ours in str(caught.value)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(paramstore.StorageError, match="directory"):
        paramstore.open(tmp_path)


def test_a_file_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(paramstore.StorageError, match="nowhere"):
        paramstore.open(tmp_path / "nowhere" / "run.db")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("options", [{"create": False}, {"readonly": True}])
def test_a_missing_file_is_not_created_unasked(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(paramstore.ParamStoreError, match=path.name):
        paramstore.open(path, **options)
    assert not path.exists()


def test_open_without_a_path_says_where_one_comes_from() -> None:
    with pytest.raises(paramstore.InvalidInputError, match="PARAMSTORE_URL"):
        paramstore.open()


@pytest.mark.parametrize("url", ["mysql://nobody@nowhere/x", "nonsense://x", "http://example.org"])
def test_a_url_of_an_unknown_kind_is_refused(url: str) -> None:
    with pytest.raises(paramstore.ParamStoreError, match=url.partition(":")[0]):
        paramstore.open(url)


NO_PATHS = [3, 1.5, b"run.db", ["run.db"], object, "", "run\0.db"]


@pytest.mark.parametrize("where", NO_PATHS, ids=repr)
def test_what_is_no_path_is_refused_in_words(store: ParamStoreDict, where: Any) -> None:
    for call in (
        paramstore.open,
        ParamStoreDict,
        store.backup,
        lambda path: paramstore.salvage(path, "new.db"),
        lambda path: paramstore.salvage("old.db", path),
    ):
        with pytest.raises(paramstore.InvalidInputError, match="path"):
            call(where)


@pytest.mark.parametrize("where", NO_PATHS[:5], ids=repr)
def test_what_is_no_path_of_a_parameter_file_is_refused_in_words(
    store: ParamStoreDict, where: Any
) -> None:
    for call in (store.save, store.load):
        with pytest.raises(paramstore.InvalidInputError, match="is no path"):
            call(where)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with paramstore.open("~/run.db") as store:
        store["x"] = torch.ones(1)
        store.commit()
        store.save(Path("~", "x.safetensors"))
        store.load("~/x.safetensors")
        assert store.backup("~/copy.db") == Path(tmp_path.resolve(), "copy.db")
    monkeypatch.setenv("PARAMSTORE_URL", "sqlite:///~/run.db")
    with paramstore.open(readonly=True) as store:
        assert store["x"].item() == 1.0
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {"copy.db", "run.db", "run.db-journal", "x.safetensors"}


@pytest.mark.parametrize("timeout", ["60", -1, -0.5, float("nan"), None], ids=repr)
def test_a_timeout_that_is_no_time_is_refused(path: Path, timeout: Any) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="timeout is in seconds"):
        paramstore.open(path, timeout=timeout)
    assert not path.exists()


def test_a_journal_that_does_not_exist_is_refused_before_there_is_a_file(path: Path) -> None:
    with pytest.raises(paramstore.InvalidInputError, match="journal is 'wal'"):
        paramstore.open(path, journal="WAL")  # type: ignore[arg-type]  # what is tested
    assert not path.exists()


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("gpu", "'gpu' is no device"),
        ("", "'' is no device"),
        ({"cpu": "gpu"}, "'gpu' is no device"),
        ("cuda", "pass map_location='cpu'"),
        ("cuda:1", "pass map_location='cpu'"),
        (torch.device("cuda"), "pass map_location='cpu'"),
        ("xpu", "pass map_location='cpu'"),
        (3, "map_location is a device"),
        ({"cpu": 3}, "map_location is a device"),
    ],
    ids=repr,
)
def test_a_map_location_that_is_not_here_is_refused_before_anything_is_read(
    store: ParamStoreDict, path: Path, location: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = path.with_suffix(".save")
    store.save(file)
    for call in (paramstore.open, ParamStoreDict, lambda _, **how: store.load(file, **how)):
        with pytest.raises(paramstore.InvalidInputError, match=said):
            call(path, map_location=location)


def test_a_map_location_in_every_form_is_taken(store: ParamStoreDict, path: Path) -> None:
    every: list[Any] = [
        None,
        "cpu",
        "cpu:0",
        torch.device("cpu"),
        {"cuda:0": "cpu"},
        {},
        lambda tensor, _: tensor,
    ]
    for location in every:
        with paramstore.open(path, readonly=True, map_location=location) as reader:
            assert reader["x"].tolist() == [1.0, 1.0, 1.0]


# -- stores that cannot write --------------------------------------------------------------------


def test_a_commit_on_a_read_only_store_is_refused_and_writes_nothing(
    store: ParamStoreDict, path: Path
) -> None:
    store.close()
    content = path.read_bytes()
    with paramstore.open(path, readonly=True) as reader:
        with pytest.raises(paramstore.ReadOnlyError, match="readonly=True"):
            reader.commit()
        with pytest.raises(paramstore.ReadOnlyError, match="'y'"), reader.scope("new"):
            reader["y"] = torch.zeros(1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("private", [True, False])
def test_a_commit_on_a_closed_store_is_refused(path: Path, private: bool) -> None:
    store = ParamStoreDict() if private else paramstore.open(path)
    store["x"] = torch.zeros(1)
    store.commit()
    store.close()
    with pytest.raises(paramstore.StoreClosedError, match="closed"):
        store.commit()
