"""How the command behaves: exit codes, errors, pipes, Ctrl-C, where the database is, imports."""

from __future__ import annotations

import ast
import os
import pty
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from shell_runs import COMMAND, Run, process

import paramstore
from paramstore.cli import entry
from paramstore.cli.entry import run as run_command
from paramstore.cli.group import SECTIONS, VERBS, root

# A command line of every verb that needs SQL only, and writes nothing.
WITHOUT_TORCH = [
    ["--help"],
    ["log"],
    ["log", "--graph"],
    ["show"],
    ["history", "*", "--where", "norm > 0"],
    ["best", "loss"],
    ["scopes"],
    ["doctor"],
    ["db", "current"],
    ["db", "check"],
    ["completion", "bash"],
    ["expire", "--keep-last", "1", "--dry-run"],
    ["gc", "--dry-run"],
    ["du"],
    ["verify"],
]
# And of those that write: on a copy, in this order.
WRITING_WITHOUT_TORCH = [
    ["tag", "x"],
    ["untag", "x"],
    ["copy", "main", "other"],
    ["copy", "main", "--to-db", "new.db"],
    ["rename", "other", "another"],
    ["rename", "scale", "size", "--param"],
    ["drop", "another", "--yes"],
    ["expire", "--keep-last", "1"],
    ["gc"],
    ["backup", "copy.db"],
    ["salvage", "copy.db", "saved.db"],
    ["db", "upgrade"],
]


BESIDE_A_RUN = [
    ["log", "--graph", "--json"],
    ["show", "busy", "--values"],
    ["history", "x", "-s", "busy", "-n", "3"],
    ["diff", "busy@1", "busy@2"],
    ["best", "loss"],
    ["scopes"],
    ["export", "busy", "new.safetensors"],
    ["import", "new.safetensors", "--scope", "in"],
    ["tag", "now", "busy@1"],
    ["untag", "now", "--scope", "busy"],
    ["copy", "main", "new"],
    ["copy", "colder", "--to-db", "new.other"],
    ["rename", "in", "out"],
    ["drop", "out", "--yes"],
    ["expire", "--keep-last", "2", "--scope", "main"],
    ["gc"],
    ["du"],
    ["verify", "--sample", "0.1"],
    ["backup", "new.db"],
    ["doctor"],
    ["db", "check"],
    ["db", "upgrade"],
]


def imported(arguments: list[str], db: Path) -> set[str]:
    """The modules that a command imports, as a process of its own."""
    environment = {**os.environ, "PARAMSTORE_URL": str(db)}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", COMMAND, *arguments],
        capture_output=True, text=True, check=False, env=environment, cwd=db.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "paramstore.cli.group" in modules
    return modules


@pytest.mark.parametrize("arguments", WITHOUT_TORCH, ids=" ".join)
def test_a_verb_that_needs_sql_only_never_imports_torch(
    arguments: list[str], trained: Path
) -> None:
    modules = imported(arguments, trained)
    assert not {"torch", "numpy", "pyro", "matplotlib", "rich"} & modules
    if arguments == ["--help"]:
        assert not {"sqlalchemy", "sqlite3"} & modules


def test_a_verb_that_writes_rows_only_never_imports_torch(db: Path) -> None:
    for arguments in WRITING_WITHOUT_TORCH:
        assert not {"torch", "numpy", "pyro", "matplotlib"} & imported(arguments, db), arguments


def test_verbs_that_read_tensors_run_as_processes(db: Path) -> None:
    assert process("show", "--values", db=db).out
    assert process("diff", "@1", "--json", db=db).json["unchanged"] == 1
    assert process("export", "main", "main.safetensors", db=db, cwd=db.parent).out
    found = process("import", "main.safetensors", "-s", "in", "--json", db=db, cwd=db.parent)
    assert found.json["params"] == 11
    assert process("verify", "--statistics", db=db).out


