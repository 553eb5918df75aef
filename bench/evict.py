"""``python -m bench.evict FOLDER``: drop every file below it from the page cache.

A process of its own: closing a descriptor of a database would drop this process's locks on it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def evict(folder: Path) -> None:
    """Write back what is dirty, then let go of it."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


if __name__ == "__main__":
    evict(Path(sys.argv[1]))
