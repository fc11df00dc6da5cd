"""The encoder on a GPU, or on the executor in its place: then, all but CuPy, cuBLAS and the hardware is the same."""

import copy
import json
import pickle
import sys
import weakref

import numpy as np
import pytest
from conftest import DEVICES, has_gpu
from kernel_cases import ANY_ROW, EACH_STORAGE
from packed_cases import random_tensors
from rounded_cpu import rounded_encoder
from safetensors.numpy import save_file
from support import (
    CARDS,
    assert_as_accurate,
    assert_as_accurate_on_average,
    assert_same_bits,
    copy_twin,
    edit_json,
    edit_weights,
    golden,
    texts_of_lengths,
    twin,
    write_module,
)

from minibert import SentenceEncoder
from minibert.config import BertConfig
from minibert.engine import cuda_device as gpu
from minibert.engine import recordings
from minibert.engine.fused_cuda import STORAGES
from minibert.engine.packing import Packing
from minibert.engine.tables import Batch, Table, Tables, cu_seqlens
from minibert.errors import ConfigError, DeviceError, VectorError
from minibert.files.checkpoint import names

TEXTS = [
    "A man is playing a guitar.",
    "",
    "One two three four five six seven eight nine ten.",
    "A man is playing a guitar.",
]
CARD = "BertModel-128d"


@pytest.fixture
def stand_in(executor, monkeypatch):
    """Put the executor in place of any GPU; return it."""
    monkeypatch.setattr(gpu, "CudaDevice", lambda _number, _storage: executor)
    return executor


@pytest.fixture(params=DEVICES)
def cuda(request):
    """Let device="cuda" be the executor, or a GPU where there is one."""
    if request.param == "executor":
        request.getfixturevalue("stand_in")


def cosines(a, b):
    """Return the cosine of each vector with the same one of others."""
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return (a * b).sum(axis=1)


# ---------------------------------------------------------------- golden files


@pytest.mark.parametrize("card", CARDS)
def test_golden_float32(cuda, card):
    """In float32, the whole packed forward on kernels is as near to the truth as transformers' float32."""
    arrays, texts = golden(card)
    vectors = SentenceEncoder(twin(card), device="cuda", dtype="float32", on_truncate="ignore").encode(texts)

    assert vectors.dtype == np.float32
    assert_as_accurate(vectors, arrays["embeddings"], arrays[f"pooled.{CARDS[card]['pooling_mode']}.float64"])


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_golden_16_bit(cuda, card, dtype):
    """In 16 bits, vectors are as near to the truth as numpy is that rounds the same numbers.

    The factor is for chance: these are six texts, all of whose numbers come from the same few roundings.
    """
    arrays, texts = golden(card)
    truth = arrays[f"pooled.{CARDS[card]['pooling_mode']}.float64"]
    vectors = SentenceEncoder(twin(card), device="cuda", dtype=dtype, on_truncate="ignore").encode(texts)

    assert vectors.dtype == np.float32
    peer = rounded_encoder(twin(card), STORAGES[dtype]).encode(texts)
    assert_as_accurate_on_average(vectors, peer, truth, factor=2)


def assert_as_accurate_as_rounded(folder, storage, encoder, texts=None, factor=1.25):
    """Fail unless the vectors of many texts are as near to those in float64 as numpy is that rounds the same numbers.

    Of so many, the errors differ by less than a tenth in root mean square. Of few ``texts``, they differ by more.
    """
    texts = texts or ["", *texts_of_lengths((*range(1, 40), 50, 60, 70, 100))]
    truth = SentenceEncoder(folder, dtype="float64").encode(texts)
    peer = rounded_encoder(folder, storage).encode(texts)
    assert_as_accurate_on_average(encoder.encode(texts), peer, truth, factor=factor)


