"""Runs a function where none of torch's thread-local modes reaches.

Must never keep a thread: each call that needs one starts and joins it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def outside_modes(fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call ``fn`` where no mode of the calling thread reaches, and return or raise its outcome.

    Inference mode, functorch, fake tensors, ``torch.device``, function and dispatch modes are all
    thread-local, so a new thread has none of them. It costs 80 µs, and is left out where no mode is
    active. ``fn`` must not take a lock that the caller holds.

    Raises:
        BaseException: what ``fn`` raised.
    """
    if not _in_a_mode():
        return fn(*args, **kwargs)
    result: list[_T] = []
    failure: list[BaseException] = []

    def call() -> None:
        try:
            result.append(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised again below, on the caller's thread
            failure.append(error)

    thread = threading.Thread(target=call, name="paramstore-outside-modes")
    thread.start()
    thread.join()
    if failure:
        raise failure.pop()  # off the list, so that the traceback holds no cycle
    return result[0]


def _in_a_mode() -> bool:
    native = torch._C
    return bool(
        torch.is_inference_mode_enabled()
        or native._len_torch_dispatch_stack()
        or native._len_torch_function_stack()
        or native._functorch.peek_interpreter_stack() is not None
        or native._get_tracing_state() is not None
    )
