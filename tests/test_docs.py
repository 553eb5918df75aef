"""The README and the docs: every code block runs and prints what is written below it.

Blocks of one file run in order, in one namespace and one temporary folder. ``python`` blocks are
executed, ``sh`` blocks go to bash; a ``text`` block right below one of them is what it prints,
where ``…`` stands for anything. A ``console`` block is a session: its lines behind ``$`` go to
bash, the others are what they print, errors too. A block that cannot run says why: ``<!-- not run:
reason -->`` above it.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

import paramstore

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FRAGMENTS = sorted((ROOT / "changelog.d").glob("*"))
LANGUAGES = {"python", "sh", "console", "text", ""}

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = re.compile(r"<!-- not run: .*\S.* -->\n+$")
LINK = re.compile(r"\]\((?!https?:)(?P<target>[^)#]*)(?P<anchor>#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    body: str
    runs: bool
    printed: str | None
    """What the page says that it prints; None where it says nothing."""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    fences = list(FENCE.finditer(text))
    for fence, after in zip_longest(fences, fences[1:]):
        shown = (
            after and after["language"] == "text" and not text[fence.end() : after.start()].strip()
        )
        yield Block(
            line=text.count("\n", 0, fence.start()) + 2,
            language=fence["language"],
            body=fence["body"],
            runs=fence["language"] in ("python", "sh", "console")
            and not NOT_RUN.search(text[: fence.start()]),
            printed=fence["body"]
            if fence["language"] == "console"
            else after["body"]
            if after and shown
            else None,
        )


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(block: Block, page: Path, namespace: dict[str, object]) -> str:
    if block.language == "python":
        out = io.StringIO()
        # Empty lines put the traceback's line numbers where the page has them.
        code = compile("\n" * (block.line - 1) + block.body, str(page), "exec")
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        return out.getvalue()
    script = block.body
    if block.language == "console":
        typed = [line for line in block.body.splitlines() if line.startswith("$ ")]
        shown = [f"echo {shlex.quote(line)}\n{{ {line[2:]}\n}} 2>&1 || true" for line in typed]
        script = "\n".join(shown)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name(page)}:{block.line}: {done.stderr}"
    return done.stdout


def matches(printed: str, found: str) -> bool:
    pattern = re.escape(printed.strip()).replace("…", ".*?")
    found = re.sub(r" +$", "", found, flags=re.MULTILINE).strip()
    return re.fullmatch(pattern, found, re.DOTALL) is not None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PARAMSTORE_URL", raising=False)
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    with paramstore.set_param_store(paramstore.ParamStoreDict()):
        yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_code_of_a_page_runs_and_prints_what_is_written(page: Path, folder: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if not block.runs:
            continue
        if "sqlite3 " in block.body and block.language == "sh" and not shutil.which("sqlite3"):
            pytest.skip("the sqlite3 command is not installed")
        found = run(block, page, namespace)
        if block.printed is not None:
            where = f"{name(page)}:{block.line} printed\n{found}"
            assert matches(block.printed, found), where


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_has_a_known_language(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{name(page)}:{block.line}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    for link in LINK.finditer(page.read_text()):
        target = page if not link["target"] else page.parent / link["target"]
        assert target.exists(), link[0]
        if link["anchor"]:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert link["anchor"][1:] in anchors, link[0]


def test_the_readme_is_short_and_shows_code_early() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert "```python" in lines[:24]


def test_every_error_and_its_place_in_the_tree_are_drawn() -> None:
    from paramstore import errors

    assert errors.__doc__
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    for error in (c for c in classes if issubclass(c, errors.ParamStoreError)):
        assert re.search(rf"\b{error.__name__}\b", errors.__doc__), error


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=name)
def test_changelog_fragments_say_what_kind_of_change_they_are(fragment: Path) -> None:
    assert re.fullmatch(r"README\.md|[a-z0-9-]+\.(added|changed|fixed|removed)\.md", fragment.name)
    assert all(len(line) <= 120 for line in fragment.read_text().splitlines())


def test_the_checks_of_this_file_see_a_block_that_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nprint(1)\n```\n\n```text\n2\n```\n"
        "<!-- not run: no GPU here -->\n```sh\nfalse\n```\n"
    )
    first, second, third = blocks(page)
    assert (first.runs, first.printed, first.line) == (True, "2\n", 2)
    assert not matches("2\n", "1\n")
    assert matches("a … c\n", "a b c  \n")
    assert (second.runs, third.runs) == (False, False)
