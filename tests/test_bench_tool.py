"""The benchmark's own arithmetic: what is counted, what a table shows, and a whole run of minibert alone."""

import argparse
import ast
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import bench
import bench_facts
import bench_peers
import bench_run
import bench_setup
import bench_tables
import bench_texts
import bench_work
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

    assert bench_texts.count_flops(config, [5, 1, 9]) == layers * (layer(5) + layer(1) + layer(9))


def test_texts_are_distinct(tmp_path):
    """A line that was there before is dropped, and so is an empty one; the order stays."""
    path = tmp_path / "texts.txt"
    path.write_text("b\na\n\nb\nc\u2028d\n", "utf-8")

    assert bench_texts.read_texts(path) == ["b", "a", "c\u2028d"]


@pytest.mark.parametrize(("every", "count"), [(1, 100), (4, 25), (7, 14), (1000, 1)])
def test_thinned_texts_keep_the_mix_of_lengths(every, count):
    """One text in so many is taken, in the old order, with about the mean length of all."""
    lengths = np.random.default_rng(0).integers(1, 200, 100)
    chosen = bench_texts.thin(list(lengths), every)

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
    assert bench_run.farthest(np.array([[3.0, 4.0]]), np.array([[6.0, 8.0]])) == 0
    assert bench_run.farthest(np.array([[3.0, 4.0]]), np.array([[1.0, 0.0]])) == pytest.approx(0.8)


def test_not_a_number_is_as_far_as_can_be():
    """A vector with NaN is never taken for the reference's."""
    assert bench_run.farthest(np.array([[np.nan, 1.0]]), np.array([[0.0, 1.0]])) == np.inf


# ---------------------------------------------------------------- the machine


def pretend_native(monkeypatch, peaks):
    """Let minibert have kernels, with the given functions for the rate of one thread."""
    libraries = {name: SimpleNamespace(name=name, peak=peak) for name, peak in peaks.items()}
    module = SimpleNamespace(available=lambda: tuple(libraries), open_library=libraries.__getitem__)
    monkeypatch.setitem(sys.modules, bench_facts.NATIVE, module)


def test_fma_peak_is_that_of_all_threads_at_once(monkeypatch):
    """Each instruction set has the sum of its threads, which compute at the same time and after a warm-up."""
    together, calls = threading.Barrier(3), []

    def peak(seconds):
        together.wait(10)  # breaks unless three threads are here
        calls.append(seconds)
        return 10.0 if seconds == 0.5 else 1000.0  # a warm-up is not counted

    pretend_native(monkeypatch, {"avx512": peak, "avx2": lambda seconds: 8.0 * seconds})

    assert bench_facts.measure_fma(3, 0.5) == {"avx512": 30.0, "avx2": 12.0}
    assert sorted(calls) == [0.125] * 3 + [0.5] * 3


def test_fma_peak_of_a_slow_warm_up(monkeypatch):
    """No thread is measured before all are warm."""
    events, late = [], threading.Event()

    def peak(seconds):
        if seconds < 0.5:
            first = not late.is_set()
            late.set()
            time.sleep(0.0 if first else 0.1)
        events.append("warm" if seconds < 0.5 else "measured")
        return 1.0

    pretend_native(monkeypatch, {"neon": peak})
    bench_facts.measure_fma(2, 0.5)

    assert events == ["warm", "warm", "measured", "measured"]


def test_fma_peak_that_fails(monkeypatch):
    """If the kernel fails in a thread, there is an error, and the other thread does not wait for ever."""
    failed = []

    def peak(_):
        if not failed:
            failed.append(True)
            raise OSError("no such instruction")
        return 1.0

    monkeypatch.setattr(bench_facts, "PATIENCE", 0.1)
    pretend_native(monkeypatch, {"avx2": peak})

    with pytest.raises((OSError, threading.BrokenBarrierError)):
        bench_facts.measure_fma(2, 0.5)


