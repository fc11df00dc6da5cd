"""Cores and BLAS: what a process may keep busy, and one BLAS thread for as long as anybody asks for it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import threadpoolctl

from minibert.engine import threads
from minibert.engine.threads import blas_name, one_blas_thread, usable_cores

# ---------------------------------------------------------------- cores

#: The files of a machine where the process may run on 8 cores, and how many of these it may keep busy.
MACHINES = {
    "no files": ({}, 8),
    "v2, top": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
    "v2, rounded up": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "210000 100000\n"}, 3),
    "v2, less than one": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
    "v2, more than there are": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "900000 100000\n"}, 8),
    "v2, other period": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "20000 5000\n"}, 4),
    "v2, no limit": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
    "v2, own group": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n"}, 3),
    "v2, group above": (
        {
            "proc/self/cgroup": "0::/a/b/c\n",
            "sys/fs/cgroup/a/b/c/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "500000 100000\n",
            "sys/fs/cgroup/a/cpu.max": "300000 100000\n",
        },
        3,
    ),
    "v2, another's group": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/b/cpu.max": "100000 100000\n"}, 8),
    "v2, colon in the name": ({"proc/self/cgroup": "0::/a:b\n", "sys/fs/cgroup/a:b/cpu.max": "300000 100000\n"}, 3),
    "v1": (
        {
            "proc/self/cgroup": "5:memory:/m\n4:cpuacct,cpu:/a/b\n0::/\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
        },
        3,
    ),
    "v1, a container with the name from outside": (
        {
            "proc/self/cgroup": "4:cpu,cpuacct:/docker/1f2e\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "v1, no period": ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n"}, 8),
    "v1, another controller": (
        {
            "proc/self/cgroup": "4:cpuset:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        8,
    ),
    "no quota in the file": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "\n"}, 8),
    "period of 0": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, 8),
    "not a number": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1e5 100000\n"}, 8),
    "5,000 digits": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{'9' * 5_000} 100000\n"}, 8),
    "a folder": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max/x": ""}, 8),
    "null bytes": ({"proc/self/cgroup": "0::/\0\n"}, 8),
    "lines cut short": ({"proc/self/cgroup": "\n0\n0:\n::\n"}, 8),
}


@pytest.fixture
def eight_cores(monkeypatch):
    """Let the process run on 8 cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.usefixtures("eight_cores")
def test_quota(tmp_path, machine):
    """The least quota of the own group and those above it counts, rounded up; what cannot be read is no limit."""
    files, expected = MACHINES[machine]
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, "utf-8")

    assert usable_cores(root=tmp_path) == expected


@pytest.mark.usefixtures("eight_cores")
def test_quota_that_is_not_text(tmp_path):
    """Bytes that are no text are no limit."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_bytes(b"0::/\xff\n")

    assert usable_cores(root=tmp_path) == 8


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_where_processes_are_not_bound_to_cores(tmp_path, monkeypatch, count, expected):
    """Where the system does not bind processes to cores, all count; where it does not know, there is one."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)

    assert usable_cores(root=tmp_path) == expected


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), (" 2 ", 2), ("4,2", 4), ("007", 7), ("9", 8), ("", 8), ("0", 8), ("-1", 8), ("2.5", 8), ("all", 8)],
)
def test_share_of_a_process(tmp_path, monkeypatch, value, expected):
    """OMP_NUM_THREADS is a limit. A value that is no number of threads is no limit."""
    monkeypatch.setenv("OMP_NUM_THREADS", value)

    assert usable_cores(root=tmp_path) == expected


def test_this_machine():
    """There is at least one core to use, and no more than the machine has."""
    assert 1 <= usable_cores() <= os.cpu_count()


# ---------------------------------------------------------------- BLAS


