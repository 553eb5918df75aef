"""docs/commands.md holds every command as it is."""

from __future__ import annotations

from reference import PAGE, reference, with_reference

from paramstore.cli.group import VERBS


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