@pytest.mark.parametrize("module", ["minibert", "minibert.engine", "minibert.engine.native"])
def test_minibert_without_kernels(monkeypatch, module):
    """A minibert that is older than its kernels, or none at all, has no FMA peak; it is no error."""

    def absent(name):
        raise ModuleNotFoundError(name, name=module)

    monkeypatch.setattr(bench_facts.importlib, "import_module", absent)

    assert bench_facts.list_kernels() == []
    assert bench_facts.measure_fma(2, 0.01) == {}


def test_broken_minibert_is_not_a_minibert_without_kernels(monkeypatch):
    """If something else is missing, the run must not go on without a peak."""

    def absent(_):
        raise ModuleNotFoundError("no cffi", name="mini")

    monkeypatch.setattr(bench_facts.importlib, "import_module", absent)

    with pytest.raises(ModuleNotFoundError, match="no cffi"):
        bench_facts.list_kernels()


def test_this_minibert():
    """The kernels of this minibert are those that its peak has, and each peak is a rate."""
    found = bench_facts.measure_fma(1, 0.01)

    assert list(found) == bench_facts.list_kernels()
    assert all(rate > 0 for rate in found.values())


def test_closure_of_packages():
    """A package is counted with what it depends on, and its bytes are those of its files."""
    packages = bench_facts.list_packages(["tokenizers"])

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


@pytest.mark.parametrize("name", bench_peers.PEERS)
def test_names_of_variants(name):
    """The tables know by its name whether a peer is minibert, and the name of a variant has its kernels."""
    peer = bench_peers.PEERS[name]

    assert name.startswith("minibert") == (peer.environment == "minibert")
    assert name == f"minibert-{peer.kernels}" or not peer.kernels
    assert (name in bench.USUAL) == (name == "minibert" or not name.startswith("minibert"))


def test_minibert_has_the_requested_threads(monkeypatch):
    """The number of threads is passed on to minibert."""
    seen = []
    encoder = SimpleNamespace(encode=None)
    monkeypatch.setattr(
        "minibert.SentenceEncoder", lambda *arguments, **named: seen.append((arguments, named)) or encoder
    )
    bench_peers.load_minibert(bench_peers.Setting(Path("model"), Path(), 1, 7))

    assert seen == [((Path("model"),), {"num_threads": 7})]


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
    assert bench_work.without_folders(text) == expected


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


@pytest.mark.parametrize(
    "argument", ["before", "before=absent/python", "=file", "a b=file", "B=file", "numpy=file", "avx2=file"]
)
def test_other_versions_have_a_name_and_a_python(tmp_path, monkeypatch, argument):
    """An argument for another version has a new name and a Python that exists."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()

    assert bench.other_version("before-1.2=file") == ("minibert-before-1.2", Path("file"))
    with pytest.raises(argparse.ArgumentTypeError, match=r"NAME=PYTHON|there is a peer minibert-(numpy|avx2)"):
        bench.other_version(argument)


@pytest.mark.parametrize("argument", ["0", "-1", "2.5", "two", ""])
def test_counts(argument):
    """A number of threads or rounds is 1 or more."""
    assert bench.at_least_one("12") == 12
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number of 1 or more"):
        bench.at_least_one(argument)


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


def with_variants(*rows):
    """Return a results file with minibert's variants, on a machine with two FMA peaks."""
    facts = results(*rows)
    for name, kernels in (("avx2", "avx2"), ("numpy", "numpy"), ("before", "")):
        own = {"label": f"minibert ({name})", "kernels": kernels, "other": name == "before"}
        facts["peers"][f"minibert-{name}"] = {**facts["peers"]["minibert"], **own}
    facts["fma"] = [{"gflops": {"avx512": 2.5 * rate, "avx2": rate}} for rate in (80.0, 79.0, 400.0)]
    return facts


def lines(title, *rows):
    """Return the cells of each line of one of the tables of rows, by the line's first cell."""
    return read_table(results(*rows), title)


def read_table(facts, title):
    """Return the cells of each line of one of the tables of a results file, by the line's first cell."""
    text = bench_tables.render(facts).split(f"**{title}")[1].split("\n\n")[1]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {line[0]: line[1:] for line in split[2:]}


