"""``completion``: the few lines that let a shell ask this command what TAB may mean.

Prints; must never touch a store or a file of the user.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from paramstore.cli.group import root, verb
from paramstore.cli.output import say

# Not click's: bash splits main@warm at the @, and would expand what it inserts of net$$$0.weight.
_BASH: Final = r"""
COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}
_paramstore_completion() {
    local line type value current=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    while IFS= read -r line; do
        type=${line%%,*} value=${line#*,}
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain)
                [[ $current == [\'\"]* ]] || printf -v value %q "$value"
                COMPREPLY+=("$value")
                [[ $value == *@ ]] && compopt -o nospace
                ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD \
        _PARAMSTORE_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _paramstore_completion paramstore
"""


@verb(
    "completion",
    'eval "$(paramstore completion bash)"            # in ~/.bashrc',
    'eval "$(paramstore completion zsh)"             # in ~/.zshrc',
    "paramstore completion fish > ~/.config/fish/completions/paramstore.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what lets SHELL complete verbs, options, scopes, tags and parameter names."""
    if shell == "bash":
        say(_BASH.strip())
        return
    found = get_completion_class(shell)
    assert found is not None
    say(found(root, {}, "paramstore", "_PARAMSTORE_COMPLETE").source())