@pytest.mark.parametrize("module", ["paramstore", "paramstore.cli"])
def test_the_command_runs_as_a_module(module: str, trained: Path) -> None:
    command = [sys.executable, "-m", module]
    listed = subprocess.run(
        [*command, "log", "--db", trained], capture_output=True, text=True, check=False
    )
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout == process("log", db=trained).out
    refused = subprocess.run([*command, "lgo"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("paramstore: there is no verb 'lgo' (did you mean 'log'?)")


def test_help_lists_every_verb_and_every_verb_has_help_that_ends_with_examples(run: Run) -> None:
    listed = run("--help").out
    for verb, (_, what) in VERBS.items():
        assert verb in listed
        told = run(verb, "--help").out
        assert "Usage: paramstore " + verb in told
        if verb != "db":
            assert "Examples:" in told
            assert f"  paramstore {verb}" in told or f"paramstore {verb}" in told
        command = root.get_command(None, verb)  # type: ignore[arg-type]
        assert command
        assert command.short_help == what
    assert sum(map(len, SECTIONS.values())) == len(VERBS)


def test_the_database_is_named_by_option_environment_or_folder(
    run: Run, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("tag", "here", "--db", db)
    assert "here" not in run("log").out  # the training run's, by PARAMSTORE_URL
    assert "here" in run("log", "--db", db).out
    assert "here" in run("--db", f"sqlite:///{db}", "log").out
    monkeypatch.setenv("HOME", str(db.parent))
    assert "here" in run("log", "--db", f"~/{db.name}").out
    monkeypatch.delenv("PARAMSTORE_URL")
    monkeypatch.chdir(tmp_path)
    assert "here" in run("log").out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["log", "nowhere"], 1, "no scope 'nowhere'"),
        (["log", "warm"], 1, "write '@warm'"),
        (["show", "@99"], 1, "its newest is main@4"),
        (["show", "@step=7"], 1, "'paramstore log' lists them"),
        (["history", "scael"], 1, "did you mean 'scale'"),
        (["history", "x*"], 1, "no parameter of scope 'main' matches 'x*'"),
        (["history", "*", "-s", "nowhere"], 1, "no scope 'nowhere'"),
        (["best", "los"], 1, "did you mean 'loss'"),
        (["untag", "warn"], 1, "did you mean 'warm'"),
        (["log", "--db", "nowhere.db"], 1, "name another with --db FILE or PARAMSTORE_URL"),
        (["log", "--db", "postgresql://host/x"], 1, "only SQLite is supported"),
        (["log", "--follow", "-s", "nowhere"], 1, "no scope 'nowhere'"),
        (["history", "scale", "--metric", "loss"], 2, "--metric goes with --plot FILE"),
        (["best", ""], 1, "'' cannot name a metric"),
        (["log", "--db", ""], 2, "it is empty; give the path of a store"),
        (["lgo"], 2, "did you mean 'log'"),
        (["log", "--nope"], 2, "No such option"),
        (["show", "a@@b"], 2, "is not a snapshot reference"),
        (["log", "-n", "-1"], 2, "-1"),
        (["history"], 2, "Missing argument"),
        (["history", "scale", "--where", "nan >"], 2, "is not a condition"),
        (["history", "/(/"], 1, "is not a regular expression"),
        (["log", "--json", "--jsonl"], 2, "--json goes without --jsonl"),
        (["log", "--follow", "--graph"], 2, "--follow goes with neither"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_an_error_is_one_line_with_the_next_step(
    run: Run, arguments: list[str], code: int, said: str
) -> None:
    ran = run(*arguments, code=code)
    assert ran.out == ""
    assert said in ran.err
    assert ran.err.startswith("paramstore: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["log", "my run.db"], 1, "paramstore.db'; did you mean --db 'my run.db'?\n"),
        (["gc", "run.db"], 2, "extra argument (run.db); did you mean --db run.db? See: param"),
        (["log", "run.db", "--db", "run.db"], 1, "no scope 'run.db'"),
        (["drop", "run.db", "--db", "my run.db"], 1, "no scope 'run.db'"),
        (["best", "run.db", "--db", "my run.db"], 1, "'run.db'"),
        (["history", "run.db", "--db", "my run.db"], 1, "'run.db'"),
        (["log", "nowhere.db"], 1, "paramstore.db'; name another with --db FILE"),
        (["log", "nowhere", "--db", "run.db"], 1, "no scope 'nowhere'"),
        (["gc", "nowhere"], 2, "extra argument (nowhere). See: paramstore gc --help"),
        (["import", "run.db"], 1, "a store is named with --db FILE\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_store_given_as_an_argument_is_recognised(
    run: Run,
    db: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.delenv("PARAMSTORE_URL")
    monkeypatch.chdir(db.parent)
    shutil.copy(db, "run.db")
    db.rename("my run.db")
    told = run(*arguments, code=code).err
    assert said in told
    assert ("did you mean --db " in told) is ("run.db" in arguments[1] and arguments[0] != "import")
    assert told.count("\n") == 1


def test_an_empty_file_is_no_store_and_the_next_step_is_said(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.db"
    empty.touch()
    told = run("log", "--db", empty, code=1).err
    assert told.endswith("there is no store in it; name another with --db FILE or PARAMSTORE_URL\n")
    assert "give another path, or take the last backup" in run("doctor", "--db", empty, code=1).out


def test_what_a_shell_is_told_otherwise_is_what_the_library_says() -> None:
    library = Path(paramstore.__file__).parent
    files = [file for file in library.rglob("*.py") if library / "cli" not in file.parents]
    said = "".join(ast.unparse(ast.parse(file.read_text())) for file in files)  # strings joined
    assert [call for call, _ in entry._IN_SHELL if call not in said] == []


def test_debug_shows_the_traceback(trained: Path) -> None:
    told = process("log", "nowhere", "--debug", db=trained, code=1).err
    assert told.startswith("Traceback")
    assert "ScopeNotFoundError" in told


def test_a_tag_that_is_taken_is_moved_only_on_request(run: Run, db: Path) -> None:
    assert "pass --move" in run("tag", "warm", "@1", "--db", db, code=1).err
    assert run("tag", "warm", "@1", "--move", "--db", db).out == "main@warm is main@1\n"
    assert run("tag", "cold", "--db", db).out == "main@cold is main@4\n"
    assert run("untag", "cold", "--db", db).out == "forgot main@cold\n"
    assert run("log", "@warm", "--db", db, "--json").json[0]["ref"] == "main@1"


def test_head_ends_the_command_without_a_word(trained: Path) -> None:
    # One of many lines, of which some are written when nobody reads any more.
    script = (
        f"'{COMMAND}' history '*' --jsonl --db '{trained}' | head -n 1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "0"
    assert done.stdout.startswith('{"name": "mix"')


@pytest.mark.parametrize(
    "arguments", [*WITHOUT_TORCH, ["db", "--help"], ["log", "-h"]], ids=" ".join
)
def test_output_that_nobody_reads_is_no_failure(
    arguments: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", nobody)
        assert run_command(arguments) == 0


def test_output_that_cannot_be_written_is_an_error_in_one_line(trained: Path) -> None:
    script = f"'{COMMAND}' log --db '{trained}' > /dev/full; echo $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n"
    assert "No space left" in done.stderr
    assert done.stderr.count("\n") == 1
    closed = f"'{COMMAND}' log --db '{trained}' >&-; echo $? >&2"
    done = subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=False)
    assert done.stderr == "0\n"


def test_follow_prints_new_snapshots_beside_the_run_and_ctrl_c_ends_it(db: Path) -> None:
    command = [str(COMMAND), "log", "--follow", "-n", "1", "--db", str(db)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as own,
        paramstore.open(db) as store,
    ):
        assert own.stdout
        assert own.stderr
        assert own.stdout.readline().startswith("snapshot")
        assert own.stdout.readline().startswith("main@4")
        store["scale"] = store["scale"] + 1
        store.commit(step=41, metrics={"loss": 0.5})
        assert own.stdout.readline().split()[:2] == ["main@5", "41"]
        with suppress(ZeroDivisionError), store.autosave(every=9) as auto:
            auto.step(42)
            raise ZeroDivisionError
        assert "interrupted" in own.stdout.readline()
        own.send_signal(signal.SIGINT)
        assert own.wait(30) == 130
        assert own.stderr.read() == "\n"  # ends the line that shows ^C


def test_every_verb_answers_while_a_run_is_writing(run: Run, db: Path, tmp_path: Path) -> None:
    script = f"""
import paramstore, torch
with paramstore.open({str(db)!r}, scope="busy") as store:
    for step in range(100_000):
        store["x"] = torch.full((1000,), float(step))
        store.commit(step=step)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as writer:
        try:
            deadline = time.monotonic() + 60
            while "busy" not in run("scopes", "--db", db).out:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert process("log", "busy", "-n", "3", db=db).out
            for arguments in BESIDE_A_RUN:
                here = [str(tmp_path / word) if "new." in word else word for word in arguments]
                assert run(*here, "--db", db).out
            assert writer.poll() is None
        finally:
            writer.kill()
    assert run("verify", "--db", tmp_path / "new.db").out


# -- stores that are not as they should be -----------------------------------------


def test_a_file_that_is_no_database_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no database " * 1000)
    told = process("log", db=path, code=1).err
    assert "notes.txt" in told
    assert told.count("\n") == 1
    assert "wrong" in process("doctor", db=path, code=1).out


def test_a_damaged_store_is_refused_in_one_line_and_the_doctor_says_what_to_do(
    db: Path,
) -> None:
    data = bytearray(db.read_bytes())
    for page in range(2, len(data) // 65536):
        data[page * 65536 : page * 65536 + 512] = os.urandom(512)
    db.write_bytes(data)
    told = process("show", db=db, code=1).err
    assert told.count("\n") == 1
    examined = process("doctor", db=db, code=1).out
    assert "wrong" in examined
    assert "salvage" in examined


def test_a_newer_store_is_refused_with_what_to_upgrade(db: Path) -> None:
    import sqlite3

    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE paramstore_alembic_version SET version_num = '9999'")
    connection.close()
    told = process("log", db=db, code=1).err
    assert "upgrade paramstore" in told
    assert "upgrade paramstore" in process("doctor", "--json", db=db, code=1).out


def test_nothing_is_made_where_there_is_no_store(tmp_path: Path) -> None:
    for arguments in (["log"], ["tag", "x"], ["doctor"], ["db", "upgrade"]):
        process(*arguments, cwd=tmp_path, code=1)
    assert list(tmp_path.iterdir()) == []


# -- a terminal --------------------------------------------------------------------


def on_terminal(*arguments: object, **environment: str) -> str:
    """What a person sees: standard output is a terminal."""
    parent, child = pty.openpty()
    env = {**os.environ, "TERM": "xterm", **environment}
    with subprocess.Popen([COMMAND, *map(str, arguments)], stdout=child, env=env) as own:
        os.close(child)
        seen = b""
        try:
            while data := os.read(parent, 1 << 16):
                seen += data
        except OSError:  # the other side is closed
            pass
        assert own.wait() == 0
    os.close(parent)
    return seen.decode()


def test_a_terminal_gets_colours_and_ages_and_a_pipe_does_not(trained: Path) -> None:
    seen = on_terminal("log", "--db", trained)
    assert "\x1b[1m" in seen
    assert "age" in seen
    piped = process("log", db=trained).out
    assert "\x1b" not in piped
    assert "time" in piped
    assert "\x1b" not in on_terminal("log", "--db", trained, NO_COLOR="1")


# -- completion --------------------------------------------------------------------


def completed(line: str, db: Path | str) -> list[str]:
    """What TAB offers at the end of a command line."""
    words = line.split(" ")
    environment = {
        "_PARAMSTORE_COMPLETE": "zsh_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "PARAMSTORE_URL": str(db),
    }
    ran = process(env=environment)
    assert ran.err == ""
    return ran.lines[1::3]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("paramstore lo", ["log"]),
        ("paramstore log --fo", ["--follow"]),
        ("paramstore show main@w", ["main@warm"]),
        ("paramstore show @", ["@latest", "@warm"]),
        ("paramstore history sc", ["scale"]),
        ("paramstore history -s colder mi", ["mix"]),
        ("paramstore log --scope co", ["colder"]),
        ("paramstore untag w", ["warm"]),
    ],
)
def test_tab_completes(line: str, offered: list[str], trained: Path) -> None:
    assert completed(line, trained) == offered


@pytest.mark.parametrize(
    ("word", "offered"),
    [
        (r"net\$\$\$0.w", r"net\$\$\$0.weight"),
        ("'net$$$0.w", "net$$$0.weight"),
    ],
)
def test_bash_gets_names_that_it_does_not_expand(word: str, offered: str, trained: Path) -> None:
    script = f"""
PATH={shlex.quote(str(COMMAND.parent))}:$PATH
eval "$(paramstore completion bash)"
COMP_WORDS=(paramstore history {shlex.quote(word)}) COMP_CWORD=2
_paramstore_completion paramstore
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {**os.environ, "PARAMSTORE_URL": str(trained)}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.stdout, done.stderr) == (f"{offered}\n", "")


def test_tab_is_silent_where_there_is_no_store(tmp_path: Path) -> None:
    assert completed("paramstore history sc", tmp_path / "nowhere.db") == []


def test_the_demonstration_runs_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    out = process("demo", "--folder", "made", cwd=tmp_path).out
    assert "continuing after step 450 (main@9)" in out
    assert "$ paramstore log -n 5 --db made/killed.db" in out
    assert "ended with the same bits in all 6 parameters" in out
    assert {path.suffix for path in (tmp_path / "made").iterdir()} <= {".db", ".db-journal"}


def test_a_demonstration_whose_training_fails_says_so(tmp_path: Path) -> None:
    script = Path(shutil.which("true") or "/bin/true")
    assert script.exists()
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit(3)")
    told = process("demo", "--training", broken, cwd=tmp_path, code=1).err
    assert "ended with status 3" in told