class Library:
    """A BLAS as threadpoolctl shows it: ``shared`` limits hold in all threads, others in the one that sets them."""

    user_api, internal_api, version, filepath = "blas", "madeup", "1.2", "/lib/libmadeup.so"

    def __init__(self, *, shared, num_threads=4):
        self.default, self.shared = num_threads, shared
        self.limit = SimpleNamespace() if shared else threading.local()

    @property
    def num_threads(self):
        """The number of threads that the calling thread gets."""
        return getattr(self.limit, "value", self.default)

    def set_num_threads(self, num_threads):
        """Set it."""
        self.limit.value = num_threads


class GuardedLibrary(Library):
    """OpenBLAS as threadpoolctl 3.8 shows it: of several threads, only the controlling one can set the limit."""

    controlling = None

    def __init__(self):
        super().__init__(shared=True)

    def set_num_threads(self, num_threads):
        """Set it, if no other thread is in control."""
        self.controlling = self.controlling or threading.current_thread()
        if self.controlling is threading.current_thread():
            super().set_num_threads(num_threads)

    def clear_controlling_thread(self, force=False):
        """Let any thread take control, if the calling one has it."""
        if force or self.controlling is threading.current_thread():
            self.controlling = None


LIBRARIES = {
    "one limit": lambda: Library(shared=True),
    "a limit for each thread": lambda: Library(shared=False),
    "one limit, one controlling thread": GuardedLibrary,
}


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes its arguments the libraries that there are."""

    def install(*libraries):
        monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: SimpleNamespace(lib_controllers=libraries))
        threads._libraries.cache_clear()

    yield install
    threads._libraries.cache_clear()


@pytest.fixture(params=LIBRARIES)
def library(request, install):
    """Return each kind of BLAS, as the only one there is."""
    library = LIBRARIES[request.param]()
    install(library)
    return library


@pytest.fixture
def real():
    """Return numpy's own BLAS on two threads, or skip where it cannot be limited."""
    shared, own = threads._libraries()
    if not shared + own:
        pytest.skip("numpy's BLAS takes no limit on its threads")
    library = (shared + own)[0]
    before = library.num_threads
    threads._set_threads(library, 2)
    yield library
    threads._set_threads(library, before)


