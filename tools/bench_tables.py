"""The tables for a results file of tools/bench.py, in Markdown.

A cell is the median over rounds of the median in one round. It is not shown if the vectors were wrong. It has a mark if
the vectors could not be compared, or if other processes used the processor.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

OWN = "minibert"
REFERENCE = "sentence-transformers"

#: A unit vector is wrong if one of its numbers differs from the reference by more than this.
TOLERANCE = 1e-4

#: A time has a mark if other processes used more than this number of cores.
DISTURBED = 0.15

NOTHING = "-"

#: The names of instruction sets in tables.
INSTRUCTIONS = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON"}

Row = Mapping[str, Any]
#: A model and its kind of texts. The kind is "" for one text.
Place = tuple[str, str]


class Cell(NamedTuple):
    """A measurement of one peer with one model and workload.

    Attributes:
        value: The median over rounds.
        spread: The largest value minus the smallest, divided by the median.
        difference: The largest difference of a unit vector's number from the reference; None if not compared.
        disturbed: Whether other processes used the processor in most rounds.
    """

    value: float
    spread: float
    difference: float | None
    disturbed: bool

    @property
    def wrong(self) -> bool:
        """Whether the vectors differ too much from the reference."""
        return self.difference is not None and self.difference > TOLERANCE

    def show(self, value: str) -> str:
        """Return the text of a table for ``value``, which was computed from this cell's value."""
        if self.wrong:
            return f"wrong by {self.difference:.0e}"
        return value + "*" * self.disturbed + "?" * (self.difference is None)


def seconds(row: Row) -> float:
    """Return the time of a row: of a pass over the texts, a call with one text, or a cold start."""
    return float(row["seconds"] if row["measure"] == "cold" else statistics.median(row["times"]))


class Summary:
    """The cells of a results file.

    Attributes:
        results: The contents of the file.
        peers: Names of the peers, in the order of columns.
        own: The peers that are minibert, with any kernels and of any version.
        engines: The other peers.
        workloads: Models and workloads, in the order of lines.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        """Collect the rows of each cell. Failed rows are left out."""
        self.results = results
        self.peers = list(results["peers"])
        self.own = [peer for peer in self.peers if peer.startswith(OWN)]
        self.engines = [peer for peer in self.peers if not peer.startswith(OWN)]
        self.workloads = [(model, kind) for model, facts in results["models"].items() for kind in facts["workloads"]]
        self._rows = defaultdict(list)
        for row in results["rows"]:
            if "error" not in row:
                self._rows[row["measure"], row["model"], row["workload"], row["peer"]].append(row)

    def cell(
        self, measure: str, model: str, workload: str, peer: str, value: Callable[[Row], float] = seconds
    ) -> Cell | None:
        """Return a cell, or None if there is no measurement."""
        rows = self._rows.get((measure, model, workload, peer))
        if not rows:
            return None
        values = [value(row) for row in rows]
        differences = [row["difference"] for row in rows if "difference" in row]
        return Cell(
            statistics.median(values),
            (max(values) - min(values)) / statistics.median(values),
            max(differences) if len(differences) == len(rows) else None,
            statistics.median(row["other_cpu"] for row in rows) > DISTURBED,
        )

    def cells(self, measure: str) -> list[Cell]:
        """Return all cells of a measure."""
        found = (self.cell(*key) for key in self._rows if key[0] == measure)
        return [cell for cell in found if cell]

    def label(self, peer: str) -> str:
        """Return the name of a peer in tables."""
        return str(self.results["peers"][peer]["label"])

    def sgemm(self) -> float:
        """Return the rate of numpy's product in GFLOP/s: the faster shape's median over the rounds."""
        return max(median_rates(self.results["sgemm"]).values())

    def fma(self) -> dict[str, float]:
        """Return the FMA peak in GFLOP/s of each instruction set, as medians over the rounds.

        It is empty if minibert has no kernels for the machine, and for a file that is older than the FMA peak.
        """
        return median_rates(self.results.get("fma", []))

    def peak(self, peer: str) -> float:
        """Return the FMA peak for a peer: of the instruction set that it must use, or else of the fastest one."""
        rates = self.fma()
        kernels = self.results["peers"][peer].get("kernels", "")
        return rates[kernels] if kernels in rates else max(rates.values())

    def places(self, measure: str) -> list[Place]:
        """Return the places of a measure: the lines of its table."""
        return self.workloads if measure == "throughput" else [(model, "") for model in self.results["models"]]

    def best(self, measure: str, place: Place, peers: Sequence[str]) -> tuple[str, float] | None:
        """Return the fastest of some peers and its time. Wrong vectors are left out."""
        cells = {peer: self.cell(measure, *place, peer) for peer in peers}
        right = {peer: cell.value for peer, cell in cells.items() if cell and not cell.wrong}
        return min(right.items(), key=lambda item: item[1]) if right else None

    def worst(self, measure: str, peer: str, rivals: Sequence[str]) -> tuple[float, Place, str] | None:
        """Return a peer's lowest speed relative to the best of its rivals, where that was, and this rival."""
        found = []
        for place in self.places(measure):
            own, best = self.best(measure, place, [peer]), self.best(measure, place, rivals)
            if own and best:
                found.append((best[1] / own[1], place, best[0]))
        return min(found, default=None)


