"""The tool that measures and checks on a GPU: every stage runs dry here, on the stand-in for CuPy."""

import importlib.metadata
import json
import os
import stat
import sys
from types import SimpleNamespace

import fake_cupy
import gpu_check
import gpu_minibert
import gpu_pack
import gpu_peers
import gpu_stages
import gpu_tables
import numpy as np
import pytest
from support import ROOT, golden, twin

from minibert import SentenceEncoder
from minibert.engine import products

pytestmark = pytest.mark.tools
CARD = "BertModel-128d"
NCU = """"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","attention(int)","dram__throughput.avg","%","40"
"0","attention(int)","gpu__time_duration.sum","ns","3,000"
"0","attention(int)","sm__throughput.avg","%","20"
"1","attention(int)","dram__throughput.avg","%","80"
"1","attention(int)","gpu__time_duration.sum","us","1"
"1","attention(int)","sm__throughput.avg","%","60"
"2","gemm","dram__throughput.avg","%","10"
"2","gemm","gpu__time_duration.sum","us","9"
"2","gemm","sm__throughput.avg","%","90"
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return the arguments of ``pack``: a tiny model, and files as small."""
    folder = tmp_path_factory.mktemp("sources")
    _, texts = golden(CARD)
    words = " ".join(texts).split()
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 12)) for _ in range(400)]
    (folder / "corpus.txt").write_text("\n".join(lines), "utf-8")
    rows = [f'"{a}","{b}",{score}' for score, (a, b) in enumerate(zip(lines[:8], lines[8:16], strict=True))]
    (folder / "sts.csv").write_text("\n".join(rows).replace('""', "'"), "utf-8")
    arguments = ["--minilm", twin(CARD), "--stsb", folder / "sts.csv", "--texts", folder / "corpus.txt"]
    return [*map(str, arguments), "--count", "8"]


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    """Return a packed folder."""
    folder = tmp_path_factory.mktemp("packed") / "pack"
    assert gpu_check.main(["pack", str(folder), *sources]) == 0
    return folder


@pytest.fixture
def run(packed, tmp_path, monkeypatch, request, executor):
    """Return a function that runs stages dry, and returns the exit status and the record."""
    folder = os.environ.get("MINIBERT_EXECUTOR_FOLDER") or request.config.cache.mkdir("executor")
    monkeypatch.setenv("MINIBERT_EXECUTOR_FOLDER", str(folder))

    def run_stages(stages, *more, pack=packed):
        arguments = ["run", str(pack), "--out", str(tmp_path), "--stages", stages, "--models", "minilm", "--dry"]
        status = gpu_check.main([*arguments, *more])
        return status, json.loads((tmp_path / "results.json").read_text("utf-8"))

    return run_stages


def rows_of(record, stage, **where):
    """Return the rows of a stage that have these values."""
    rows = record["stages"][stage]["rows"]
    return [row for row in rows if all(row.get(key) == value for key, value in where.items())]


# ---------------------------------------------------------------- the folder


def test_what_is_packed(packed):
    """The folder has the model in float16, the CPU's vectors, distinct texts of the right lengths, and their hashes."""
    gpu_pack.check(packed)
    texts = gpu_pack.read_texts(packed)
    encoder = SentenceEncoder(packed / "minilm", on_truncate="ignore")
    lengths = {kind: [len(row) for row in gpu_minibert.token_rows(encoder, some)] for kind, some in texts.items()}
    every = [text for some in texts.values() for text in some]

    assert np.load(packed / "sts.npy").shape == (16, 16)
    assert {kind: len(some) for kind, some in texts.items()} == {"short": 8, "mixed": 8, "tokens128": 8, "long": 1}
    assert len(set(every)) == len(every)
    assert np.abs(np.array(lengths["tokens128"]) - 128).max() <= 12
    assert max(lengths["short"]) < 40
    assert lengths["long"][0] >= 500
    assert json.loads((packed / "manifest.json").read_text("utf-8"))["commit"]