@contextlib.contextmanager
def other_thread():
    """Give a function that runs another in a second thread, always the same."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def enter():
    """Enter a block, which ``close`` leaves."""
    block = contextlib.ExitStack()
    block.enter_context(one_blas_thread())
    return block


def test_one_thread_inside(library):
    """Inside, BLAS has one thread; afterwards, what it had."""
    with one_blas_thread():
        inside = library.num_threads

    assert (inside, library.num_threads) == (1, 4)


def test_nested(library):
    """Leaving an inner block leaves the outer one as it is."""
    with one_blas_thread():
        with one_blas_thread():
            pass
        inside = library.num_threads

    assert (inside, library.num_threads) == (1, 4)


def test_interleaved(library):
    """Of two blocks in one thread, the first to be entered may be the first to be left, as in coroutines."""
    first, second = enter(), enter()
    first.close()
    inside = library.num_threads
    second.close()

    assert (inside, library.num_threads) == (1, 4)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_restored_after_an_error(library, error):
    """An error inside, Ctrl-C included, goes on, and BLAS is as before."""
    with pytest.raises(error), one_blas_thread():
        raise error

    assert library.num_threads == 4


def test_restored_after_ctrl_c_on_the_way_in(library):
    """Ctrl-C while the limit is being set leaves BLAS as before, and nobody inside."""
    set_num_threads = library.set_num_threads

    def interrupted(num_threads):
        set_num_threads(num_threads)
        del library.set_num_threads
        raise KeyboardInterrupt

    enter().close()  # or it is the search for libraries that is interrupted
    library.set_num_threads = interrupted
    with pytest.raises(KeyboardInterrupt), one_blas_thread():
        pytest.fail("the block was entered")

    assert library.num_threads == 4
    assert not threads._process.holders | threads._thread.holders


def test_signal_handler(library):
    """A signal handler may enter a block while the thread that it interrupts is entering one."""
    set_num_threads = library.set_num_threads
    seen = []

    def interrupted(num_threads):
        del library.set_num_threads
        enter().close()
        set_num_threads(num_threads)

    def run():
        enter().close()
        library.set_num_threads = interrupted
        with one_blas_thread():
            seen.append(library.num_threads)
        seen.append(library.num_threads)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)

    assert seen == [1, 4]


def test_first_to_come_is_first_to_go(library):
    """A thread that leaves does not change the limit of one that is still inside; the last restores it."""
    with other_thread() as run:
        first, second = enter(), run(enter)
        first.close()
        inside = run(lambda: library.num_threads)
        run(second.close)

        assert inside == 1
        assert (library.num_threads, run(lambda: library.num_threads)) == (4, 4)


def test_each_threads_own_limit_is_restored_to_it(install):
    """Where each thread has a limit of its own, each gets back its own."""
    library = Library(shared=False)
    install(library)
    with other_thread() as run:
        run(library.set_num_threads, 3)
        first, second = enter(), run(enter)
        first.close()

        assert (library.num_threads, run(lambda: library.num_threads)) == (4, 1)
        run(second.close)
        assert (library.num_threads, run(lambda: library.num_threads)) == (4, 3)


def test_limit_in_another_threads_control(install):
    """A limit that another thread has set and still controls is set nevertheless, and left to anyone."""
    library = GuardedLibrary()
    install(library)
    enter().close()
    with other_thread() as run:
        run(library.set_num_threads, 3)
        with one_blas_thread():
            assert library.num_threads == 1
        run(library.set_num_threads, 2)

    assert library.num_threads == 2


def test_many_threads(library):
    """However threads come and go, BLAS has one thread inside, and in the end what it had."""
    start = threading.Barrier(8)
    set_num_threads = library.set_num_threads
    library.set_num_threads = lambda num_threads: (time.sleep(1e-5), set_num_threads(num_threads))

    def come_and_go():
        start.wait()
        seen = set()
        for _ in range(50):
            with one_blas_thread():
                seen.add(library.num_threads)
        return seen, library.num_threads

    with ThreadPoolExecutor(8) as pool:
        results = [future.result() for future in [pool.submit(come_and_go) for _ in range(8)]]

    assert all(seen == {1} for seen, _ in results)
    assert library.num_threads == 4
    assert library.shared or {after for _, after in results} == {4}


def test_several_libraries(install):
    """Each library gets back what it had; a library that is no BLAS is left alone."""
    some = [Library(shared=True, num_threads=2), Library(shared=False, num_threads=3), Library(shared=True)]
    openmp = Library(shared=True)
    openmp.user_api = "openmp"
    install(*some, openmp)
    with one_blas_thread():
        inside = [library.num_threads for library in [*some, openmp]]

    assert inside == [1, 1, 1, 4]
    assert [library.num_threads for library in some] == [2, 3, 4]


def test_no_library(install):
    """Where no BLAS takes a limit, the block is entered all the same."""
    install()
    with one_blas_thread():
        pass


def test_libraries_are_looked_for_once(library, monkeypatch):
    """The loaded libraries are searched at the first block only."""
    with one_blas_thread():
        pass
    monkeypatch.setattr(threadpoolctl, "ThreadpoolController", lambda: pytest.fail("searched again"))
    with one_blas_thread():
        assert library.num_threads == 1


def test_numpys_blas(real):
    """The BLAS of numpy has one thread inside, and two afterwards, also when another thread is the last to leave."""
    with other_thread() as run:
        first, last = enter(), run(enter)
        first.close()
        inside = run(lambda: real.num_threads)
        run(last.close)

        assert (inside, real.num_threads) == (1, 2)


# ---------------------------------------------------------------- forks


def exit_code_of_child(function):
    """Return what a function returns in a forked child, 0 for None."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # rather than wait for each other forever
        code = 99
        try:
            code = function() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
