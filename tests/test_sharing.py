"""Shared work gives what it gives on one thread, in the same order."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from paramstore import sharing
from paramstore.sharing import LARGE, WORTH_IT, share


@pytest.mark.parametrize("cores", [1, 2, 64])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_results_come_in_the_order_of_the_items(
    count: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "_cores", lambda: cores)
    found = share(lambda part: [item * 2 for item in part], range(count), WORTH_IT)
    assert found == [item * 2 for item in range(count)]


def test_little_work_stays_on_the_calling_thread() -> None:
    seen = set()

    def work(part: Sequence[int]) -> Sequence[int]:
        seen.add(threading.get_ident())
        return part

    share(work, range(100), WORTH_IT - 1)
    assert seen == {threading.get_ident()}


def test_much_work_is_done_on_several_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_cores", lambda: 2)
    caller, other = threading.get_ident(), threading.Event()

    def work(part: Sequence[int]) -> Sequence[int]:
        if threading.get_ident() != caller:
            other.set()
        elif not other.wait(60):
            raise TimeoutError
        return part

    share(work, range(100), WORTH_IT)
    assert other.is_set()


def test_many_small_items_stay_on_the_calling_thread() -> None:
    seen = set()

    def work(part: Sequence[int]) -> Sequence[int]:
        seen.add(threading.get_ident())
        return part

    share(work, range(1000), LARGE * 1000 - 1)
    assert seen == {threading.get_ident()}


def test_an_error_on_another_thread_reaches_the_caller() -> None:
    def work(part: Sequence[int]) -> Sequence[int]:
        if 1 in part:
            raise ZeroDivisionError
        return part

    with pytest.raises(ZeroDivisionError):
        share(work, range(4), WORTH_IT)
