"""EmbedBatch and embed_partitions: batches of any library, and real engines where they are installed."""

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from jobs_support import TEXTS
from support import ROOT, needs, twin

from minibert import SentenceEncoder
from minibert.jobs import EmbedBatch, batches, embed_partitions


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Let each test begin without encoders."""
    monkeypatch.setattr(batches, "_ENCODERS", {})


@pytest.fixture(scope="module")
def model():
    """Return the folder of a small model."""
    return twin("BertModel-128d")


def test_dict(model, encoder):
    """A dict of columns gets an array; it keeps its columns and is not changed."""
    batch = {"id": np.arange(25), "text": np.array(TEXTS, object), "embedding": None}
    result = EmbedBatch(model)(batch)

    assert list(result) == ["id", "text", "embedding"]
    np.testing.assert_array_equal(result["embedding"], encoder.encode(TEXTS))
    assert batch["embedding"] is None
    assert EmbedBatch(model, output="v")({"text": []})["v"].shape == (0, 16)


@pytest.mark.parametrize("kind", ["Table", "RecordBatch"])
def test_arrow(model, encoder, kind):
    """A table or a record batch gets a column of lists of a fixed size; an old column is replaced in its place."""
    pa = needs("pyarrow")
    batch = getattr(pa, kind).from_arrays([pa.array(TEXTS), pa.array(range(25))], names=["text", "n"])
    result = EmbedBatch(model, normalize=True, truncate_dim=5)(batch)

    assert type(result) is type(batch)
    assert result.schema.names == ["text", "n", "embedding"]
    assert result.schema.field("embedding").type == pa.list_(pa.float32(), 5)
    vectors = np.array(result.column("embedding").to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=5))
    again = EmbedBatch(model, output="n")(result)
    assert again.schema.names == ["text", "n", "embedding"]
    assert again.schema.field("n").type == pa.list_(pa.float32(), 16)
    assert EmbedBatch(model)(batch.slice(0, 0)).num_rows == 0


def test_pandas(model, encoder):
    """A DataFrame gets a column of arrays, in the order of its rows, with any index."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"text": TEXTS}, index=range(25, 0, -1))
    result = EmbedBatch(model)(frame)

    np.testing.assert_array_equal(np.stack(list(result["embedding"])), encoder.encode(TEXTS))
    assert list(frame.columns) == ["text"]


def test_kinds(model):
    """The kind chooses the prompt of encode_query or encode_document."""
    encoder = SentenceEncoder(model, prompts={"query": "the hat: ", "document": "a cat: "})
    for kind in ("query", "document"):
        embed = EmbedBatch(model, kind=kind)
        batches._ENCODERS[(str(model), None, "ignore", None, None)] = encoder
        expected = getattr(encoder, f"encode_{kind}")(TEXTS)
        np.testing.assert_array_equal(embed({"text": TEXTS})["embedding"], expected)
    with pytest.raises(ValueError, match="kind must be one of"):
        EmbedBatch(model, kind="passage")


def test_refused(model):
    """A null and a batch of an unknown type are errors."""
    pa = needs("pyarrow")
    with pytest.raises(TypeError, match="item 1 is a missing value"):
        EmbedBatch(model)(pa.table({"text": ["a", None]}))
    with pytest.raises(TypeError, match="a batch must be a pyarrow table, a DataFrame or a dict"):
        EmbedBatch(model, column=0)([["a"]])


def test_one_encoder_for_each_process(model):
    """Equal arguments share an encoder. What is pickled has no weights."""
    one, two = EmbedBatch(model), pickle.loads(pickle.dumps(EmbedBatch(model, normalize=True)))  # noqa: S301
    one({"text": ["a"]})
    two({"text": ["a"]})
    assert len(batches._ENCODERS) == 1
    EmbedBatch(model, truncate_dim=3)({"text": ["a"]})
    assert len(batches._ENCODERS) == 2
    assert len(pickle.dumps(one)) < 1000


class FakeRay:
    """As much of Ray as says how many cores a worker has."""

    def __init__(self, task, cores):
        self._task, self._cores = task, cores

    def is_initialized(self):
        """Say yes."""
        return True

    def get_runtime_context(self):
        """Return the context."""
        return self

    def get_task_id(self):
        """Return the task, or None outside of one."""
        return self._task

    def get_assigned_resources(self):
        """Return the resources."""
        return {"CPU": self._cores} if self._cores else {}