ROUNDS = [
    *(row("minibert", seconds, i) for i, seconds in enumerate((0.5, 0.2, 0.25))),
    *(row("sentence-transformers", seconds, i) for i, seconds in enumerate((0.5, 0.6, 0.4))),
    row("other", 0.2),
]


def test_sgemm_rate_is_that_of_the_better_shape():
    """The rate is the median over rounds of each shape, and of these the highest."""
    assert bench_tables.Summary(results()).sgemm() == 100


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("Throughput, as a multiple", ["2.00", "1.00", "2.50"]),
        ("Throughput, against the other", ["OTHER", "0.80"]),
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

    assert lines("Latency of one text of 24", *rows) == {"builtin": ["2.00", "-", "-"]}
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

    assert lines("Throughput, as", *rows)["builtin, short"][2] == f"wrong by {difference:.0e}"
    assert "1.50 times the speed of SENTENCE-TRANSFORMERS (builtin, short texts)" in bench_tables.render(results(*rows))


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
    """The worst cell is the one where minibert is slowest against the fastest other encoder, its own variants apart."""
    rows = [*ROUNDS, row("minibert", 0.5, workload="mixed"), row("other", 0.3, workload="mixed")]
    facts = with_variants(*rows, row("minibert-avx2", 0.01), row("minibert", 0.2, measure="latency", workload=""))
    facts["rows"].append(row("other", 0.1, measure="latency", workload=""))
    text = bench_tables.render(facts)

    assert "- Worst case of MINIBERT: 0.60 times the speed of OTHER (builtin, mixed texts).\n" in text
    assert "- Worst case of minibert (avx2): 20.00 times the speed of OTHER (builtin, short texts).\n" in text
    assert "- Worst case of MINIBERT: 0.50 times the speed of OTHER (builtin, one text).\n" in text
    assert text.count("Worst case") == 3


def test_shares_are_of_the_own_peak():
    """A share is of the peak of the variant's instruction set, and of the highest where any may be used."""
    everyone = ("minibert", "sentence-transformers", "minibert-avx2", "minibert-numpy")
    facts = with_variants(*(row(peer, 0.2) for peer in everyone))

    assert read_table(facts, "Share of the FMA peak") == {
        "builtin, short": ["0.25", "0.25", "-", "0.62", "0.25", "-"]  # 50 GFLOP/s of 200 and of 80
    }
    assert read_table(facts, "Throughput, against the other") == {
        "builtin, short": ["SENTENCE-TRANSFORMERS", "1.00", "0.25", "1.00", "0.62", "1.00", "0.25", "-", "-"]
    }
    text = bench_tables.render(facts)
    assert "in GFLOP/s is 200 with AVX-512, 80 with AVX2. The rate of numpy's sgemm is 100. " in text
    assert "Each share of minibert (avx2) is of its own instructions' peak." in text
    assert "sgemm peak" not in text


def test_versions_are_compared():
    """Another version of minibert has a table with the others' speed, as multiples of its own."""
    pairs = {"minibert": 0.1, "minibert-numpy": 0.25, "minibert-before": 0.2, "other": 0.01}
    latency = {"minibert-numpy": 0.2, "minibert-before": 0.3}
    rows = [row(peer, time) for peer, time in pairs.items()]
    rows += [row(peer, time, measure="latency", workload="") for peer, time in latency.items()]
    facts = with_variants(*rows)
    text = bench_tables.render(facts)

    assert read_table(facts, "Throughput, against minibert (before)")["builtin, short"][0::2] == ["2.00", "-", "0.80"]
    assert read_table(facts, "Latency of one text, against minibert (before)")["builtin"] == ["-", "-", "1.50"]
    assert "- Worst case of minibert (numpy): 0.80 times the speed of minibert (before) (builtin, short texts)." in text


