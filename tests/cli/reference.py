"""``python tests/cli/reference.py``: write the reference of all commands into docs/commands.md.

Must never be edited by hand between its markers: a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from paramstore.cli.group import SECTIONS, Verb, root

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
BEGIN = "<!-- python tests/cli/reference.py -->"
COMMON = ("--db FILE", "--debug")
END = "<!-- end of the reference -->"


def reference() -> str:
    """Return the reference: every verb with its arguments, options and examples."""
    lines: list[str] = []
    context = click.Context(root, info_name="paramstore")
    for title, verbs in SECTIONS.items():
        lines += [f"## {title}", ""]
        for verb in verbs:
            command = root.get_command(context, verb)
            assert command
            lines += _sections(command, context)
    return "\n".join(lines).rstrip() + "\n"


def _sections(command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=command.name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from (f"### {context.command_path}", "", f"`{usage}`", "")
    yield from (cleandoc(command.help or ""), "")
    options = [found for p in command.params if (found := p.get_help_record(context))]
    shown = [(o, what) for o, what in options if what and o not in COMMON]
    if shown:
        yield from ("| option | |", "|---|---|")
        yield from (f"| `{option.replace('|', ' or ')}` | {what} |" for option, what in shown)
        yield ""
    if isinstance(command, Verb) and command.examples:
        yield from (
            "<!-- not run: tests/cli runs these verbs -->",
            "```sh",
            *command.examples,
            "```",
            "",
        )
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner
            yield from _sections(inner, context)


def with_reference(page: str) -> str:
    """Return the page with the present reference between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_reference(PAGE.read_text()))
