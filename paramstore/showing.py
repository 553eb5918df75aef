"""The store's verbs that show: pictures of parameters, and its table in a notebook.

Reads; must never change a working set, nor read a tensor that nobody has read yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from paramstore.db import looking
from paramstore.errors import ParamNotFoundError
from paramstore.history import History
from paramstore.listing import html_table, printable
from paramstore.refs import check_param_name
from paramstore.session import HasSession
from paramstore.tensors import dtype_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from paramstore.db.repository import Repository
    from paramstore.snapshot import ParamVersion
    from paramstore.working_set import WorkingSet

_HEAD = ("param", "shape", "dtype", "constraint", "trained")


def plot(
    self: HasSession, *names: str, scope: str | None = None, metrics: str | Sequence[str] = ()
) -> Figure:
    """Draw how parameters moved over the steps of a scope, each in a panel of its own.

    Named by names or shell patterns (``"net$$$*"``); without any, every parameter of the scope
    (default: the current one). ``metrics`` of the snapshots stand on a second axis where there is
    one parameter, else in panels of their own. For the rest see :meth:`History.plot`.

    Raises:
        ParamNotFoundError: no snapshot of the scope has such a parameter.
        InvalidInputError: no snapshot has such a metric, or a name is none.
        UsageError: matplotlib is not installed.
    """
    from paramstore.plotting import plot_histories

    session = self._session
    repository, scope = session.repository, session.this(scope)
    histories = [History(rows) for rows in _found(repository, scope, names or ("*",))]
    log = repository.log(scope) if metrics else ()
    return plot_histories(histories, log=log, metrics=metrics)


def repr_html(self: HasSession) -> str:
    """Write the parameters as a table for a notebook; those not read yet stay so."""
    ws = self._session.current
    return html_table(_HEAD, _rows(ws), printable(repr(self)[1:-1]))


def _found(
    repository: Repository, scope: str, patterns: Sequence[str]
) -> Iterator[list[ParamVersion]]:
    """The history of every name that a pattern matches, each once."""
    existing, found = looking.param_names(repository.database, scope), set[str]()
    for pattern in map(check_param_name, patterns):
        matching = [n for n in existing if n == pattern or fnmatchcase(n, pattern)]
        if not matching:
            repository.history(scope, pattern)  # raises, and suggests what there is
        for name in sorted(set(matching) - found, key=_counting):
            with suppress(ParamNotFoundError):  # its snapshots have all been expired
                yield repository.history(scope, name)
        found.update(matching)


def _counting(name: str) -> list[str | int]:
    """A key by which ``layer2`` comes before ``layer10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _rows(ws: WorkingSet) -> Iterator[Sequence[str]]:
    live = dict(ws.params.live())
    for name in ws.params:
        tensor = live.get(name)
        if tensor is None:
            entry = ws.stored[name].entry
            yield name, _shape(entry.shape), entry.dtype, _kind(entry.spec), "not read yet"
        else:
            forward = ws.transforms_of(name, ws.constraints[name]).forward
            shape = tensor.shape if forward is None else forward.forward_shape(tensor.shape)
            spec = ws.spec(ws.constraints[name]).text
            trained = "yes" if tensor.requires_grad else "no"
            yield name, _shape(shape), dtype_name(tensor.dtype), _kind(spec), trained


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _kind(spec: str) -> str:
    return str(json.loads(spec).get("kind", ""))
