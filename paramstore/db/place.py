"""Notices when the file of an open database is deleted, moved, or replaced by another.

SQLite goes on with the file that it has open: reads would mix two files, and a commit would be
confirmed although no path leads to it. Asks for numbers only; must never open the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from paramstore.errors import StorageError


class Place:
    """The file that a path led to when it was first opened.

    **Threads**: any.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._file: tuple[int, int] | None = None

    def opened(self) -> None:
        """Remember the file that a connection has opened, or see that it is still the same.

        Raises:
            StorageError: as ``check``.
        """
        if self._file is None:
            self._file = _identity(self._path)
        self.check()

    def check(self, *, committed: bool = False) -> None:
        """See that the path leads to the same file as at first.

        Args:
            committed: a transaction has just ended, which may not be in the file that is there now.

        Raises:
            StorageError: it leads nowhere, or to another file.
        """
        found = _identity(self._path)
        if found == self._file or self._file is None:
            return
        what = "was deleted or moved" if found is None else "was replaced by another file"
        lost = "the commit that was being written went with it" if committed else "nothing was done"
        raise StorageError(
            f"{self._path!r} {what} while the store was open; {lost}. Put the file back where it "
            f"was, or keep what is in memory with store.save(FILE) and open the store again"
        )


def _identity(path: str) -> tuple[int, int] | None:
    """Return what tells a file from all others that exist, in 1 µs; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # Path.stat costs twice as much
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
