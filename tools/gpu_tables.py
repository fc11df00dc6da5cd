"""README's tables from a record of tools/gpu_check.py, in Markdown. Every number comes from the record."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench_tables import NOTHING, table

Row = Mapping[str, Any]
PEER = "sentence-transformers"


class Record:
    """The content of a record."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        """Take the record."""
        self.record = record

    def rows(self, stage: str, **where: Any) -> list[Row]:
        """Return the rows of a stage that succeeded and have these values."""
        rows = self.record["stages"].get(stage, {}).get("rows", [])
        good = [row for row in rows if "error" not in row and "skipped" not in row]
        return [row for row in good if all(row.get(key) == value for key, value in where.items())]

    def models(self, stage: str) -> list[str]:
        """Return the models of a stage."""
        return list(dict.fromkeys(row["model"] for row in self.rows(stage) if "model" in row))


def render(record: Mapping[str, Any]) -> str:
    """Return the tables, without those that have no numbers."""
    found = Record(record)
    parts = [
        introduction(found),
        table(
            "From strings to vectors, tokens a second",
            ["model, texts", "minibert", f"{PEER}, as called", "at its best", "ratio", "ratio to the best"],
            from_strings(found),
        ),
        table(
            "On the device alone, about 128 tokens a text",
            ["model", "minibert, tokens/s", "share of the ceiling", f"{PEER}, tokens/s", "share", "compiled", "ratio"],
            on_device(found),
        ),
        table("Latency of one text, ms", ["model, tokens", "minibert", "with CUDA graphs", PEER], latency(found)),
        table("From a new process to the first vector, s", ["", "first time", "later"], starts(found)),
        table(
            "all-MiniLM-L6-v2 on the STS pairs, against the CPU's float32",
            ["", "smallest cosine", "mean", "largest difference", "Spearman"],
            accuracy(found),
        ),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def introduction(found: Record) -> str:
    """Return the description of the measurement and its machine."""
    facts = {key: value for row in found.rows("versions") for key, value in row.items()}
    ceilings = next(iter(found.rows("throughput", measure="ceilings")), {})
    packages = [name for name in ("cupy-cuda13x", "cupy-cuda12x", "torch", PEER, "transformers") if name in facts]
    text = [
        "a dry run without a GPU" if found.record["dry"] else facts.get("name", "an unknown GPU"),
        *([f"driver {facts['driver_version']}"] if "driver_version" in facts else []),
        *(f"{name} {facts[name]}" for name in packages),
        f"minibert at {facts.get('commit') or 'an unknown commit'}",
    ]
    if "tflops" in ceilings:
        text.append(f"{ceilings['tflops']:,.0f} TFLOP/s in a product of matrices and {ceilings['gb_s']:,.0f} GB/s")
    quick = [name for name, stage in found.record["stages"].items() if stage["quick"]]
    return f"{found.record['date']}: {', '.join(text)}." + (f" Quick: {', '.join(quick)}." if quick else "")


def number(rows: Sequence[Row], key: str, form: str, scale: float = 1) -> str:
    """Return a number of the first row as a table shows it."""
    return form.format(rows[0][key] * scale) if rows and rows[0].get(key) is not None else NOTHING


def ratio(rows: Sequence[Row], others: Sequence[Row]) -> str:
    """Return the ratio of the tokens per second of the first rows to those of the second."""
    return f"{rows[0]['tokens_s'] / others[0]['tokens_s']:.2f}" if rows and others else NOTHING


def from_strings(found: Record) -> Iterator[Sequence[str]]:
    """Yield a line for each model and kind of texts."""
    for model in found.models("peers"):
        for kind in dict.fromkeys(row["kind"] for row in found.rows("peers", model=model)):
            own, called, *best = (
                found.rows("peers", model=model, kind=kind, peer=peer)
                for peer in ("minibert", "as called", "at its best", "unpadded")
            )
            fastest = sorted((row for rows in best for row in rows), key=lambda row: row["seconds"])
            cells = (number(rows, "tokens_s", "{:,.0f}") for rows in (own, called, fastest))
            yield [f"{model}, {kind}", *cells, ratio(own, called), ratio(own, fastest)]


def on_device(found: Record) -> Iterator[Sequence[str]]:
    """Yield a line for each model."""
    for model in found.models("throughput"):
        own, peer = (
            sorted(found.rows("throughput", model=model, measure="device", peer=name), key=lambda row: row["seconds"])
            for name in ("minibert", PEER)
        )
        compiled = found.rows("compiled", model=model)
        fastest = sorted([*peer, *compiled], key=lambda row: -row["tokens_s"])
        cells = [number(rows, key, form) for rows in (own, peer) for key, form in DEVICE]
        yield [model, *cells, number(compiled, "tokens_s", "{:,.0f}"), ratio(own, fastest)]


DEVICE = (("tokens_s", "{:,.0f}"), ("share", "{:.0%}"))


def latency(found: Record) -> Iterator[Sequence[str]]:
    """Yield a line for each model and length."""
    which = ({"peer": "minibert", "graphs": False}, {"peer": "minibert", "graphs": True}, {"peer": PEER})
    for row in found.rows("throughput", measure="latency", peer="minibert", graphs=False):
        text = {"measure": "latency", "model": row["model"], "about": row["about"]}
        rows = (found.rows("throughput", **text, **each) for each in which)
        yield [f"{row['model']}, {row['about']}", *(number(each, "seconds", "{:.2f}", 1e3) for each in rows)]


def starts(found: Record) -> Iterator[Sequence[str]]:
    """Yield a line for each encoder."""
    for peer in ("minibert", PEER):
        each = (found.rows("throughput", measure="start", peer=peer, cached=cached) for cached in (False, True))
        yield [peer, *(number(rows, "seconds", "{:.1f}") for rows in each)]


def accuracy(found: Record) -> Iterable[Sequence[str]]:
    """Yield a line for each precision."""
    for row in found.rows("accuracy"):
        if "spearman" in row:
            yield [
                f"{row['device']}, {row['dtype']}",
                *(f"{row[f'{name}_packed']:.7f}" for name in ("min_cosine", "mean_cosine")),
                f"{row['largest_packed']:.1e}",
                f"{row['spearman']:.6f}",
            ]
