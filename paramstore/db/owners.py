"""The names of parameters in the stored state of an optimiser, which a rename has to follow.

Changes those names in a skeleton's text, and must never change anything else of it.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote

KEY = "paramstore"
"""What of such a state says whose it is."""


def renamed(skeleton: str, old: str, new: str) -> str:
    """Return a skeleton with another name for a parameter; one without such names as it is.

    >>> renamed('{"paramstore":{"class":"SGD","params":[["a","b"]]}}', "a", "c")
    '{"paramstore":{"class":"SGD","params":[["c","b"]]}}'
    """
    if quote(old) not in skeleton or quote(KEY) not in skeleton:
        return skeleton
    try:
        state = json.loads(skeleton)
        owner = state[KEY]
        owner["params"] = [
            [new if name == old else name for name in group] for group in owner["params"]
        ]
    except (KeyError, RecursionError, TypeError, ValueError):  # the state of something else
        return skeleton
    return json.dumps(state, separators=(",", ":"), allow_nan=False)