def random_sibling(folder, kind, mode="mean"):
    """Return ``folder``, made a repo with random weights of a family. It reads "?" as 1, the padding id."""
    copy_twin(folder)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 514}
    edit_json(folder / "config.json", model_type=kind, architectures=[], pad_token_id=1, **sizes)
    write_module(folder / "1_Pooling", {"embedding_dimension": 64, "pooling_mode": mode})
    config = BertConfig.from_file(folder / "config.json")
    tensors = {names.own_name(name, config): array for name, array in random_tensors(config).items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


SIBLINGS = pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet"])


@SIBLINGS
@EACH_STORAGE
@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_siblings(cuda, tmp_path, kind, storage, mode):
    """The other families: positions that depend on ids, also with padding ids in texts; MPNet's bias by distance."""
    folder = random_sibling(tmp_path, kind, mode)
    texts = ["", "? a ? man", *(f"{text} ? {text}" for text in texts_of_lengths((1, 3, 7, 20, 33, 70)))]
    encoder = SentenceEncoder(folder, device="cuda", dtype=storage.name)

    assert 1 in encoder.tokenize(texts)["input_ids"][1:2, 1:-1]
    assert_as_accurate_as_rounded(folder, storage, encoder, texts, factor=2)


def test_the_bias_by_distance_is_in_float32(stand_in, tmp_path):
    """It is added to scores, which are never rounded to 16 bits."""
    encoder = SentenceEncoder(random_sibling(tmp_path, "mpnet"), device="cuda", dtype="float16")
    bias = encoder._pipeline.params.distance_bias

    assert (bias.shape, bias.dtype) == ((2, 2 * 512 - 1), np.float32)
    assert not np.array_equal(bias, bias.astype(np.float16).astype(np.float32))


@EACH_STORAGE
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_first_tokens_alone(cuda, tmp_path, storage, mode):
    """With cls pooling, the last layer computes the first tokens alone; the vectors are what all tokens give."""
    folder = copy_twin(tmp_path)
    write_module(folder / "1_Pooling", {"embedding_dimension": 128, "pooling_mode": mode})
    assert_as_accurate_as_rounded(folder, storage, SentenceEncoder(folder, device="cuda", dtype=storage.name))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bias", ["query_bias", "output_bias", "up_bias", "down_bias"])
def test_a_missing_bias_is_found(stand_in, dtype, bias):
    """The measure of accuracy in 16 bits shows that the last layer lacks a bias."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", dtype=dtype)
    last = encoder._pipeline.params.layers[-1]
    part = last.attention if hasattr(last.attention, bias) else last.feed_forward
    getattr(part, bias)[...] = 0

    with pytest.raises(AssertionError, match="RMS error"):
        assert_as_accurate_as_rounded(twin(CARD), STORAGES[dtype], encoder)


@pytest.mark.slow
def test_products_that_are_cut_off_are_found(stand_in, monkeypatch):
    """So it does where products are rounded towards zero, which costs one bit."""

    def matmul(_self, x, weight, out, storage, *, add):
        y = storage.widen(x) @ storage.widen(weight)
        out[...] = (y.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)  # the bits that float16 has
        assert not add

    monkeypatch.setattr(type(stand_in), "matmul", matmul)
    encoder = SentenceEncoder(twin(CARD), device="cuda", dtype="float16")
    with pytest.raises(AssertionError, match="RMS error"):
        assert_as_accurate_as_rounded(twin(CARD), STORAGES["float16"], encoder)


@pytest.mark.weights
def test_float16_on_real_weights(cuda, minilm):
    """On all-MiniLM-L6-v2, float16 vectors have a cosine above 0.99999 with those of float32 on the CPU."""
    texts = ["A man is playing a guitar.", "Someone plays an instrument in the street.", "The stock market fell.", ""]
    vectors = SentenceEncoder(minilm, device="cuda").encode(texts)

    assert min(cosines(vectors, SentenceEncoder(minilm).encode(texts))) > 0.99999


# ---------------------------------------------------------------- the encoder's own work


def test_names_and_types(cuda):
    """The device has a name with its number; vectors are float32; float16 is the default of what is stored."""
    encoder = SentenceEncoder(twin(CARD), device="cuda:0")

    assert (encoder.device, encoder.dtype, encoder.num_threads) == ("cuda:0", np.float32, 2)
    assert encoder._pipeline.params.embeddings.word.dtype == np.float16
    assert encoder.encode(TEXTS, device="cuda").dtype == np.float32
    with pytest.raises(DeviceError, match="must be the encoder's own, 'cuda:0', or None; it is 'cpu'"):
        encoder.encode(TEXTS, device="cpu")


def test_the_device_is_the_cpu_unless_it_is_asked_for(monkeypatch):
    """No GPU is looked for: what is computed does not depend on the machine."""
    monkeypatch.setattr(gpu, "CudaDevice", None)

    assert SentenceEncoder(twin(CARD)).device == "cpu"


def test_order_duplicates_and_many_batches(cuda):
    """Vectors come in order, whatever the batches; equal texts get equal vectors."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", dtype="float32", max_batch_tokens=12)
    texts = [*TEXTS, *(f"Text number {i} of some." for i in range(20))]
    vectors = encoder.encode(texts)

    np.testing.assert_array_equal(vectors[0], vectors[3])
    np.testing.assert_allclose(vectors, SentenceEncoder(twin(CARD)).encode(texts), rtol=0, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("storage", list(STORAGES))
@pytest.mark.parametrize("model", [pytest.param("minilm", marks=pytest.mark.weights), *CARDS])
@pytest.mark.parametrize("graphs", ["0", "1"], ids=["", "recorded"])
def test_bits_do_not_depend_on_the_batch(request, monkeypatch, storage, model, graphs):
    """On a GPU, too, a text's vector is the same alone, among others, and in batches of any size, recorded or not."""
    monkeypatch.setenv("MINIBERT_CUDA_GRAPHS", graphs)
    folder = request.getfixturevalue("minilm") if model == "minilm" else twin(model)
    encoder = SentenceEncoder(folder, device="cuda", dtype=storage, on_truncate="ignore")
    assert_same_bits(encoder, rounds=20)


def test_vectors_can_stay_on_the_device(stand_in, monkeypatch):
    """With convert_to_numpy off, nothing is copied to the host."""
    encoder = SentenceEncoder(twin(CARD), device="cuda")
    expected = encoder.encode(TEXTS, normalize_embeddings=True)
    monkeypatch.setattr(type(stand_in), "download", None)
    vectors = encoder.encode(TEXTS, normalize_embeddings=True, convert_to_numpy=False)

    np.testing.assert_array_equal(np.stack(list(vectors)), expected)


@pytest.mark.parametrize("options", [{}, {"convert_to_numpy": False}, {"output_value": "token_embeddings"}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "largest", "remedy"),
    [("float16", 6e4, 'dtype="bfloat16" or "float32"'), ("float32", 3e38, "Check the weights.*On a CPU")],
)
def test_vectors_that_are_not_finite(cuda, tmp_path, options, dtype, largest, remedy):
    """An overflow is an error that names the text and says what to do, also where vectors stay on the device."""

    def enlarge(arrays):
        arrays["encoder.layer.1.output.LayerNorm.weight"][:] = largest
        return arrays

    edit_weights(copy_twin(tmp_path) / "model.safetensors", enlarge)
    encoder = SentenceEncoder(tmp_path, device="cuda", dtype=dtype)
    with pytest.raises(VectorError, match=rf"item 0 has NaN or infinity.*too large for {dtype}.*{remedy}"):
        encoder.encode(TEXTS[:1], **options)


def test_every_vector_on_the_device_is_looked_at(stand_in, monkeypatch):
    """Vectors that stay on the device are looked at in pieces; none is passed over."""
    monkeypatch.setattr("minibert.arrays._PIECE", 40)  # vectors have 16 numbers
    engine = SentenceEncoder(twin(CARD), device="cuda")._engine
    vectors = np.zeros((7, 16), np.float32)
    vectors[[1, 4, 6], [0, 15, 3]] = np.nan, np.inf, -np.inf

    assert np.flatnonzero(~engine.finite_rows(vectors)).tolist() == [1, 4, 6]
    assert engine.finite_rows(vectors[:0]).shape == (0,)


def test_an_encoder_on_a_gpu_is_not_pickled(stand_in):
    """The error says why, and what to do; a copy can be made, and has the same model."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", truncate_dim=3)
    with pytest.raises(TypeError, match=r'an encoder on cuda:0 cannot be pickled.*in each process.*device="cpu"'):
        pickle.dumps(encoder)
    other = copy.deepcopy(encoder)

    assert other._pipeline is encoder._pipeline
    np.testing.assert_array_equal(other.encode(TEXTS), encoder.encode(TEXTS))


def copy_with_modules(folder, *kinds):
    """Return ``folder``, made a copy of the smallest twin with modules of these kinds after its transformer."""
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": "" if not i else f"{i}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(["Transformer", *kinds])
    ]
    (copy_twin(folder) / "modules.json").write_text(json.dumps(modules), "utf-8")
    return folder


def test_normalize_after_pooling(cuda, tmp_path):
    """Of the chain that most repos have, vectors are those of pooling, divided by their lengths."""
    options = {"device": "cuda", "dtype": "float32"}
    pooled = SentenceEncoder(copy_with_modules(tmp_path / "pooled", "Pooling"), **options).encode(TEXTS)
    vectors = SentenceEncoder(copy_with_modules(tmp_path / "all", "Pooling", "Normalize"), **options).encode(TEXTS)
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)

    assert np.abs(lengths - 1).min() > 0.01
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, pooled / lengths, rtol=0, atol=1e-6)


def test_module_chain_after_pooling(cuda, tmp_path):
    """Dense and LayerNorm work on the pooled vectors where these are."""
    rng = np.random.default_rng(0)
    folder = copy_with_modules(tmp_path, "Pooling", "Dense", "LayerNorm", "Normalize")
    weights = {"linear__weight": rng.standard_normal((40, 16)).astype(np.float32) / 10}
    write_module(folder / "2_Dense", {"in_features": 16, "out_features": 40, "bias": False}, **weights)
    norm = {f"norm__{name}": rng.standard_normal(40).astype(np.float32) for name in ("weight", "bias")}
    write_module(folder / "3_LayerNorm", {"dimension": 40}, **norm)
    (folder / "4_Normalize").mkdir()
    vectors = SentenceEncoder(folder, device="cuda", dtype="float32").encode(TEXTS)

    np.testing.assert_allclose(vectors, SentenceEncoder(folder).encode(TEXTS), rtol=0, atol=2e-6)


def test_token_embeddings(cuda):
    """Token vectors come to the host as float32, and everything else with them."""
    encoder, peer = SentenceEncoder(twin(CARD), device="cuda", dtype="float32"), SentenceEncoder(twin(CARD))
    tokens, of_peer = (each.encode(TEXTS, output_value="token_embeddings") for each in (encoder, peer))
    everything = encoder.encode(TEXTS[0], output_value=None)

    for ours, theirs in zip(tokens, of_peer, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)
    np.testing.assert_array_equal(everything["sentence_embedding"], encoder.encode(TEXTS[0]))


def test_streams_are_kept(stand_in, monkeypatch):
    """Calls use the streams and the memory of the calls before, and no more at a time than asked for."""
    streams, arrays = [], []
    new_stream, empty = type(stand_in).new_stream, type(stand_in).empty
    monkeypatch.setattr(type(stand_in), "new_stream", lambda self: streams.append(new_stream(self)))
    monkeypatch.setattr(
        type(stand_in), "empty", lambda self, shape, dtype: arrays.append(shape) or empty(self, shape, dtype)
    )
    encoder = SentenceEncoder(twin(CARD), device="cuda", num_threads=2)
    encoder.encode(TEXTS)
    used = len(streams)
    arrays.clear()
    encoder.encode(TEXTS[0])

    assert used <= 2
    assert len(streams) == used
    assert arrays == [(1, encoder.get_embedding_dimension())]  # what pooling returns, and nothing else


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_recorded_batches(stand_in, monkeypatch, tmp_path, kind, mode):
    """The third batch of a shape is played from a recording; it gives what launches one by one give.

    In the two other families, the positions of a recorded batch depend on its ids.
    """
    folder = copy_twin(tmp_path) if kind == "bert" else random_sibling(tmp_path, kind, mode)
    write_module(folder / "1_Pooling", {"embedding_dimension": 16 if kind == "bert" else 64, "pooling_mode": mode})
    plain = SentenceEncoder(folder, device="cuda")
    plain.encode("")  # which makes its stream
    monkeypatch.setenv("MINIBERT_CUDA_GRAPHS", "1")
    encoder = SentenceEncoder(folder, device="cuda")
    played, record = [], type(stand_in).record

    def counted(self, call):
        play = record(self, call)
        played.append("recorded")
        return lambda: (played.append("played"), play())

    monkeypatch.setattr(type(stand_in), "record", counted)
    calls = [TEXTS[0], "Other words.", "A third of them.", TEXTS[2], ["One more.", "", TEXTS[2]], ["Now two.", "Two."]]
    calls += ["a ? man", "? a man", "a man in"]  # of equal numbers of tokens; the padding id is elsewhere, or nowhere
    plain.num_threads = encoder.num_threads = 1
    for texts in (*calls, *calls[::-1]):
        for options in ({}, {"normalize_embeddings": True}, {"prompt": "A prompt: "}):
            np.testing.assert_array_equal(encoder.encode(texts, **options), plain.encode(texts, **options))

    assert played.count("played") > played.count("recorded") >= 2


@pytest.mark.parametrize(("beyond", "expected"), [(0, 1), (1, 0)])
def test_batches_with_many_texts_are_not_recorded(stand_in, monkeypatch, beyond, expected):
    """Texts without tokens have no row, but a vector: the fixed memory may have too few rows for the vectors."""
    recorded, record = [], type(stand_in).record
    monkeypatch.setattr(type(stand_in), "record", lambda self, call: recorded.append(call) or record(self, call))
    tables, table = Tables(stand_in.upload), Table(cu_seqlens)
    made = recordings.Recordings(stand_in, tables)
    texts = recordings.MOST_ROWS + beyond
    for _ in range(3):
        batch = Batch(None, Packing.of([1, 1, *[0] * (texts - 2)], None, ANY_ROW))
        result = made.run("key", batch, lambda: tables.get("cu_seqlens", table))
        assert result.shape == (texts + 1,)

    assert len(recorded) == expected


def test_without_memory_for_recordings(stand_in, monkeypatch, caplog):
    """Then batches are launched one by one, and it is said once."""
    monkeypatch.setenv("MINIBERT_CUDA_GRAPHS", "1")
    encoder = SentenceEncoder(twin(CARD), device="cuda")
    expected = encoder.encode(TEXTS[0])
    limit_memory(stand_in, monkeypatch, 16_000)
    for _ in range(3):
        np.testing.assert_array_equal(encoder.encode(TEXTS[0]), expected)

    assert caplog.text.count("not enough memory to record batches") == 1


def test_batches_before_are_forgotten(stand_in, monkeypatch):
    """Of what was uploaded, no more is kept than of the last batch."""
    uploaded, upload = [], type(stand_in).upload

    def recorded(self, host):
        array = upload(self, host)
        uploaded.append(weakref.ref(array))
        return array

    monkeypatch.setattr(type(stand_in), "upload", recorded)
    encoder = SentenceEncoder(twin(CARD), device="cuda", num_threads=1, max_batch_tokens=20)
    encoder.encode([f"Text number {i}." for i in range(30)])

    assert len(uploaded) > 20
    assert sum(reference() is not None for reference in uploaded) == 4  # ids, two kinds of tiles, where texts begin


def test_out_of_memory_halves_the_budget(stand_in, monkeypatch, caplog):
    """A batch that does not fit is computed in parts, and those after it are smaller; nothing is lost."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", dtype="float32", num_threads=1)
    texts = [f"Text number {i} of a good number of texts." for i in range(40)]
    expected = SentenceEncoder(twin(CARD), device="cuda", dtype="float32").encode(texts)
    limit_memory(stand_in, monkeypatch, 60 * 512)
    vectors = encoder.encode(texts)

    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert "did not fit in memory; going on with at most" in caplog.text


