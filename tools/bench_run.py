"""A run of tools/bench.py: it starts the processes in turn, compares the vectors, and collects the results."""

import argparse
import datetime as dt
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from bench_peers import PEERS, Array, Peer, read_json
from bench_setup import MODELS
from bench_tables import DISTURBED, OWN, REFERENCE, seconds
from bench_texts import Workload, make_workload
from bench_work import ENCODER, FACTS, KERNELS, commit, machine, without_folders, work

#: Number of starts of each encoder. The cold start is their median.
STARTS = 10

#: Seconds of the loop for the FMA peak. One round has one loop for each instruction set.
FMA_SECONDS = 0.5


def farthest(vectors: Array, reference: Array) -> float:
    """Return the largest difference between two sets of vectors, each vector scaled to length 1."""
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, reference))
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


class Bench:
    """A run of the benchmark.

    Attributes:
        results: The results so far: the whole content of a results file.
    """

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        """Find the installed peers and models."""
        self.options = options
        self.scratch = scratch
        self.known: dict[str, Peer] = {**PEERS, **{name: other_minibert(name) for name in options.other}}
        kernels = work(options.minibert_python, FACTS, {"measure": "kernels"})
        self.results: dict[str, Any] = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "command": f"python tools/bench.py {without_folders(' '.join(sys.argv[1:]))}",
            "commit": commit(),
            "machine": machine(),
            "kernels": kernels.get("kernels", []),
            "rounds": options.rounds,
            "threads": 0,
            "peers": {},
            "models": {},
            "missing": [],
            "sgemm": [],
            "fma": [],
            "rows": [],
        }
        self.threads = self.results["threads"] = options.threads or self.results["machine"]["cores"]
        self.peers = [name for name in (*options.peers, *options.other) if self.inspect(name)]
        self.workloads = {model: self.open_model(model) for model in options.models if self.has_model(model)}
        self.able = {model: [name for name in self.peers if self.has_export(name, model)] for model in self.workloads}

    def environment(self, name: str) -> Path:
        """Return the Python that ``setup`` made for a peer."""
        return self.options.folder / "envs" / self.known[name].environment / "bin" / "python"

    def python(self, name: str) -> Path:
        """Return the Python that runs the measurements of a peer."""
        if name in self.options.other:
            return self.options.other[name]
        return self.options.minibert_python if self.known[name].environment == OWN else self.environment(name)

    def variables(self, name: str) -> dict[str, str]:
        """Return the environment variables for the processes of a peer."""
        variables = {"RAYON_NUM_THREADS": str(self.threads)}  # the threads of all tokenizers
        if self.known[name].kernels:
            variables[KERNELS] = self.known[name].kernels
        if self.python(name) != self.options.minibert_python:
            variables["PYTHONPATH"] = ""  # with the user's own, another version of minibert would be this one
        return variables

    def inspect(self, name: str) -> bool:
        """Record a peer's settings and packages, and return whether it is installed."""
        peer = self.known[name]
        if peer.kernels not in {"", "numpy", *self.results["kernels"]}:
            return self.miss(f"{name}: minibert has no kernels for {peer.kernels} on this machine")
        task = {"measure": "packages", "packages": peer.packages}
        packages = work(self.python(name), FACTS, task, self.variables(name))
        if "error" in packages:
            return self.miss(f"{name}: {packages['error']}")
        # If a checkout is measured, it has no RECORD with sizes. The environment of setup has an installed minibert.
        sized = "size" in self.options.measure and name not in self.options.other
        installed = work(self.environment(name), FACTS, task, {"PYTHONPATH": ""}) if sized else {}
        self.results["peers"][name] = {
            "label": peer.label,
            "packages": peer.packages,
            "batches": peer.batches,
            "kernels": peer.kernels,
            "other": name in self.options.other,
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
        there = (self.options.folder / "exports" / model / self.known[name].export).exists()
        return there or not self.known[name].export or self.miss(f"{name}: there is no export of {model}")

    def miss(self, what: str) -> bool:
        """Print and record what is missing; return False."""
        self.results["missing"].append(what)
        print(f"missing: {what}", flush=True)
        return False

    def open_model(self, name: str) -> dict[str, Workload]:
        """Record the size of a model and of its workloads; return the workloads."""
        folder = self.options.folder / "models" / name
        every = MODELS[name].every
        workloads = {
            kind: make_workload(folder, texts, every[kind] * self.options.every)
            for kind, texts in self.options.texts.items()
        }
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
            peer = self.known[name]
            task = {
                "measure": measure,
                "peer": OWN if name in self.options.other else name,
                "model": str(self.options.folder / "models" / model),
                "export": str(self.options.folder / "exports" / model / peer.export),
                "batch": self.options.batch or peer.batch(MODELS[model].cls_of or model, workload),
                "threads": self.threads,
                "seconds": self.options.seconds,
                "texts": str(self.path(model, workload)),
                "vectors": str(saved),
            }
            found = work(self.python(name), ENCODER, task, self.variables(name))
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
        """Record the machine's FMA peak and its sgemm rate."""
        blas = {f"{library}_NUM_THREADS": str(self.threads) for library in ("OPENBLAS", "MKL", "OMP")}
        for measure, time in (("fma", FMA_SECONDS), ("sgemm", self.options.seconds)):
            task = {"measure": measure, "threads": self.threads, "seconds": time}
            found = work(self.options.minibert_python, FACTS, task, blas)
            if "error" in found:
                raise SystemExit(f"{self.options.minibert_python} cannot measure {measure}: {found['error']}")
            self.results[measure].append(found)
            print(describe_peak(measure, found["gflops"]), flush=True)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Record rows, also in the file: a run takes long, and someone may stop it."""
        self.results["rows"] += rows
        self.save()

    def save(self) -> None:
        """Write the results file, if it was requested."""
        if self.options.out:
            self.options.out.write_text(as_json(self.results), "utf-8")


def other_minibert(name: str) -> Peer:
    """Return the peer for another version of minibert."""
    return PEERS[OWN]._replace(label=f"{OWN} ({name.removeprefix(f'{OWN}-')})")


def describe_peak(measure: str, rates: Mapping[str, float]) -> str:
    """Return a line about the rates of the machine's arithmetic."""
    found = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    return f"{measure}, GFLOP/s: {found or 'none, because minibert has no kernels for this machine'}"


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