class TestFork:
    """A child forked while the limit is held starts without it."""

    def test_held_by_the_thread_that_forks(self, library):
        """The child starts with what was there before, and its parent stays limited."""
        with one_blas_thread():
            assert exit_code_of_child(lambda: library.num_threads) == 4
            assert library.num_threads == 1

        assert library.num_threads == 4

    def test_held_by_another_thread(self, library):
        """A thread that is not in the child holds nothing there."""
        with other_thread() as run:
            block = run(enter)
            code = exit_code_of_child(lambda: library.num_threads)
            run(block.close)

        assert code == 4

    def test_held_no_more(self, library):
        """What was there before an earlier block is past: the child has what its parent has."""
        enter().close()
        library.set_num_threads(3)

        assert exit_code_of_child(lambda: library.num_threads) == 3

    def test_child_can_hold_it(self, library):
        """In the child, a block limits and restores, while its parent's is still open."""

        def child():
            with one_blas_thread():
                inside = library.num_threads
            return 10 * inside + library.num_threads

        with one_blas_thread():
            assert exit_code_of_child(child) == 14

    def test_child_leaves_the_parents_block(self, library):
        """The child may leave the block in which it was forked, and then hold the limit again."""

        def child():
            block.close()
            after = library.num_threads
            with one_blas_thread():
                return 10 * after + library.num_threads

        block = enter()
        code = exit_code_of_child(child)
        block.close()

        assert code == 41

    @pytest.mark.usefixtures("library")
    def test_while_another_thread_changes_it(self):
        """A fork waits until no thread is changing the limit, so that the child can change it, too."""
        changing = threading.Event()

        def change():
            with threads._lock:
                changing.set()
                time.sleep(0.05)

        def child():
            with other_thread() as run:
                run(enter().close)
                run(enter).close()
            return 7

        with ThreadPoolExecutor(1) as pool:
            pool.submit(change)
            changing.wait()

            assert exit_code_of_child(child) == 7


# ---------------------------------------------------------------- names


def named(filepath, version="1.2", **attributes):
    """Return a BLAS with a path and attributes."""
    library = Library(shared=True)
    vars(library).update(filepath=filepath, version=version, **attributes)
    return library


def test_name(install):
    """The name is that of the BLAS, its version and what it takes the processor for."""
    install(named("/lib/liba.so", architecture="SkylakeX"))

    assert blas_name() == "madeup 1.2 SkylakeX"


@pytest.mark.parametrize("attributes", [{}, {"architecture": None}])
def test_name_without_parts(install, attributes):
    """What a BLAS does not tell is not in its name."""
    install(named("/lib/liba.so", None, **attributes))

    assert blas_name() == "madeup"


def test_name_of_no_library(install):
    """Where no BLAS is found, it is unknown."""
    install()

    assert blas_name() == "unknown"


@pytest.mark.parametrize("file", ["site/numpy.libs/libb.so", "site/numpy/.dylibs/libb.so"])
def test_name_is_of_numpys_blas(install, monkeypatch, tmp_path, file):
    """Of several libraries, the one that numpy's wheel came with is named."""
    monkeypatch.setattr(threads.np, "__file__", str(tmp_path / "site/numpy/__init__.py"))
    install(named(str(tmp_path / "site/scipy.libs/liba.so"), "1"), named(str(tmp_path / file), "2"))

    assert blas_name() == "madeup 2"


def test_name_of_numpys_own(real):
    """The name of numpy's own BLAS begins with its kind and its version."""
    assert blas_name().startswith(f"{real.internal_api} {real.version}")


def test_import_does_not_load_threadpoolctl():
    """The import is quick: threadpoolctl is loaded when it is needed first."""
    code = "import sys, minibert.engine.threads; print('threadpoolctl' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"False"
