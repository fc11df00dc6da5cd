"""How many cores there are, and BLAS on one thread while minibert keeps them busy itself.

Work is spread over Python threads, each with a piece of it: numpy gives up the GIL while it computes. BLAS gets one
thread, for two reasons. The same bits come out whatever the number of threads: BLAS cuts up a product by how many
threads of its own it has, and some sums round differently when it is cut differently. And BLAS's threads inside those
of Python would be more than there are cores, in each other's way.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

__all__ = ["blas_name", "blas_threads", "one_blas_thread", "usable_cores"]

# ---------------------------------------------------------------- cores


def usable_cores(*, root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: those it may run on, or its CPU quota, rounded up, if less.

    The quota is that of Linux's control groups, which is how containers are limited; in either version, and where
    they are mounted by convention. What cannot be read is no limit.

    Args:
        root: The folder that holds ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """Yield the cores that each CPU quota allows, rounded up: that of the process's own group and of all above it.

    A container may see its group's name from outside, such as ``/docker/1f2e``, and the group itself as the mount's
    top: the name leads nowhere then, and the top is the last of the groups above it.
    """
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, name = line.partition(":")[2].partition(":")
        own = PurePosixPath(name.lstrip("/"))
        for group in (own, *own.parents):
            if not controllers:  # version 2
                quota = _read(mount / group / "cpu.max")
            elif "cpu" in controllers.split(","):
                folder = mount / "cpu" / group
                quota = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
            else:
                continue
            if limit := re.fullmatch(r"([1-9]\d{,17})\s+([1-9]\d{,17})\s*", quota):  # no limit is "max" or -1
                yield -(-int(limit[1]) // int(limit[2]))


def _read(path: Path) -> str:
    """Return the text of a file, or none where there is no such file or it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


# ---------------------------------------------------------------- BLAS


class _Hold:
    """One thread for each of some libraries, from the first holder's coming to the last one's going.

    Attributes:
        holders: Whoever has come and not gone. A set rather than a count: in a forked child, and when Ctrl-C comes too
            early, one goes that is not there.
        before: threadpoolctl's libraries (which have no types), each with the number of threads that it had.
    """

    def __init__(self) -> None:
        self.holders: set[object] = set()
        self.before: list[tuple[Any, int]] = []

    def take(self, holder: object, libraries: Iterable[Any]) -> None:
        """Add a holder; the first limits the libraries."""
        self.holders.add(holder)
        if len(self.holders) == 1:
            for library in libraries:
                self.before.append((library, library.num_threads))
                _set_threads(library, 1)

    def drop(self, holder: object) -> None:
        """Remove a holder; the last restores the libraries."""
        self.holders.discard(holder)
        if not self.holders:
            self.undo()

    def undo(self) -> None:
        """Restore the libraries, whoever holds them."""
        self.holders.clear()
        for library, threads in self.before:
            _set_threads(library, threads)
        self.before.clear()


class _ThreadsHold(_Hold, threading.local):
    """A hold for each thread, on its own limits."""


#: Guards all of this; reentrant, because a signal handler may encode, too.
_lock = threading.RLock()
_process, _thread = _Hold(), _ThreadsHold()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold every BLAS in the process to one thread until the last block that asks for it is left, in whatever thread.

    To be entered in every thread that calls BLAS: some libraries have one limit for the process, others one for each
    thread. What was there before is restored. Blocks may be nested. A BLAS that takes no limit, such as Accelerate, or
    that is loaded after the first block was entered, is left alone.
    """
    holder = object()
    try:
        with _lock:
            shared, own = _libraries()
            _process.take(holder, shared)
            _thread.take(holder, own)
        yield
    finally:
        with _lock:
            _process.drop(holder)
            _thread.drop(holder)


def blas_threads() -> int:
    """Return on how many threads BLAS would compute now, at most."""
    with _lock:
        shared, own = _libraries()
        return max((library.num_threads for library in shared + own), default=1)


def blas_name() -> str:
    """Return what numpy's BLAS says it is, such as ``openblas 0.3.31 SkylakeX``, or ``unknown``."""
    with _lock:
        shared, own = _libraries()
    numpy_folder = str(Path(np.__file__).resolve().parent)  # a wheel's BLAS is inside, or beside it in numpy.libs
    library = min(shared + own, key=lambda each: not each.filepath.startswith(numpy_folder), default=None)
    if library is None:
        return "unknown"
    parts = (library.internal_api, library.version, getattr(library, "architecture", None))
    return " ".join(part for part in parts if part)


@functools.cache
def _libraries() -> tuple[list[Any], list[Any]]:
    """Return the BLAS libraries that have one limit for the process, and those that have one for each thread.

    They are looked for once, which takes milliseconds, and only with the lock: their limits are tried.
    """
    from threadpoolctl import ThreadpoolController

    shared: list[Any] = []
    own: list[Any] = []
    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas":
            (shared if _is_shared(library) else own).append(library)
    return shared, own


def _is_shared(library: Any) -> bool:
    """Return whether a limit that one thread sets holds in another.

    It is tried out, since it depends on more than the library's name: OpenBLAS's own threads share a limit, and those
    that it has from OpenMP do not; BLIS has changed from one to the other; MKL's limit is each thread's own.
    """
    elsewhere: list[int] = []
    hold = _Hold()
    try:
        hold.take(None, [library])
        other = threading.Thread(target=lambda: elsewhere.append(library.num_threads))
        other.start()
        other.join()
    finally:
        hold.undo()
    return elsewhere == [1]


def _set_threads(library: Any, threads: int) -> None:
    """Set a limit, whichever thread set the last one.

    Since threadpoolctl 3.8 only one thread can limit OpenBLAS, and others do so without effect, until it is cleared;
    but the last to leave `one_blas_thread` may be another thread than the first to enter.
    """
    clear = getattr(library, "clear_controlling_thread", lambda **_: None)
    clear(force=True)
    library.set_num_threads(threads)
    clear(force=True)


def _start_over() -> None:
    """Undo the limits in a forked child, which has none of the threads that hold them but the one that forked."""
    _process.undo()
    _thread.undo()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_start_over)
