"""What the server counts and measures, in the text format of Prometheus.

The names are those of text-embeddings-inference, so that its dashboards show this server too. Names that begin with
``minibert_`` are our own.
"""

import bisect
import itertools
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

__all__ = ["CONTENT_TYPE", "METRICS", "Metrics"]

#: The content type of :meth:`Metrics.text`.
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Labels = tuple[tuple[str, str], ...]


class Metric(NamedTuple):
    """A declared metric.

    Attributes:
        kind: ``"counter"``, ``"gauge"`` or ``"histogram"``.
        help: What it is, in one line.
        buckets: The upper bounds of a histogram's buckets, without infinity.
        labelled: Whether its series have labels. A metric without labels has a value from the start.
    """

    kind: str
    help: str
    buckets: tuple[float, ...] = ()
    labelled: bool = False


#: The bounds of durations, in seconds.
_SECONDS: Final = tuple(float(f"{1e-5 * 1.5**power:.6g}") for power in range(35))
#: The bounds of numbers of texts or tokens.
_NUMBERS: Final = tuple(float(1 << power) for power in range(17))

#: All metrics.
METRICS: Final[Mapping[str, Metric]] = {
    "te_request_count": Metric("counter", "Requests, by method: single or batch.", labelled=True),
    "te_request_success": Metric("counter", "Requests that were answered, by method.", labelled=True),
    "te_request_failure": Metric("counter", "Requests that failed, by the kind of error.", labelled=True),
    "te_request_duration": Metric("histogram", "Seconds of a request in total.", _SECONDS),
    "te_request_tokenization_duration": Metric("histogram", "Seconds until a request was tokenized.", _SECONDS),
    "te_request_queue_duration": Metric("histogram", "Seconds that a tokenized request waited.", _SECONDS),
    "te_request_inference_duration": Metric("histogram", "Seconds that a request was computed.", _SECONDS),
    "te_request_input_length": Metric("histogram", "Tokens of a text, after truncation.", _NUMBERS),
    "te_embed_count": Metric("counter", "Texts whose vectors were requested."),
    "te_embed_success": Metric("counter", "Texts whose vectors were computed."),
    "te_embed_duration": Metric("histogram", "Seconds of a text in total.", _SECONDS),
    "te_embed_tokenization_duration": Metric("histogram", "Seconds until a text was tokenized.", _SECONDS),
    "te_embed_queue_duration": Metric("histogram", "Seconds that a tokenized text waited.", _SECONDS),
    "te_embed_inference_duration": Metric("histogram", "Seconds that a text was computed.", _SECONDS),
    "te_batch_next_size": Metric("histogram", "Texts of a batch.", _NUMBERS),
    "te_batch_next_tokens": Metric("histogram", "Tokens of a batch.", _NUMBERS),
    "te_queue_size": Metric("gauge", "Texts that are waiting or being computed."),
    "minibert_queue_tokens": Metric("gauge", "Tokens of the texts that are waiting or being computed."),
    "minibert_info": Metric("gauge", "The model and the version, as labels. The value is 1.", labelled=True),
}


class _Histogram:
    """Observed numbers: how many there are in each bucket, and their sum."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0


class Metrics:
    """The values of all metrics. All calls must be on one thread: a value is read, changed and written back."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, _Labels], float] = {}
        self._gauges: dict[tuple[str, _Labels], Callable[[], float]] = {}
        self._histograms = {
            name: _Histogram(metric.buckets) for name, metric in METRICS.items() if metric.kind == "histogram"
        }
        for name, metric in METRICS.items():
            if metric.kind == "counter" and not metric.labelled:
                self.count(name, 0)

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add an amount to a counter."""
        key = name, tuple(labels.items())
        self._counters[key] = self._counters.get(key, 0) + amount

    def observe(self, name: str, number: float, *, times: int = 1) -> None:
        """Add a number to a histogram, so many times. Durations are in seconds."""
        histogram = self._histograms[name]
        histogram.counts[bisect.bisect_left(histogram.buckets, number)] += times
        histogram.sum += number * times

    def gauge(self, name: str, function: Callable[[], float], **labels: str) -> None:
        """Set the function that gives the value of a gauge. It is called in :meth:`text`."""
        self._gauges[name, tuple(labels.items())] = function

    def text(self) -> str:
        """Return all values in the text format of Prometheus, version 0.0.4."""
        lines: dict[str, list[str]] = {
            name: [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"] for name, metric in METRICS.items()
        }
        for (name, labels), value in self._counters.items():
            lines[name].append(_line(name, labels, value))
        for (name, labels), function in self._gauges.items():
            lines[name].append(_line(name, labels, function()))
        for name, histogram in self._histograms.items():
            bounds = [*map(_number, histogram.buckets), "+Inf"]
            totals = list(itertools.accumulate(histogram.counts))
            lines[name] += [
                _line(f"{name}_bucket", (("le", bound),), total) for bound, total in zip(bounds, totals, strict=True)
            ]
            lines[name] += [_line(f"{name}_sum", (), histogram.sum), _line(f"{name}_count", (), totals[-1])]
        return "".join(f"{line}\n" for part in lines.values() for line in part)


def _line(name: str, labels: _Labels, value: float) -> str:
    """Return the line of a value."""
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{inside}}} {_number(value)}" if labels else f"{name} {_number(value)}"


def _escaped(text: str) -> str:
    """Return the value of a label as the format wants it."""
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    """Return a number with the fewest digits that give it back."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
