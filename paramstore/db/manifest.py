"""The canonical text of a snapshot and its digest, by which altered rows are found.

Turns values into bytes; must never look at the database.

A manifest is UTF-8 text of lines, each a JSON array in ASCII without spaces, each ended by a
newline, in this order::

    ["paramstore",1]
    ["snapshot",scope,version,parent_id,step,created_at,message,kind,params,changed,nbytes,added]
    ["metric",name,value]                       sorted by name; NaN, Infinity, -Infinity as words
    ["extra",kind,name,skeleton]                sorted by kind, then name
    ["blob",digest]                             the tensors of the extras in their order
    ["param",name,digest,spec,kind,requires_grad]   sorted by name, by code point

Digests are BLAKE3-256 in lower-case hexadecimal; the digest of a snapshot is the BLAKE3-256 of
its manifest. Constraint specs and skeletons are JSON themselves and stand here as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from typing import NamedTuple

from blake3 import blake3

FORMAT = b'["paramstore",1]\n'


class Header(NamedTuple):
    """A snapshot's own fields, in the order of the manifest."""

    scope: str
    version: int
    parent_id: int | None
    step: int | None
    created_at: str
    message: str | None
    kind: str
    params: int
    changed: int
    nbytes: int
    added_nbytes: int


def entry_line(name: str, digest: bytes, spec: str, kind: str, *, requires_grad: bool) -> bytes:
    """Return the line of one parameter."""
    tail = _tail(spec, kind, bool(requires_grad))
    return f'["param",{quote(name)},"{digest.hex()}",{tail}]\n'.encode("ascii")


def snapshot_digest(
    header: Header,
    metrics: Mapping[str, float],
    extras: Iterable[tuple[str, str, str]],
    extra_digests: Iterable[bytes],
    lines: Iterable[bytes],
) -> bytes:
    """Return the digest of a snapshot, 32 bytes.

    Args:
        header: the snapshot's own fields.
        metrics: its metrics.
        extras: kind, name and skeleton of its extras and attached states.
        extra_digests: digests of the tensors that the skeletons refer to, in their order.
        lines: ``entry_line`` of every parameter, sorted by parameter name.
    """
    manifest = [FORMAT, _line("snapshot", *header)]
    manifest += [_line("metric", name, metrics[name]) for name in sorted(metrics)]
    manifest += [_line("extra", *extra) for extra in sorted(extras)]
    manifest += [_line("blob", digest.hex()) for digest in extra_digests]
    manifest += lines
    return blake3(b"".join(manifest)).digest()


def _line(*fields: str | int | float | None) -> bytes:
    return f"[{','.join(map(_json, fields))}]\n".encode("ascii")


def _json(field: str | int | float | None) -> str:
    if field is None:
        return "null"
    if isinstance(field, str):
        return quote(field)
    return _number(field) if isinstance(field, float) else str(int(field))


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


@lru_cache(maxsize=4096)
def _tail(spec: str, kind: str, requires_grad: bool) -> str:  # noqa: FBT001 — a cache key
    return f"{quote(spec)},{quote(kind)},{'true' if requires_grad else 'false'}"
