"""The CUDA kernels compute what their definitions say: run on the CPU by tests/executor, and on a GPU where one is."""

import functools

import numpy as np
import pytest
from kernel_cases import (
    ANY_ROW,
    EACH_STORAGE,
    EPS,
    LENGTHS,
    Bench,
    assert_near,
    attention,
    normal,
    packing_of,
    random_norm,
)

from minibert import ops, pooling
from minibert.config import BertConfig
from minibert.engine.fused_cuda import (
    _ROW_LAYOUTS,
    ACTIVATIONS,
    POOLING_MODES,
    STORAGES,
    FusedCuda,
    Kernel,
    row_layout,
)
from minibert.engine.tables import Batch, attention_tiles, cu_seqlens, with_empty_texts, with_empty_tiles
from minibert.errors import ConfigError, TokenizerError
from minibert.params import Embeddings, LayerNorm

EACH_BIAS = pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
EACH_BATCH = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
FLOAT16 = STORAGES["float16"]
#: Multiples of 8, of 4 and of neither; with vectors of some lanes missing and not; each number of vectors a lane.
ROW_WIDTHS = [8, 36, 38, 128, 312, 384, 500, 502, 516, 768, 1024, 1536, 2048]
#: The config of the embedding tables below.
BERT = BertConfig(vocab_size=50, max_position_embeddings=16, layer_norm_eps=EPS)


# ---------------------------------------------------------------- layer norms


@EACH_STORAGE
@pytest.mark.parametrize("width", ROW_WIDTHS)
def test_embed_layer_norm(device, storage, width):
    """Word, position and type embedding of each token are added and normalized; positions count in each text."""
    bench = Bench(device, storage)
    lengths = [7, 5, 5, 1]
    tables = [normal(50, width), normal(16, width, seed=1), normal(2, width, seed=2)]
    norm = random_norm(width)
    ids = np.random.default_rng(0).integers(0, 50, sum(lengths))
    positions = np.concatenate([np.arange(length) for length in lengths])

    def definition(word, position, token_type, weight, bias, round_):
        return ops.layer_norm(word[ids] + position[positions] + token_type[0], weight, bias, EPS)

    on_device = Embeddings(*map(bench.stored, tables), LayerNorm(*map(bench.stored, norm)))
    x = bench.fused.embed_layer_norm(on_device, ids, packing_of(lengths), BERT)

    assert_near(bench.back(x), definition, bench, *map(bench.rounded, tables), *norm)


@EACH_STORAGE
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet", "distilbert"])
@pytest.mark.parametrize("padding_id", [1, 3])
def test_positions_after_the_padding_id(device, storage, kind, padding_id):
    """In RoBERTa's family, positions begin after the padding id; a token with this id has its row, and is not counted.

    MPNet always begins after 1, DistilBERT always at 0.
    """
    bench = Bench(device, storage)
    values = {"model_type": kind, "vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": padding_id}
    config = BertConfig.from_dict(values)
    after = {"mpnet": 1, "distilbert": None}.get(kind, padding_id)
    lengths = [7, 5, 0, 5, 1, 1, config.max_tokens]
    ids = np.random.default_rng(0).integers(4, 50, sum(lengths))
    ids[[0, 3, 4, 11, 14, 17]] = padding_id  # the first, some in the middle, the last, and the only one
    positions = []
    for text in np.split(ids, np.cumsum(lengths)[:-1]):
        counted = 0
        for number, token in enumerate(text):
            counted += token != after
            positions.append(number if after is None else after if token == after else after + counted)
    word, position, norm = normal(50, 24), normal(16, 24, seed=1), random_norm(24)
    zeros = np.zeros((1, 24), np.float32)

    def definition(word, position, weight, bias, round_):
        return ops.layer_norm(word[ids] + position[positions], weight, bias, config.layer_norm_eps)

    on_device = Embeddings(*map(bench.stored, (word, position, zeros)), LayerNorm(*map(bench.stored, norm)))
    x = bench.fused.embed_layer_norm(on_device, ids, packing_of(lengths), config)

    assert_near(bench.back(x), definition, bench, bench.rounded(word), bench.rounded(position), *norm)
    with pytest.raises(TokenizerError, match=f"must have at most {config.max_tokens} tokens"):
        bench.fused.embed_layer_norm(on_device, ids[:16], packing_of([config.max_tokens + 1]), config)