@pytest.mark.parametrize("texts", [["A text."], ["A text.", "Another one."]], ids=["one", "two"])
def test_a_single_text_that_does_not_fit_is_an_error(stand_in, monkeypatch, texts):
    """Where not even one text fits, the error says how long it is."""
    encoder = SentenceEncoder(twin(CARD), device="cuda")
    limit_memory(stand_in, monkeypatch, 10)

    with pytest.raises(MemoryError, match=r"not enough memory for a single text, of \d+ tokens: .*no room"):
        encoder.encode(texts)


def limit_memory(stand_in, monkeypatch, most):
    """Let the device have no array of more than so many numbers."""
    empty = type(stand_in).empty

    def limited(self, shape, dtype):
        if np.prod(shape) > most:
            raise MemoryError(f"no room for {shape}")
        return empty(self, shape, dtype)

    monkeypatch.setattr(type(stand_in), "empty", limited)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_cupy(monkeypatch, device):
    """Asked for a GPU without CuPy, the error says what to install."""
    monkeypatch.setitem(sys.modules, "cupy", None)

    with pytest.raises(DeviceError, match=r'needs CuPy.*pip install "minibert\[cuda13\]"'):
        SentenceEncoder(twin(CARD), device=device)


class FakeCupy:
    """CuPy on a machine with so many GPUs of an architecture; with None, no driver."""

    class cuda:  # noqa: D106, N801
        class runtime:  # noqa: D106, N801
            class CUDARuntimeError(RuntimeError):  # noqa: D106
                pass

        class Device:  # noqa: D106
            capability = "75"
            attributes = {"MaxSharedMemoryPerBlockOptin": 65536}  # noqa: RUF012

            def __init__(self, _number):
                self.compute_capability = self.capability

    def __init__(self, count, capability="75"):
        def count_or_fail():
            if count is None:
                raise self.cuda.runtime.CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
            return count

        self.cuda.runtime.getDeviceCount = staticmethod(count_or_fail)
        self.cuda.Device.capability = capability


