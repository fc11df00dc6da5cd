"""The chart of a results file of tools/bench.py as SVG: throughput relative to sentence-transformers.

Each model has a panel, each kind of texts a group of bars, each encoder a bar. The panels of a row have the same scale.
Of minibert, the chart has its own choice of kernels, and no other variant. The chart follows the reader's light or dark
mode. It has its own background, because the mode of a page can differ from that of the browser.
"""

import html
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench_tables import OWN, REFERENCE, Cell, Summary, threads_told

#: The size of a chart with one row of panels.
WIDTH, HEIGHT = 900, 420
#: The vertical limits of the bars in the first row of panels, and the horizontal limits of the rows.
TOP, BOTTOM, LEFT, RIGHT = 134, 322, 58, 876
#: The distance between panels; the distance of the tops of two rows; the most panels in a row.
GAP, ROW, ABREAST = 26, 272, 3
#: The maximum width of a bar, and the minimum width for a number.
WIDEST, NARROWEST = 14.0, 11.0

TITLE = "Throughput, compared with sentence-transformers"
SUBTITLE = "Texts a second, from strings to vectors, as a multiple of sentence-transformers'. Higher is faster."

#: The common names of the models.
MODELS = {"minilm": "all-MiniLM-L6-v2", "base": "BERT-base", "large": "BERT-large", "builtin": "built-in model"}

#: The multiplication sign.
TIMES = "\u00d7"

STYLE = """\
text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: #1f2328 }
.ground { fill: #ffffff; stroke: #d1d9e0 }
.title { font-size: 19px; font-weight: 600 }
.text { font-size: 13px }
.panel { font-size: 14px; font-weight: 600 }
.small { font-size: 11.5px; fill: #59636e }
.grid { stroke: #e4e8ec }
.one { stroke: #59636e; stroke-dasharray: 4 3 }
.value { font-weight: 600; fill: #ffffff }
.mark { font-size: 11px }
.bar0 { fill: #0969da } .bar1 { fill: #8c959f } .bar2 { fill: #c9a25b } .bar3 { fill: #6fa79a } .bar4 { fill: #b58fb0 }
.bar5 { fill: #c58b73 } .bar6 { fill: #9aa66a }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .ground { fill: #0d1117; stroke: #3d444d }
  .small { fill: #9198a1 }
  .grid { stroke: #262c34 }
  .one { stroke: #9198a1 }
  .value { fill: #ffffff }
  .bar0 { fill: #1f6feb } .bar1 { fill: #6e7681 } .bar2 { fill: #a3834a } .bar3 { fill: #56857b }
  .bar4 { fill: #8f708c } .bar5 { fill: #9c6d5a } .bar6 { fill: #7a8454 }
}"""
#: Number of encoders that have a colour.
COLOURS = 7


class Panel(NamedTuple):
    """A part of the chart.

    Attributes:
        model: The model of its bars.
        left: Its left edge.
        width: Its width.
        down: The distance of its row from the first row.
        most: The ratio at its top.
    """

    model: str
    left: float
    width: float
    down: int
    most: float

    def y(self, ratio: float) -> float:
        """Return the height of a ratio in the chart."""
        return self.down + BOTTOM - (BOTTOM - TOP) * ratio / self.most

    @property
    def step(self) -> float:
        """The distance of the lines of the grid."""
        return 0.5 if self.most <= 3 else math.ceil(self.most / 6)