@EACH_STORAGE
@pytest.mark.parametrize("width", ROW_WIDTHS)
@pytest.mark.parametrize("rows", [1, 4, 5, 30])
def test_add_layer_norm(device, storage, width, rows):
    """The sum of three is normalized, in the memory of the first."""
    bench = Bench(device, storage)
    x, y, bias, norm = normal(rows, width), normal(rows, width, seed=1), normal(width, seed=2), random_norm(width)

    def definition(x, y, bias, weight, shift, round_):
        return ops.layer_norm(x + y + bias, weight, shift, EPS)

    memory = bench.stored(x)
    result = bench.fused.add_layer_norm(
        memory, bench.stored(y), bench.stored(bias), LayerNorm(*map(bench.stored, norm)), EPS
    )

    assert result is memory
    assert_near(bench.back(result), definition, bench, bench.rounded(x), bench.rounded(y), bias, *norm)


@EACH_STORAGE
@pytest.mark.parametrize("value", [0.0, 3.0, -40000.0])
def test_equal_values_become_the_shift(device, storage, value):
    """A row of equal values, however large, has no variance: what is left is the shift."""
    bench = Bench(device, storage)
    x, zeros, norm = np.full((2, 384), value, np.float32), np.zeros((2, 384), np.float32), random_norm(384)
    no_bias = np.zeros(384, np.float32)
    args = [bench.stored(each) for each in (x, zeros, no_bias)]
    result = bench.fused.add_layer_norm(*args, LayerNorm(*map(bench.stored, norm)), EPS)

    np.testing.assert_allclose(bench.back(result), bench.rounded(np.stack([norm.bias] * 2)), rtol=0, atol=1e-6)


@EACH_STORAGE
def test_layer_norm_with_a_large_mean(device, storage):
    """The variance is taken about the mean: a mean a thousand times the deviation does not drown it."""
    bench = Bench(device, storage)
    x = bench.rounded(1000 + normal(3, 768))
    zeros, norm = np.zeros((3, 768), np.float32), random_norm(768)

    def definition(x, weight, shift, round_):
        return ops.layer_norm(x, weight, shift, EPS)

    args = [bench.stored(each) for each in (x, zeros, zeros[0])]
    result = bench.fused.add_layer_norm(*args, LayerNorm(*map(bench.stored, norm)), EPS)

    assert_near(bench.back(result), definition, bench, x, *norm)


@pytest.mark.parametrize(
    ("width", "itemsize", "layout"),
    [
        (8, 2, (8, 1)),
        (384, 2, (8, 2)),
        (768, 2, (8, 3)),
        (1024, 2, (8, 4)),
        (2048, 2, (8, 8)),
        (516, 2, (4, 16)),
        (2044, 2, (4, 16)),
        (30, 2, (1, 4)),
        (128, 4, (4, 1)),
        (132, 4, (4, 3)),
        (2048, 4, (4, 16)),
        (30, 4, (1, 4)),
    ],
)
def test_row_layout(width, itemsize, layout):
    """A warp reads vectors of 16 bytes where the width allows, and the fewest a lane that there is a kernel for."""
    assert row_layout(width, itemsize) == layout


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_row_layout_is_of_vectors_that_can_be_loaded(itemsize):
    """No vector has more than 16 bytes, the widest have, and all kinds of widths up to the limits have a kernel."""
    layouts = _ROW_LAYOUTS[itemsize]

    assert max(layouts) * itemsize == 16
    assert all(row_layout(width, itemsize) for width in [*range(1, 513), *range(516, 2049, 4)])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("width", [2052, 2056, 514])
def test_too_wide_rows_are_refused(width, itemsize):
    """A hidden size for which there is no kernel is an error that says the limit."""
    with pytest.raises(ConfigError, match=f"hidden_size must be at most .* it is {width}"):
        row_layout(width, itemsize)


# ---------------------------------------------------------------- activations