def test_a_changed_file_is_found(packed, tmp_path):
    """A file that is not as it was packed is named."""
    manifest = json.loads((packed / "manifest.json").read_text("utf-8"))
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"sts.csv": manifest["files"]["sts.csv"]}}), "utf-8")
    (tmp_path / "sts.csv").write_text("other", "utf-8")

    with pytest.raises(gpu_pack.PackError, match=r"sts\.csv is not the file that was packed"):
        gpu_pack.check(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--most", "0.01"], "must have at most 10,485 bytes; it would have"),
        (["--count", "80000"], "is too short"),
    ],
)
def test_what_cannot_be_packed(sources, tmp_path, capsys, more, message):
    """A folder that would be too large, or lack texts, is refused, and nothing is left of it."""
    with pytest.raises(SystemExit):
        gpu_check.main(["pack", str(tmp_path / "pack"), *sources, *more])

    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_seeded_model(packed):
    """A model from a seed is one that minibert reads, with MiniLM's vocabulary and its own sizes; it is made once."""
    folder = gpu_pack.seeded_model(packed, "base", dry=True)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    encoder = SentenceEncoder(folder)

    assert encoder.encode(["A text.", "Another one."]).shape == (2, 32)
    assert encoder.max_seq_length == 512
    assert gpu_pack.seeded_model(packed, "base", dry=True) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


# ---------------------------------------------------------------- the stages


def test_versions(run):
    """The record says what computed, and what a dry run cannot say."""
    status, record = run("versions")
    (packages,) = rows_of(record, "versions", what="packages")

    assert status == 0
    assert record["dry"]
    assert packages["numpy"] == np.__version__
    assert rows_of(record, "versions", what="gpu")[0]["skipped"]
    assert rows_of(record, "versions", what="pack")[0]["packed"]


@pytest.mark.slow
def test_accuracy(run):
    """Each precision is as near to the CPU as it must be, and each golden file is read.

    The packed float16 weights are the CPU's own, so float32 on the stand-in differs by rounding alone.
    """
    status, record = run("accuracy")
    largest = {row["dtype"]: row["largest_packed"] for row in rows_of(record, "accuracy", device="cuda")}
    errors = {dtype: [row["rms"] for row in rows_of(record, "accuracy", golden=dtype)] for dtype in largest}

    assert status == 0
    assert rows_of(record, "accuracy", device="cpu")[0]["largest_packed"] == 0
    assert largest["float32"] < 1e-5 < largest["float16"] < largest["bfloat16"] < 0.1
    assert {dtype: len(each) for dtype, each in errors.items()} == dict.fromkeys(errors, 6)
    assert max(errors["float32"]) < 1e-6 < min(errors["float16"])
    assert max(errors["float16"]) < min(errors["bfloat16"])
    for dtype in errors:
        plain, recorded = rows_of(record, "accuracy", bits=dtype)
        assert (plain["together"], plain["graphs"], plain["ok"]) == (0, 0, True)
        assert (recorded["together"], recorded["unlike_unrecorded"], recorded["ok"]) == (0, 0, True)
        assert recorded["graphs"] > 0


@pytest.mark.slow
def test_products(run):
    """Each product is timed, and each algorithm tried: the stand-in's first one has other bits for few rows."""
    status, record = run("products")
    rows = rows_of(record, "products", model="minilm")
    sums = [row for row in record["stages"]["products"]["rows"] if "float32" in row]

    assert status == 0
    assert [row["product"] for row in rows] == [name for name in ("qkv", "output", "up", "down") for _ in range(3)]
    assert {(row["rows"], row["tried"], row["same_bits"]) for row in rows if "rows" in row} == {(64, 3, 3), (128, 3, 3)}
    assert all(row["chosen_tflops"] > 0 and row["first_us"] > 0 for row in rows if "rows" in row)
    assert [row["of_rows"] for row in rows if "share" in row] == [
        {"1": [2, 3], "16": [2, 3], "64": [3, 3], "128": [3, 3]}
    ] * 4
    assert {row["share"] for row in rows if "share" in row} == {round(10 / 12, 4)}
    assert [row["parts"] for row in sums] == [1, 3, 8, 1, 4, 11]
    assert max(row["rms"] for row in sums) < 1e-6
    assert all(row["rms"] > 0 and row["us"] > 0 for row in sums)


