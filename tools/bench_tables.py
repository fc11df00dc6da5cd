"""The tables for a results file of tools/bench.py, in Markdown.

A cell is the median over rounds of the median in one round. It is not shown if the vectors were wrong. It has a mark if
the vectors could not be compared, or if other processes used the processor.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

OWN = "minibert"
REFERENCE = "sentence-transformers"

#: A unit vector is wrong if one of its numbers differs from the reference by more than this.
TOLERANCE = 1e-4

#: A time has a mark if other processes used more than this number of cores.
DISTURBED = 0.15

NOTHING = "-"

Row = Mapping[str, Any]


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
        workloads: Models and workloads, in the order of lines.
    """

    def __init__(self, results: Mapping[str, Any]) -> None:
        """Collect the rows of each cell. Failed rows are left out."""
        self.results = results
        self.peers = list(results["peers"])
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

    def peak(self) -> float:
        """Return the machine's sgemm peak in GFLOP/s: the faster shape's median over the rounds."""
        probes = [probe["gflops"] for probe in self.results["sgemm"]]
        return max(statistics.median(probe[shape] for probe in probes) for shape in probes[0])

    def worst(self) -> tuple[float, str] | None:
        """Return minibert's lowest speed relative to the best other peer, and the name of this case."""
        found = []
        for model, workload in self.workloads:
            cells = {peer: self.cell("throughput", model, workload, peer) for peer in self.peers}
            right = {peer: cell.value for peer, cell in cells.items() if cell and not cell.wrong}
            own = right.get(OWN)
            others = {peer: value for peer, value in right.items() if not peer.startswith(OWN)}
            if own and others:
                best = min(others, key=lambda peer: others[peer])
                found.append((others[best] / own, f"{model}, {workload} texts, against {self.label(best)}"))
        return min(found, default=None)


def table(title: str, head: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, or "" if no line has a number."""
    head = list(head)
    body = [line for line in lines if any(text not in {"", NOTHING} for text in line[1:])]
    if not body:
        return ""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in (head, rule, *body))])


def throughput_table(summary: Summary, title: str, show: Callable[[Cell, str, str], str]) -> str:
    """Return a table of the workloads. ``show`` makes the text of a cell from the cell, its model and its workload."""

    def text(model: str, workload: str, peer: str) -> str:
        cell = summary.cell("throughput", model, workload, peer)
        return cell.show(show(cell, model, workload)) if cell else NOTHING

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


def render(results: Mapping[str, Any]) -> str:
    """Return the tables of a results file, with notes."""
    summary = Summary(results)
    facts = {(model, kind): results["models"][model]["workloads"][kind] for model, kind in summary.workloads}
    peak = summary.peak()

    def ratio(cell: Cell, model: str, kind: str) -> str:
        reference = summary.cell("throughput", model, kind, REFERENCE)
        return f"{reference.value / cell.value:.2f}" if reference else NOTHING

    def beyond(row: Row) -> float:
        """Return the memory without imported modules, weights and results."""
        model = results["models"][row["model"]]
        vectors = 4 * model["config"]["hidden_size"] * model["workloads"][row["workload"]]["texts"]
        return float(row["peak"] - row["imported"] - model["bytes"] - vectors) / 1e6

    parts = [
        introduction(summary),
        throughput_table(summary, "Throughput, as a multiple of sentence-transformers'", ratio),
        worst_line(summary),
        table(
            "What the models encode",
            ["model, texts", "texts", "tokens", "GFLOP"],
            (
                [f"{model}, {kind}", f"{one['texts']:,}", f"{one['tokens']:,}", f"{one['gflop']:,.0f}"]
                for (model, kind), one in facts.items()
            ),
        ),
        throughput_table(
            summary, "Tokens a second", lambda cell, *where: f"{facts[where]['tokens'] / cell.value:,.0f}"
        ),
        throughput_table(
            summary,
            f"Share of the sgemm peak ({peak:.0f} GFLOP/s)",
            lambda cell, *where: f"{facts[where]['gflop'] / cell.value / peak:.2f}",
        ),
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


def introduction(summary: Summary) -> str:
    """Return the line about the machine and the versions."""
    results = summary.results
    machine = results["machine"]
    text = (
        f"{results['date']}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, "
        f"minibert at {results['commit'] or 'an unknown commit'}; rounds: {results['rounds']}."
    )
    if spreads := [cell.spread for cell in summary.cells("throughput")]:
        middle, most = statistics.median(spreads), max(spreads)
        text += f" The rounds of a throughput are {middle:.0%} apart (median; at most {most:.0%})."
    return text


def worst_line(summary: Summary) -> str:
    """Return the sentence about minibert's worst cell."""
    worst = summary.worst()
    return f"minibert's worst: {worst[0]:.2f} times the speed of the best other ({worst[1]})." if worst else ""


def notes(summary: Summary) -> str:
    """Return the notes about the marks and about missing measurements."""
    cells = [cell for measure in ("throughput", "latency", "cold") for cell in summary.cells(measure)]
    failed = {
        f"{row['peer']}: {row['error']} ({row['model']}, {row['measure']})"
        for row in summary.results["rows"]
        if "error" in row
    }
    lines = []
    if any(cell.disturbed for cell in cells):
        lines.append(f"`*` other processes had more than {DISTURBED} cores in most rounds.")
    if any(cell.difference is None for cell in cells):
        lines.append("`?` the vectors were not compared with sentence-transformers'.")
    lines += [f"Missing: {what}." for what in (*summary.results["missing"], *sorted(failed))]
    return "\n".join(f"- {line}" for line in lines)
