"""log, show, history, diff, best and scopes: what they print, as text and as JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from shell_runs import Run

import paramstore


def test_the_text_of_log_is_that_of_the_library(run: Run, trained: Path) -> None:
    with paramstore.open(trained, readonly=True) as store:
        wanted = str(store.log())
    assert run("log").out == wanted + "\n"


def test_log_shows_what_an_exception_left_behind(run: Run, db: Path) -> None:
    assert "kind" not in run("log", "--db", db).out
    with (
        paramstore.open(db) as store,
        pytest.raises(ZeroDivisionError),
        store.autosave(every=9) as auto,
    ):
        auto.step(41)
        raise ZeroDivisionError
    for arguments in (["log"], ["log", "--graph"], ["show", "@5"]):
        told = [line for line in run(*arguments, "--db", db).lines if "interrupted" in line]
        assert len(told) == 1, arguments


def test_log_begins_at_a_reference_and_ends_at_a_limit(run: Run) -> None:
    assert [row["ref"] for row in run("log", "--json").json] == [
        "main@4", "main@3", "main@2", "main@1"
    ]  # fmt: skip
    assert [row["ref"] for row in run("log", "@warm", "--jsonl").rows] == ["main@2", "main@1"]
    assert [row["version"] for row in run("log", "-n", 1, "--jsonl").rows] == [4]
    assert [row["ref"] for row in run("log", "colder", "--json").json] == ["colder@1"]
    assert [row["ref"] for row in run("log", "--scope", "colder", "--json").json] == ["colder@1"]


def test_who_asks_for_none_is_not_told_that_there_are_none(run: Run) -> None:
    for verb in (["log"], ["log", "--graph"], ["history", "scale"], ["history", "*"]):
        assert run(*verb, "-n", 0).out == ""
        assert run(*verb, "-n", 0, "--json").json == []


def test_the_json_of_a_snapshot_has_every_field(run: Run) -> None:
    (row,) = run("log", "main@2", "-n", 1, "--json").json
    assert row["tags"] == ["warm"]
    assert row["parent"] == "main@1"
    assert row["metrics"]["late"] == "NaN"
    assert row["created_at"].endswith("Z")
    assert list(row)[:6] == ["ref", "scope", "version", "parent", "step", "created_at"]


def test_the_graph_shows_which_scope_grew_from_which(run: Run, db: Path) -> None:
    with paramstore.open(db, scope="side", start="main@2") as store:
        store["scale"] = store["scale"] * 2
        store.commit(step=21)
    lines = run("log", "--graph", "--db", db).lines
    assert [line.split("  ")[:2] for line in lines] == [
        ["*", "side@1"],
        ["| *", "colder@1"],
        ["| *", "main@4"],
        ["| *", "main@3"],
        ["|/"],
        ["*", "main@2"],
        ["*", "main@1"],
    ]
    assert [line.split()[1] for line in run("log", "--graph", "side@1", "--db", db).lines] == [
        "side@1", "main@2", "main@1"
    ]  # fmt: skip


def test_show_lists_parameters_extras_and_states(run: Run) -> None:
    out = run("show", "@warm").out
    assert out.startswith("main@2\nstep     20\n")
    assert "net$$$1.running_mean" in out
    assert "simplex" in out
    assert "epoch: 2" in out
    assert 'pair: [1, {"tensor": {"dtype": "F32", "shape": [2]}}]' in out
    assert out.endswith("states of attached objects: optim, rng\n")


def test_the_json_of_show_has_constraints_statistics_extras_and_states(run: Run) -> None:
    found = run("show", "--json").json
    params = {row["name"]: row for row in found["params"]}
    assert found["snapshot"]["ref"] == "main@4"
    assert found["extras"]["epoch"] == 4
    assert found["states"] == ["optim", "rng"]
    assert params["scale"]["constraint"] == {"kind": "positive"}
    assert params["scale"]["value"] == pytest.approx(params["scale"]["mean"])
    assert params["mix"]["value"] is None
    assert params["net$$$1.running_mean"]["kind"] == "buffer"


def test_values_of_small_parameters_are_shown_on_request(run: Run, trained: Path) -> None:
    params = {row["name"]: row for row in run("show", "@1", "--values", "--json").json["params"]}
    with paramstore.open(trained, readonly=True) as store:
        assert params["mix"]["value"] == store.at("@1")["mix"].tolist()
    assert "[0.2" in run("show", "@1", "--values").out


def test_the_text_of_history_is_that_of_the_library(run: Run, trained: Path) -> None:
    with paramstore.open(trained, readonly=True) as store:
        wanted = str(store.history("net$$$0.weight"))
    assert run("history", "net$$$0.weight").out == wanted + "\n"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["scale"], ["scale"]),
        (["net$$$0.*"], ["net$$$0.bias", "net$$$0.weight"]),
        (["/weight$/", "scale"], ["net$$$0.weight", "net$$$1.weight", "net$$$2.weight", "scale"]),
        (["--regex", "^m"], ["mix"]),
    ],
)
def test_history_takes_names_globs_and_regular_expressions(
    run: Run, names: list[str], found: list[str]
) -> None:
    rows = run("history", *names, "--jsonl").rows
    assert list(dict.fromkeys(row["name"] for row in rows)) == found
    versions = [row["version"] for row in rows if row["name"] == found[0]]
    assert versions == ([1] if found[0] == "mix" else [1, 2, 3, 4])  # nothing trains mix


def test_a_name_that_looks_like_a_pattern_is_taken_as_it_is(run: Run, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "odd.db"
    with paramstore.open(path) as store:
        store["w[0]"] = torch.zeros(2)
        store["w0"] = torch.ones(2)
        store.commit()
    assert [row["name"] for row in run("history", "w[0]", "--db", path, "--jsonl").rows] == ["w[0]"]


def test_the_first_bad_step_is_found(run: Run) -> None:
    where = ("--where", "nan > 0", "--first", "--json")
    (row,) = run("history", "*", "--scope", "colder", *where).json
    assert (row["name"], row["step"], row["nan_count"]) == ("net$$$0.weight", 50, 1)
    found = run("history", "*", "--where", "nan > 0", code=1)
    assert found.out == ""
    assert re.match(r"no version of \d+ parameters has nan > 0\n", found.err)
    found = run("history", "scale", "--where", "nan > 0", code=1)
    assert found.err == "no version of 'scale' has nan > 0\n"


def test_a_change_is_to_the_version_before_it_whatever_is_shown(run: Run) -> None:
    whole = run("history", "scale").lines
    change = whole[0].split().index("change")
    chosen = run("history", "scale", "--where", "version = 2 or version = 4").lines
    assert len(chosen) == 3
    assert [line.split() for line in chosen[1:]] == [whole[2].split(), whole[4].split()]
    assert run("history", "scale", "--where", "step > 30", "--first").lines[1].split() == (
        whole[4].split()
    )
    assert len({line.split()[change] for line in whole[2:]}) == 3  # so that one can tell


def test_history_keeps_the_newest_versions(run: Run) -> None:
    assert [row["version"] for row in run("history", "scale", "-n", 2, "--jsonl").rows] == [3, 4]


def test_the_text_of_diff_is_that_of_the_library(run: Run, trained: Path) -> None:
    with paramstore.open(trained, readonly=True) as store:
        wanted = str(store.diff("@1", "@warm"))
    assert run("diff", "@1", "@warm").out == wanted + "\n"


def test_diff_compares_with_the_newest_and_across_scopes(run: Run) -> None:
    found = run("diff", "main@4", "colder", "--json").json
    assert [change["name"] for change in found["changed"]] == ["net$$$0.weight"]
    assert run("diff", "@warm", "--json").json["after"]["ref"] == "main@4"
    assert run("diff", "@4", "@4").out == (
        "main@4 → main@4: 0 added, 0 removed, 0 changed, 11 unchanged\n"
    )


def test_best_is_the_largest_or_the_smallest(run: Run, trained: Path) -> None:
    with paramstore.open(trained, readonly=True) as store:
        assert run("best", "loss", "--json").json["ref"] == store.best("loss").ref
        assert run("best", "loss", "--mode", "min").out == f"{store.best('loss', 'min')}\n"


def test_scopes_are_listed_with_how_far_they_have_come(run: Run) -> None:
    assert [line.split()[:3] for line in run("scopes").lines] == [
        ["scope", "newest", "snapshots"],
        ["colder", "1", "1"],
        ["main", "4", "4"],
    ]
    assert {row["scope"]: row["snapshots"] for row in run("scopes", "--json").json} == {
        "colder": 1,
        "main": 4,
    }


def test_the_only_scope_of_a_store_need_not_be_named(run: Run, tmp_path: Path) -> None:
    import torch

    with paramstore.open(tmp_path / "one.db", scope="guide-a") as store:
        store["loc"] = torch.zeros(2)
        store.commit()
    assert run("log", "--db", tmp_path / "one.db", "--json").json[0]["ref"] == "guide-a@1"


def test_names_are_escaped_where_a_terminal_would_act_on_them(run: Run, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "evil.db"
    with paramstore.open(path) as store:
        store["\x1b[31mred\u202e"] = torch.zeros(2)
        store.commit(message="\x1b]0;title\x07", extras={"\x1bk": "\x9b"})
    for verb in (["log"], ["show"], ["history", "*"], ["diff", "@1"], ["show", "--json"]):
        out = run(*verb, "--db", path).out
        assert out.isascii() or "→" in out
        assert not set("\x1b\x07\x9b\u202e") & set(out)


# -- pictures ----------------------------------------------------------------------


def test_history_and_diff_are_drawn_in_the_terminal(run: Run) -> None:
    out = run("history", "scale", "--plot").out
    assert out.startswith("scale  value\n")
    assert out.splitlines()[-1].split() == ["10", "step", "40"]
    drawn = run("history", "net$$$0.*", "-s", "colder", "--plot").out
    assert "× NaN or infinite elements: colder@1" in drawn
    assert "█" in run("diff", "@1", "@2", "--plot").out


def test_the_terminal_shows_how_long_a_value_was_kept(run: Run) -> None:
    kept = run("history", "mix", "--plot").lines  # nothing trains it
    assert kept[-1].split() == ["10", "step", "40"]
    assert max(len(line) for line in kept[1:-1]) == max(map(len, kept))
    (row,) = run("history", "mix", "--jsonl").rows
    assert (row["until_version"], row["until_step"], row["removed"]) == (4, 40, False)


def test_no_line_leads_across_versions_that_a_condition_left_out(run: Run) -> None:
    drawn = run("history", "scale", "--where", "version != 2", "--plot").lines[1:11]
    assert sum(len(line.split("┤")[-1].split("│")[-1].strip()) for line in drawn) == 3


@pytest.mark.parametrize("end", ["png", "svg"])
def test_history_and_diff_are_drawn_into_files(run: Run, tmp_path: Path, end: str) -> None:
    pytest.importorskip("matplotlib")
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[end]
    for number, arguments in enumerate(
        (["history", "*"], ["history", "scale", "--metric", "loss"], ["diff", "@1"])
    ):
        file = tmp_path / f"{number}.{end}"
        assert run(*arguments, "--plot", file).out.startswith(str(file))
        assert file.read_bytes().startswith(start)


def test_a_picture_goes_where_its_name_says_so(run: Run) -> None:
    assert "put --plot last" in run("history", "--plot", "scale", "mix", code=2).err
    assert "--plot goes with neither" in run("history", "scale", "--json", "--plot", code=2).err
    assert "--plot does not go with" in run("diff", "@1", "--json", "--plot", code=2).err
