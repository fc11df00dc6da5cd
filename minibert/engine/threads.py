"""The number of usable cores, and a limit of one thread for BLAS while minibert uses the cores itself.

minibert divides its work over Python threads: numpy releases the GIL while it computes. BLAS gets one thread, for two
reasons. First, the bits must not depend on the number of threads: BLAS splits a product by its number of threads, and
another split can round some sums differently. Second, BLAS threads inside Python threads would be more threads than
cores, and they would slow each other down.
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
    """Return the number of cores that this process may use.

    It is the smallest of its CPU affinity, its CPU quota (rounded up), and the environment variable
    ``OMP_NUM_THREADS``, with which Ray, Slurm and others give each process its share. Any other value of the variable
    than a whole number of at least 1, or a list that begins with one, has no effect.

    The quota comes from Linux control groups, version 1 or 2, at their usual mount point. Containers use them. A file
    that cannot be read means no limit.

    Args:
        root: The parent folder of ``proc`` and ``sys``.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = re.match(r"\s*0*([1-9]\d{,17})\s*(?:,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return min([cores, *([int(share[1])] if share else []), *_quotas(root)])


def _quotas(root: Path) -> Iterator[int]:
    """Yield the number of cores of each CPU quota, rounded up: of the process's own group and of all its parents.

    In a container, the group may have its outside name, such as ``/docker/1f2e``, while the mount shows the group
    itself as its top folder. Then no folder has this name, and the top folder is the last of the parents.
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
    """Return the text of a file, or an empty string if it cannot be read."""
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""


# ---------------------------------------------------------------- BLAS


class _Hold:
    """A limit of one thread for some libraries. It lasts as long as there is at least one holder.

    Attributes:
        holders: The current holders. A set is safer than a count: in a forked child, or after an early Ctrl-C,
            :meth:`drop` may be called for a holder that is not in it.
        before: threadpoolctl's libraries (they have no types), each with its earlier number of threads.
    """

    def __init__(self) -> None:
        self.holders: set[object] = set()
        self.before: list[tuple[Any, int]] = []

    def take(self, holder: object, libraries: Iterable[Any]) -> None:
        """Add a holder. The first one sets the limit."""
        self.holders.add(holder)
        if len(self.holders) == 1:
            for library in libraries:
                self.before.append((library, library.num_threads))
                _set_threads(library, 1)

    def drop(self, holder: object) -> None:
        """Remove a holder. The last one restores the libraries."""
        self.holders.discard(holder)
        if not self.holders:
            self.undo()

    def undo(self) -> None:
        """Restore the libraries, and remove all holders."""
        self.holders.clear()
        for library, threads in self.before:
            _set_threads(library, threads)
        self.before.clear()


class _ThreadsHold(_Hold, threading.local):
    """A separate hold for each thread, for libraries whose limits belong to a thread."""


#: Guards both holds. It is reentrant, because a signal handler may also encode.
_lock = threading.RLock()
_process, _thread = _Hold(), _ThreadsHold()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit every BLAS in the process to one thread until the last of these blocks ends, in any thread.

    Enter it in every thread that calls BLAS: some libraries have one limit for the process, others have one for each
    thread. The last block restores the earlier limits. Blocks may be nested. There is no limit for a BLAS without
    thread control, such as Accelerate, or for a BLAS that is loaded after the first block begins.
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
    """Return the largest number of threads that BLAS may use now."""
    with _lock:
        shared, own = _libraries()
        return max((library.num_threads for library in shared + own), default=1)


def blas_name() -> str:
    """Return the name of numpy's BLAS, such as ``openblas 0.3.31 SkylakeX``, or ``unknown``."""
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
    """Return the BLAS libraries with one limit for the process, and those with one limit for each thread.

    The search runs once and takes milliseconds. Call it only with the lock, because it changes limits for a trial.
    """
    from threadpoolctl import ThreadpoolController

    shared: list[Any] = []
    own: list[Any] = []
    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas":
            (shared if _is_shared(library) else own).append(library)
    return shared, own


def _is_shared(library: Any) -> bool:
    """Return whether a limit that one thread sets is also the limit in another thread.

    This is a trial, because the library's name does not decide it: OpenBLAS with its own threads shares a limit, but
    OpenBLAS with OpenMP does not. BLIS has changed from one to the other. MKL has a limit for each thread.
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
    """Set a limit, even if another thread set the last one.

    Since threadpoolctl 3.8, only one controlling thread can limit OpenBLAS. Calls of other threads have no effect until
    it is cleared. But the thread that leaves `one_blas_thread` last may not be the one that entered it first.
    """
    clear = getattr(library, "clear_controlling_thread", lambda **_: None)
    clear(force=True)
    library.set_num_threads(threads)
    clear(force=True)


def _start_over() -> None:
    """Undo the limits in a forked child. The other threads that hold them do not exist there."""
    _process.undo()
    _thread.undo()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_start_over)
