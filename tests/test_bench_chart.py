"""The picture of a results file: its bars are the numbers, and docs/throughput.svg is the one of the results file."""

import copy
import itertools
import json
import re
import subprocess
import sys
from xml.etree import ElementTree as ET

import bench_chart
import bench_work
import pytest
from bench_chart import BOTTOM, HEIGHT, LEFT, RIGHT, ROW, TIMES, TOP, WIDTH
from support import ROOT

RECORD = ROOT / "tools" / "results" / "cpu-avx512.json"
SVG = "{http://www.w3.org/2000/svg}"
KINDS = ("short", "mixed")


def row(peer, kind, seconds, **others):
    """Return a row of a results file."""
    where = {"measure": "throughput", "model": "base", "workload": kind, "peer": peer, "round": 0}
    return {**where, "seconds": seconds, "times": [seconds], "other_cpu": 0.0, "difference": 1e-7, **others}


def results(*rows):
    """Return a results file of a model and two workloads."""
    names = ["minibert", "minibert-full-last", "sentence-transformers", "fast & < other", "slow"]
    peers = {name: {"label": name.title(), "packages": ["a"], "versions": {"a": f"1.{len(name)}"}} for name in names}
    workloads = {"short": {"texts": 100, "tokens": 1240}, "mixed": {"texts": 10, "tokens": 700}}
    config = {"num_hidden_layers": 12, "hidden_size": 768}
    return {
        "date": "2026-01-01",
        "commit": "0123456789ab",
        "machine": {"processor": "a processor", "instructions": "AVX-512", "cores": 4},
        "rounds": 3,
        "peers": peers,
        "models": {"base": {"config": config, "workloads": workloads}},
        "rows": list(rows),
    }


#: A run in which minibert is 1.5 and 2 times as fast as sentence-transformers, another 1.25 and 0.5 times.
RUN = [
    *(row("sentence-transformers", kind, 3.0) for kind in KINDS),
    row("minibert", "short", 2.0),
    row("minibert", "mixed", 1.5),
    row("minibert-full-last", "short", 0.1),
    row("fast & < other", "short", 2.4),
    row("fast & < other", "mixed", 6.0),
]


def parse(picture):
    """Return the bars, as (class, x, width, height over one unit), and the words of a picture."""
    tree = ET.fromstring(picture)  # noqa: S314
    rects = [each.attrib for each in tree.iter(f"{SVG}rect") if each.attrib["class"] != "ground"]
    bars = [each for each in rects if float(each["y"]) + float(each["height"]) == pytest.approx(BOTTOM, abs=0.11)]
    one = next(
        each.attrib
        for each in tree.iter(f"{SVG}line")
        if float(each.attrib["y1"]) >= TOP and each.attrib["class"] == "one"
    )
    unit = BOTTOM - float(one["y1"])
    found = [(each["class"], float(each["x"]), float(each["width"]), float(each["height"]) / unit) for each in bars]
    return found, [each.text for each in tree.iter(f"{SVG}text")]


def heights(picture):
    """Return the heights of the bars of each class, over that of one."""
    found = {}
    for kind, _, _, height in parse(picture)[0]:
        found.setdefault(kind, []).append(height)
    return found


def test_the_picture_is_that_of_the_results_file():
    """docs/throughput.svg is what the command draws of the results file."""
    drawn = bench_chart.draw(json.loads(RECORD.read_text("utf-8")))
    kept = (ROOT / "docs" / "throughput.svg").read_text("utf-8")

    assert kept == drawn, "python tools/bench.py chart tools/results/cpu-avx512.json --out docs/throughput.svg"


def test_bars_are_as_high_as_the_ratios():
    """A bar is the ratio of sentence-transformers' time to the encoder's, beginning at 0; the line is at 1."""
    found = heights(bench_chart.draw(results(*RUN)))

    assert found["bar0"] == pytest.approx([1.5, 2.0], abs=0.01)
    assert found["bar1"] == pytest.approx([1.25, 0.5], abs=0.01)


def test_who_has_a_bar():
    """The reference is the line; minibert's variants and encoders without a number have no bar."""
    bars, words = parse(bench_chart.draw(results(*RUN)))

    assert len(bars) == 4
    assert f"Sentence-Transformers = 1{TIMES}" in words
    assert not [each for each in words if "Full-Last" in each]


