from __future__ import annotations

import json
import math
from typing import Any

import pytest
from blake3 import blake3

from paramstore.db.manifest import FORMAT, Header, entry_line, snapshot_digest

HEADER = Header("main", 3, 2, 30, "2026-01-02T03:04:05.000006Z", None, "commit", 2, 1, 100, 50)
LINES = [
    entry_line("b", bytes(32), '{"kind":"real"}', "tensor", requires_grad=True),
    entry_line("net$$$ü\n", b"\xff" * 32, '{"kind":"real"}', "buffer", requires_grad=False),
]


def test_the_text_that_is_hashed_is_what_the_documentation_says() -> None:
    text = (
        '["paramstore",1]\n'
        '["snapshot","main",3,2,30,"2026-01-02T03:04:05.000006Z",null,"commit",2,1,100,50]\n'
        '["metric","loss",0.5]\n'
        '["metric","nan",NaN]\n'
        '["metric","\\u00fc",-Infinity]\n'
        '["extra","extra","epoch","3"]\n'
        '["extra","state","optim","{}"]\n'
        f'["blob","{"01" * 32}"]\n'
        f'["param","b","{"00" * 32}","{{\\"kind\\":\\"real\\"}}","tensor",true]\n'
        f'["param","net$$$\\u00fc\\n","{"ff" * 32}","{{\\"kind\\":\\"real\\"}}","buffer",false]\n'
    )
    digest = snapshot_digest(
        HEADER,
        {"ü": -math.inf, "loss": 0.5, "nan": math.nan},
        [("state", "optim", "{}"), ("extra", "epoch", "3")],
        [b"\x01" * 32],
        LINES,
    )
    assert digest == blake3(text.encode("ascii")).digest()
    assert text.startswith(FORMAT.decode())
    assert all(isinstance(json.loads(line), list) for line in text.splitlines())


def test_the_digest_of_format_1_never_changes() -> None:
    digest = snapshot_digest(HEADER, {}, [], [], LINES)
    assert digest.hex() == GOLDEN


GOLDEN = "b0923eaf1e6caa79224bd375e9cb50c5d7eb3b2841e1dcef0363164c61d49e19"


@pytest.mark.parametrize("field", Header._fields)
def test_every_field_of_the_snapshot_counts(field: str) -> None:
    value: Any = "x" if isinstance(getattr(HEADER, field), str) else 77
    other = HEADER._replace(**{field: value})
    assert snapshot_digest(other, {}, [], [], []) != snapshot_digest(HEADER, {}, [], [], [])


def test_texts_cannot_run_into_each_other() -> None:
    one = entry_line('a","b', bytes(32), "s", "k", requires_grad=True)
    assert len(json.loads(one)) == 6
    pairs = [[("extra", "a", "b")], [("extra", "a\nb", "")], [("extra", "", 'a","b')]]
    assert len({snapshot_digest(HEADER, {}, pair, [], []) for pair in pairs}) == 3