class Chart:
    """The chart of a results file."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        """Collect the bars.

        Raises:
            ValueError: There is nothing to draw, or there are too many encoders.
        """
        self.results = results
        self.summary = Summary(results)
        self.peers = [peer for peer in self.summary.peers if peer == OWN or not peer.startswith((OWN, REFERENCE))]
        if len(self.peers) > COLOURS:
            raise ValueError(f"a chart can have {COLOURS} encoders; the results have {len(self.peers)}.")
        self.cells: dict[tuple[str, str, str], tuple[Cell, float]] = {}
        for model, kind in self.summary.workloads:
            reference = self.summary.cell("throughput", model, kind, REFERENCE)
            for peer in self.peers if reference else ():
                cell = self.summary.cell("throughput", model, kind, peer)
                if reference and cell:
                    self.cells[model, kind, peer] = cell, reference.value / cell.value
        if all(cell.wrong for cell, _ in self.cells.values()):
            raise ValueError(f"a chart needs the throughput of {REFERENCE} and of another encoder; it is not there.")
        self.panels = list(self.arrange())
        self.height = HEIGHT + max(panel.down for panel in self.panels)

    def arrange(self) -> Iterator[Panel]:
        """Yield the panels, in rows of about the same number."""
        models = list(dict.fromkeys(model for model, *_ in self.cells))
        rows = math.ceil(len(models) / ABREAST)
        abreast = math.ceil(len(models) / rows)
        width = (RIGHT - LEFT - GAP * (abreast - 1)) / abreast
        for row in range(rows):
            chosen = models[row * abreast :][:abreast]
            ratios = [ratio for (model, *_), (cell, ratio) in self.cells.items() if model in chosen and not cell.wrong]
            most = max(1.5, math.ceil(2 * max(ratios, default=0)) / 2)
            for i, model in enumerate(chosen):
                yield Panel(model, LEFT + i * (width + GAP), width, ROW * row, most)

    def draw(self) -> str:
        """Return the SVG."""
        size = f'viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" height="{self.height}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
            f'<title id="title">{TITLE}</title>',
            f'<desc id="description">{html.escape(self.description())}</desc>',
            f"<style>\n{STYLE}\n</style>",
            f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{self.height - 1}" rx="8"/>',
            text(24, 36, TITLE, "title"),
            text(24, 58, SUBTITLE, "text"),
            *self.legend(),
            *(line for panel in self.panels for line in self.panel(panel)),
            *(text(24, self.height - 34 + 17 * i, line, "small") for i, line in enumerate(self.caption())),
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def description(self) -> str:
        """Return a text with the values of the bars, for screen readers."""
        parts = []
        for model, kind in self.summary.workloads:
            cells = [(peer, *self.cells[model, kind, peer]) for peer in self.peers if (model, kind, peer) in self.cells]
            if cells:
                said = (f"{self.summary.label(peer)} {cell.show(f'{ratio:.2f}')}" for peer, cell, ratio in cells)
                parts.append(f"{MODELS.get(model, model)}, {kind} texts: {', '.join(said)}.")
        return " ".join(parts)

    def legend(self) -> Iterator[str]:
        """Yield the names of the encoders next to their colours."""
        x = 24.0
        for number, peer in enumerate(self.peers):
            label = self.summary.label(peer)
            yield f'<rect class="bar{number}" x="{x:.1f}" y="75" width="11" height="11" rx="2"/>'
            yield text(x + 17, 85, label, "text")
            x += 17 + width_of(label) + 22
        yield f'<line class="one" x1="{x:.1f}" y1="80.5" x2="{x + 24:.1f}" y2="80.5"/>'
        yield text(x + 30, 85, f"{self.summary.label(REFERENCE)} = 1{TIMES}", "text")

    def panel(self, panel: Panel) -> Iterator[str]:
        """Yield the grid, the bars and the labels of a model."""
        config = self.results["models"][panel.model]["config"]
        size = f"{config['num_hidden_layers']} layers, width {config['hidden_size']}"
        right = panel.left + panel.width
        above = panel.down + TOP - 14
        yield text(panel.left, above, MODELS.get(panel.model, panel.model), "panel")
        yield text(right, above, size, "small", anchor="end")
        for ratio in range(math.floor(panel.most / panel.step) + 1):
            y = panel.y(ratio * panel.step)
            yield f'<line class="grid" x1="{panel.left:.1f}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>'
            if panel.left == LEFT:
                yield text(LEFT - 8, y + 4, f"{ratio * panel.step:g}{TIMES}", "small", anchor="end")
        kinds = [kind for model, kind in self.summary.workloads if model == panel.model]
        kinds = [kind for kind in kinds if any((panel.model, kind, peer) in self.cells for peer in self.peers)]
        group = panel.width / len(kinds)
        for i, kind in enumerate(kinds):
            yield from self.group(panel, kind, panel.left + group * i, group)
        one = panel.y(1)
        yield f'<line class="one" x1="{panel.left:.1f}" y1="{one:.1f}" x2="{right:.1f}" y2="{one:.1f}"/>'

    def group(self, panel: Panel, kind: str, left: float, width: float) -> Iterator[str]:
        """Yield the bars and the label of one kind of texts of a model."""
        facts = self.results["models"][panel.model]["workloads"][kind]
        bar = min(WIDEST, 0.84 * width / len(self.peers))
        middle = left + width / 2
        x = middle - bar * len(self.peers) / 2
        for number, peer in enumerate(self.peers):
            if (panel.model, kind, peer) in self.cells:
                yield from self.bar(panel, number, *self.cells[panel.model, kind, peer], x + bar * number, bar)
        below = panel.down + BOTTOM
        yield text(middle, below + 17, f"{kind} texts", "text", anchor="middle")
        yield text(middle, below + 33, f"≈ {facts['tokens'] / facts['texts']:.0f} tokens", "small", anchor="middle")

    def bar(self, panel: Panel, number: int, cell: Cell, ratio: float, x: float, width: float) -> Iterator[str]:
        """Yield a bar, with its number for minibert. If the vectors were wrong, yield a text instead."""
        middle, bottom = x + width / 2, panel.down + BOTTOM
        if cell.wrong:
            yield text(middle + 4, bottom - 4, cell.show(""), "small", turned=True)
            return
        top = panel.y(ratio)
        yield (
            f'<rect class="bar{number}" x="{x + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" '
            f'height="{bottom - top:.1f}" rx="1.5"/>'
        )
        if mark := cell.show(""):
            yield text(middle, top - 3, mark, "mark", anchor="middle")
        if self.peers[number] == OWN and width >= NARROWEST:
            yield text(middle + 4, bottom - 6, f"{ratio:.2f}{TIMES}", "value mark", turned=True)

    def caption(self) -> Iterator[str]:
        """Yield the lines about what was measured, where and when, and the meaning of the marks."""
        results = self.results
        machine = results["machine"]
        cells = [cell for cell, _ in self.cells.values()]
        spread = statistics.median(cell.spread for cell in self.summary.cells("throughput"))
        facts = [
            ", ".join(filter(None, (machine["processor"], f"{machine['cores']} cores", threads_told(results)))),
            machine.get("instructions", ""),
            "float32",
            f"medians of {results['rounds']} rounds (spread: {spread:.0%})",
            results["date"],
            f"minibert at commit {results['commit'] or 'unknown'}",
        ]
        yield " · ".join(filter(None, facts))
        versions = (self.version(peer) for peer in (REFERENCE, *self.peers) if peer != OWN)
        marks = [
            "* other processes had the processor" if any(cell.disturbed for cell in cells) else "",
            "? not compared with sentence-transformers' vectors" if any(c.difference is None for c in cells) else "",
        ]
        yield " · ".join(filter(None, (", ".join(versions), *marks)))

    def version(self, peer: str) -> str:
        """Return the name of an encoder with its version."""
        facts = self.results["peers"][peer]
        return f"{facts['label']} {facts['versions'].get(facts['packages'][0], '')}".rstrip()


def width_of(words: str) -> float:
    """Return the approximate width of a line of text of 13 pixels, in any of the fonts."""
    return sum(4.7 if letter in " -.ijlrtfI" else 11 if letter in "mwMW@" else 8.2 for letter in words)


def text(x: float, y: float, words: str, kind: str, *, anchor: str = "start", turned: bool = False) -> str:
    """Return a line of text at a position. With ``turned``, it runs upwards."""
    place = f'x="{x:.1f}" y="{y:.1f}"'
    if turned:
        place += f' transform="rotate(-90 {x:.1f} {y:.1f})"'
    if anchor != "start":
        place += f' text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{html.escape(words, quote=False)}</text>'


def draw(results: Mapping[str, Any]) -> str:
    """Return the chart of a results file as SVG.

    Raises:
        ValueError: There is nothing to draw, or there are too many encoders.
    """
    return Chart(results).draw()
