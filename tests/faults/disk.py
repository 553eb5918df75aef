"""The files as a power cut would leave them: a trace of system calls, and a disk that has done
for sure only what was synced.

Knows files and bytes; must never look at a store.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat", "close", "pwrite64", "write", "ftruncate", "fsync", "fdatasync", "unlink",
    "unlinkat", "rename", "writev",
)  # fmt: skip
"""What has to be traced; ``writev`` is what says that a commit was confirmed."""
SECTOR = 512
"""Bytes that a disk writes as one."""

# With strace -f -y -xx: pid, call, its arguments, what it returned.
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)", re.DOTALL)
_DESCRIPTOR = re.compile(r"^(?:AT_FDCWD|\d+)<([^>]*)>")
_TEXT = re.compile(r'"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes at an offset of a file."""

    offset: int
    data: bytes

    def on(self, content: bytearray) -> None:
        """Do it."""
        end = self.offset + len(self.data)
        content.extend(bytes(max(0, end - len(content))))
        content[self.offset : end] = self.data


@dataclass(frozen=True, slots=True)
class Cut:
    """A file made shorter or longer."""

    length: int

    def on(self, content: bytearray) -> None:
        """Do it."""
        del content[self.length :]
        content.extend(bytes(self.length - len(content)))


Operation = Write | Cut


@dataclass
class File:
    """What the disk has of a file for sure, and what it may have besides."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)
    named: bool = False
    """Whether its name is in the folder for sure."""


class Disk:
    """The files of one folder, while a run is replayed."""

    def __init__(self, folder: Path, content: dict[str, bytes]) -> None:
        """Begin with files that are wholly on the disk."""
        self._folder = str(folder)
        self.files = {name: File(bytearray(data), named=True) for name, data in content.items()}
        self.removed: dict[str, File] = {}
        """Files whose removal is not on the disk for sure."""
        self.lines: list[str] = []
        """What the run has said so far."""

    def copied(self) -> Disk:
        """The same disk again, to be replayed by itself."""
        return deepcopy(self)

    def replay(self, trace: str) -> Iterator[str]:
        """Follow a trace, and yield the name of each call that has changed something."""
        for line in _whole_lines(trace):
            found = _LINE.match(line)
            if found is None:
                continue
            call, arguments, result = found[1], found[2], int(found[3])
            if result >= 0 and self._do(call, arguments, result):
                yield call

    def _do(self, call: str, arguments: str, result: int) -> bool:
        if call == "writev":
            self.lines += b"".join(_texts(arguments)).decode().splitlines()
            return True
        path = self._path(call, arguments)
        if path is None:
            return False
        name = path.removeprefix(self._folder).lstrip("/")
        if call in ("fsync", "fdatasync"):
            self._sync(name)
        elif call == "openat":
            if "O_CREAT" not in arguments or name in self.files or not name:
                return False
            self.files[name] = self.removed.pop(name, File())
        elif call in ("unlink", "unlinkat"):
            if name not in self.files:  # it was made before, and holds nothing that lasts
                return False
            self.removed[name] = self.files.pop(name)
        elif call == "ftruncate":
            self.files[name].pending.append(Cut(_number(arguments, -1)))
        elif call == "pwrite64":
            (data,) = _texts(arguments)
            assert len(data) >= result, "strace has left bytes out"
            self.files[name].pending.append(Write(_number(arguments, -1), data[:result]))
        else:
            assert call == "close", (call, arguments)  # the only other one that is allowed for
            return False
        return True

    def _path(self, call: str, arguments: str) -> str | None:
        """The file of the folder, or the folder, that a call is about."""
        if call in ("openat", "unlink", "unlinkat"):
            path = next(_texts(arguments)).decode()
        else:
            found = _DESCRIPTOR.match(arguments)
            path = _unescaped(found[1]) if found else ""
        return path if path == self._folder or path.startswith(self._folder + "/") else None

    def _sync(self, name: str) -> None:
        if not name:  # the folder
            self.removed.clear()
            for file in self.files.values():
                file.named = True
            return
        file = self.files[name]
        for operation in file.pending:
            operation.on(file.durable)
        file.pending.clear()

    # -- images --------------------------------------------------------------------

    def with_nothing_pending(self) -> dict[str, bytes]:
        """The files if only what was synced had reached the disk."""
        named = {name: file for name, file in self.files.items() if file.named}
        return {name: bytes(file.durable) for name, file in (self.removed | named).items()}

    def with_some_pending(self, chance: random.Random, *, torn: bool) -> dict[str, bytes]:
        """The files with each pending operation done or not; ``torn``: the last one in part."""
        image = {}
        for name, file in self.files.items():
            if not file.named and chance.random() < 0.5:
                continue
            part = chance.choice((0.2, 0.5, 0.8, 1.0))
            done = [operation for operation in file.pending if chance.random() < part]
            if torn and done:
                done[-1] = _torn(done[-1], chance)
            image[name] = _after(file, done)
        for name, file in self.removed.items():
            if chance.random() < 0.5:
                image.setdefault(name, bytes(file.durable))
        return image


def _after(file: File, operations: list[Operation]) -> bytes:
    content = bytearray(file.durable)
    for operation in operations:
        operation.on(content)
    return bytes(content)


def _torn(operation: Operation, chance: random.Random) -> Operation:
    if not isinstance(operation, Write):
        return operation
    sectors = len(operation.data) // SECTOR
    return Write(operation.offset, operation.data[: chance.randint(0, sectors) * SECTOR])


def _whole_lines(trace: str) -> Iterator[str]:
    """Join what strace cut in two because another thread made a call in between."""
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        process, _, rest = line.partition(" ")
        if rest.endswith(" <unfinished ...>"):
            begun[process] = rest.lstrip().removesuffix(" <unfinished ...>")
        elif "resumed>" in rest[:40]:
            yield begun.pop(process) + rest.partition("resumed>")[2]
        else:
            yield rest.lstrip()


def _texts(arguments: str) -> Iterator[bytes]:
    for found in _TEXT.finditer(arguments):
        yield _bytes(found[1])


def _number(arguments: str, place: int) -> int:
    return int(arguments.split(", ")[place])


def _unescaped(path: str) -> str:
    return _bytes(path).decode() if path.startswith("\\x") else path


def _bytes(text: str) -> bytes:
    """What strace wrote as hexadecimal escapes."""
    return text.encode("ascii").decode("unicode_escape").encode("latin-1")