def test_no_peak_is_told():
    """Where minibert has no kernels, a share is of the sgemm rate, and a note says why."""
    facts = with_variants(*ROUNDS)
    facts["fma"] = [{"gflops": {}}] * 3
    text = bench_tables.render(facts)

    assert read_table(facts, "Share of the sgemm peak (100 GFLOP/s)")["builtin, short"][:3] == ["0.40", "0.20", "0.50"]
    assert "- There is no FMA peak: minibert has no kernels for this machine." in text
    assert "FMA peak" not in bench_tables.render(results(*ROUNDS))


@pytest.mark.parametrize(("threads", "told"), [(2, ""), (1, ", 1 thread"), (3, ", 3 threads")])
def test_threads_are_told(threads, told):
    """The number of threads stands above the tables, if it is not that of the cores."""
    facts = {**results(*ROUNDS), "threads": threads}

    assert f"a processor, 2 cores{told}, Python" in bench_tables.render(facts)


@pytest.mark.parametrize("path", sorted((ROOT / "tools" / "results").glob("*-avx2.json")), ids=lambda path: path.stem)
def test_old_results(path):
    """The files from before the FMA peak still have their tables."""
    text = bench_tables.render(json.loads(path.read_text("utf-8")))

    assert "**Installed size" in text
    assert "FMA" not in text


def test_table_of_the_page():
    """The table in docs/performance.md is the one of its results file."""
    facts = json.loads((ROOT / "tools" / "results" / "cpu-avx512.json").read_text("utf-8"))
    page = (ROOT / "docs" / "performance.md").read_text("utf-8").replace("MiniLM,", "minilm,")

    for where, cells in read_table(facts, "Throughput, as a multiple").items():
        assert f"| {where} | {' | '.join(cells)} |" in page


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
    text = bench_run.as_json(facts)

    assert json.loads(text) == facts
    assert sum('"round"' in line for line in text.splitlines()) == len(ROUNDS)


# ---------------------------------------------------------------- a run


def test_failure_of_a_worker_is_its_last_word():
    """A worker that fails gives its exception, without the machine's folders."""
    task = {"measure": "packages", "packages": ["no-such-package"]}

    assert "no-such-package" in bench_work.work(Path(sys.executable), bench_work.FACTS, task)["error"]


def test_absent_environment():
    """A peer without an environment is missing, not an error of the run."""
    error = {"error": "there is no environment for it"}

    assert bench_work.work(Path("absent/python"), bench_work.FACTS, {}) == error


def test_variables_of_a_worker(tmp_path, monkeypatch):
    """A worker has the variables of the run, and not the user's own choice of threads and kernels."""
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "MINIBERT_KERNELS", "OPENBLAS_CORETYPE", "OTHER"):
        monkeypatch.setenv(name, "9")
    program = tmp_path / "program.py"
    program.write_text("import json, os\nprint(json.dumps(dict(os.environ)))", "utf-8")
    found = bench_work.work(Path(sys.executable), program, {}, {"RAYON_NUM_THREADS": "3"})

    assert (found["OTHER"], found["RAYON_NUM_THREADS"], found["HF_HUB_OFFLINE"]) == ("9", "3", "1")
    assert not {"OMP_NUM_THREADS", "MINIBERT_KERNELS", "OPENBLAS_CORETYPE"} & set(found)


def write_model(folder):
    """Write a small model, with the files that a run reads."""
    model = copy_twin(folder / "models" / "builtin")
    vocabulary = {token: i for i, token in enumerate((model / "vocab.txt").read_text("utf-8").splitlines())}
    BertWordPieceTokenizer(vocabulary).save(str(model / "tokenizer.json"))
    edit_json(model / "sentence_bert_config.json", max_seq_length=16)


