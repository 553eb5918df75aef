"""Fuzzes in a process of little memory: ``fuzz.py quick``, ``full`` or ``TARGET FIRST COUNT``.

A good outcome is a value, or an error of the library with a text that is fit for a terminal. An
input that takes memory, time or another exception ends the run, and its number makes it again; so
does one that makes Python run or import something, or write elsewhere.
"""

from __future__ import annotations

import codecs
import json
import os
import random
import resource
import shutil
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz_targets import FOLDER, TARGETS

from paramstore.errors import ParamStoreError

MEMORY = 1 << 30
"""Bytes of address space beyond what the process has when it begins."""
WARM = 20
"""Inputs of each target that are read before anything is limited or watched."""
SECONDS = 20
"""Of the processor, for one input."""


VIOLATIONS: list[str] = []
"""What Python was made to do since :func:`watch`."""
_RUNS = {
    "code.__new__", "compile", "ctypes.dlopen", "exec", "marshal.loads", "os.exec", "os.fork",
    "os.forkpty", "os.posix_spawn", "os.system", "pickle.find_class", "sqlite3.load_extension",
    "sqlite3.enable_load_extension", "subprocess.Popen",
}  # fmt: skip


# A named tuple is a class made of a text, that of the columns of a statement of ours; and alembic
# runs our migrations to learn which revisions there are.
_OURS = ("collections/__init__.py", "alembic/script/base.py")


def _callers() -> Iterator[str]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def watch() -> None:
    """Notice from now on what runs, imports or connects, and what is written outside the folder."""
    sys.addaudithook(_notice)


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "import" and not any(file.endswith(_OURS) for file in _callers()):
        VIOLATIONS.append(f"import {arguments[0]}")
    elif event in _RUNS:
        if not any(file.endswith(_OURS) for file in _callers()):
            VIOLATIONS.append(f"{event} {arguments!r:.200}")
    elif event.startswith("socket."):
        VIOLATIONS.append(event)
    elif event in ("open", "sqlite3.connect") and _writes_elsewhere(event, *arguments):
        VIOLATIONS.append(f"{event} {arguments[0]!s:.200}")


def _writes_elsewhere(event: str, path: Any, _mode: object = None, flags: int = 0) -> bool:
    here = str(path).removeprefix("file://").startswith(str(FOLDER))
    writes = event != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    return bool(writes) and not here and path != ":memory:" and not isinstance(path, int)


CODECS = ("ascii", "latin-1", "raw_unicode_escape", "unicode_escape", "utf-8")
"""By which pickletools reads texts: modules, too, and a fixed choice of them."""


class TooSlow(BaseException):
    """One input has taken too long."""


def run(target: str, first: int, count: int) -> Counter[str]:
    """Read that many inputs; count the outcomes by the class of the error."""
    read, *_ = TARGETS[target]
    outcomes: Counter[str] = Counter()
    for number in range(first, first + count):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            outcomes[_outcome(read, random.Random(f"{target} {number}"))] += 1
            assert not VIOLATIONS, VIOLATIONS
        except BaseException:
            print(f"input {number} of {target!r}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return outcomes


def _outcome(read: Callable[[random.Random], None], rng: random.Random) -> str:
    try:
        read(rng)
    except ParamStoreError as error:
        _check_text(str(error))
        _check_memory(error)
        return type(error).__name__
    return "a value"


def _check_text(text: str) -> None:
    assert text.isprintable(), text
    assert 0 < len(text) < 20_000, len(text)


def _check_memory(error: BaseException | None) -> None:
    """Refuse an error that hides that memory was asked for and not given."""
    while error is not None:
        assert not isinstance(error, MemoryError), "it asked for memory"
        assert "allocate" not in str(error), error
        error = error.__cause__ or error.__context__


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_slow(*_: object) -> None:
    raise TooSlow


def _report(target: str, first: int, count: int) -> None:
    """Run one target; print the outcomes as a line of JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = run(target, first, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row = {"target": target, "outcomes": outcomes, "kilobytes": peak}
    print(json.dumps(row), flush=True)


def main() -> None:
    """Run what the arguments say."""
    warnings.simplefilter("ignore")  # torch warns of odd arrays
    signal.signal(signal.SIGPROF, _too_slow)
    try:
        for target in TARGETS:
            run(target, 0, WARM)  # makes the seeds, imports what is imported late
        for codec in CODECS:
            codecs.lookup(codec)
        _limit_memory()
        watch()
        if sys.argv[1] in ("quick", "full"):
            for target, (_, quick, all_of_them) in TARGETS.items():
                _report(target, 0, quick if sys.argv[1] == "quick" else all_of_them)
        else:
            _report(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main()
