"""What minibert asks of CuPy, of a CuPy whose GPU is the executor: the way from texts to vectors has no other part."""

import errno
import gc
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from rounded_cpu import rounded_encoder
from support import (
    CARDS,
    assert_as_accurate,
    assert_as_accurate_on_average,
    assert_same_bits,
    golden,
    texts_of_lengths,
    twin,
)

from minibert import SentenceEncoder
from minibert.engine import products
from minibert.engine.cuda_device import CudaDevice
from minibert.engine.fused_cuda import STORAGES
from minibert.errors import DeviceError

CARD = "BertModel-128d"
TEXTS = ["A man is playing a guitar.", "", "One two three four five six seven eight nine ten."]


@pytest.fixture
def cupy(executor, monkeypatch, tmp_path):
    """Put the fake in the place of CuPy."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return fake_cupy.install(monkeypatch, executor)


@pytest.mark.parametrize(
    "card", [CARD, *(pytest.param(each, marks=pytest.mark.slow) for each in CARDS if each != CARD)]
)
def test_golden(cupy, card):
    """Through every call of CuPy and cuBLASLt, vectors are as near to the truth as transformers' float32."""
    arrays, texts = golden(card)
    vectors = SentenceEncoder(twin(card), device="cuda", dtype="float32", on_truncate="ignore").encode(texts)

    assert type(vectors) is np.ndarray
    assert_as_accurate(vectors, arrays["embeddings"], arrays[f"pooled.{CARDS[card]['pooling_mode']}.float64"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(cupy, dtype):
    """The 16-bit types go the same way; the errors are those of numpy that rounds the same numbers."""
    texts = texts_of_lengths(range(1, 21))
    vectors = SentenceEncoder(twin(CARD), device="cuda", dtype=dtype).encode(texts)
    truth = SentenceEncoder(twin(CARD), dtype="float64").encode(texts)
    peer = rounded_encoder(twin(CARD), STORAGES[dtype]).encode(texts)

    assert_as_accurate_on_average(vectors, peer, truth, factor=1.25)


def test_vectors_on_the_device(cupy):
    """With convert_to_numpy off, what is returned is CuPy's."""
    encoder = SentenceEncoder(twin(CARD), device="cuda")
    vectors = encoder.encode([*TEXTS, TEXTS[0]], convert_to_numpy=False, normalize_embeddings=True)

    assert isinstance(vectors, cupy.ndarray)
    expected = encoder.encode([*TEXTS, TEXTS[0]], normalize_embeddings=True)
    np.testing.assert_array_equal(vectors.view(np.ndarray), expected)


def test_kernels_are_compiled_once(cupy):
    """A second encoder, as in a new process, finds all machine code where CuPy keeps its own."""
    first = SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)
    compiled = list(cupy.cuda.nvrtc.compiled)
    cupy.cuda.nvrtc.compiled.clear()
    second = SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)

    np.testing.assert_array_equal(second, first)
    assert (
        len(compiled) == len(set(compiled)) == 7
    )  # embeddings, attention, layer norm, activation, pooling, two trials
    assert cupy.cuda.nvrtc.compiled == []


def test_without_a_cache(cupy, monkeypatch, tmp_path, caplog):
    """Where nothing can be kept, kernels are compiled all the same, and it is said."""
    (tmp_path / "file").write_text("not a folder", "utf-8")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file"))

    assert np.isfinite(SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)).all()
    assert "compiled kernels are not kept" in caplog.text


def test_a_write_that_fails_leaves_nothing(cupy, monkeypatch, tmp_path, caplog):
    """Where the cache's disk is full, no part of a kernel stays there, and the kernels are used all the same."""
    cache, write_bytes = tmp_path / "cache", Path.write_bytes

    def write(path, code):
        if cache not in path.parents:
            return write_bytes(path, code)
        write_bytes(path, code[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write)

    assert np.isfinite(SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)).all()
    assert "compiled kernels are not kept: [Errno 28] No space left" in caplog.text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("storage", list(STORAGES.values()), ids=list(STORAGES))
