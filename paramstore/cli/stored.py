"""Stored JSON as people read it: constraint specs in a few words, extras without their tensors.

Looks at text that anybody may have altered; must never import torch to do so.
"""

from __future__ import annotations

import json
from typing import Any, Final

_LONGEST: Final = 60  # characters of one extra in a line
_REAL: Final = {"kind": "real"}


def constraint_text(spec: Any) -> str:
    """Write a constraint spec in a few words; nothing for a value without constraint."""
    if spec == _REAL or not isinstance(spec, dict):
        return "" if spec == _REAL else str(spec)
    inside = [_argument(key, value) for key, value in spec.items() if key != "kind"]
    kind = str(spec.get("kind", "?"))
    return f"{kind}({', '.join(inside)})" if inside else kind


def _argument(key: str, value: Any) -> str:
    if isinstance(value, dict):
        if "kind" in value:
            return constraint_text(value) or "real"
        if "tensor" in value:
            return f"{key}=tensor{list(value['tensor'].get('shape', ()))}"
        return f"{key}={next(iter(value.values()), '')}"
    if isinstance(value, list):
        return f"{key}=[{', '.join(_argument('', item).lstrip('=') for item in value)}]"
    return f"{key}={value}" if key else str(value)


def plain(skeleton: str) -> Any:
    """Return the value of an extra as JSON has it; a tensor as its dtype and shape."""
    try:
        return _plain(json.loads(skeleton))
    except (ValueError, RecursionError, TypeError, AttributeError):
        return {"unreadable": skeleton[:_LONGEST]}


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1 and next(iter(node)).startswith("$"):
        ((tag, content),) = node.items()
        return _tagged(tag, content)
    return {key: _plain(item) for key, item in node.items()}


def _tagged(tag: str, content: Any) -> Any:
    if tag == "$tuple":
        return _plain(content)
    if tag in ("$dict", "$counter"):
        return {str(_plain(key)): _plain(item) for key, item in content}
    if tag == "$odict":
        return {str(_plain(key)): _plain(item) for key, item in content[0]}
    if tag == "$int":
        return int(content, 16)
    if tag == "$float":
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(content, "NaN")
    if isinstance(content, dict):
        return {tag[1:]: {key: content.get(key) for key in ("dtype", "shape") if key in content}}
    return {tag[1:]: content if tag != "$bytes" else None}


def plain_text(skeleton: str) -> str:
    """Write an extra in one short line."""
    text = json.dumps(plain(skeleton), ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