def median_rates(probes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the median over the rounds of each rate of the machine."""
    rates = [probe["gflops"] for probe in probes]
    return {name: statistics.median(rate[name] for rate in rates) for name in (rates[0] if rates else ())}


def table(title: str, head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or "" if no line has a number."""
    head = list(head)
    body = [line for line in lines if any(text not in {"", NOTHING} for text in line[1:])]
    if not body:
        return ""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in (head, rule, *body))])


def throughput_table(summary: Summary, title: str, show: Callable[[Cell, Place, str], str]) -> str:
    """Return a table of the workloads. ``show`` makes the text of a cell from the cell, its place and its peer."""

    def text(model: str, workload: str, peer: str) -> str:
        cell = summary.cell("throughput", model, workload, peer)
        return cell.show(show(cell, (model, workload), peer)) if cell else NOTHING

    lines = (
        [f"{model}, {kind}", *(text(model, kind, peer) for peer in summary.peers)] for model, kind in summary.workloads
    )
    return table(title, ["model, texts", *map(summary.label, summary.peers)], lines)


def model_table(
    summary: Summary, title: str, measure: str, workload: str, form: str, value: Callable[[Row], float] = seconds
) -> str:
    """Return a table with a line for each model."""

    def text(model: str, peer: str) -> str:
        cell = summary.cell(measure, model, workload, peer, value)
        return cell.show(form.format(cell.value)) if cell else NOTHING

    lines = ([model, *(text(model, peer) for peer in summary.peers)] for model in summary.results["models"])
    return table(title, ["model", *map(summary.label, summary.peers)], lines)


def peer_table(summary: Summary) -> str:
    """Return the table of the peers: their sizes, their versions, and the differences of their vectors."""
    lines = []
    for peer in summary.peers:
        facts = summary.results["peers"][peer]
        size = sum(facts["bytes"].values())
        cells = (summary.cell("throughput", *where, peer) for where in summary.workloads)
        differences = [cell.difference for cell in cells if cell and cell.difference is not None]
        main = [f"{name} {facts['versions'][name]}" for name in facts["packages"] if name in facts["versions"]]
        lines.append(
            [
                facts["label"],
                f"{size / 1e6:.0f}" if size else NOTHING,
                f"{max(differences):.1e}" if differences else NOTHING,
                ", ".join(main),
            ]
        )
    head = ["", "installed, MB", "largest difference of unit vectors", "packages"]
    return table("Installed size, with all dependencies", head, lines)