@pytest.mark.parametrize("add", [False, True], ids=["", "added"])
def test_matmul(cupy, storage, add):
    """Products of slices by rows and by columns, as cuBLAS has them: by columns, with leading dimensions."""
    device = CudaDevice(0, storage)
    rng = np.random.default_rng(0)
    x, weight, y = (storage.narrow(rng.integers(-4, 5, shape)) for shape in ((16, 12), (12, 10), (16, 6)))
    on_device = [device.place(each) for each in (x, weight, y)]
    with device.on(device.new_stream()):
        device.matmul(on_device[0][:, 2:9], on_device[1][2:9, 4:], on_device[2], storage, add=add)
        found = device.download(on_device[2])
    expected = storage.widen(x)[:, 2:9] @ storage.widen(weight)[2:9, 4:] + (storage.widen(y) if add else 0)

    np.testing.assert_array_equal(storage.widen(found), expected)  # small integers: exact


@pytest.mark.parametrize("storage", list(STORAGES.values()), ids=list(STORAGES))
def test_an_algorithm_with_other_bits_is_not_used(cupy, storage):
    """What the library takes for the best sums in another order for few rows: the next one is used there."""
    device = CudaDevice(0, storage)
    library = cupy.cublaslt
    with device.on(device.new_stream()):
        for rows, expected in ((16, 2), (library.FEW, 1), (16, 2)):
            x, weight = (device.upload(storage.narrow(np.ones(shape, np.float32))) for shape in ((rows, 40), (40, 24)))
            device.matmul(x, weight, device.empty((rows, 24), storage.dtype), storage, add=False)
            assert library.used[-1] == expected


@pytest.mark.parametrize(
    ("storage", "graphs"),
    [
        ("float16", "0"),
        ("float32", "1"),
        pytest.param("float16", "1", marks=pytest.mark.slow),
        pytest.param("bfloat16", "0", marks=pytest.mark.slow),
    ],
)
def test_bits_do_not_depend_on_the_batch(cupy, monkeypatch, storage, graphs):
    """A text's vector is the same alone, among others, and in batches of any size, recorded or not."""
    monkeypatch.setenv("MINIBERT_CUDA_GRAPHS", graphs)
    encoder = SentenceEncoder(twin(CARD), device="cuda", dtype=storage, on_truncate="ignore")
    assert_same_bits(encoder, rounds=2)


def test_where_no_algorithm_has_the_same_bits_it_is_said(cupy, monkeypatch, caplog):
    """Then the one of many rows is used, and a warning is logged."""
    monkeypatch.setattr(products._Trial, "repeats", lambda *_: False)
    device = CudaDevice(0, STORAGES["float16"])
    with device.on(device.new_stream()):
        x, weight = (device.upload(np.ones(shape, np.float16)) for shape in ((16, 40), (40, 24)))
        device.matmul(x, weight, device.empty((16, 24), np.dtype(np.float16)), STORAGES["float16"], add=False)

    assert "no algorithm gives the bits of other numbers of rows" in caplog.text