def test_words():
    """The picture names encoders, model and texts, and has minibert's numbers."""
    words = parse(bench_chart.draw(results(*RUN)))[1]

    for expected in (
        "Minibert",
        "Fast & < Other",
        "BERT-base",
        "12 layers, width 768",
        "short texts",
        f"1.50{TIMES}",
        f"2.00{TIMES}",
    ):
        assert expected in words
    assert [each for each in words if "tokens" in each] == ["≈ 12 tokens", "≈ 70 tokens"]


def test_caption():
    """The caption has the machine, its instructions, the rounds, the day, the commit and the versions."""
    first, second = parse(bench_chart.draw(results(*RUN)))[1][-2:]

    assert first == (
        "a processor, 4 cores · AVX-512 · float32 · medians of 3 rounds (spread: 0%) · 2026-01-01 · "
        "minibert at commit 0123456789ab"
    )
    assert second == "Sentence-Transformers 1.21, Fast & < Other 1.14, Slow 1.4"


def test_unknown_instructions_and_commit():
    """What a results file does not know is left out, or called unknown."""
    facts = results(*RUN)
    del facts["machine"]["instructions"]
    facts["commit"] = ""

    assert parse(bench_chart.draw(facts))[1][-2].startswith("a processor, 4 cores · float32")
    assert parse(bench_chart.draw(facts))[1][-2].endswith("minibert at commit unknown")


def test_wrong_vectors_have_no_bar():
    """An encoder whose vectors were wrong has words in the place of its bar, and does not set the scale."""
    picture = bench_chart.draw(results(*RUN, row("slow", "short", 0.3, difference=1e-3)))
    bars, words = parse(picture)

    assert "wrong by 1e-03" in words
    assert len(bars) == 4
    assert max(height for *_, height in bars) == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "mark", "note"),
    [({"other_cpu": 1.0}, "*", "* other processes had the processor"), ({"difference": None}, "?", "? not compared")],
)
def test_marks(changes, mark, note):
    """A bar that was disturbed, or not compared, has the table's mark; the caption says what it means."""
    one = {**row("slow", "mixed", 2.0), **changes}
    if one["difference"] is None:
        del one["difference"]
    words = parse(bench_chart.draw(results(*RUN, one)))[1]
    without = parse(bench_chart.draw(results(*RUN)))[1]

    assert mark in words
    assert note in words[-1]
    assert mark not in without
    assert note not in without[-1]


@pytest.mark.parametrize("seconds", [0.05, 1.0, 2.9])
def test_everything_is_inside(seconds):
    """However fast an encoder is, its bar ends below the top of the panels, and beside the next one."""
    bars, _ = parse(bench_chart.draw(results(*RUN, row("slow", "short", seconds))))
    picture = bench_chart.draw(results(*RUN, row("slow", "short", seconds)))
    tops = [float(y) for y in re.findall(r'class="bar\d" x="[\d.]+" y="([\d.]+)" width="\d+\.\d"', picture)]

    assert len(tops) == 5
    assert min(tops) >= TOP
    ends = sorted((x, x + width) for _, x, width, _ in bars)
    assert ends[0][0] >= LEFT
    assert ends[-1][1] <= RIGHT
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_four_models_are_in_two_rows():
    """With more than three models, there are rows with a scale each; every number stays readable."""
    facts = results()
    names = ("builtin", "minilm", "base", "large")
    facts["models"] = dict.fromkeys(names, facts["models"]["base"])
    ratios = {"builtin": 8.0, "minilm": 4.0, "base": 2.0, "large": 1.0}
    for model, ratio in ratios.items():
        pair = [row("sentence-transformers", "short", 1.0), row("minibert", "short", 1 / ratio)]
        facts["rows"] += [{**each, "model": model} for each in pair]
    picture = bench_chart.draw(facts)
    tree = ET.fromstring(picture)  # noqa: S314
    bars = [each.attrib for each in tree.iter(f"{SVG}rect") if each.attrib["class"] == "bar0"][1:]
    feet = [float(bar["y"]) + float(bar["height"]) for bar in bars]
    tall = [float(bar["height"]) / (BOTTOM - TOP) for bar in bars]

    assert tree.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT + ROW}"
    assert feet == pytest.approx([BOTTOM, BOTTOM, BOTTOM + ROW, BOTTOM + ROW], abs=0.11)
    assert tall == pytest.approx([1, 0.5, 1, 0.5], abs=0.01)
    assert [float(bar["x"]) for bar in bars[:2]] == [float(bar["x"]) for bar in bars[2:]]
    assert {f"{ratio:.2f}{TIMES}" for ratio in ratios.values()} <= {each.text for each in tree.iter(f"{SVG}text")}
    assert float(list(tree.iter(f"{SVG}text"))[-1].attrib["y"]) < HEIGHT + ROW


