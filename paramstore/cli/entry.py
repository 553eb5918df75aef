"""Where the command begins and ends: exit codes, errors in one line, broken pipes, Ctrl-C.

Prints what the verbs raise; must never decide what a verb does.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

import click

from paramstore.cli.group import DEBUG, root
from paramstore.errors import DatabaseError, NotFoundError, ParamStoreError

DONE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
STOPPED: Final = 130
"""What shells report of a command that Ctrl-C ended."""

_OBJECTS: Final = 100_000
"""How many more objects there are each time Python looks for garbage."""

_TAKE_FILES: Final = ("--db", "--to-db", "--plot")

# What the library's messages call, as it is typed in a shell.
_IN_SHELL: Final = (
    ("pass move=True", "pass --move"),
    ("store.log() lists", "'paramstore log' lists"),
    ("a store is opened with paramstore.open(path)", "a store is named with --db FILE"),
    (", or leave these out with exclude=[…]", ""),
    ("open the store once with write permission, then read", "run 'paramstore doctor' as its user"),
)


def main() -> NoReturn:
    """Run the command of this process and end with its exit code."""
    # Imports make many objects and no garbage: looking for it takes a seventh of a short verb.
    gc.set_threshold(_OBJECTS)
    code = run()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: closed by the shell
        with suppress(OSError):  # run() has said so
            stream.flush()
    # All that was opened is closed. Taking the interpreter apart would take another quarter.
    os._exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: Default: those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        code = root.main(arguments, prog_name="paramstore", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        _forget_output()
        return DONE
    except (click.Abort, KeyboardInterrupt):
        return STOPPED
    except click.ClickException as error:
        return _refuse_usage(error, arguments)
    except Exception as error:
        if debug:
            raise
        _say(_told(error, arguments))
        return REFUSED
    return code if isinstance(code, int) else DONE


def _refuse_usage(error: click.ClickException, arguments: Sequence[str]) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return USAGE
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "paramstore"
    if isinstance(error, click.UsageError):
        told = error.format_message().rstrip(".")
        meant = _meant_as_store(arguments, told)
        _say(f"{told}{f'; {meant}' if meant else '.'} See: {command} --help")
        return USAGE
    _say(error.format_message())
    return REFUSED


def _told(error: Exception, arguments: Sequence[str]) -> str:
    if not isinstance(error, ParamStoreError | OSError):
        return (
            f"{type(error).__name__}: {error}; this is a fault of paramstore, {DEBUG} shows where"
        )
    told = str(error)
    for call, typed in _IN_SHELL:
        told = told.replace(call, typed)
    if type(error) is NotFoundError and "no store" in told:
        meant = _meant_as_store(arguments) or "name another with --db FILE or PARAMSTORE_URL"
        return f"{told}; {meant}"
    if isinstance(error, NotFoundError) and (meant := _meant_as_store(arguments, told)):
        return f"{told}; {meant}"
    if type(error) is DatabaseError:
        told += "; 'paramstore doctor' looks for the cause"
    return told


def _meant_as_store(arguments: Sequence[str], told: str | None = None) -> str:
    """Ask whether an argument that is a file, and stands in what is told, was meant as the store.

    Looks at the name only: nobody but SQLite may open what is perhaps a database.
    """
    words = None if told is None else re.split(r"[\s'()]+", told)
    for before, argument in pairwise(["", *arguments]):
        is_value = argument.startswith("-") or before in _TAKE_FILES
        if not is_value and (words is None or argument in words) and Path(argument).is_file():
            return f"did you mean --db {shlex.quote(argument)}?"
    return ""


def _say(message: str) -> None:
    line = " ".join(message.split())
    click.echo(f"paramstore: {line if line.isprintable() else repr(line)[1:-1]}", err=True)


def _forget_output() -> None:
    # What is still buffered would be written, and fail again, when the interpreter ends.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
