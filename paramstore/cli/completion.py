"""``completion``: the few lines that let a shell ask this command what TAB may mean.

Prints; must never touch a store or a file of the user.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from paramstore.cli.group import root, verb
from paramstore.cli.output import say


@verb(
    "completion",
    'eval "$(paramstore completion bash)"            # in ~/.bashrc',
    'eval "$(paramstore completion zsh)"             # in ~/.zshrc',
    "paramstore completion fish > ~/.config/fish/completions/paramstore.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what lets SHELL complete verbs, options, scopes, tags and parameter names."""
    found = get_completion_class(shell)
    assert found is not None
    say(found(root, {}, "paramstore", "_PARAMSTORE_COMPLETE").source())
