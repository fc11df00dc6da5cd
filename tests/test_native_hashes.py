"""The vectors of the native kernels have the same bits everywhere: their hashes are in tests/golden/native_hashes.json.

After a change of the bits on purpose, write the hashes again, and say in the commit why:

    MINIBERT_RECORD_HASHES=1 python -m pytest -n 0 tests/test_native_hashes.py
"""

import hashlib
import json
import os

import pytest
from native_cases import CASES, vectors
from native_support import require_library
from support import GOLDEN

HASHES = GOLDEN / "native_hashes.json"


def recorded():
    """Return the hashes of the file."""
    return json.loads(HASHES.read_text("utf-8")) if HASHES.exists() else {}


@pytest.mark.skipif("MINIBERT_RECORD_HASHES" not in os.environ, reason="writes the file; see the top of this file")
def test_record(tmp_path):
    """All hashes are written."""
    require_library()
    hashes = {name: hashlib.sha256(vectors(name, tmp_path / str(i), None)).hexdigest() for i, name in enumerate(CASES)}
    HASHES.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", "utf-8")


def test_each_case_is_recorded():
    """The file has exactly the cases of these tests."""
    assert recorded().keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_hash(tmp_path, kernels, name):
    """A model's vectors of all texts, as each instruction set computes them, have the recorded bits."""
    assert hashlib.sha256(vectors(name, tmp_path / "model", kernels)).hexdigest() == recorded()[name]
