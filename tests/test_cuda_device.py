"""What minibert asks of CuPy, of a CuPy whose GPU is the executor: the way from texts to vectors has no other part."""

import errno
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from support import CARDS, assert_as_accurate, golden, twin

from minibert import SentenceEncoder
from minibert.fused.cuda import STORAGES
from minibert.fused.device import CudaDevice

CARD = "BertModel-128d"
TEXTS = ["A man is playing a guitar.", "", "One two three four five six seven eight nine ten."]


@pytest.fixture
def cupy(executor, monkeypatch, tmp_path):
    """Put the fake in the place of CuPy."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    return fake_cupy.install(monkeypatch, executor)


@pytest.mark.parametrize("card", CARDS)
def test_golden(cupy, card):
    """Through every call of CuPy and cuBLAS, vectors are as near to the truth as transformers' float32."""
    arrays, texts = golden(card)
    vectors = SentenceEncoder(twin(card), device="cuda", dtype="float32", on_truncate="ignore").encode(texts)

    assert type(vectors) is np.ndarray
    assert_as_accurate(vectors, arrays["embeddings"], arrays[f"pooled.{CARDS[card]['pooling_mode']}.float64"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits(cupy, dtype):
    """The 16-bit types go the same way."""
    vectors = SentenceEncoder(twin(CARD), device="cuda", dtype=dtype).encode(TEXTS)
    expected = SentenceEncoder(twin(CARD)).encode(TEXTS)

    assert np.abs(vectors - expected).max() <= {"float16": 0.005, "bfloat16": 0.04}[dtype] * np.abs(expected).max()


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
    assert len(compiled) == len(set(compiled)) == 5  # embeddings, attention, layer norm, activation, pooling
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
    x, weight, y = (storage.narrow(rng.integers(-4, 5, shape)) for shape in ((5, 12), (12, 10), (5, 6)))
    on_device = [device.place(each) for each in (x, weight, y)]
    device.matmul(on_device[0][:, 2:9], on_device[1][2:9, 4:], on_device[2], storage, add=add)
    expected = storage.widen(x)[:, 2:9] @ storage.widen(weight)[2:9, 4:] + (storage.widen(y) if add else 0)

    np.testing.assert_array_equal(storage.widen(device.download(on_device[2])), expected)  # small integers: exact


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
