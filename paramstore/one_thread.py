"""Torch on one thread, for work that runs beside a training.

Must never change a setting of the process or of another thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch's operations on the calling thread for a while.

    ``torch.set_num_threads`` would not do: it also sets MKL's number for the process and the one
    that later threads start with. OpenMP's own setting belongs to the thread, and so does MKL's
    local one, needed because MKL's exp shares out 100 elements already. Where neither is found,
    torch still keeps most operations on up to 32,768 elements, ATen's grain, on one thread.
    """
    limits = _limits()
    if limits is None:
        yield
        return
    openmp, mkl = limits
    threads = torch.get_num_threads()  # also lets torch set this thread up before we overrule it
    openmp(1)
    before = mkl(1)
    try:
        yield
    finally:
        mkl(before)
        openmp(threads)


@cache
def _limits() -> tuple[Callable[[int], object], Callable[[int], int]] | None:
    """Find the functions of the OpenMP and the MKL that torch is linked to."""
    try:
        library = ctypes.CDLL(torch._C.__file__)  # looks names up in all that it depends on
        openmp = library.omp_set_num_threads
    except (AttributeError, OSError):  # Windows, or a build without OpenMP
        return None
    return openmp, getattr(library, "MKL_Set_Num_Threads_Local", lambda _: 0)