def test_threads(model, monkeypatch):
    """The number of threads is what Ray or Spark assigned, unless it is given; outside of them it is the default."""
    embed = EmbedBatch(model)
    embed({"text": ["a"]})
    for library, threads in ((FakeRay("task", 3.0), 3), (FakeRay("task", 0.5), 1), (FakeRay(None, 3.0), None)):
        monkeypatch.setitem(sys.modules, "ray", library)
        batches._ENCODERS.clear()
        embed({"text": ["a"]})
        (encoder,) = batches._ENCODERS.values()
        assert encoder.num_threads == (threads or SentenceEncoder(model).num_threads)
    task = SimpleNamespace(cpus=lambda: 2)
    spark = SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "pyspark", spark)
    assert batches._assigned_cores() == 2
    spark.TaskContext.get = lambda: None  # outside of a task
    assert batches._assigned_cores() is None
    monkeypatch.setitem(sys.modules, "ray", FakeRay("task", 3.0))
    batches._ENCODERS.clear()
    EmbedBatch(model, num_threads=2)({"text": ["a"]})
    assert next(iter(batches._ENCODERS.values())).num_threads == 2


def test_partitions(model, encoder):
    """Spark's function takes and gives record batches; the vectors are lists in the last column."""
    pa = needs("pyarrow")
    given = [pa.record_batch({"n": list(range(i, i + 5)), "text": TEXTS[i : i + 5]}) for i in range(0, 25, 5)]
    found = list(embed_partitions(model)(iter([*given, given[0].slice(0, 0)])))

    assert [batch.num_rows for batch in found] == [5, 5, 5, 5, 5, 0]
    assert all(type(batch) is pa.RecordBatch for batch in found)
    assert found[0].schema == given[0].schema.append(pa.field("embedding", pa.list_(pa.float32())))
    vectors = np.array([row for batch in found for row in batch.column("embedding").to_pylist()], np.float32)
    np.testing.assert_array_equal(vectors, encoder.encode(TEXTS))


RAY = """
import sys
import numpy as np, pyarrow as pa, ray
from minibert import SentenceEncoder
from minibert.jobs import EmbedBatch, batches

class Checked(EmbedBatch):
    def __call__(self, batch):
        result = super().__call__(batch)
        (encoder,) = batches._ENCODERS.values()
        return result.append_column("threads", pa.array([encoder.num_threads] * len(batch)))

texts = [f"the man number {i} and a hat" for i in range(3000)]
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
context = ray.data.DataContext.get_current()
context.execution_options.preserve_order = True
context.enable_progress_bars = False
data = ray.data.from_arrow(pa.table({"id": range(3000), "text": texts})).repartition(5)
made = data.map_batches(
    Checked, fn_constructor_kwargs={"model": sys.argv[1]}, batch_format="pyarrow", batch_size=500, num_cpus=1,
    compute=ray.data.ActorPoolStrategy(size=1),
)
table = pa.concat_tables(ray.get(made.to_arrow_refs()))
assert table["id"].to_pylist() == list(range(3000))
assert table.schema.field("embedding").type == pa.list_(pa.float32(), 16), table.schema
vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 16)
assert np.array_equal(vectors, SentenceEncoder(sys.argv[1]).encode(texts))
assert set(table["threads"].to_pylist()) == {1}
print("as expected")
"""

SPARK = """
import sys
import numpy as np
from pyspark.sql import SparkSession
from pyspark.sql.types import ArrayType, FloatType, StructField, StructType
from minibert import SentenceEncoder
from minibert.jobs import embed_partitions

texts = [f"the man number {i} and a hat" for i in range(3000)]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
frame = spark.createDataFrame(list(enumerate(texts)), "id long, text string").coalesce(2)
schema = StructType([*frame.schema.fields, StructField("embedding", ArrayType(FloatType()))])
rows = frame.mapInArrow(embed_partitions(sys.argv[1]), schema).orderBy("id").collect()
vectors = np.array([row.embedding for row in rows], np.float32)
assert [row.text for row in rows] == texts
assert np.array_equal(vectors, SentenceEncoder(sys.argv[1]).encode(texts))
print("as expected")
"""


@pytest.mark.integrations
@pytest.mark.parametrize(("engine", "code"), [("ray", RAY), ("pyspark", SPARK)])
def test_engine(model, engine, code):
    """A real engine gives the same rows in the same order, with the same bits, in columns of the promised type."""
    needs("pyarrow")
    if engine == "pyspark" and (importlib.util.find_spec(engine) is None or shutil.which("java") is None):
        pytest.skip("no pyspark, or no Java, which Spark needs")  # CI does not install them: they are too large
    if importlib.util.find_spec(engine) is None:
        needs(engine)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"PYSPARK_PYTHON": sys.executable, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    line = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.endswith("as expected\n"), done.stderr[-3000:]