def rivals_table(summary: Summary, title: str, measure: str, peers: Sequence[str], rivals: Sequence[str]) -> str:
    """Return a table of the speed of peers relative to the best of their rivals. Sentences below name the worst cases.

    For throughput, it also has each peer's share of the FMA peak.
    """
    fma = bool(summary.fma()) and measure == "throughput"
    several = len(rivals) > 1

    def ratio(place: Place, peer: str, best: tuple[str, float]) -> str:
        cell = summary.cell(measure, *place, peer)
        return cell.show(f"{best[1] / cell.value:.2f}") if cell else NOTHING

    def share(place: Place, peer: str) -> str:
        cell = summary.cell(measure, *place, peer)
        return cell.show(f"{fma_share(summary, cell, place, peer):.2f}") if cell else NOTHING

    def line(place: Place) -> Iterator[str]:
        best = summary.best(measure, place, rivals)
        yield ", ".join(filter(None, place))
        if several:
            yield summary.label(best[0]) if best else NOTHING
        for peer in peers:
            yield ratio(place, peer, best) if best else NOTHING
            if fma:
                yield share(place, peer)

    head = ["model, texts" if measure == "throughput" else "model", *(["fastest of them"] if several else [])]
    for peer in peers:
        head += [f"{summary.label(peer)}, times that speed"]
        head += [f"{summary.label(peer)}, share of the FMA peak"] if fma else []
    lines = [list(line(place)) for place in summary.places(measure) if summary.best(measure, place, rivals)]
    worst = (worst_case(summary, measure, peer, rivals) for peer in peers)
    return "\n\n".join(filter(None, (table(title, head, lines), "\n".join(filter(None, worst)))))


def worst_case(summary: Summary, measure: str, peer: str, rivals: Sequence[str]) -> str:
    """Return the sentence about the worst case of a peer, as an item of a list; "" if there is none."""
    worst = summary.worst(measure, peer, rivals)
    if worst is None:
        return ""
    ratio, (model, kind), rival = worst
    where = f"{model}, {kind} texts" if kind else f"{model}, one text"
    return f"- Worst case of {summary.label(peer)}: {ratio:.2f} times the speed of {summary.label(rival)} ({where})."


def rivals_tables(summary: Summary) -> Iterator[str]:
    """Yield the comparisons of minibert with the other encoders, and with its other versions."""
    others = [peer for peer in summary.own if summary.results["peers"][peer].get("other")]
    titles = {"throughput": "Throughput", "latency": "Latency of one text"}
    for measure, title in titles.items():
        yield rivals_table(summary, f"{title}, against the other encoders", measure, summary.own, summary.engines)
    for other in others:
        peers = [peer for peer in summary.own if peer != other]
        for measure, title in titles.items():
            yield rivals_table(summary, f"{title}, against {summary.label(other)}", measure, peers, [other])


def fma_share(summary: Summary, cell: Cell, place: Place, peer: str) -> float:
    """Return the share of the FMA peak that a throughput is, in operations a second."""
    model, kind = place
    return float(summary.results["models"][model]["workloads"][kind]["gflop"] / cell.value / summary.peak(peer))


def share_table(summary: Summary) -> str:
    """Return the table of the shares of the FMA peak; without this peak, of the sgemm rate."""
    if summary.fma():
        return throughput_table(
            summary,
            "Share of the FMA peak",
            lambda cell, place, peer: f"{fma_share(summary, cell, place, peer):.2f}",
        )
    models, rate = summary.results["models"], summary.sgemm()
    return throughput_table(
        summary,
        f"Share of the sgemm peak ({rate:.0f} GFLOP/s)",
        lambda cell, place, _: f"{models[place[0]]['workloads'][place[1]]['gflop'] / cell.value / rate:.2f}",
    )


