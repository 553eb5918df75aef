"""An hour of everything on one file: a worker that is killed again and again, and a parent that
checks what it left.

    scripts/faults soak --minutes 60 --share 0.3
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aftermath
import torch
from endless import Pace, one_life
from ledger import Ledger

SCOPE = "trained"
SECONDS = (0.2, 8.0)
"""How long the worker lives, at least and at most."""


@dataclass
class Figures:
    """What has happened so far."""

    began: float = field(default_factory=time.monotonic)
    counts: Counter[str] = field(default_factory=Counter)
    largest: int = 0
    snapshots: int = 0

    def add(self, said: Sequence[str], path: Path, ledger: Ledger) -> None:
        """Take note of one life of the worker."""
        self.counts["kills"] += 1
        for line in said:
            what, *words = line.split(" ")
            if what == "have":
                self.counts["commits"] += 1
            elif what == "note":
                self.counts[words[0]] += int(words[1])
        self.largest = max(self.largest, path.stat().st_size)
        self.snapshots = len(ledger.confirmed)

    def __str__(self) -> str:
        c = self.counts
        return (
            f"{(time.monotonic() - self.began) / 60:.1f} min: {c['commits']:,} commits confirmed, "
            f"{c['kills']:,} kills, {c['expired']:,} snapshots expired, {c['freed']:,} bytes freed "
            f"by gc, {c['verified']:,} verified and {c['backups']:,} backed up while it ran; "
            f"the file holds {self.snapshots:,} snapshots and was {self.largest:,} bytes at most"
        )


def soak(path: Path, minutes: float, share: float) -> Figures:
    """Let workers live on one file; stops at the first promise that was not kept."""
    figures, ledger, pace = Figures(), Ledger([]), Pace(share)
    shown = 0.0
    while (spent := time.monotonic() - figures.began) < 60 * minutes:
        said = one_life(path, SCOPE, random.uniform(*SECONDS), share=share)
        ledger.add(said)
        for left in path.parent.glob("*backup-*"):  # of a worker that was killed meanwhile
            left.unlink()
        aftermath.check(path, ledger, [SCOPE])
        figures.add(said, path, ledger)
        if spent - shown >= 60:
            shown = spent
            print(figures, flush=True)
        pace.keep()
    return figures


def main() -> None:
    """Read the arguments, and print the figures."""
    parser = argparse.ArgumentParser(prog="scripts/faults soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=1.0, help="of one core, at most")
    parser.add_argument("--folder", type=Path, help="where the file is; kept after a failure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="paramstore-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = soak(folder / "run.db", given.minutes, given.share)
    except Exception:
        print(f"the file is in {folder}", file=sys.stderr)
        raise
    print(f"in the end, {figures}; lost: nothing")
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