@EACH_STORAGE
@pytest.mark.parametrize("width", [64, 37])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_linear_activation(device, storage, activation, width):
    """The product, the bias and the activation, as minibert.ops defines them; 16-bit GELU within 2.6e-5 besides."""
    bench = Bench(device, storage)
    x, weight, bias = normal(33, 16, size=2), normal(16, width, seed=1, size=0.5), normal(width, seed=2)

    def definition(x, weight, bias, round_):
        return ops.ACTIVATIONS[activation](round_(x @ weight) + bias)

    x, weight = bench.rounded(x), bench.rounded(weight)
    y = bench.fused.linear_activation(
        bench.stored(x), bench.stored(weight), bench.stored(bias), activation, packing_of([33]), 2**31
    )

    assert_near(bench.back(y), definition, bench, x, weight, bias)


def test_every_activation_has_a_kernel():
    """What the reference knows, the GPU knows."""
    assert ACTIVATIONS.keys() == ops.ACTIVATIONS.keys()


@pytest.mark.parametrize("storage", [STORAGES["float16"], STORAGES["bfloat16"]], ids=["float16", "bfloat16"])
def test_gelu_of_every_16_bit_number(device, storage):
    """Over all finite numbers of the type, GELU is off by at most 2.6e-5 and the rounding of the result."""
    bench = Bench(device, storage)
    numbers = storage.widen(np.arange(2**16, dtype=np.uint16).view(storage.dtype))
    numbers = numbers[np.isfinite(numbers)].reshape(-1, 8)
    one, zero = np.eye(8, dtype=np.float32), np.zeros(8, np.float32)
    args = [bench.stored(each) for each in (numbers, one, zero)]
    y = bench.back(bench.fused.linear_activation(*args, "gelu", packing_of([len(numbers)]), 2**31))
    truth = ops.gelu(numbers.astype(np.float64))
    digits = 11 if storage.name == "float16" else 8

    assert (np.abs(y - truth) <= 2.6e-5 + np.abs(truth) * 2.0**-digits).all()


# ---------------------------------------------------------------- attention


@EACH_STORAGE
@EACH_BATCH
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_attention(device, storage, lengths, size):
    """Each text attends to itself, in each head, for the head sizes that tensor cores have code for."""
    check_attention(device, storage, lengths, size)
    kernels = {"attention" if length > 16 else "attention_short" for length in lengths}

    assert kernels_of(device) == ({"attention_general"} if storage.name == "float32" else kernels)


@EACH_STORAGE
@pytest.mark.parametrize("lengths", [[1], [31, 32, 33], [15, 16, 17, 70, 2]], ids=str)
@pytest.mark.parametrize("size", [1, 7, 8, 24, 33, 48, 80, 96, 127])
def test_attention_of_any_head_size(device, storage, lengths, size):
    """The general kernel takes the other head sizes up to 128."""
    check_attention(device, storage, lengths, size)

    assert kernels_of(device) == {"attention_general"}


@EACH_STORAGE
@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0])
def test_attention_with_extreme_scores(device, storage, size, scale):
    """Equal scores, and scores far apart, give a mean, and the values of the best keys."""
    check_attention(device, storage, [70, 3], size, scale=scale)


@EACH_STORAGE
@pytest.mark.parametrize("size", [64, 20])
def test_attention_where_a_later_tile_has_the_largest_scores(device, storage, size):
    """What was summed before is rescaled: scores rise from tile to tile, by far."""
    bench = Bench(device, storage)
    tokens = 200
    k = normal(tokens, size, size=0.1)
    k[:, 0] = np.linspace(-20, 20, tokens)
    q = normal(tokens, size, size=0.1)
    q[:, 0] = 1.0
    compare_attention(bench, q, k, normal(tokens, size, seed=2), np.zeros(size, np.float32), 1, [tokens], [tokens])


@EACH_STORAGE
@pytest.mark.parametrize("size", [32, 20])
def test_attention_of_first_tokens(device, storage, size):
    """One query a text, all keys: what the last layer computes where only the first token is pooled."""
    bench = Bench(device, storage)
    keys = [70, 33, 33, 5, 1]
    q, k, v = normal(5, 2 * size), normal(sum(keys), 2 * size, seed=1), normal(sum(keys), 2 * size, seed=2)
    compare_attention(bench, q, k, v, normal(2 * size, seed=3), 2, [1] * 5, keys)


@EACH_STORAGE
@EACH_BATCH
@pytest.mark.parametrize("size", [16, 32, 64, 128, 24])
def test_attention_with_a_bias_by_distance(device, storage, lengths, size):
    """Each score gets the number of its head and of the distance from its query to its key."""
    check_attention(device, storage, lengths, size, distances=2 * max(lengths) - 1)
    kernels = {"attention" if length > 16 else "attention_short" for length in lengths}
    general = storage.name == "float32" or size == 24

    assert kernels_of(device) == ({"attention_general"} if general else kernels)


