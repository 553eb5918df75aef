"""expire, gc, du, verify, backup and salvage from the command line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from shell_runs import Run

import paramstore


def test_a_dry_run_says_what_would_go_and_changes_nothing(run: Run, db: Path) -> None:
    policy = ("--keep-last", "1", "--db", db)
    would = run("expire", *policy, "--dry-run", "--json").json
    assert [row["ref"] for row in would["expired"]] == ["main@3", "main@1"]
    assert {row["ref"]: row["reasons"] for row in would["kept"]}["main@2"] == ["tagged 'warm'"]
    assert would["dry_run"] is True
    assert len(run("log", "--db", db, "--json").json) == 4
    done = run("expire", *policy)
    assert "forgot 2 of 5 snapshots" in done.out
    assert done.out.endswith("next: paramstore gc\n")
    assert [row["version"] for row in run("log", "--db", db, "--json").json] == [4, 2]


def test_the_text_of_expire_is_that_of_the_library(run: Run, db: Path) -> None:
    with paramstore.open(db, readonly=True) as store:
        policy = paramstore.KeepBest("loss", 2, "min") | paramstore.KeepEvery(steps=20)
        wanted = str(store.expire(policy, dry_run=True))
    options = ("--keep-best", "loss:2:min", "--keep-every", 20, "--dry-run")
    found = run("expire", *options, "--db", db).out
    kept = {line.split()[0] for line in wanted.splitlines()[1:-1] if len(line.split()) > 4}
    shown = {line.split()[0] for line in found.splitlines()[1:-2] if len(line.split()) > 4}
    assert shown == kept


def test_expire_prints_the_newest_of_each_scope_and_counts_the_rest(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "long.db"
    for scope in ("a", "b"):
        with paramstore.open(path, scope=scope) as store:
            for step in range(25 if scope == "a" else 20):
                store["x"] = torch.tensor(float(step))
                store.commit(step=step)
    options = ("expire", "--keep-every", 10, "--db", path, "--dry-run")
    lines = run(*options).lines
    assert [line.split()[0] for line in lines[1:-2]] == [
        *(f"a@{version}" for version in range(25, 5, -1)),
        "…",
        *(f"b@{version}" for version in range(20, 0, -1)),
    ]
    assert lines[21] == "… 5 more, 4 of which go; --json has all of them"
    found = run(*options, "--json").json
    assert len(found["kept"]) + len(found["expired"]) == 45


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (["--keep-within", "7"], "write 30min, 12h, 7d or 4w"),
        (["--keep-best", "loss:0"], "METRIC[:N][:min]"),
        (["--keep-last", "0"], "x>=1"),
        ([], "say what to keep"),
    ],
)
def test_a_policy_that_is_none_is_refused(run: Run, db: Path, text: list[str], said: str) -> None:
    assert said in run("expire", *text, "--db", db, code=2).err


def test_ages_are_read(run: Run, db: Path) -> None:
    for age in ("30s", "5min", "12h", "7d", "4w"):
        found = run("expire", "--keep-within", age, "--dry-run", "--db", db, "--json").json
        assert found["expired"] == []


def test_gc_frees_what_expire_left(run: Run, db: Path) -> None:
    run("expire", "--keep-tagged", "--db", db)
    would = run("gc", "--dry-run", "--db", db, "--json").json
    assert would["blobs"] > 0
    done = run("gc", "--compact", "--db", db, "--json").json
    assert done["blobs"] == would["blobs"]
    assert done["file_after"] <= done["file_before"]
    assert run("gc", "--db", db).out.startswith("what")
    assert run("du", "--db", db, "--json").json["unused_nbytes"] == 0


def test_the_text_of_du_is_that_of_the_library(run: Run, trained: Path) -> None:
    with paramstore.open(trained, readonly=True) as store:
        wanted = str(store.du())
    assert run("du").out == wanted + "\n"
    assert {scope["name"] for scope in run("du", "--json").json["scopes"]} == {"main", "colder"}


def test_verify_finds_nothing_in_a_sound_store(run: Run) -> None:
    assert "no problem" in run("verify").out
    found = run("verify", "--statistics", "--json").json
    assert found["ok"] is True
    assert found["statistics"] > 0
    assert run("verify", "--sample", "0", "--json").json["tensors"] == 0


def damage(db: Path) -> None:
    """Overwrite the bytes of a tensor."""
    import sqlite3

    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE chunks SET data = zeroblob(length(data)) WHERE id = (SELECT "
                           "max(id) FROM chunks)")  # fmt: skip
    connection.close()


def test_verify_names_what_is_damaged_and_salvage_saves_the_rest(
    run: Run, db: Path, tmp_path: Path
) -> None:
    damage(db)
    found = run("verify", "--db", db, "--json", code=1).json
    assert found["ok"] is False
    assert found["problems"][0]["kind"] == "bytes"
    saved = tmp_path / "saved.db"
    report = run("salvage", db, saved, "--json", code=1).json
    assert report["lost"]
    assert "no problem" in run("verify", "--db", saved).out
    assert "exists already" in run("salvage", db, saved, code=1).err


def test_a_backup_is_a_store(run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    assert run("backup", copy, "--json").json == {
        "path": os.fspath(copy),
        "nbytes": copy.stat().st_size,
    }
    assert run("log", "--db", copy).out == run("log").out
    assert "exists already" in run("backup", copy, code=1).err
