"""One process of tools/bench.py: it finds a fact about the machine or about an environment, and no encoder's speed.

    python tools/bench_facts.py '{"measure": "fma", "threads": 2, "seconds": 0.5}'

It runs in the environment that the fact is about, and prints one line of JSON.
"""

import functools
import importlib
import json
import statistics
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bench_peers import durations

#: Shapes (M, K, N) for the sgemm rate: the first feed-forward product of MiniLM and of BERT-base.
SGEMM_SHAPES = ((4096, 384, 1536), (4096, 768, 3072))

#: The module with minibert's own kernels. An older minibert does not have it.
NATIVE = "minibert.engine.native"

#: The threads of a measurement wait this number of seconds for each other. It is a limit for a thread that failed.
PATIENCE = 60


def open_native() -> Any:
    """Return the module with minibert's own kernels, or None if there is none in this environment."""
    try:
        return importlib.import_module(NATIVE)
    except ModuleNotFoundError as error:
        if f"{NATIVE}.".startswith(f"{error.name}."):
            return None
        raise


def list_kernels() -> list[str]:
    """Return the instruction sets that minibert has kernels for and that this machine has, best first."""
    native = open_native()
    return list(native.available()) if native else []


def measure_fma(threads: int, seconds: float) -> dict[str, float]:
    """Return the GFLOP/s of fused multiply-adds that need no memory, for each of :func:`list_kernels`.

    This is the most that the machine's arithmetic can do: all ``threads`` compute at once, only in registers.
    """
    native = open_native()
    return {name: round(fma_rate(native.open_library(name).peak, threads, seconds), 1) for name in list_kernels()}


def fma_rate(peak: Callable[[float], float], threads: int, seconds: float) -> float:
    """Return the sum of ``peak(seconds)`` of threads that run at the same time. Each first warms its core up."""
    together = threading.Barrier(threads)

    def one(_: int) -> float:
        peak(seconds / 4)
        together.wait(PATIENCE)
        return peak(seconds)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, range(threads)))


def measure_sgemm(seconds: float) -> dict[str, float]:
    """Return the GFLOP/s of numpy's float32 product with all BLAS threads, for each of :data:`SGEMM_SHAPES`."""
    rng = np.random.default_rng(0)
    rates = {}
    for m, k, n in SGEMM_SHAPES:
        a, b = rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)
        product = functools.partial(np.matmul, a, b, out=np.empty((m, n), np.float32))
        product()
        times = durations(product, seconds, fewest=5, most=1000)
        rates[f"{m}x{k}x{n}"] = round(2e-9 * m * k * n / statistics.median(times), 1)
    return rates


def list_packages(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the version and the size in bytes of packages and their dependencies, from their RECORD files."""
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, dict[str, Any]] = {}
    todo = [(name, "") for name in names]
    done = set()
    while todo:
        name, extra = todo.pop()
        name = canonicalize_name(name)
        if (name, extra) in done:
            continue
        done.add((name, extra))
        package = metadata.distribution(name)
        if name not in found:
            paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
            size = sum(path.stat().st_size for path in paths if path.is_file())
            found[name] = {"version": package.version, "bytes": size}
        for line in package.requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(needed.name, inner) for inner in ("", *needed.extras)]
    return dict(sorted(found.items()))


MEASURES: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "fma": lambda task: {"gflops": measure_fma(task["threads"], task["seconds"])},
    "kernels": lambda _: {"kernels": list_kernels()},
    "packages": lambda task: {"packages": list_packages(task["packages"])},
    "sgemm": lambda task: {"gflops": measure_sgemm(task["seconds"])},
}


def main() -> None:
    """Run the task from the command line (JSON), and print the result as JSON."""
    task = json.loads(sys.argv[1])
    print(json.dumps(MEASURES[task["measure"]](task)))


if __name__ == "__main__":
    main()