@EACH_STORAGE
@pytest.mark.parametrize("size", [1, 33, 80, 127])
def test_attention_of_any_head_size_with_a_bias_by_distance(device, storage, size):
    """The bias may have more distances than the texts."""
    check_attention(device, storage, [15, 16, 17, 70, 2], size, distances=2 * 100 - 1)

    assert kernels_of(device) == {"attention_general"}


@EACH_STORAGE
@pytest.mark.parametrize("size", [32, 24])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 30.0])
def test_attention_with_extreme_biases_by_distance(device, storage, size, scale):
    """A bias may be nothing beside the scores, or far larger than they are."""
    check_attention(device, storage, [70, 3], size, distances=2 * 70 - 1, bias_scale=scale)


@EACH_STORAGE
@pytest.mark.parametrize("size", [32, 64, 20])
@pytest.mark.parametrize("distances", [2 * 130 - 1, 2 * 300 - 1])
def test_attention_of_first_tokens_with_a_bias_by_distance(device, storage, size, distances):
    """The only query of a text is at its start: no distance is negative."""
    bench = Bench(device, storage)
    keys = [130, 70, 33, 0, 33, 5, 1]
    width = 2 * size
    q, k, v = normal(6, width), normal(sum(keys), width, seed=1), normal(sum(keys), width, seed=2)
    queries = [min(length, 1) for length in keys]
    distance_bias = normal(2, distances, seed=4, size=3)
    compare_attention(bench, q, k, v, normal(width, seed=3), 2, queries, keys, distance_bias)


def kernels_of(device):
    """Return the files of the kernels that were launched."""
    return {launch.split("<")[0] for launch in device.launches}


def check_attention(device, storage, lengths, size, scale=1.0, heads=2, distances=None, bias_scale=3.0):
    """Compare random queries, keys and values of some texts, with biases for so many distances unless None."""
    bench = Bench(device, storage)
    shape = sum(lengths), heads * size
    q, k, v = (normal(*shape, seed=seed) for seed in range(3))
    q = q * np.float32(scale * size**-0.5)
    distance_bias = None if distances is None else normal(heads, distances, seed=4, size=bias_scale)
    query_bias = normal(shape[1], seed=3, size=0.1 * scale)
    compare_attention(bench, q, k, v, query_bias, heads, lengths, lengths, distance_bias)


def compare_attention(bench, q, k, v, bias, heads, queries, keys, distance_bias=None):
    """Run the operation on slices of one wide array, as the forward pass has them, and compare."""
    q, k, v = map(bench.rounded, (q, k, v))
    width = q.shape[1]
    of_keys = packing_of(keys)
    if queries == keys:
        of_queries = of_keys
        wide = bench.stored(np.resize(np.concatenate([q, k, v], axis=1), (of_keys.rows, 3 * width)))
        on_device = [wide[:, i * width : (i + 1) * width] for i in range(3)]
    else:
        of_queries = of_keys.first_tokens([0] * len(keys), ANY_ROW)
        wide = bench.stored(np.concatenate([k, v], axis=1))
        on_device = [bench.stored(q), wide[:, :width], wide[:, width:]]
    inputs, of_distance = [q, k, v, bias], ()
    if distance_bias is not None:
        inputs, of_distance = [*inputs, distance_bias], [bench.device.upload(distance_bias)]  # in float32
    context = bench.fused.attention(*on_device, bench.stored(bias), heads, of_queries, of_keys, *of_distance)
    definition = functools.partial(attention, heads=heads, queries=queries, keys=keys)

    # attention_general adds the products of a score one by one; a BLAS does not. On an H200, its error was up
    # to 3.9 times that of the definition.
    factor = 5.0 if bench.storage.name == "float32" else 3.0
    assert_near(bench.back(context)[: len(q)], definition, bench, *inputs, factor=factor)


def test_a_head_too_large_for_shared_memory_takes_the_general_kernel(device, monkeypatch):
    """On Turing, whose blocks have 64 KiB, five tiles of 128 columns do not fit; those of short texts do."""
    monkeypatch.setattr(device, "shared_memory", 64 * 1024)
    check_attention(device, FLOAT16, [5, 17], 128)

    assert kernels_of(device) == {"attention_general", "attention_short"}


