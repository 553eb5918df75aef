"""Who writes: this machine and this process, as the snapshots name it that it commits.

Asks the system alone, never the network.
"""

from __future__ import annotations

import os
from functools import cache


def origin() -> str:
    """Return host and process, e.g. ``node17:4242``; of a forked child its own."""
    return f"{_host()}:{os.getpid()}"


@cache
def _host() -> str:
    # Whatever bytes the name has, the text can be stored and printed.
    return os.uname().nodename.encode("unicode_escape").decode("ascii")
