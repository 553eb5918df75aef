"""Runs something in a fork of this process under strace, which counts, kills or makes calls fail.

Knows processes and system calls only; must never look at a store.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn, TextIO

import torch
from ledger import Teller

WRITES = ("pwrite64", "write", "fdatasync", "fsync", "ftruncate", "unlink", "sync_file_range")
"""The system calls by which a store comes to the disk."""

_PATIENCE = 60.0  # seconds until strace is there
_CALL = re.compile(r"^(\d+) +(\w+)\(", re.MULTILINE)

Disturbed = Callable[[Teller], None]
Begin = Callable[[], AbstractContextManager[Disturbed]]
"""What is done in the fork: entered undisturbed; what it yields is done under strace."""


@dataclass
class Outcome:
    """How it ended."""

    status: int
    """The exit status; negative: the signal that ended it."""
    lines: list[str]
    """What it said."""

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -signal.SIGKILL


@cache
def unavailable() -> str:
    """Why nothing can be disturbed here; empty where it can."""
    if shutil.which("strace") is None:
        return "needs strace"
    done = subprocess.run(["strace", "-qq", "-o/dev/null", "true"], capture_output=True, text=True)
    return f"strace may not trace here: {done.stderr.strip()}" if done.returncode else ""


@dataclass
class Fork:
    """A fork of this process that runs something, and says lines."""

    process: int
    lines: TextIO
    _go: int
    _status: int | None = None

    def go_on(self) -> None:
        """End its pause."""
        os.write(self._go, b"g")

    def wait(self) -> int:
        """Wait for its end; negative: the signal that ended it."""
        if self._status is None:
            _, status = os.waitpid(self.process, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        """End it."""
        if self._status is None:
            os.kill(self.process, signal.SIGKILL)
            self.wait()


@contextmanager
def forked(begin: Begin) -> Iterator[Fork]:
    """Begin something in a fork, which pauses before it does what is to be disturbed."""
    said, saying = os.pipe()
    going, go = os.pipe()
    process = os.fork()
    if process == 0:
        _child(begin, Teller(saying, going))
    os.close(saying)
    os.close(going)
    with os.fdopen(said, encoding="utf-8") as lines:
        fork = Fork(process, lines, go)
        try:
            yield fork
        finally:
            os.close(go)
            fork.kill()


def disturbed(begin: Begin, *arguments: str) -> Outcome:
    """Fork, and let strace attach with some arguments at the first pause, and leave at the second.

    Returns:
        How the fork ended; its status is 1 after an error, which is in a note.
    """
    said = []
    strace: subprocess.Popen[bytes] | None = None
    with forked(begin) as fork:
        for line in fork.lines:
            if line != "pause\n":
                said.append(line.rstrip("\n"))
                continue
            if strace is None:
                strace = _attach(fork.process, arguments)
            else:
                strace.terminate()  # it detaches
                strace.wait()
            fork.go_on()
        status = fork.wait()
    if strace is not None:
        strace.wait()
    return Outcome(status, said)


def killed_after(begin: Begin, seconds: float) -> Outcome:
    """Fork, and kill the fork when it has done for some seconds what is to be disturbed."""
    with forked(begin) as fork:
        first = fork.lines.readline()
        assert first == "pause\n", first
        fork.go_on()
        time.sleep(seconds)
        fork.kill()
        return Outcome(fork.wait(), fork.lines.read().splitlines())


def _child(begin: Begin, teller: Teller) -> NoReturn:
    status = 1
    try:
        torch.set_num_threads(1)  # the threads of the parent's pool are not here
        with begin() as do:
            teller.pause()
            do(teller)
        status = 0
    except BaseException:  # noqa: BLE001  # the parent looks at it
        teller.say("note", traceback.format_exc())
    finally:
        os._exit(status)


def _attach(process: int, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    strace = subprocess.Popen(["strace", "-f", "-qq", *arguments, "-p", str(process)])
    status, deadline = Path(f"/proc/{process}/status"), time.monotonic() + _PATIENCE
    while "TracerPid:\t0\n" in status.read_text():
        assert strace.poll() is None, "strace has ended"
        assert time.monotonic() < deadline, "strace does not attach"
        time.sleep(0.0005)
    return strace


def killing(call: str, when: int) -> list[str]:
    """Arguments that kill the run instead of its ``when``-th call."""
    return ["-o/dev/null", f"--trace={call}", f"--inject={call}:signal=SIGKILL:when={when}"]


def failing(call: str, error: str, when: str, trace: Path) -> list[str]:
    """Arguments that let calls fail, and leave a trace; ``when`` as strace takes it."""
    return [f"-o{trace}", f"--trace={call}", f"--inject={call}:error={error}:when={when}"]


def counted(begin: Begin, trace: Path, *arguments: str) -> dict[str, int]:
    """How often the undisturbed run makes each system call, on the thread that makes it most.

    Because strace, too, counts the calls of each thread by themselves.
    """
    outcome = disturbed(begin, "-o", str(trace), *arguments)
    assert outcome.status == 0, outcome
    counts: dict[str, int] = {}
    for (_, call), count in Counter(_CALL.findall(trace.read_text())).items():
        counts[call] = max(count, counts.get(call, 0))
    return counts
