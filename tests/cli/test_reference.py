"""docs/commands.md holds every command as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from reference import BEGIN, PAGE, reference, with_reference
from shell_runs import Run

from paramstore.cli.group import VERBS

# What the table of JSON calls them, and a command that prints one.
SHAPES = [
    ("a snapshot", ["log"]),
    ("a version", ["history", "mix"]),
    ("`show`", ["show"]),
    ("`diff`", ["diff", "@1"]),
    ("a scope", ["scopes"]),
    ("a finding", ["doctor", "--quick"]),
    ("`export`", ["export", "@1", "new.safetensors"]),
    ("`import`", ["import", "new.safetensors", "--scope", "in"]),
    ("`copy`", ["copy", "main", "other"]),
    ("`backup`", ["backup", "new.db"]),
    ("`drop`", ["drop", "other", "--yes"]),
    ("`expire`", ["expire", "--keep-last", "1"]),
    ("`gc`", ["gc"]),
    ("`du`", ["du"]),
    ("`verify`", ["verify"]),
    ("`salvage`", ["salvage", "new.db", "saved.db"]),
    ("`db current`", ["db", "current"]),
    ("`db upgrade`", ["db", "upgrade"]),
]


def test_the_page_of_commands_is_complete_and_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == with_reference(page), "run python tests/cli/reference.py"


def test_the_reference_has_every_verb_with_its_options_and_examples() -> None:
    text = reference()
    for verb in VERBS:
        assert f"### paramstore {verb}\n" in text
    assert "### paramstore db upgrade\n" in text
    assert "| `-n, --limit N` | So many snapshots at most." in text
    assert "paramstore log --follow " in text


def documented(what: str) -> list[str]:
    """The fields that docs/commands.md names, in their order."""
    table = PAGE.read_text().partition("## JSON")[2].partition(BEGIN)[0]
    rows = [line.strip("| ").split(" | ", 1) for line in table.splitlines() if line[:1] == "|"]
    (head, told), *_ = [row for row in rows if what in row[0]]
    if told == "a snapshot":
        return documented(told)
    parts = told.split("; ")
    if len(parts) > 1:  # several verbs in a row
        told = parts[head.split(", ").index(what)]
    fields = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", told))
    return fields + (documented("statistics") if told.endswith("and statistics") else [])


def test_the_json_of_every_verb_has_the_fields_that_are_documented(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(db.parent)
    for what, arguments in SHAPES:
        found = run(*arguments, "--db", db, "--json").json
        printed = found[0] if isinstance(found, list) else found
        assert list(printed) == documented(what), what
