"""``python -m paramstore.cli``: the same as ``python -m paramstore``.

Must never do more than call it.
"""

from __future__ import annotations

from paramstore.cli.entry import main

if __name__ == "__main__":
    main()
