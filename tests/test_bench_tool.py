"""The benchmark's own arithmetic: what is counted, what a table shows, and a whole run of minibert alone."""

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

import bench
import bench_peers
import bench_setup
import bench_tables
import numpy as np
import pytest
from bench_peers import Facts
from support import ROOT, copy_twin, edit_json
from tokenizers.implementations import BertWordPieceTokenizer

pytestmark = pytest.mark.tools
LINUX = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the benchmark reads Linux' /proc")

# ---------------------------------------------------------------- what is measured


def test_flops_are_those_of_the_products():
    """Each product of M x K by K x N counts 2MKN: four projections, two of the feed-forward network, two a head."""
    hidden, inner, layers, heads = 12, 48, 3, 4
    config = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}

    def layer(n):
        square, up_or_down, scores = 2 * n * hidden * hidden, 2 * n * hidden * inner, 2 * n * n * (hidden // heads)
        return 4 * square + 2 * up_or_down + heads * 2 * scores

    assert bench.count_flops(config, [5, 1, 9]) == layers * (layer(5) + layer(1) + layer(9))


def test_texts_are_distinct(tmp_path):
    """A line that was there before is dropped, and so is an empty one; the order stays."""
    path = tmp_path / "texts.txt"
    path.write_text("b\na\n\nb\nc\u2028d\n", "utf-8")

    assert bench.read_texts(path) == ["b", "a", "c\u2028d"]


@pytest.mark.parametrize(("every", "count"), [(1, 100), (4, 25), (7, 14), (1000, 1)])
def test_thinned_texts_keep_the_mix_of_lengths(every, count):
    """One text in so many is taken, in the old order, with about the mean length of all."""
    lengths = np.random.default_rng(0).integers(1, 200, 100)
    chosen = bench.thin(list(lengths), every)

    assert len(chosen) == count
    assert chosen == sorted(chosen)
    assert abs(lengths[chosen].mean() - lengths.mean()) < 12


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [(2, [2, 2, 1]), (10, [5]), (-16, [1, 2, 2]), (-4, [1, 1, 1, 1, 1])],
    ids=["two texts", "more texts than there are", "16 padded tokens", "fewer tokens than one text has"],
)
def test_batches(batch, sizes):
    """A batch is a number of texts or, if negative, of tokens with padding, but at least one text."""
    lengths = [9, 8, 8, 3, 1]

    assert [len(lengths[part]) for part in bench_peers.batches(lengths, batch)] == sizes


@pytest.mark.parametrize(
    ("cls_pooled", "normalized", "expected"),
    [(False, False, [[2, 3], [5, 5]]), (True, False, [[1, 2], [5, 5]]), (True, True, [[0.4472136, 0.8944272]])],
)
def test_pooling_of_a_raw_runtime(cls_pooled, normalized, expected):
    """The mean leaves padding out, whatever a runtime puts there."""
    hidden = np.array([[[1, 2], [3, 4]], [[5, 5], [99, 99]]], np.float32)
    vectors = bench_peers.pool(hidden, [2, 1], Facts(2, 512, cls_pooled, normalized))

    np.testing.assert_allclose(vectors[: len(expected)], expected, rtol=1e-6)


def test_padding():
    """Rows are filled up with token 0, which the mask leaves out."""
    inputs = bench_peers.pad([[7, 8, 9], [5]])

    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_vectors_are_compared_at_length_one():
    """The length of a vector is no difference; its direction is, in its own numbers."""
    assert bench.farthest(np.array([[3.0, 4.0]]), np.array([[6.0, 8.0]])) == 0
    assert bench.farthest(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])) == pytest.approx(0.8)


def test_not_a_number_is_as_far_as_can_be():
    """A vector with NaN is never taken for the reference's."""
    assert bench.farthest(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]])) == np.inf


def test_closure_of_packages():
    """A package is counted with what it depends on, and its bytes are those of its files."""
    packages = bench_peers.list_packages(["tokenizers"])

    assert {"tokenizers", "huggingface-hub", "filelock"} <= set(packages)
    assert packages["tokenizers"]["bytes"] > 1_000_000
    assert "pytest" not in packages


def test_workers_import_nothing_heavy_first():
    """At its top, a worker imports the standard library and numpy: the cold start counts it."""
    tree = ast.parse((ROOT / "tools" / "bench_peers.py").read_text("utf-8"))
    found = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in found if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize("name", bench_peers.PEERS)
def test_peers_are_set_up(name):
    """Each peer has an environment, an export that setup makes, and a batch for any model unless it chooses itself."""
    peer = bench_peers.PEERS[name]

    assert peer.environment in bench_setup.ENVIRONMENTS
    assert peer.batches is None or "" in peer.batches
    assert not peer.export or peer.export.split("/")[0] in bench_setup.EXPORTS


