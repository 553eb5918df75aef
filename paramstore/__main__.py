"""``python -m paramstore``: the command, where its script is not on the path.

Must never do more than call it.
"""

from __future__ import annotations

from paramstore.cli.entry import main

if __name__ == "__main__":
    main()