@pytest.mark.parametrize(
    ("count", "capability", "device", "dtype", "message"),
    [
        (None, "75", "cuda", None, "needs an NVIDIA GPU and its driver; CuPy finds none: cudaErrorNoDevice"),
        (2, "90", "cuda:2", None, r'"cuda:2" must be one of the 2 GPUs here'),
        (1, "70", "cuda", None, "float16 needs a GPU of compute capability 7.5 or higher; .* has 7.0"),
        (1, "75", "cuda", "bfloat16", "bfloat16 needs a GPU of compute capability 8.0 .* has 7.5. Use float16"),
    ],
    ids=["no driver", "number", "too old", "too old for bfloat16"],
)
def test_gpus_that_cannot_be_used(monkeypatch, count, capability, device, dtype, message):
    """Each way in which a GPU can be missing has an error of its own."""
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(count, capability))

    with pytest.raises(DeviceError, match=message):
        SentenceEncoder(twin(CARD), device=device, dtype=dtype)


@pytest.mark.parametrize("device", ["CUDA", "cuda:", "cuda:x", "cuda:-1", "mps", "", 0, ["cpu", "cpu"]])
def test_unknown_devices(device):
    """Any other device is an error with its name, a list of devices too."""
    with pytest.raises(DeviceError, match="device must be"):
        SentenceEncoder(twin(CARD), device=device)


@pytest.mark.parametrize(
    ("dtype", "name"), [("float64", "float64"), (np.int8, "int8"), ("nonsense", "'nonsense'"), ("f4,(", r"'f4,\('")]
)
def test_unknown_precisions(cuda, dtype, name):
    """What a GPU cannot store is an error that lists what it can, and says what to do."""
    message = rf"^dtype must be one of {', '.join(STORAGES)} on a GPU; it is {name}\. Leave it out for float16"
    with pytest.raises(ValueError, match=message):
        SentenceEncoder(twin(CARD), device="cuda", dtype=dtype)


def test_models_without_kernels_are_refused_at_load(cuda, tmp_path, monkeypatch):
    """A head size that no kernel takes is an error before anything is loaded."""
    monkeypatch.setattr("minibert.engine.fused_cuda._LARGEST_HEAD", 1)

    with pytest.raises(ConfigError, match="head size must be at most 1:"):
        SentenceEncoder(twin(CARD), device="cuda")