def test_batch_of_a_model_comes_before_that_of_all():
    """A peer's best batch is the model's own, else that of all others; 1 for a single text, or where it chooses."""
    peer = bench_peers.PEERS["openvino"]._replace(batches={"": (1, 2, 3), "base": (4, 5, 6)})

    assert [peer.batch("base", "mixed"), peer.batch("builtin", "long"), peer.batch("base", "")] == [5, 3, 1]
    assert bench_peers.PEERS["minibert"].batch("base", "mixed") == 1


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run /a/b/dir --texts short=/c/d/e.txt --rounds 5", "run dir --texts short=e.txt --rounds 5"),
        ("FileNotFoundError: '/a/b/model.onnx'", "FileNotFoundError: 'model.onnx'"),
    ],
)
def test_results_name_no_folder(text, expected):
    """Of a path only the last name is kept: the machine's folders are nobody's business."""
    assert bench.without_folders(text) == expected


def test_unknown_names_are_refused():
    """A name that is not there is an error that lists what there is; the order is that of the tables."""
    parse = bench.names(["builtin", "base"])

    assert parse("base,builtin") == ["builtin", "base"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"unknown: huge; there are: builtin, base"):
        parse("builtin,huge")


@pytest.mark.parametrize("argument", ["short", "short=absent.txt", "strange={file}"])
def test_text_files_are_named_by_workload(tmp_path, argument):
    """An argument for texts names a workload and a file that exists."""
    path = tmp_path / "texts.txt"
    path.touch()

    assert bench.text_file(f"short={path}") == ("short", path)
    with pytest.raises(argparse.ArgumentTypeError, match="WORKLOAD=FILE"):
        bench.text_file(argument.format(file=path))


# ---------------------------------------------------------------- the tables


def row(peer, seconds, number=0, measure="throughput", workload="short", **others):
    """Return a row of a results file."""
    times = {"times": [seconds, seconds, 10 * seconds], "other_cpu": 0.0, "difference": 1e-7}
    memory = {"peak": 300_000_000, "imported": 100_000_000}
    where = {"measure": measure, "model": "builtin", "workload": workload, "peer": peer, "round": number}
    return {**where, "seconds": 2 * seconds, **times, **memory, **others}


def results(*rows):
    """Return a results file of two workloads with 1,000 tokens and 10 GFLOP, on a machine of 100 GFLOP/s."""
    peers = {
        name: {"label": name.upper(), "packages": [name], "versions": {name: "1.0"}, "bytes": {name: 5_000_000}}
        for name in ("minibert", "sentence-transformers", "other")
    }
    workload = {"texts": 50_000, "tokens": 1000, "gflop": 10.0}
    model = {
        "config": {"hidden_size": 128},
        "bytes": 90_000_000,
        "workloads": {"short": workload, "mixed": workload},
    }
    return {
        "date": "2026-01-01",
        "commit": "",
        "machine": {"processor": "a processor", "cores": 2, "python": "3.11.0"},
        "rounds": 3,
        "peers": peers,
        "models": {"builtin": model},
        "missing": [],
        "sgemm": [{"gflops": {"a": 90.0, "b": rate}} for rate in (50.0, 100.0, 101.0)],
        "rows": list(rows),
    }


def lines(title, *rows):
    """Return the cells of each line of one of the tables of rows, by the line's first cell."""
    text = bench_tables.render(results(*rows)).split(f"**{title}")[1].split("\n\n")[1]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {line[0]: line[1:] for line in split[2:]}


ROUNDS = [
    *(row("minibert", seconds, i) for i, seconds in enumerate((0.5, 0.2, 0.25))),
    *(row("sentence-transformers", seconds, i) for i, seconds in enumerate((0.5, 0.6, 0.4))),
    row("other", 0.2),
]


def test_peak_is_the_better_shape():
    """The peak is the median over rounds of each shape, and of these the highest."""
    assert bench_tables.Summary(results()).peak() == 100


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Throughput", ["2.00", "1.00", "2.50"]),
        ("Tokens a second", ["4,000", "2,000", "5,000"]),
        ("Share of the sgemm peak", ["0.40", "0.20", "0.50"]),
    ],
)
def test_throughput_is_of_medians(title, expected):
    """A cell is made of the median over rounds of each round's median."""
    assert lines(title, *ROUNDS) == {"builtin, short": expected}


def test_spread_is_told():
    """How far apart rounds are, as a share of the median, stands above the tables."""
    assert "are 40% apart (median; at most 120%)" in bench_tables.render(results(*ROUNDS))


def test_latency_and_cold_start():
    """Latency is the median call in milliseconds; a cold start is the time of the whole process."""
    rows = [row("minibert", 0.002, measure="latency", workload=""), row("minibert", 0.1, measure="cold", workload="")]

    assert lines("Latency", *rows) == {"builtin": ["2.00", "-", "-"]}
    assert lines("Cold start", *rows) == {"builtin": ["0.20", "-", "-"]}


def test_memory():
    """Of the peak, what is neither imports nor weights nor vectors is told apart."""
    rows = [row("minibert", 1.0, workload="mixed")]

    assert lines("Peak memory", *rows) == {"builtin": ["300", "-", "-"]}
    assert lines("The same beyond", *rows) == {"builtin": ["84", "-", "-"]}