@LINUX
def test_run(tmp_path):
    """A run of minibert alone on a small model fills each table, and skips the peers that are not installed."""
    write_model(tmp_path)
    texts = tmp_path / "mixed.txt"
    texts.write_text("a text\nanother text\n", "utf-8")
    out = tmp_path / "results.json"
    command = [sys.executable, str(ROOT / "tools" / "bench.py"), "run", str(tmp_path), "--texts", f"mixed={texts}"]
    options = ["--models=builtin", "--peers=minibert,openvino", "--rounds=1", "--seconds=0.01", "--out", str(out)]
    options += ["--threads=1", "--every=2", f"--other=before={sys.executable}"]
    printed = subprocess.run(
        [*command, *options, "--measure=throughput,latency,memory"], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out.read_text("utf-8"))
    peers = ["minibert", "minibert-before"]

    assert [(row["measure"], row["peer"]) for row in found["rows"]] == [
        (measure, peer) for measure in ("throughput", "latency") for peer in peers
    ]
    assert not any("error" in row for row in found["rows"]), found["rows"]
    assert found["missing"] == ["openvino: there is no environment for it"]
    assert found["threads"] == 1
    assert [list(probe["gflops"]) for probe in found["fma"]] == [found["kernels"]]
    assert found["peers"]["minibert-before"]["versions"]["minibert"]
    assert found["models"]["builtin"]["workloads"]["mixed"]["texts"] == 1
    assert str(tmp_path) not in out.read_text("utf-8")
    assert bench_tables.render(found) in printed


@LINUX
def test_tasks_of_a_run(tmp_path, monkeypatch):
    """Each peer has its Python, its kernels and the threads; a variant without kernels here is missing."""
    write_model(tmp_path)
    asked = []

    def work(python, program, task, variables=None):
        asked.append((python.name, program.name, task, variables or {}))
        answers = {"kernels": {"kernels": ["avx2"]}, "packages": {"packages": {"numpy": {"version": "2", "bytes": 1}}}}
        rates = {"fma": {"gflops": {"avx2": 9.0}}, "sgemm": {"gflops": {"1x1x1": 8.0}}}
        times = {"seconds": 1.0, "times": [1.0], "other_cpu": 0.0, "imported": 1, "peak": 2}
        return {**answers, **rates}.get(task["measure"], times)

    monkeypatch.setattr(bench_run, "work", work)
    options = argparse.Namespace(
        folder=tmp_path,
        texts={"mixed": ["a text"]},
        out=None,
        peers=["minibert", "minibert-avx512", "minibert-avx2", "minibert-numpy", "sentence-transformers"],
        other={"minibert-before": Path("old-python")},
        models=["builtin"],
        measure=["throughput"],
        rounds=2,
        seconds=0.01,
        threads=3,
        every=1,
        batch=None,
        minibert_python=Path("new-python"),
    )
    run = bench_run.Bench(options, tmp_path)
    run.run()

    encoders = [(name, task, variables) for name, program, task, variables in asked if program == "bench_peers.py"]
    assert [(name, task["peer"], variables.get("MINIBERT_KERNELS")) for name, task, variables in encoders[:5]] == [
        ("new-python", "minibert", None),
        ("new-python", "minibert-avx2", "avx2"),
        ("new-python", "minibert-numpy", "numpy"),
        ("python", "sentence-transformers", None),
        ("old-python", "minibert", None),
    ]
    assert [row["peer"] for row in run.results["rows"]][4:6] == ["minibert-before", "minibert-avx2"]
    assert {task["threads"] for _, task, _ in encoders} == {3}
    assert {variables["RAYON_NUM_THREADS"] for *_, variables in encoders} == {"3"}
    assert {(name, variables.get("PYTHONPATH")) for name, _, _, variables in asked} == {
        ("new-python", None),
        ("python", ""),
        ("old-python", ""),
    }
    assert run.results["missing"] == ["minibert-avx512: minibert has no kernels for avx512 on this machine"]
    probes = [(name, task, variables) for name, _, task, variables in asked if task["measure"] in {"fma", "sgemm"}]
    assert [task["measure"] for _, task, _ in probes] == ["fma", "sgemm"] * 2
    assert all(name == "new-python" and task["threads"] == 3 for name, task, _ in probes)
    assert all(variables["OPENBLAS_NUM_THREADS"] == "3" for *_, variables in probes)
    assert run.results["fma"] == [{"gflops": {"avx2": 9.0}}] * 2
