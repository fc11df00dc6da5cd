"""Row rules: what experiments with a BLAS find, and that it holds for numpy's own, for each of OpenBLAS's kernels."""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from packed_cases import RULES, cast, random_model, rule_of
from support import ROOT

from minibert.config import BertConfig
from minibert.engine import packed, rows
from minibert.engine.fused_numpy import FusedCpu
from minibert.engine.packing import Packing
from minibert.engine.rows import rule_for
from minibert.engine.threads import blas_name, one_blas_thread

SHAPES = [(16, 48), (20, 80), (80, 20), (128, 384), (512, 128), (384, 384), (384, 1536), (768, 768)]
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])

# ---------------------------------------------------------------- made-up BLAS libraries

#: What a BLAS does with row i of n, as the number of the way in which it takes the sums; and the rule to be found.
LIBRARIES = pytest.mark.parametrize(
    ("library", "classes"),
    [
        pytest.param(lambda i, _: 0 * i, (0,), id="the same for all"),
        pytest.param(lambda i, n: i >= n // 4 * 4, (0,) * 4, id="tiles of 4, the rest otherwise"),
        pytest.param(
            lambda i, n: np.where(i < n // 12 * 12, i % 12 // 6, 2),
            (0,) * 6 + (1,) * 6,
            id="halves of tiles of 12, the rest otherwise",
        ),
        pytest.param(
            lambda i, n: np.where(i < n // 8 * 8, i % 8 % 3, 3), (0, 1, 2, 0, 1, 2, 0, 1), id="three ways in tiles of 8"
        ),
        pytest.param(lambda i, n: 0 * i + (n < 10), (0,) * 12, id="few rows otherwise"),
        pytest.param(lambda i, _: i % 7, (), id="a period that is not tried"),
        pytest.param(lambda i, _: i == 0, (), id="the first row otherwise"),
        pytest.param(lambda i, n: 0 * i + n, (), id="as many ways as rows"),
    ],
)


class Rows(np.ndarray):
    """A matrix whose products show nothing but the way in which the BLAS under test takes the sums of each row."""

    def __matmul__(self, weight):
        """Return the number of the way in all columns."""
        ways = self.library(np.arange(len(self)), len(self))
        return np.repeat(ways[:, None], weight.shape[1], axis=1).astype(weight.dtype)


@pytest.fixture
def install(monkeypatch):
    """Return a function that makes the products under experiment those of a made-up BLAS."""
    repeated = rows._repeated

    def install(library):
        monkeypatch.setattr(Rows, "library", staticmethod(library), raising=False)
        monkeypatch.setattr(rows, "_repeated", lambda row, count: repeated(row, count).view(Rows))

    rows._rule_of_shape.cache_clear()
    yield install
    rows._rule_of_shape.cache_clear()


@LIBRARIES
def test_rule_of_a_library(install, library, classes):
    """The rule has the shortest period that explains all products, and equal classes for equal bits; or none."""
    install(library)

    assert rule_for([(8, 8)], "float32").classes == classes


@pytest.mark.parametrize(
    ("second_thread", "threads"),
    [
        pytest.param(lambda i, _: i < 0, True, id="never"),
        pytest.param(lambda i, n: i >= n // 2, False, id="takes half of the rows"),
        pytest.param(lambda i, n: (i >= n // 2) & (n >= 200), False, id="takes half of 200 rows"),
    ],
)
def test_threads_of_a_library(install, monkeypatch, second_thread, threads):
    """The classes are those of one thread; whether more threads change bits is said beside them."""
    limited = []

    @contextlib.contextmanager
    def one_thread():
        limited.append(True)
        yield
        limited.pop()

    monkeypatch.setattr(rows, "one_blas_thread", one_thread)
    install(lambda i, n: 0 * i if limited else 0 + second_thread(i, n))
    rule = rule_for([(8, 8)], "float32")

    assert rule.classes == (0,)
    assert rule.threads == threads


def test_experiments_are_made_once(install):
    """Each shape and precision is tried out once in a process."""
    tried = []
    install(lambda i, n: tried.append(n) or 0 * i)
    rule = rule_for([(8, 8), (8, 4)], np.float32)
    before = len(tried)

    assert rule_for([(8, 4), (8, 8), (8, 4)], "float32") == rule
    assert len(tried) == before


# ---------------------------------------------------------------- several shapes


@pytest.mark.parametrize(
    ("parts", "together"),
    [
        ([(0,), (0,)], (0,)),
        ([(0, 0, 1, 1), (0,)], (0, 0, 1, 1)),
        ([(0, 0, 1, 1), (0, 1)], (0, 1, 2, 3)),
        ([(0, 1), (0, 0, 0)], (0, 1, 0, 1, 0, 1)),
        ([(0, 1), (0, 1, 1)], (0, 1, 2, 3, 2, 1)),
        ([(0, 0, 1, 1), (0, 1, 1, 1), (0, 1)], (0, 1, 2, 3)),
        ([(0, 1), ()], ()),
    ],
    ids=str,
)
def test_rules_together(monkeypatch, parts, together):
    """The rule for several shapes tells rows apart that one of theirs does, with the least common period."""
    found = {(8, i): rule_of(*classes) for i, classes in enumerate(parts)}
    monkeypatch.setattr(rows, "_rule_of_shape", lambda inputs, outputs, _: found[inputs, outputs])

    assert rule_for(found, np.float32).classes == together


def test_rule_covers_every_product_of_a_model(monkeypatch):
    """The shapes that are tried out for a model are those of all products in its forward pass."""
    config = BertConfig(
        vocab_size=9, hidden_size=400, num_attention_heads=2, num_hidden_layers=2, intermediate_size=900
    )
    tried, used = set(), set()
    monkeypatch.setattr(packed, "rule_for", lambda shapes, _: tried.update(shapes))
    packed.row_rule(config, np.float32)
    matmul = np.matmul

    def spy(x, weight, **options):
        if weight.ndim == 2:
            used.add(weight.shape)
        return matmul(x, weight, **options)

    monkeypatch.setattr(np, "matmul", spy)
    packing = Packing.of([3, 5], [0, 0], RULES["any row"])
    model = packed_model(config, np.float32)
    for first in (None, packing.first_tokens([0, 0], RULES["any row"])):
        packed.bert(model, config, np.arange(8), packing, FusedCpu(np.float32), first)

    assert used == tried


# ---------------------------------------------------------------- numpy's own BLAS


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "parts of larger matrices"])
def test_rule_holds(dtype, shape, whole):
    """Equal rows among random ones, in rows of the same class, have the same bits in products of many sizes."""
    rule = rule_for([shape], dtype)
    if not rule.classes:
        pytest.skip(f"no rule was found for {blas_name()}")
    inputs, outputs = shape
    rng = np.random.default_rng(1)
    row = rng.standard_normal(inputs).astype(dtype)
    weight = rng.standard_normal((inputs, 2 * outputs)).astype(dtype)[:, outputs:]
    seen = {}
    for tiles in (1, 2, 3, 5, 8, 21, 43, 100):
        count = max(2, tiles * rule.period)
        x = rng.standard_normal((count, 2 * inputs)).astype(dtype)[:, inputs:]
        places = rng.permutation(count)[: max(24, count // 8)]
        x[places] = row
        with one_blas_thread():
            product = np.ascontiguousarray(x) @ np.ascontiguousarray(weight) if whole else x @ weight
        for place in places:
            seen.setdefault(rule.classes[place % rule.period], set()).add(product[place].tobytes())

    assert [len(bits) for bits in seen.values()] == [1] * len(set(rule.classes))


@DTYPES
def test_threads_of_a_rule(dtype):
    """Where a rule says that BLAS may use threads, the bits of a text of up to 512 tokens are those of one thread."""
    rng = np.random.default_rng(1)
    for shape in [shape for shape in SHAPES if rule_for([shape], dtype).threads]:
        period = rule_for([shape], dtype).period
        weight = rng.standard_normal(shape).astype(dtype)
        x = rng.standard_normal((512 + period, shape[0])).astype(dtype)
        for count in {-(-least // period) * period for least in [2, 7, 12, 30, *range(64, 513, 32)]}:
            with one_blas_thread():
                product = x[:count] @ weight
            np.testing.assert_array_equal(x[:count] @ weight, product)


CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=384,
    num_hidden_layers=2,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=64,
)


def packed_model(config, dtype):
    """Return a model with random parameters, laid out for the packed forward pass."""
    model = cast(random_model(config), dtype)
    layers = tuple(packed.pack_layer(layer, config.num_attention_heads) for layer in model.layers)
    return packed.PackedParams(model.embeddings, layers)


@DTYPES
@pytest.mark.parametrize("first_only", [False, True], ids=["all tokens", "first tokens"])
def test_vectors_do_not_depend_on_the_batch(dtype, first_only):
    """All vectors of a text have the same bits, alone and in shuffled batches, at the widths of MiniLM."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, CONFIG.vocab_size, length) for length in [*range(1, 17), 1, 5, 5, 24, 33, 48, 48, 64]]
    model, rule, fused = packed_model(CONFIG, dtype), packed.row_rule(CONFIG, dtype), FusedCpu(dtype)

    def vectors(texts):
        """Return the bits of each text's vectors."""
        offsets = [int(ids[i].sum()) for i in texts]
        packing = Packing.of([len(ids[i]) for i in texts], offsets, rule)
        first = packing.first_tokens(offsets, rule) if first_only else None
        with one_blas_thread():
            hidden = packed.bert(model, CONFIG, np.concatenate([ids[i] for i in texts]), packing, fused, first)
        result = first or packing
        hidden = fused.in_order(hidden, result)
        return [vector.tobytes() for group in result.groups for vector in group.of(hidden)]

    alone = [vectors([i])[0] for i in range(len(ids))]
    for size in (2, 7, len(ids)):
        order = rng.permutation(len(ids)).tolist()
        batches = [order[start : start + size] for start in range(0, len(ids), size)]
        together = {i: bits for batch in batches for i, bits in zip(batch, vectors(batch), strict=True)}

        assert [i for i in together if together[i] != alone[i]] == []


#: Kernels of OpenBLAS, each with what the processor must have.
KERNELS = {"Prescott": "pni", "Nehalem": "sse4_2", "Sandybridge": "avx", "Haswell": "avx2", "SkylakeX": "avx512f"}


def child(*command, kernel=None):
    """Return the output of a Python process whose OpenBLAS uses a kernel, and fail if it fails."""
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel} if kernel else os.environ
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="the kernels are those of x86-64")
@pytest.mark.parametrize(("kernel", "needs"), KERNELS.items(), ids=KERNELS)
def test_every_kernel(kernel, needs):
    """The tests of numpy's own BLAS pass with every kernel that OpenBLAS may choose on another machine."""
    processor = Path("/proc/cpuinfo")
    if not processor.is_file() or f" {needs} " not in processor.read_text("utf-8").replace("\n", " "):
        pytest.skip(f"the processor has no {needs}, or does not tell")
    name = ["-c", "from minibert.engine.threads import blas_name; print(blas_name())"]
    default, chosen = child(*name), child(*name, kernel=kernel)
    if not chosen.startswith("openblas") or (chosen == default and kernel not in chosen):
        pytest.skip(f"numpy's BLAS has no kernel to choose: it is {default}")

    child("-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", __file__, kernel=kernel)
