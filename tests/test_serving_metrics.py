"""The metrics of the server: what Prometheus reads."""

import math
import re

import pytest

from minibert.serving.metrics import METRICS, Metrics

LINE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\[\\"n])*)"')


def parsed(text):
    """Return the types of all metrics, and each value by name and labels. This is Prometheus' text format 0.0.4."""
    assert text.endswith("\n")
    types, values, helped = {}, {}, set()
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# HELP "):
            helped.add(line.split(" ", 3)[2])
        elif line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name not in types, "the lines of a metric are together"
            types[name] = kind
        else:
            name, labels, value = LINE.fullmatch(line).groups()
            base = re.sub("_(bucket|sum|count)$", "", name) if name not in types else name
            assert base == list(types)[-1], "a value is below its type"
            unescaped = {
                label: re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), each)
                for label, each in LABEL.findall(labels or "")
            }
            key = name, frozenset(unescaped.items())
            assert key not in values
            values[key] = float(value)
    assert helped == set(types)
    return types, values


def value(text, name, **labels):
    """Return one value."""
    return parsed(text)[1][name, frozenset(labels.items())]


def test_all_are_declared_from_the_start():
    """Every metric has a help and a type. Those without labels have a value before anything is counted."""
    types, values = parsed(Metrics().text())

    assert types == {name: metric.kind for name, metric in METRICS.items()}
    names = {name for name, _ in values}
    for name, metric in METRICS.items():
        if metric.kind != "gauge":
            assert ({name, f"{name}_count"} & names != set()) is not metric.labelled


def test_counters():
    """Amounts add up for each set of labels."""
    metrics = Metrics()
    metrics.count("te_embed_count", 3)
    metrics.count("te_embed_count")
    metrics.count("te_request_failure", err="dropped")
    metrics.count("te_request_failure", err="overloaded")
    metrics.count("te_request_failure", err="dropped")
    text = metrics.text()

    assert value(text, "te_embed_count") == 4
    assert value(text, "te_request_failure", err="dropped") == 2
    assert value(text, "te_request_failure", err="overloaded") == 1


def test_histograms():
    """A bucket has the observations up to its bound, which is part of it; the last one has all."""
    metrics = Metrics()
    for number in (1, 2, 2, 3, 1e9):
        metrics.observe("te_batch_next_size", number)
    metrics.observe("te_batch_next_size", 4, times=10)
    _, values = parsed(metrics.text())
    buckets = {
        float(dict(labels)["le"]): count
        for (name, labels), count in values.items()
        if name == "te_batch_next_size_bucket"
    }

    assert {bound: buckets[bound] for bound in (1, 2, 4)} == {1: 1, 2: 3, 4: 14}
    assert sorted(buckets) == list(buckets)
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets[math.inf] == values["te_batch_next_size_count", frozenset()] == 15
    assert values["te_batch_next_size_sum", frozenset()] == 1e9 + 48


def test_bounds_of_durations():
    """They are those of text-embeddings-inference: 35 of them, from 10 microseconds, each 1.5 times the last."""
    bounds = METRICS["te_request_duration"].buckets

    assert len(bounds) == 35
    assert bounds[0] == 1e-5
    assert bounds == pytest.approx([1e-5 * 1.5**power for power in range(35)], rel=1e-5)


def test_gauges():
    """A gauge is asked when the text is made."""
    metrics, queue = Metrics(), [5]
    metrics.gauge("te_queue_size", lambda: queue[0])
    metrics.gauge("minibert_info", lambda: 1, model="a", version="0")

    assert value(metrics.text(), "te_queue_size") == 5
    queue[0] = 0
    assert value(metrics.text(), "te_queue_size") == 0
    assert value(metrics.text(), "minibert_info", model="a", version="0") == 1


@pytest.mark.parametrize("name", ['a "b"', "a\\b", "a\nb", "\\n", 'é{}=",'])
def test_labels_are_escaped(name):
    """Any text can be the value of a label."""
    metrics = Metrics()
    metrics.gauge("minibert_info", lambda: 1, model=name)

    assert value(metrics.text(), "minibert_info", model=name) == 1


def test_an_unknown_histogram_is_an_error():
    """Names are declared in one table."""
    with pytest.raises(KeyError, match="te_no"):
        Metrics().observe("te_no", 1)
