"""Pictures of histories and of differences, as matplotlib figures (extra ``[plot]``).

Draws what it is given, on figures of its own: no window opens and pyplot's state stays as it is.
Must never ask a database; works without torch.
"""

from __future__ import annotations

from paramstore.errors import UsageError

try:
    import matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise UsageError(
        "pictures need matplotlib, which is not installed: pip install 'paramstore[plot]'"
    ) from error

from paramstore.plotting.bars import plot_diff
from paramstore.plotting.panels import plot_histories

__all__ = ["plot_diff", "plot_histories"]