def test_threads_make_no_handles_of_cublas(cupy):
    """CuPy's handles belong to threads, of which each call has new ones: none is made."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", num_threads=2, max_batch_tokens=16)
    for _ in range(2):
        encoder.encode([f"Text number {i}." for i in range(8)])

    assert fake_cupy.HANDLES_MADE == []


@pytest.mark.parametrize("convert_to_numpy", [True, False])
def test_the_second_gpu(cupy, convert_to_numpy):
    """On cuda:1 everything is on that GPU, equal texts and similarities, too; the thread's own GPU stays."""
    encoder = SentenceEncoder(twin(CARD), device="cuda:1", max_batch_tokens=16)
    vectors = encoder.encode([*TEXTS, TEXTS[0]], convert_to_numpy=convert_to_numpy)
    expected = SentenceEncoder(twin(CARD), device="cuda").encode([*TEXTS, TEXTS[0]])
    scores = encoder.similarity(vectors[0], vectors)

    assert fake_cupy.current_device() == 0
    assert isinstance(vectors, cupy.ndarray) is not convert_to_numpy
    np.testing.assert_array_equal(vectors.view(np.ndarray), expected)
    np.testing.assert_array_equal(scores.view(np.ndarray), encoder.similarity(expected[0], expected))
    assert convert_to_numpy or (vectors.gpu, scores.gpu) == (1, 1)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarity_of_vectors_on_the_gpu(cupy, name):
    """Scores of CuPy arrays, of lists of them, and of one beside numpy's are CuPy arrays with numpy's numbers."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", similarity_fn_name=name)
    vectors = encoder.encode(TEXTS, convert_to_numpy=False)
    host = vectors.view(np.ndarray)
    expected = encoder.similarity(host, host)
    for left, right in ((vectors, vectors), (list(vectors), vectors), (host, vectors), (vectors, list(host))):
        scores = encoder.similarity(left, right)
        assert isinstance(scores, cupy.ndarray)
        np.testing.assert_allclose(scores.view(np.ndarray), expected, rtol=1e-6, atol=1e-6)
    pairs = encoder.similarity_pairwise(vectors, host)

    assert isinstance(pairs, cupy.ndarray)
    np.testing.assert_allclose(pairs.view(np.ndarray), encoder.similarity_pairwise(host, host), rtol=1e-6, atol=1e-6)


def test_close_gives_streams_back(cupy):
    """After close, no stream is left; the encoder works again with new ones."""
    encoder = SentenceEncoder(twin(CARD), device="cuda", max_batch_tokens=16)
    vectors = encoder.encode(TEXTS)
    before = len(fake_cupy.Stream.by_address)
    encoder.close()
    gc.collect()

    assert len(fake_cupy.Stream.by_address) < before
    np.testing.assert_array_equal(encoder.encode(TEXTS), vectors)


def test_errors_of_cuda_are_device_errors(cupy, monkeypatch):
    """What fails on the GPU is a DeviceError with CUDA's own words; out of memory is a MemoryError."""
    encoder = SentenceEncoder(twin(CARD), device="cuda")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(fake_cupy.Function, "__call__", fail)
    error = cupy.cuda.runtime.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    with pytest.raises(DeviceError, match=r'"cuda:0" failed: cudaErrorIllegalAddress.*start a new one'):
        encoder.encode(TEXTS)
    error.status = 2
    with pytest.raises(MemoryError, match="cuda:0 has no more memory"):
        encoder.encode(TEXTS)


def test_a_gpu_that_nvrtc_does_not_know_gets_ptx(cupy, monkeypatch):
    """NVRTC compiles for the newest architecture that it knows; the driver makes machine code of that."""
    expected = SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)
    monkeypatch.setattr(fake_cupy.Nvrtc, "known", (75, 80))
    cupy.cuda.nvrtc.compiled.clear()
    vectors = SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)

    assert cupy.cuda.nvrtc.compiled  # machine code in the cache is no PTX
    np.testing.assert_array_equal(vectors, expected)


def test_a_gpu_that_is_older_than_all_that_nvrtc_knows(cupy, monkeypatch):
    """Then the error says what to install."""
    monkeypatch.setattr(fake_cupy.Nvrtc, "known", (100, 120))

    with pytest.raises(DeviceError, match=r"must compile for sm_90 or older; it knows sm_100 to sm_120.*cuda12"):
        SentenceEncoder(twin(CARD), device="cuda").encode(TEXTS)


def test_what_is_uploaded_may_change_at_once(cupy):
    """Upload copies to pinned memory before it returns, and keeps that until the stream has copied it; or nothing."""
    device = CudaDevice(0, STORAGES["float32"])
    with device.on(device.new_stream()):
        host = np.arange(6, dtype=np.int32).reshape(2, 3)
        there = device.upload(host)
        host[...] = 0
        assert (there.view(np.ndarray) == -1).all()  # the stream may come to it much later
        empty = device.upload(np.zeros((0, 4), np.int32))

        np.testing.assert_array_equal(device.download(there), np.arange(6).reshape(2, 3))
        assert empty.shape == (0, 4)
