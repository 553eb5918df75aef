"""Closing any descriptor of a database file drops every lock that the process has on it.

So the SQL leg opens, reads, copies, moves and maps nothing itself: https://sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import paramstore.db

FOLDER = Path(next(iter(paramstore.db.__path__)))
FORBIDDEN = {
    "fdopen", "mmap", "memmap", "read_bytes", "read_text", "write_bytes", "write_text", "touch",
    "unlink", "remove", "rename", "replace_file", "copyfile", "copy2", "copytree", "copyfileobj",
    "sendfile", "truncate", "hardlink_to", "link", "fromfile",
}  # fmt: skip
# `Database.open`, `changes.rename` and `os.replace`-like names of ours that touch no file.
OURS = {("cls", "open"), ("Database", "open"), ("changes", "rename")}


def calls(tree: ast.AST) -> list[tuple[str, str]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.append(("", node.func.id))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            found.append((owner.id if isinstance(owner, ast.Name) else "?", node.func.attr))
    return found


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.name)
def test_only_sqlite_opens_the_database_or_its_journal(path: Path) -> None:
    used = set(calls(ast.parse(path.read_text()))) - OURS
    assert not {(owner, name) for owner, name in used if name in FORBIDDEN | {"open"}}


def test_every_connection_is_made_in_one_place() -> None:
    makers = {
        path.name
        for path in FOLDER.rglob("*.py")
        if ("sqlite3", "connect") in calls(ast.parse(path.read_text()))
    }
    assert makers == {"sqlite.py"}
