"""Measure and check minibert and sentence-transformers on an NVIDIA GPU, and make README's tables.

    python tools/gpu_check.py pack DIR --minilm FOLDER --stsb PAIRS.csv --texts CORPUS
    python tools/gpu_check.py run DIR --out FOLDER
    python tools/gpu_check.py table FOLDER/results.json

``pack`` makes a folder for the machine with the GPU. That machine needs no network and no installed minibert. ``run``
runs the stages there. Each stage is a process with a time limit. Its results are written to disk at once. After a
failure, ``run`` continues with the next stage. With ``--stages``, ``run`` repeats only these stages and keeps the
results of the others. With ``--dry``, it runs all stages without a GPU, on tiny models.
"""

import argparse
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import names

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "results.json"
#: The stages in order. The most important come first.
STAGES = (
    "versions",
    "tests",
    "accuracy",
    "throughput",
    "products",
    "peers",
    "profile",
    "sweep",
    "compiled",
    "sanitizer",
)
MODELS = ("minilm", "base", "large")
#: The maximum width of a name in a printed table; the limit of a value is four times as large.
_WIDEST = 44

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a stage failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="make the folder that the machine with the GPU needs")
    pack.add_argument("folder", type=Path, help="a folder that is not there yet")
    pack.add_argument("--minilm", type=Path, required=True, help="the folder of all-MiniLM-L6-v2")
    pack.add_argument("--stsb", type=Path, required=True, help="sentence pairs with scores, as tools/sts.py reads them")
    pack.add_argument("--texts", type=Path, required=True, help="a text file, or a .gz of one: a text in each line")
    pack.add_argument("--count", type=int, default=8192, help="texts of each kind (default: 8192; an eighth of long)")
    pack.add_argument("--most", type=float, default=64, help="the most MiB that the folder may have (default: 64)")
    run = commands.add_parser("run", help="measure and check")
    run.add_argument("folder", type=Path, help="the folder that was packed")
    run.add_argument("--out", type=Path, required=True, help="a folder for the results")
    run.add_argument("--stages", type=names(STAGES), default=list(STAGES), help=f"some of: {','.join(STAGES)}")
    run.add_argument("--models", type=names(MODELS), default=list(MODELS), help=f"some of: {','.join(MODELS)}")
    run.add_argument("--seconds", type=float, default=120, help="the most that a stage may take (default: 120)")
    run.add_argument("--quick", action="store_true", help="a quarter of the texts, and fewer repetitions")
    run.add_argument("--dry", action="store_true", help="without a GPU: on the stand-in of the tests")
    table = commands.add_parser("table", help="print the tables of a record")
    table.add_argument("record", type=Path, help="a results.json")
    options = parser.parse_args(arguments)
    if options.command == "run":
        return run_stages(options)
    if options.command == "table":
        from gpu_tables import render

        print(render(json.loads(options.record.read_text("utf-8"))), end="")
        return 0
    from gpu_pack import MEBIBYTE, PackError
    from gpu_pack import pack as write

    most = int(options.most * MEBIBYTE)
    try:
        write(options.folder, options.minilm, options.stsb, options.texts, options.count, most)
    except PackError as error:
        parser.error(str(error))
    return 0


def run_stages(options: argparse.Namespace) -> int:
    """Run the stages. After each stage, merge its results into the record. Return the exit status."""
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / RESULTS
    record: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {"stages": {}}
    record |= {"date": dt.datetime.now(dt.UTC).date().isoformat(), "dry": options.dry}
    failed = []
    for name in options.stages:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        rows = options.out / f"{name}.json"
        rows.unlink(missing_ok=True)
        error = run_stage(name, rows, options)
        found = json.loads(rows.read_text("utf-8")) if rows.exists() else []
        stage = {"took": round(time.monotonic() - start, 1), "quick": options.quick, "error": error, "rows": found}
        record["stages"][name] = stage
        part = path.with_suffix(".part")
        part.write_text(as_json(record), "utf-8")
        part.replace(path)
        print(show(found), flush=True)
        if error or any("error" in row or row.get("ok") is False for row in found):
            failed.append(name)
        print(f"-- {name}: {stage['took']} s{f', failed: {error}' if error else ''}", flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}; the record is {path.name}", flush=True)
    return 1 if failed else 0


def run_stage(name: str, rows: Path, options: argparse.Namespace) -> str:
    """Run a stage in a new process; return the error of the process, or ""."""
    told = {"pack": options.folder, "out": rows}
    task = {key: str(path.resolve()) for key, path in told.items()}
    task |= {key: getattr(options, key) for key in ("models", "seconds", "quick", "dry")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "gpu_stages.py"), name, json.dumps(task)]
    # After its time limit, a stage stops itself between two measurements. A measurement that hangs is stopped here.
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(options.seconds * 1.25 + 20)
        except subprocess.TimeoutExpired:
            return f"it was ended after {options.seconds * 1.25 + 20:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return f"exit status {status}" if status else ""


def as_json(record: Mapping[str, Any]) -> str:
    """Return the content of a record, one row per line."""
    head = {key: value for key, value in record.items() if key != "stages"}
    stages = []
    for name, stage in record["stages"].items():
        facts = json.dumps({key: value for key, value in stage.items() if key != "rows"})[:-1]
        rows = ",\n".join(f"   {json.dumps(row)}" for row in stage["rows"])
        stages.append(f'  {json.dumps(name)}: {facts}, "rows": [\n{rows}\n  ]}}')
    return f'{json.dumps(head)[:-1]}, "stages": {{\n' + ",\n".join(stages) + "\n}}\n"


def show(rows: Iterable[Row]) -> str:
    """Return rows as tables with a column for each name. Rows with the same names are grouped."""
    text, names_before = [], None
    for row in rows:
        cells = {name: cell(value) for name, value in row.items() if not isinstance(value, list | dict)}
        if list(cells) != names_before:
            names_before = list(cells)
            text.append("  ".join(f"{name[:_WIDEST]:>10}" for name in cells))
        text.append("  ".join(f"{value:>{max(10, len(name[:_WIDEST]))}}" for name, value in cells.items()))
    return "\n".join(text)


def cell(value: Any) -> str:
    """Return a number or a name as a table shows it."""
    text = f"{value:.6g}" if isinstance(value, float) else f"{value}"
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return last if len(last) <= 4 * _WIDEST else f"{last[: 4 * _WIDEST]}..."


if __name__ == "__main__":
    sys.exit(main())