@pytest.mark.parametrize(("threads", "expected"), [(4, "4 cores"), (2, "4 cores, 2 threads")])
def test_threads(threads, expected):
    """The caption has the number of threads, if it is not that of the cores."""
    words = parse(bench_chart.draw({**results(*RUN), "threads": threads}))[1]

    assert f"a processor, {expected} · AVX-512" in words[-2]


def test_the_picture_needs_nothing_else():
    """The picture has its size, both modes, and no address but SVG's own name: no font or script is loaded."""
    picture = (ROOT / "docs" / "throughput.svg").read_text("utf-8")
    root = ET.fromstring(picture)  # noqa: S314

    assert root.attrib["viewBox"] == f"0 0 {WIDTH} {HEIGHT + ROW}"  # four models in two rows
    assert "@media (prefers-color-scheme: dark)" in picture
    assert re.findall(r"https?://[^\"]+|url\(|<script|<image|@import", picture) == ["http://www.w3.org/2000/svg"]


def test_the_picture_is_described():
    """Who cannot see the picture can read the numbers in it."""
    picture = bench_chart.draw(results(*RUN))
    description = ET.fromstring(picture).find(f"{SVG}desc").text  # noqa: S314

    assert description == (
        "BERT-base, short texts: Minibert 1.50, Fast & < Other 1.25. "
        "BERT-base, mixed texts: Minibert 2.00, Fast & < Other 0.50."
    )


def test_nothing_to_draw():
    """Without sentence-transformers' times, or with too many encoders, there is no picture."""
    with pytest.raises(ValueError, match="needs the throughput of sentence-transformers"):
        bench_chart.draw(results(*[each for each in RUN if each["peer"] != "sentence-transformers"]))
    crowd = copy.deepcopy(results(*RUN))
    crowd["peers"] |= {f"other {i}": crowd["peers"]["slow"] for i in range(5)}
    with pytest.raises(ValueError, match="can have 7 encoders; the results have 8"):
        bench_chart.draw(crowd)


def command(*arguments):
    """Run tools/bench.py chart."""
    argv = [sys.executable, str(ROOT / "tools" / "bench.py"), "chart", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, encoding="utf-8", check=False, env={"PYTHONIOENCODING": "utf-8"})


def test_command(tmp_path):
    """The command writes the picture to standard output, or to a file; a failure is one line and no file."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(results(*RUN)), "utf-8")
    bad.write_text(json.dumps(results()), "utf-8")
    drawn = bench_chart.draw(results(*RUN))

    assert command(good).stdout == drawn
    assert command(good, "--out", tmp_path / "x.svg").returncode == 0
    assert (tmp_path / "x.svg").read_text("utf-8") == drawn
    failed = command(bad, "--out", tmp_path / "y.svg")
    assert failed.returncode == 1
    assert re.fullmatch(r".*bad\.json: a chart needs .*\n", failed.stderr)
    assert not (tmp_path / "y.svg").exists()


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu sse2 avx avx2 avx512f avx512dq", "AVX-512"),
        ("flags\t\t: fpu sse2 avx avx2", "AVX2"),
        ("Features\t: fp asimd", "NEON"),
        ("isa\t: rv64gc", ""),
    ],
)
def test_instructions(cpuinfo, expected):
    """A results file has the widest vector instructions of its processor."""
    assert bench_work.instructions(cpuinfo) == expected