def test_attention_tiles():
    """A tile has up to 64 queries of one text; texts without tokens have none."""
    batch = Batch(None, packing_of([130, 3, 3, 0]))

    assert attention_tiles(batch, 64).tolist() == [
        [0, 130, 0, 64],
        [0, 130, 64, 64],
        [0, 130, 128, 2],
        [130, 3, 130, 3],
        [133, 3, 133, 3],
    ]


def test_attention_tiles_of_some_texts():
    """The tiles of the texts whose number of keys is within bounds; of each text, one query will do."""
    keys = packing_of([130, 16, 0, 17, 1])
    batch = Batch(None, keys, keys.first_tokens(None, ANY_ROW))

    assert attention_tiles(batch, 16, most_keys=16).tolist() == [[130, 16, 130, 16], [163, 1, 163, 1]]
    assert attention_tiles(batch, 16, most_keys=16, first=True).tolist() == [[130, 16, 1, 1], [163, 1, 3, 1]]
    assert attention_tiles(batch, 64, least_keys=17, first=True).tolist() == [[0, 130, 0, 1], [146, 17, 2, 1]]
    assert attention_tiles(batch, 16, most_keys=0).shape == (0, 4)
    assert attention_tiles(Batch(None, packing_of([])), 16).shape == (0, 4)


@pytest.mark.parametrize(("texts", "grown"), [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8)])
def test_tables_grow_to_few_lengths(texts, grown):
    """Tiles without queries, and texts without tokens, come after those that are there, up to a power of two."""
    batch = Batch(None, packing_of([3] * texts))
    tiles, bounds = attention_tiles(batch, 64), cu_seqlens(batch)

    assert with_empty_tiles(tiles).tolist() == [*tiles.tolist(), *[[0] * 4] * (grown - texts)]
    assert with_empty_texts(bounds).tolist() == [*bounds.tolist(), *[3 * texts] * (grown - texts)]


SIXTEEN_BITS = pytest.mark.parametrize("storage", [FLOAT16, STORAGES["bfloat16"]], ids=["float16", "bfloat16"])


def bits_of_attention(bench, texts, size, heads=2, distance_bias=None):
    """Return the bits of each text's context, of texts given by their queries, keys and values side by side."""
    of_distance = None if distance_bias is None else bench.device.upload(distance_bias)
    lengths = [len(text) for text in texts]
    width, packing = heads * size, packing_of(lengths)
    wide = bench.stored(np.resize(np.concatenate(texts), (packing.rows, 3 * width)))
    q, k, v = (wide[:, i * width : (i + 1) * width] for i in range(3))
    bias = bench.stored(normal(width, seed=3))
    context = bench.fused.attention(q, k, v, bias, heads, packing, packing, of_distance)
    host = bench.device.download(context).view(np.uint16)
    return np.split(host[: packing.tokens], np.cumsum(lengths)[:-1])


def biases(biased):
    """Return biases by distance for two heads and texts of up to 70 tokens, or None."""
    return normal(2, 2 * 70 - 1, seed=4, size=3) if biased else None