def test_what_a_peer_is():
    """A peer has a line with its size, its worst difference and the versions of what it is made of."""
    rows = [row("other", 1.0, difference=1e-8), row("other", 1.0, workload="mixed", difference=3e-8)]

    assert lines("Installed size", *rows)["OTHER"] == ["5", "3.0e-08", "other 1.0"]
    assert lines("Installed size", *rows)["MINIBERT"] == ["5", "-", "minibert 1.0"]


@pytest.mark.parametrize("difference", [1.1e-4, float("inf")])
def test_wrong_vectors_have_no_speed(difference):
    """A cell whose vectors were wrong in any round shows how wrong, and no time; it is not the best other."""
    rows = [row("minibert", 0.2), row("sentence-transformers", 0.3), row("other", 0.1, difference=difference)]
    rows.append(row("other", 0.1, 1))

    assert lines("Throughput", *rows)["builtin, short"][2] == f"wrong by {difference:.0e}"
    assert "1.50 times the speed of the best other" in bench_tables.render(results(*rows))


def test_vectors_that_were_not_compared_are_marked():
    """Where a round had no sentence-transformers, nobody knows whether the vectors are right."""
    lone = row("other", 0.2)
    del lone["difference"]
    rows = [lone, row("other", 0.2, 1)]

    assert lines("Tokens", *rows) == {"builtin, short": ["-", "-", "5,000?"]}
    assert "- `?` the vectors were not compared" in bench_tables.render(results(*rows))


@pytest.mark.parametrize(("loads", "shown"), [((0.2, 0.2, 0), "5,000*"), ((0.2, 0, 0), "5,000")])
def test_disturbed_times_are_marked(loads, shown):
    """A cell is marked when other processes had the processor in most rounds."""
    rows = [row("other", 0.2, i, other_cpu=load) for i, load in enumerate(loads)]

    assert lines("Tokens", *rows)["builtin, short"][2] == shown


def test_the_worst_cell_is_named():
    """The worst cell is the one where minibert is slowest against the fastest other, its own variants apart."""
    rows = [*ROUNDS, row("minibert", 0.5, workload="mixed"), row("other", 0.3, workload="mixed")]
    facts = results(*rows, row("minibert-full-last", 0.01))
    facts["peers"]["minibert-full-last"] = facts["peers"]["minibert"]

    expected = "minibert's worst: 0.60 times the speed of the best other (builtin, mixed texts, against OTHER)."
    assert expected in bench_tables.render(facts)


def test_failures_are_told():
    """What failed or is missing is a note, and its cell is empty."""
    facts = results(*ROUNDS, {**row("other", 1.0, workload="mixed"), "error": "out of memory"})
    facts["missing"].append("fastembed: there is no environment for it")
    text = bench_tables.render(facts)

    assert "- Missing: fastembed: there is no environment for it." in text
    assert "- Missing: other: out of memory (builtin, throughput)." in text
    assert "builtin, mixed |" not in text.split("**Tokens")[1]


def test_results_are_read_back():
    """A results file has a line for each row, and gives back what was written."""
    facts = results(*ROUNDS)
    text = bench.as_json(facts)

    assert json.loads(text) == facts
    assert sum('"round"' in line for line in text.splitlines()) == len(ROUNDS)


# ---------------------------------------------------------------- a run


def test_failure_of_a_worker_is_its_last_word():
    """A worker that fails gives its exception, without the machine's folders."""
    task = {"measure": "packages", "packages": ["no-such-package"]}

    assert "no-such-package" in bench.work(Path(sys.executable), task)["error"]


def test_absent_environment():
    """A peer without an environment is missing, not an error of the run."""
    assert bench.work(Path("absent/python"), {}) == {"error": "there is no environment for it"}


@LINUX
def test_run(tmp_path):
    """A run of minibert alone on a small model fills each table, and skips the peers that are not installed."""
    model = copy_twin(tmp_path / "models" / "builtin")
    vocabulary = {token: i for i, token in enumerate((model / "vocab.txt").read_text("utf-8").splitlines())}
    BertWordPieceTokenizer(vocabulary).save(str(model / "tokenizer.json"))
    edit_json(model / "sentence_bert_config.json", max_seq_length=16)
    texts = tmp_path / "mixed.txt"
    texts.write_text("a text\nanother text\n", "utf-8")
    out = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "run", str(tmp_path), "--texts", f"mixed={texts}"]
    options = ["--models=builtin", "--peers=minibert,openvino", "--rounds=1", "--seconds=0.01", "--out", str(out)]
    printed = subprocess.run(
        [*command, *options, "--measure=throughput,latency,memory"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out.read_text("utf-8"))

    assert [row["measure"] for row in found["rows"]] == ["throughput", "latency"]
    assert not any("error" in row for row in found["rows"]), found["rows"]
    assert found["missing"] == ["openvino: there is no environment for it"]
    assert str(tmp_path) not in out.read_text("utf-8")
    assert bench_tables.render(found) in printed
