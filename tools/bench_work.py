"""The processes of tools/bench.py, and the facts about the machine that a results file has."""

import contextlib
import json
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench_setup import ROOT

#: The programs of the processes: one measures an encoder, the other finds a fact about an environment.
ENCODER, FACTS = ROOT / "tools" / "bench_peers.py", ROOT / "tools" / "bench_facts.py"

#: The variable that chooses minibert's kernels.
KERNELS = "MINIBERT_KERNELS"
#: Variables that no process gets: the user's own choice of threads, of minibert's kernels, and of OpenBLAS's kernels.
#: OPENBLAS_CORETYPE=Haswell halves the speed of numpy on a processor with AVX-512.
OWN_CHOICE = re.compile(rf".*_NUM_THREADS|OPENBLAS_.*|{KERNELS}")

#: Vector instructions and their flags in Linux, widest first.
INSTRUCTIONS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}


def work(
    python: Path,
    program: Path,
    task: Mapping[str, Any],
    variables: Mapping[str, str] | None = None,
    timeout: float = 900,
) -> dict[str, Any]:
    """Return the result of a process, with the seconds from its start to its answer; or its ``error``.

    Args:
        python: The Python of the environment.
        program: :data:`ENCODER` or :data:`FACTS`.
        task: What the process does.
        variables: Environment variables. No process has the user's own choice of threads or kernels: see OWN_CHOICE.
        timeout: The process ends after this number of seconds.
    """
    if not python.exists():
        return {"error": "there is no environment for it"}
    kept = {name: value for name, value in os.environ.items() if not OWN_CHOICE.fullmatch(name)}
    answer: dict[str, Any] = {}
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [str(python), str(program), json.dumps(task)],
            env={**kept, "HF_HUB_OFFLINE": "1", **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        killer = threading.Timer(timeout, process.kill)
        killer.start()
        try:
            # The kernel divides cores between sessions. Without this, work in another session would halve the numbers.
            with contextlib.suppress(OSError):
                Path(f"/proc/{process.pid}/autogroup").write_text("-20", "utf-8")
            for line in process.stdout or ():
                if line.startswith("{"):
                    answer = {"seconds": round(time.perf_counter() - start, 4), **json.loads(line)}
            process.wait()
        finally:
            killer.cancel()
            process.kill()
        if process.returncode:
            complaints.seek(0)
            *_, last = (f"exit status {process.returncode}", *complaints.read().strip().splitlines())
            return {"error": without_folders(last)[:300]}
    return answer


def without_folders(text: str) -> str:
    """Return a text with each path shortened to its last name."""
    return re.sub(r"[^\s='\"]*/(?=[^\s/])", "", text)


def machine() -> dict[str, Any]:
    """Return the facts about this machine."""
    return {
        "processor": processor(),
        "instructions": instructions(Path("/proc/cpuinfo").read_text("utf-8")),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the name of the processor."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    return found.group(1) if found else platform.machine()


def instructions(cpuinfo: str) -> str:
    """Return the widest vector instructions of the processor according to Linux, or ""."""
    flags = set(re.findall(r"\w+", cpuinfo))
    return next((name for flag, name in INSTRUCTIONS.items() if flag in flags), "")


def commit() -> str:
    """Return the commit of the checkout, with ``-dirty`` if files have changed; "" outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