@pytest.mark.slow
def test_profile(run, tmp_path, monkeypatch):
    """Every kernel and product of a pass is there, with its calls; and Nsight Compute's counters where it answers."""
    ncu = tmp_path / "bin" / "ncu"
    ncu.parent.mkdir()
    ncu.write_text(
        f"#!{sys.executable}\nimport subprocess, sys\n"
        f"code = subprocess.call([sys.executable, *sys.argv[sys.argv.index({sys.executable!r}) + 1 :]])\n"
        f"print({NCU!r})\nsys.exit(code)\n",
        "utf-8",
    )
    ncu.chmod(ncu.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{ncu.parent}{os.pathsep}{os.environ['PATH']}")
    status, record = run("profile")
    marks = {row["op"].split("<")[0]: row for row in rows_of(record, "profile", by="marks")}
    rows = marks.pop("pass")["rows"]
    kernels = {name: row["calls"] for name, row in marks.items()}

    assert status == 0
    assert kernels["embed_layer_norm"] == kernels["pool"] == 1
    assert sum(row["share"] for row in marks.values()) == pytest.approx(1, abs=0.01)
    assert any(name.startswith("attention") and calls == 2 for name, calls in kernels.items())
    assert kernels[f"matmul {rows}x16 @ 16x48"] == 2
    assert [row["op"] for row in rows_of(record, "profile", by="ncu")] == ["gemm", "attention"]


@pytest.mark.slow
def test_sweep(run):
    """Each budget and number of streams has a rate on the device alone and one from strings."""
    status, record = run("sweep")
    rows = rows_of(record, "sweep")

    assert status == 0
    assert [(row["budget"], row["streams"]) for row in rows] == [(4096, 1), (4096, 2), (8192, 1), (8192, 2)]
    assert all(row["device_tokens_s"] > 0 and row["strings_tokens_s"] > 0 for row in rows)


@pytest.mark.slow
def test_throughput_and_peers(run):
    """Our rows are there in any case; the peer has rows, or a reason; the table has the numbers."""
    status, record = run("throughput,peers")
    peer = not gpu_peers.missing(gpu_peers.AT_BEST)
    own = rows_of(record, "throughput", model="minilm", peer="minibert")
    table = gpu_tables.render(record)
    tokens_s = rows_of(record, "peers", kind="mixed", peer="minibert")[0]["tokens_s"]

    latency = [(row["about"], row["graphs"]) for row in own if row["measure"] == "latency"]

    assert status == 0
    assert [row["measure"] for row in own] == ["memory", "device", "device", *["latency"] * 6]
    assert latency == [(about, graphs) for graphs in (False, True) for about in (8, 32, 128)]
    assert [row["cached"] for row in rows_of(record, "throughput", measure="start", peer="minibert")] == [False, True]
    assert f"| minilm, mixed | {tokens_s:,} |" in table
    if peer:
        others = rows_of(record, "peers", kind="mixed")
        assert {row["peer"] for row in others} >= {"minibert", "as called", "at its best"}
        assert min(row["min_cosine"] for row in others) > 0.999
    else:
        assert rows_of(record, "throughput", model="minilm", peer="sentence-transformers")[0]["skipped"]


@pytest.mark.slow
def test_compiled(run):
    """The transformer was really compiled; without torch, that is said."""
    status, record = run("compiled")
    (row,) = rows_of(record, "compiled")

    assert status == 0
    assert "skipped" in row if gpu_peers.missing(gpu_peers.AT_BEST) else row["graphs"] >= 1


@pytest.mark.slow
def test_tests_and_sanitizer(run, tmp_path):
    """The tests' summary is kept, with the whole log beside it; without the sanitizer, the reason is."""
    status, record = run("tests,sanitizer")
    (row,) = rows_of(record, "tests")

    assert status == 0
    assert row["ok"]
    assert "1 passed" in row["summary"]
    assert "1 passed" in (tmp_path / "tests-0.log").read_text("utf-8")
    assert [row["tool"] for row in rows_of(record, "sanitizer")] == list(gpu_stages.SANITIZERS)


# ---------------------------------------------------------------- failures


def test_a_failure_does_not_stop_the_next(run, tmp_path):
    """A stage that fails is told with its exception, the next one runs, and a repeated stage replaces only itself."""
    status, record = run("versions,accuracy", pack=tmp_path / "nothing")
    assert status == 1
    assert "sts.csv" in record["stages"]["accuracy"]["rows"][0]["error"]
    assert record["stages"]["accuracy"]["error"] == "exit status 1"

    status, again = run("versions")
    assert status == 0
    assert not any("error" in row for row in again["stages"]["versions"]["rows"])
    assert again["stages"]["accuracy"] == record["stages"]["accuracy"]


def test_a_stage_that_hangs_is_ended(run, monkeypatch):
    """A process that goes on long after its time is ended, and what it had found is kept."""

    class Hanging(gpu_check.subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is not None:
                while not any('"packages"' in path.read_text("utf-8") for path in self.folder.glob("versions.json")):
                    gpu_check.time.sleep(0.02)
                raise gpu_check.subprocess.TimeoutExpired("stage", timeout)
            return super().wait()

    def popen(command, **options):
        process = Hanging(command, **options)
        process.folder = gpu_check.Path(json.loads(command[-1])["out"]).parent
        return process

    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    status, record = run("versions", "--seconds", "10")

    assert status == 1
    assert record["stages"]["versions"]["error"] == "it was ended after 32 s"
    assert rows_of(record, "versions", what="packages")


@pytest.fixture
def stage(packed, tmp_path, monkeypatch):
    """Return a stage, without the stand-in."""
    monkeypatch.setattr(gpu_minibert, "stand_in", lambda: None)
    return gpu_stages.Stage(tmp_path / "rows.json", packed, ["minilm"], 100, quick=True, dry=True)


def test_rows_are_on_disk_at_once(stage):
    """What a measurement found before it failed is in the file, and then the failure; the next one still begins."""

    def fail():
        yield {"first": 1}
        assert json.loads(stage.out.read_text("utf-8")) == [{"what": "a", "first": 1}]
        raise MemoryError("no memory")

    stage.attempt({"what": "a"}, fail)
    stage.attempt({"what": "b"}, lambda: [{"second": 2}])

    assert json.loads(stage.out.read_text("utf-8")) == [
        {"what": "a", "first": 1},
        {"what": "a", "error": "MemoryError: no memory"},
        {"what": "b", "second": 2},
    ]


def test_time_is_limited(stage):
    """When the time is over, the next row is not measured, and it is said."""

    def measure():
        yield {"first": 1}
        stage.began -= 1000
        yield {"second": 2}
        raise AssertionError("a third row was measured")

    stage.attempt({"what": "a"}, measure)
    stage.attempt({"what": "b"}, measure)
    over = "the stage's 100 s are over"

    assert stage.rows[:2] == [{"what": "a", "first": 1}, {"what": "a", "second": 2}]
    assert stage.rows[2:] == [{"what": "a", "skipped": over}, {"what": "b", "skipped": over}]


@pytest.fixture
def on_stand_in(executor, monkeypatch, tmp_path):
    """Put the stand-in for CuPy into this process."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    fake_cupy.install(monkeypatch, executor)


def test_a_peer_that_cannot_be_loaded(stage, on_stand_in, monkeypatch):
    """It is named with the reason, and the others are measured."""

    def load(_folder, name, *, dry):
        assert dry
        raise OSError(f"{name} needs a network")

    monkeypatch.setattr(gpu_peers, "missing", lambda name: "" if name == gpu_peers.UNPADDED else "not here")
    monkeypatch.setattr(gpu_peers, "load", load)
    first, *rows = gpu_stages.alternate(stage, "minilm")

    assert first == {"peer": "unpadded", "skipped": "OSError: unpadded needs a network"}
    assert [(row["kind"], row["peer"]) for row in rows] == [(kind, "minibert") for kind in gpu_pack.KINDS]


@pytest.mark.slow
def test_other_bits_in_a_batch_are_found(stage, on_stand_in, monkeypatch):
    """Where algorithms are used that sum few rows in another order, the check of bits fails, with their number."""
    monkeypatch.setattr(products._Trial, "repeats", lambda *_: True)
    plain, recorded = gpu_stages.compare_bits(stage, "float32")

    assert plain["together"] > 0
    assert (plain["unlike_unrecorded"], recorded["unlike_unrecorded"]) == (0, 0)
    assert (plain["ok"], recorded["ok"]) == (False, False)


# ---------------------------------------------------------------- arithmetic


def test_counters():
    """Times are summed in microseconds, and shares are means weighted by time."""
    rows = gpu_stages.read_counters(f"==PROF== Connected\n{NCU}")

    assert rows == [
        {"op": "gemm", "calls": 1, "us": 9, "dram_pct": 10, "sm_pct": 90},
        {"op": "attention", "calls": 2, "us": 4, "dram_pct": 50, "sm_pct": 30},
    ]
    with pytest.raises(RuntimeError, match="ERR_NVGPUCTRPERM"):
        gpu_stages.read_counters("==ERROR== ERR_NVGPUCTRPERM")


def test_share_of_the_ceiling():
    """The share is that of all products of the pass, in the median time, of the measured rate."""
    config = {"hidden_size": 4, "intermediate_size": 16, "num_hidden_layers": 2}
    flops = 2 * (24 * 4**2 * 5 + 4 * 4 * (9 + 4))
    row = gpu_stages.device_row([3, 2], config, [9.0, 2.0, 1.0], [flops])

    assert (row["tokens"], row["seconds"], row["share"]) == (5, 2, 0.5)


def test_what_an_operation_is():
    """A product has its shapes, its operations and its traffic; a kernel its name; anything else the method's."""
    x, weight, out = (np.empty(shape) for shape in ((5, 4), (4, 3), (5, 3)))

    assert gpu_minibert.describe("matmul", (x, weight, out)) == ("matmul 5x4 @ 4x3", 120, 20 + 12 + 15)
    assert gpu_minibert.describe("launch", (SimpleNamespace(name="pool<float>"),)) == ("pool<float>", 0, 0)
    assert gpu_minibert.describe("upload", (x,)) == ("upload", 0, 0)
    assert gpu_minibert.traffic_of("attention<float16, 32>") == (4, 0)
    assert gpu_minibert.traffic_of("unheard_of<float>") == (0, 0)


def test_batches_for_the_device_alone(packed):
    """All tokens are there, once, the longest text first, and no batch of several texts is over the budget."""
    encoder = SentenceEncoder(packed / "minilm", on_truncate="ignore")
    texts = gpu_pack.read_texts(packed)["mixed"]
    batches = gpu_minibert.prepare(encoder, texts, 100)
    lengths = [length for batch in batches for length in batch.lengths]

    assert lengths == sorted(map(len, gpu_minibert.token_rows(encoder, texts)), reverse=True)
    assert len(batches) > 1
    assert all(sum(batch.lengths) <= 100 or len(batch.lengths) == 1 for batch in batches)
    assert [len(batch.ids) for batch in batches] == [sum(batch.lengths) for batch in batches]


def test_the_best_batch_is_the_fastest(monkeypatch):
    """Of each size the better of two passes counts."""
    clock = iter(np.cumsum([0, 9, 0, 2, 0, 3, 0, 3]).tolist())
    monkeypatch.setattr(gpu_peers.time, "perf_counter", lambda: next(clock))

    assert gpu_peers.best_batch(lambda _: None, dry=True) == (2, {"2": 2, "4": 3})


def test_a_folder_is_no_package():
    """The folder ``kernels`` of the checkout, which can be imported from there, is not the package of that name."""
    assert (ROOT / "kernels").is_dir()
    assert gpu_peers.installed("numpy")
    assert gpu_peers.installed("kernels") == any(importlib.metadata.distributions(name="kernels"))


def test_the_tables_are_of_the_record():
    """Numbers of the record are in the tables, rows that failed are not, and empty tables are left out."""
    device = {"model": "base", "measure": "device", "share": 0.55}
    record = {
        "date": "2026-01-02",
        "dry": False,
        "stages": {
            "versions": {"quick": True, "rows": [{"what": "gpu", "name": "A GPU"}, {"commit": "abc"}]},
            "throughput": {
                "quick": False,
                "rows": [
                    {**device, "peer": "minibert", "tokens_s": 2000, "seconds": 2},
                    {**device, "peer": "minibert", "tokens_s": 3000, "seconds": 1},
                    {**device, "peer": "sentence-transformers", "tokens_s": 1000, "seconds": 1},
                    {"model": "large", "peer": "minibert", "error": "MemoryError"},
                ],
            },
        },
    }
    text = gpu_tables.render(record)

    assert text.startswith("2026-01-02: A GPU, minibert at abc. Quick: versions.")
    assert "| base | 3,000 | 55% | 1,000 | 55% | - | 3.00 |" in text
    assert "large" not in text
    assert "Latency" not in text
