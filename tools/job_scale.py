"""Measure a job of many rows: its speed against encode_stream on the same texts, and its memory over time.

    python tools/job_scale.py --out RESULTS.json [--rows 1000000] [--rounds 3] [--input parquet] [--format parquet]

In each round, encode_stream and the job take turns, each in a new process. encode_stream gets the texts from the same
file, and its vectors are dropped. The job's time has everything after the start of the process: the check of the
input, the model, the shards, the hashes, the manifest. The time of encode_stream has the model, too. The memory is the
resident set, sampled ten times a second: its range after the first tenth of the rows, and the median of each later
tenth. The growth is the difference of the largest of these medians and the first one. Linux only.
"""

import argparse
import datetime as dt
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import commit, processor
from job_inputs import write_records

import minibert
from minibert.engine import native
from minibert.jobs import Progress, embed_files


class Samples(Progress):
    """The memory of this process, in MB, at each share of the rows."""

    def __init__(self) -> None:
        self._rows = self._done = 0
        self._found: list[tuple[float, float]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    def encoding(self, rows: int, done: int) -> None:  # noqa: D102 - as in Progress
        self._rows, self._done = rows, done

    def encoded(self, rows: int) -> None:  # noqa: D102 - as in Progress
        with self._lock:
            self._done += rows

    def _sample(self) -> None:
        while True:
            pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
            self._found.append((self._done / max(self._rows, 1), pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
            time.sleep(0.1)

    def facts(self) -> dict[str, Any]:
        """Return the range and the growth after the first tenth of the rows, and about a hundred samples."""
        late = [memory for share, memory in self._found if share >= 0.1]
        tenths = [[memory for share, memory in self._found if int(share * 10) == tenth] for tenth in range(1, 10)]
        medians = [round(statistics.median(memory), 1) for memory in tenths if memory]
        some = self._found[:: max(1, len(self._found) // 100)]
        return {
            "range_mb": round(max(late) - min(late), 2),
            "growth_mb": round(max(medians) - medians[0], 2),
            "tenths_mb": medians,
            "peak_mb": round(max(memory for _, memory in self._found), 2),
            "memory_mb": [[round(share, 3), round(memory, 1)] for share, memory in some],
        }


def texts_of(path: Path) -> Iterator[str]:
    """Yield the texts of a file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(path).iter_batches(1024, columns=["body"]):
            yield from batch[0].to_pylist()
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["body"]


def measure(what: str, source: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run encode_stream or a job in this process, and return its facts."""
    samples, start = Samples(), time.monotonic()
    if what == "stream":
        samples.encoding(options.rows, 0)
        encoder = minibert.SentenceEncoder(options.model)
        count = sum(map(len, encoder.encode_stream(texts_of(source), progress=samples.encoded)))
    else:
        manifest = embed_files(
            lambda: minibert.SentenceEncoder(options.model),
            source,
            output,
            column="body",
            id_column="key",
            output_format=options.format,
            progress=samples,
        )
        count = 0 if manifest is None else manifest["rows"]
    seconds = time.monotonic() - start
    if count != options.rows:
        raise RuntimeError(f"{what} gave {count} vectors of {options.rows}")
    used = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"what": what, "seconds": round(seconds, 3), "cpu_seconds": round(used.ru_utime + used.ru_stime, 3)}
    return {**facts, "texts_per_second": round(count / seconds, 1), **samples.facts()}


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--input", choices=("parquet", "jsonl"), default="parquet")
    parser.add_argument("--format", choices=("parquet", "npy"), default="parquet")
    parser.add_argument("--model")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "INPUT", "OUTPUT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the command line."""
    options = arguments()
    if options.one:
        what, source, output = options.one
        print(json.dumps(measure(what, Path(source), Path(output), options)))
        return
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.jsonl"
        write_records(source, options.rows)
        if options.input == "parquet":
            from pyarrow import json as arrow_json
            from pyarrow import parquet

            parquet.write_table(arrow_json.read_json(source), source.with_suffix(".parquet"), row_group_size=65536)
            source = source.with_suffix(".parquet")
        for number in range(options.rounds):
            for what in ("stream", "job"):
                command = [*sys.argv, "--one", what, str(source), f"{scratch}/out{number}"]
                done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
                runs.append({"round": number, **json.loads(done.stdout)})
                print({name: value for name, value in runs[-1].items() if not isinstance(value, list)}, flush=True)
    pairs = zip(runs[::2], runs[1::2], strict=True)
    ratios = [round(stream["seconds"] / job["seconds"], 4) for stream, job in pairs]
    result = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": commit(),
        "minibert": minibert.__version__,
        "processor": processor(),
        "kernels": native.available()[:1],
        "cores": len(os.sched_getaffinity(0)),
        "rows": options.rows,
        "input": options.input,
        "format": options.format,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "largest_growth_mb": max(run["growth_mb"] for run in runs[1::2]),
        "runs": runs,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print({name: result[name] for name in ("ratios", "median_ratio", "largest_growth_mb")})


if __name__ == "__main__":
    main()
