"""Kill jobs at random moments and fill their disks; count the results that differ from that of an undisturbed job.

    python tools/kill_jobs.py --out RESULTS.json [--kills 100] [--full 20] [--rows 20000]

Each run of ``minibert embed`` is killed with SIGKILL, at a moment drawn from the time that an undisturbed job takes.
Half of them are killed again while they continue. For a full disk, the output is on a tmpfs with a random size. The job
must end with status 1 and one line on standard error, and continue when the disk is larger. This needs root. Then every
file is compared with that of the undisturbed job, and ``--verify`` must pass. Formats and options take turns. A run
depends only on --seed, its number and the speed of the machine. The exit status is 1 if anything differs. Linux only.
"""

import argparse
import contextlib
import datetime as dt
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import commit, processor
from job_inputs import write_records

import minibert
from minibert.engine import native

#: The options of jobs. Runs take turns.
FORMS = (
    ["--format", "parquet"],
    ["--format", "npy", "--keep", "n", "--precision", "float16"],
    ["--format", "parquet", "--compression", "zstd", "--precision", "ubinary"],
)


class Jobs:
    """Commands over one input, and what undisturbed ones gave.

    Attributes:
        seconds: What the undisturbed jobs took.
    """

    def __init__(self, folder: Path, rows: int, shards: int) -> None:
        self._source = folder / "texts.jsonl"
        write_records(self._source, rows, unusable=0.001)
        self._shard_rows = str(-(-rows // shards))
        self._expected: list[dict[str, str]] = []
        self.seconds: list[float] = []
        for form in range(len(FORMS)):
            output = folder / f"undisturbed{form}"
            self.seconds.append(self.finish(form, output))
            self._expected.append(hashes(output))

    def start(self, form: int, output: Path) -> subprocess.Popen[str]:
        """Start a job."""
        options = ["--column", "body", "--id-column", "key", "--on-error", "skip", "--shard-rows", self._shard_rows]
        command = [sys.executable, "-m", "minibert", "embed", str(self._source), "--output", str(output)]
        return subprocess.Popen([*command, *options, *FORMS[form]], stderr=subprocess.PIPE, text=True)

    def finish(self, form: int, output: Path) -> float:
        """Run a job to its end, verify its result, and return the seconds of the job."""
        start = time.monotonic()
        job = self.start(form, output)
        _, messages = job.communicate()
        seconds = time.monotonic() - start
        if job.returncode != 0:
            raise RuntimeError(f"a job ended with status {job.returncode}: {messages}")
        verify = [sys.executable, "-m", "minibert", "embed", "--verify", str(output)]
        subprocess.run(verify, check=True, stdout=subprocess.DEVNULL)
        return seconds

    def differences(self, form: int, output: Path) -> list[str]:
        """Return the names of files that differ from those of the undisturbed job, or are missing, or are too many."""
        found, expected = hashes(output), self._expected[form]
        return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a result."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def kill(jobs: Jobs, output: Path, form: int, draw: random.Random) -> dict[str, Any]:
    """Kill a job once or twice, let it finish, and return what happened. A job that ends before is started anew."""
    moments: list[dict[str, Any]] = []
    limit = jobs.seconds[form]
    for wanted in range(1, 2 + draw.randrange(2)):
        while len(moments) < wanted:
            job = jobs.start(form, output)
            moment = draw.random() * limit
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(moment)
            job.kill()
            job.communicate()
            names = [path.name for path in output.iterdir()] if output.exists() else []
            if job.returncode != -signal.SIGKILL:  # the machine is faster than it was
                limit *= 0.8
                shutil.rmtree(output)
                moments.clear()
                wanted = 1  # noqa: PLW2901 - from the start
                continue
            whole = sum(name.startswith("_part-") and name.endswith(".json") for name in names)
            temporary = sum(name.endswith(".tmp") for name in names)
            moments.append({"seconds": round(moment, 3), "shards": whole, "temporary": temporary})
    jobs.finish(form, output)
    return {"form": form, "moments": moments, "differences": jobs.differences(form, output)}


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a disk with this number of bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)  # noqa: S607
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)  # noqa: S607


def fill(jobs: Jobs, folder: Path, form: int, size: int, draw: random.Random) -> dict[str, Any]:
    """Run a job on a disk that is too small, make the disk larger, let the job finish, and return what happened."""
    small = int(size * (0.02 + 0.9 * draw.random()))
    with small_disk(folder, small):
        job = jobs.start(form, folder / "out")
        _, messages = job.communicate()
        errors = [line for line in messages.splitlines() if "error" in line]
        clean = job.returncode == 1 and len(errors) == 1 and "cannot be written: No space left on device" in errors[0]
        left = [path.name for path in (folder / "out").iterdir()] if (folder / "out").exists() else []
        clean &= not any(name.endswith(".tmp") for name in left)
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", str(folder)], check=True)  # noqa: S607
        jobs.finish(form, folder / "out")
        found = {"form": form, "bytes": small, "clean": clean, "differences": jobs.differences(form, folder / "out")}
        return found if clean else {**found, "messages": messages.replace(str(folder), "")}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--full", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20000)
    parser.add_argument("--shards", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    killed: list[dict[str, Any]] = []
    filled: list[dict[str, Any]] = []
    os.environ["PYTHONPATH"] = str(Path(minibert.__file__).parent.parent)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        jobs = Jobs(folder, options.rows, options.shards)
        sizes = [sum(path.stat().st_size for path in (folder / f"undisturbed{i}").iterdir()) for i in range(len(FORMS))]
        for number in range(options.kills + options.full):
            draw = random.Random(options.seed * 1000003 + number)  # noqa: S311 - moments, not secrets
            form = number % len(FORMS)
            if number < options.kills:
                killed.append(kill(jobs, folder / f"killed{number}", form, draw))
            else:
                filled.append(fill(jobs, folder / f"full{number}", form, sizes[form], draw))
            print(number, (killed if number < options.kills else filled)[-1], flush=True)
    wrong = [run for run in killed + filled if run["differences"] or not run.get("clean", True)]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit(),
        "minibert": minibert.__version__,
        "processor": processor(),
        "kernels": native.available(),
        **{name: getattr(options, name) for name in ("rows", "shards", "seed")},
        "forms": FORMS,
        "seconds": [round(each, 2) for each in jobs.seconds],
        "killed_runs": len(killed),
        "kills": sum(len(run["moments"]) for run in killed),
        "full_disks": len(filled),
        "wrong": len(wrong),
        "killed": killed,
        "filled": filled,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