@SIXTEEN_BITS
@EACH_BIAS
@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_short_texts_have_the_same_bits_by_both_kernels(device, storage, size, biased, monkeypatch):
    """What attention_short.cu gives for a text is, bit for bit, what attention.cu gives."""
    bench = Bench(device, storage)
    texts = [normal(length, 6 * size, seed=length) for length in [1, 2, 7, 8, 9, 15, 16]]
    short = bits_of_attention(bench, texts, size, distance_bias=biases(biased))
    assert kernels_of(device) == {"attention_short"}
    device.launches.clear()
    monkeypatch.setattr("minibert.engine.fused_cuda._SHORT_KEYS", 0)
    long = bits_of_attention(Bench(device, storage), texts, size, distance_bias=biases(biased))

    assert kernels_of(device) == {"attention"}
    for ours, theirs in zip(short, long, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@SIXTEEN_BITS
@pytest.mark.parametrize("size", [32, 128, 24])
def test_biases_of_zero_change_no_bit(device, storage, size):
    """A kernel with the bias computes the same as the one without, but for the bias."""
    bench = Bench(device, storage)
    texts = [normal(length, 6 * size, seed=length) for length in [5, 70, 16, 17, 1]]
    without = [bits.copy() for bits in bits_of_attention(bench, texts, size)]
    zeros = bits_of_attention(bench, texts, size, distance_bias=0 * biases(biased=True))

    for ours, theirs in zip(zeros, without, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@SIXTEEN_BITS
@EACH_BIAS
@pytest.mark.parametrize("size", [32, 128, 24])
def test_attention_does_not_depend_on_the_batch(device, storage, size, biased):
    """A text's bits are those that it has alone, among texts of other kernels, too; even if those are NaN."""
    bench = Bench(device, storage)
    texts = [normal(length, 6 * size, seed=length) for length in [5, 70, 16, 17, 1, 33]]
    bias = biases(biased)
    alone = [bits_of_attention(bench, [text], size, distance_bias=bias)[0].copy() for text in texts]
    nan = [np.full((length, 6 * size), np.nan, np.float32) for length in [3, 20, 9]]
    if storage.name == "float16":
        bench.stored = lambda numbers: device.upload(numbers.astype(np.float16) if numbers.ndim == 2 else numbers)
    batch = [texts[0], nan[0], *texts[1:4], nan[1], texts[4], nan[2], texts[5]]
    together = bits_of_attention(bench, batch, size, distance_bias=bias)

    for i, place in enumerate([0, 2, 3, 4, 6, 8]):
        np.testing.assert_array_equal(together[place], alone[i])


@EACH_STORAGE
@EACH_BIAS
@pytest.mark.parametrize("size", [32, 24])
def test_tiles_without_queries_are_passed_over(device, storage, size, biased, monkeypatch):
    """Nothing is read for them: where their rows would be, there is no memory."""

    def with_idle_tiles(*args, **bounds):
        tiles = attention_tiles(*args, **bounds)
        idle = np.array([[2**30, 5, 2**30, 0]], np.int32)
        return np.concatenate([idle, tiles, idle, idle]) if len(tiles) else tiles

    monkeypatch.setattr("minibert.engine.fused_cuda.attention_tiles", with_idle_tiles)
    check_attention(device, storage, [70, 17, 16, 3, 1], size, distances=139 if biased else None)


# ---------------------------------------------------------------- pooling


@EACH_STORAGE
@pytest.mark.parametrize("normalize", [False, True], ids=["", "normalized"])
@pytest.mark.parametrize("exclude", [0, 2, 6])
@pytest.mark.parametrize(
    "modes", [*((mode,) for mode in POOLING_MODES), ("mean", "cls"), tuple(POOLING_MODES)], ids="+".join
)
@pytest.mark.parametrize("width", [136, 37])
def test_pool(device, storage, width, modes, exclude, normalize):
    """Each mode, alone and beside others, of texts with and without tokens, less a prompt's."""
    bench = Bench(device, storage)
    lengths = [70, 17, 6, 6, 2, 1, 0, 0]
    if "max" in modes and normalize:
        lengths = [length for length in lengths if length > exclude]  # else a length is infinite
    hidden = normal(sum(lengths), width)
    ends = np.cumsum(lengths)

    def definition(hidden, round_):
        rows = []
        for end, length in zip(ends, lengths, strict=True):
            tokens = hidden[end - length : end] if length else np.zeros((1, width), hidden.dtype)
            mask = np.full((1, len(tokens)), length > 0)
            rows.append(pooling.pool(modes, tokens[None], mask, exclude=exclude)[0])
        return ops.l2_normalize(np.stack(rows)) if normalize else np.stack(rows)

    hidden = bench.rounded(hidden)
    vectors = bench.fused.pool(modes, bench.stored(hidden), packing_of(lengths), exclude, normalize=normalize)
    actual, truth = bench.back(vectors), definition(hidden.astype(np.float64), None)
    same = np.isinf(truth)  # the maximum over no token

    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(actual[same], truth[same].astype(np.float32))
    assert np.isfinite(actual[~same]).all()
    assert np.abs(actual[~same] - truth[~same]).max() <= 3e-6 * np.abs(truth[~same]).max()


@EACH_STORAGE
@pytest.mark.parametrize("width", [136, 37])
def test_pooling_does_not_depend_on_the_batch(device, storage, width):
    """A text's vector has the bits that it has alone, whatever the others are."""
    bench = Bench(device, storage)
    texts = [normal(length, width, seed=length) for length in [300, 1, 16, 17, 33, 70]]

    def bits(texts):
        packing = packing_of([len(text) for text in texts])
        stored = bench.stored(np.resize(np.concatenate(texts), (packing.rows, width)))
        return bench.back(bench.fused.pool(tuple(POOLING_MODES), stored, packing, normalize=True)).view(np.uint32)

    np.testing.assert_array_equal(bits(texts), np.concatenate([bits([text]) for text in texts]))


def test_pooling_a_text_of_zeros_gives_zeros(device):
    """A vector of length 0 stays one when it is normalized."""
    bench = Bench(device, FLOAT16)
    zeros = bench.stored(np.zeros((3, 40), np.float32))

    assert not bench.back(bench.fused.pool(("mean",), zeros, packing_of([3]), 0, normalize=True)).any()


def test_every_pooling_mode_has_a_kernel():
    """What the reference knows, the GPU knows."""
    assert POOLING_MODES.keys() == pooling.MODES.keys()


def test_too_many_pooling_modes_are_refused(executor):
    """More modes than the kernel's argument can hold are an error."""
    bench = Bench(executor, FLOAT16)
    with pytest.raises(ConfigError, match="at most 7 modes; it names 8"):
        bench.fused.pool(("mean",) * 8, bench.stored(np.zeros((3, 40), np.float32)), packing_of([3]), 0)


# ---------------------------------------------------------------- products, rows, checks


@EACH_STORAGE
def test_linear(device, storage, monkeypatch):
    """A product with a slice of a wider matrix, as the last layer has it; in float32 by partial sums."""
    monkeypatch.setattr("minibert.engine.fused_cuda._LONGEST_SUM", 1)
    bench = Bench(device, storage)
    x, weight = bench.rounded(normal(9, 64)), bench.rounded(normal(64, 48, seed=1, size=0.125))
    y = bench.fused.linear("y", bench.stored(x), bench.stored(weight)[:, 16:], packing_of([9]), 20)

    assert_near(bench.back(y), lambda x, weight, _round: x @ weight[:, 16:], bench, x, weight)


@EACH_STORAGE
@pytest.mark.parametrize("width", [8, 37])
def test_take_first(device, storage, width):
    """The rows of first tokens are copied as they are; a text without tokens has none."""
    bench = Bench(device, storage)
    packing = packing_of([4, 0, 1, 4])
    x = bench.rounded(normal(9, width))
    first = bench.fused.take_first(bench.stored(x), packing, packing.first_tokens(None, ANY_ROW))

    np.testing.assert_array_equal(bench.back(first), x[[0, 4, 5]])


@EACH_STORAGE
@pytest.mark.parametrize("changed", [None, (0, 0), (7, 4), (8, 1)])
def test_trials_see_every_number(device, storage, changed):
    """Rows are repeated as they are; a comparison finds any one number that does not repeat."""
    bench = Bench(device, storage)
    rows = bench.rounded(normal(4, 5))
    few, many = bench.stored(rows), device.empty((9, 5), storage.dtype)
    numbers = np.int32(4), np.int32(9), np.int32(5)
    device.launch(Kernel("trial", f"repeat_rows<{storage.cuda}>"), (1, 1), 256, (many, few, *numbers), 0)
    repeated = bench.back(many)
    expected = rows[np.arange(9) % 4]
    np.testing.assert_array_equal(repeated, expected)

    if changed is not None:
        repeated[changed] += 1
    different = device.upload(np.zeros(1, np.int32))
    arguments = (different, bench.stored(repeated), few, *numbers)
    device.launch(Kernel("trial", f"compare_rows<{storage.cuda}>"), (1, 1), 256, arguments, 0)

    assert device.download(different)[0] == (changed is not None)


def test_no_tokens_launch_nothing(executor):
    """CuPy makes one block of a grid of none: with no tokens there is no launch at all."""
    executor.launches.clear()
    bench = Bench(executor, FLOAT16)
    tables = Embeddings(*(bench.stored(normal(3, 8)) for _ in range(3)), LayerNorm(*random_norm(8)))
    empty = packing_of([])
    x = bench.fused.embed_layer_norm(tables, np.zeros(0, int), empty, BERT)
    x = bench.fused.attention(x, x, x, np.zeros(8, np.float32), 2, empty, empty)
    bench.fused.add_layer_norm(x, x, np.zeros(8, np.float32), tables.norm, EPS)

    assert executor.launches == []


def test_operations_refuse_what_a_kernel_would_misread(executor):
    """Shapes, types and layouts are checked on the host: a kernel has no way to."""
    executor.launches.clear()
    fused = FusedCuda(executor, FLOAT16)
    x, bias, norm = np.zeros((4, 8), np.float16), np.zeros(8, np.float32), random_norm(8)
    packing, of_distance = packing_of([4]), np.zeros((2, 7), np.float32)

    def biased(distance_bias, queries=packing):
        return fused.attention(x[: queries.rows], x, x, bias, 2, queries, packing, distance_bias)

    for wrong, message in {
        "y must be float16 of shape": lambda: fused.add_layer_norm(x, x[:3], bias, norm, EPS),
        "y must be float16": lambda: fused.add_layer_norm(x, x.astype(np.float32), bias, norm, EPS),
        "y must be contiguous": lambda: fused.add_layer_norm(x, np.zeros((4, 16), np.float16)[:, ::2], bias, norm, EPS),
        "bias must be contiguous float32": lambda: fused.add_layer_norm(x, x, bias.astype(np.float16), norm, EPS),
        "q must be float16 of shape": lambda: fused.attention(x[:2], x, x, bias, 2, packing, packing),
        "k and v must have the same strides": lambda: fused.attention(
            x, x, np.zeros((4, 16), np.float16)[:, :8], bias, 2, packing, packing
        ),
        r"distance_bias must be float32 of shape \(2, 2 P - 1\); it is float16": lambda: biased(
            of_distance.astype("e")
        ),
        r"distance_bias must be float32 of shape .* of shape \(7,\)": lambda: biased(of_distance[0]),
        r"distance_bias must be float32 of shape .* of shape \(1, 7\)": lambda: biased(of_distance[:1]),
        r"distance_bias must be float32 of shape .* of shape \(2, 6\)": lambda: biased(of_distance[:, 1:]),
        "must have at least 7 distances, for a text of 4 tokens; it has 5": lambda: biased(
            of_distance[:, 2:], packing.first_tokens(None, ANY_ROW)
        ),
        "distance_bias must be contiguous": lambda: biased(np.zeros((7, 2), np.float32).T),
        "query_bias must be contiguous float32": lambda: fused.attention(x, x, x, bias[:4], 2, packing, packing),
    }.items():
        with pytest.raises(ValueError, match=wrong):
            message()
    assert executor.launches == []


def test_attention_refuses_large_heads(executor):
    """A head size above 128 is an error that names it."""
    x, packing = np.zeros((4, 258), np.float16), packing_of([4])

    with pytest.raises(ConfigError, match=r"head size must be at most 128: .* 258 / 2"):
        FusedCuda(executor, FLOAT16).attention(x, x, x, np.zeros(258, np.float32), 2, packing, packing)


@pytest.mark.parametrize("number", [0.0, 1.0, -1.5, 3.0e38, 1e-40, 1.00390625, 1.01171875, np.inf])
def test_bfloat16_is_rounded_to_the_nearest(number):
    """Ties go to the even neighbour, as on a GPU."""
    storage = STORAGES["bfloat16"]
    numbers = storage.widen(np.arange(2**16, dtype=np.uint16))
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    number = np.float64(np.float32(number))
    stored = np.float64(storage.widen(storage.narrow(np.array([number])))[0])

    assert stored == number or abs(stored - number) == np.abs(numbers - number).min()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001])
def test_nan_stays_nan_in_bfloat16(bits):
    """Whatever its mantissa: rounding carries none to infinity or zero."""
    storage = STORAGES["bfloat16"]
    numbers = np.array([[1, 0], [0, np.inf]], np.float32)
    numbers.view(np.uint32)[1, 0] = bits

    np.testing.assert_array_equal(storage.widen(storage.narrow(numbers)), [[1, 0], [np.nan, np.inf]])


def test_weights_beyond_float16_are_refused():
    """A weight that would become infinite is an error that says what to use."""
    with pytest.raises(ConfigError, match=r"within \+-65504; one is 7e\+04.*bfloat16"):
        FLOAT16.narrow(np.array([[1.0, -70000.0]], np.float32))