def render(results: Mapping[str, Any]) -> str:
    """Return the tables of a results file, with notes."""
    summary = Summary(results)
    facts = {(model, kind): results["models"][model]["workloads"][kind] for model, kind in summary.workloads}

    def ratio(cell: Cell, place: Place, _: str) -> str:
        reference = summary.cell("throughput", *place, REFERENCE)
        return f"{reference.value / cell.value:.2f}" if reference else NOTHING

    def beyond(row: Row) -> float:
        """Return the memory without imported modules, weights and results."""
        model = results["models"][row["model"]]
        vectors = 4 * model["config"]["hidden_size"] * model["workloads"][row["workload"]]["texts"]
        return float(row["peak"] - row["imported"] - model["bytes"] - vectors) / 1e6

    parts = [
        introduction(summary),
        peaks(summary),
        throughput_table(summary, "Throughput, as a multiple of sentence-transformers'", ratio),
        *rivals_tables(summary),
        table(
            "What the models encode",
            ["model, texts", "texts", "tokens", "GFLOP"],
            (
                [f"{model}, {kind}", f"{one['texts']:,}", f"{one['tokens']:,}", f"{one['gflop']:,.0f}"]
                for (model, kind), one in facts.items()
            ),
        ),
        throughput_table(
            summary, "Tokens a second", lambda cell, place, _: f"{facts[place]['tokens'] / cell.value:,.0f}"
        ),
        share_table(summary),
        model_table(
            summary, "Latency of one text of 24 tokens, ms", "latency", "", "{:.2f}", lambda row: 1e3 * seconds(row)
        ),
        model_table(summary, "Cold start: from a new process to the first vector, s", "cold", "", "{:.2f}"),
        model_table(
            summary, "Peak memory on mixed texts, MB", "throughput", "mixed", "{:,.0f}", lambda row: row["peak"] / 1e6
        ),
        model_table(
            summary, "The same beyond imports, weights and vectors, MB", "throughput", "mixed", "{:,.0f}", beyond
        ),
        peer_table(summary),
        notes(summary),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def threads_told(results: Mapping[str, Any]) -> str:
    """Return the number of threads in words, or "" if it is that of the cores. Old files do not have it."""
    threads = results.get("threads", results["machine"]["cores"])
    return "" if threads == results["machine"]["cores"] else f"{threads} thread{'s' * (threads > 1)}"


def introduction(summary: Summary) -> str:
    """Return the line about the machine and the versions."""
    results = summary.results
    machine = results["machine"]
    facts = (
        results["date"],
        machine["processor"],
        f"{machine['cores']} cores",
        machine.get("instructions", ""),
        threads_told(results),
        f"Python {machine['python']}",
    )
    text = (
        f"{', '.join(filter(None, facts))}, "
        f"minibert at {results['commit'] or 'an unknown commit'}; rounds: {results['rounds']}."
    )
    if spreads := [cell.spread for cell in summary.cells("throughput")]:
        middle, most = statistics.median(spreads), max(spreads)
        text += f" The rounds of a throughput are {middle:.0%} apart (median; at most {most:.0%})."
    return text


def peaks(summary: Summary) -> str:
    """Return the line about the rates of the machine's arithmetic, or "" for a file without an FMA peak."""
    rates = summary.fma()
    if not rates:
        return ""
    shown = ", ".join(f"{rate:.0f} with {INSTRUCTIONS.get(name, name)}" for name, rate in rates.items())
    limited = [peer for peer in summary.own if summary.results["peers"][peer].get("kernels") in rates]
    text = f"The FMA peak in GFLOP/s is {shown}. The rate of numpy's sgemm is {summary.sgemm():.0f}."
    if limited:
        text += f" Each share of {' and of '.join(map(summary.label, limited))} is of its own instructions' peak."
    return text


def notes(summary: Summary) -> str:
    """Return the notes about the marks and about missing measurements."""
    cells = [cell for measure in ("throughput", "latency", "cold") for cell in summary.cells(measure)]
    failed = {
        f"{row['peer']}: {row['error']} ({row['model']}, {row['measure']})"
        for row in summary.results["rows"]
        if "error" in row
    }
    lines = []
    if "fma" in summary.results and not summary.fma():
        lines.append("There is no FMA peak: minibert has no kernels for this machine.")
    if any(cell.disturbed for cell in cells):
        lines.append(f"`*` other processes had more than {DISTURBED} cores in most rounds.")
    if any(cell.difference is None for cell in cells):
        lines.append("`?` the vectors were not compared with sentence-transformers'.")
    lines += [f"Missing: {what}." for what in (*summary.results["missing"], *sorted(failed))]
    return "\n".join(f"- {line}" for line in lines)
