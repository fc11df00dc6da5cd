"""Add one fault at a time to the arithmetic, and check that the golden tests fail.

    python tools/plant_faults.py

Each fault is added to a copy of the project. The golden tests must fail there. Run it once per release, and when the
golden files change: a test that fails for no fault proves nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """A fault: its name, the file, the right code and the wrong code."""

    name: str
    file: str
    right: str
    wrong: str


MASK = "attention_mask[:, None, None, :]"
SCORES = "Q @ K.swapaxes(-2, -1) * d**-0.5 + bias"
FAULTS = (
    Fault("tanh GELU", "ops.py", '"gelu": gelu,', '"gelu": gelu_tanh,'),
    Fault("eps 1e-5", "model.py", "eps=config.layer_norm_eps", "eps=1e-5"),
    Fault("last token masked", "model.py", MASK, f"(attention_mask & ahead(attention_mask)){MASK[14:]}"),
    Fault("one padded token seen", "model.py", MASK, f"(attention_mask | behind(attention_mask)){MASK[14:]}"),
    Fault(
        "cls for mean",
        "pooling.py",
        "return _weighted_sum(tokens, tokens.mask, lambda count: count)",
        "return cls(tokens)",
    ),
    Fault("mean for cls", "pooling.py", "return _at(tokens, tokens.mask.argmax(axis=1))", "return mean(tokens)"),
    Fault("no scaling of scores", "model.py", " * d**-0.5 + bias", " + bias"),
    Fault("keys for queries", "model.py", "*layer.key)", "*layer.query)"),
    Fault("no residual", "model.py", "ops.layer_norm(x + multihead", "ops.layer_norm(multihead"),
    Fault("bias before the scale", "model.py", SCORES, "(Q @ K.swapaxes(-2, -1) + bias) * d**-0.5"),
    Fault("no bias by distance", "model.py", SCORES, SCORES.removesuffix(" + bias")),
    Fault("bias mirrored", "positions.py", "np.where(distance > 0", "np.where(distance < 0"),
    Fault("buckets one longer", "positions.py", 'side="right"', 'side="left"'),
    Fault("positions one later", "positions.py", "* counts + padding_id", "* counts + padding_id + 1"),
    Fault("positions from 0", "positions.py", "if padding_id is None:", "if True:"),
    Fault("padding ids counted", "positions.py", "counts = ids != padding_id", "counts = ids == ids"),
    Fault("another type", "model.py", "table.token_type[token_type_ids]", "table.token_type[token_type_ids] * 2"),
)
SHIFTS = """

def ahead(mask):
    import numpy
    return numpy.pad(mask, ((0, 0), (0, 1)))[:, 1:]


def behind(mask):
    import numpy
    return numpy.pad(mask, ((0, 0), (1, 0)))[:, :-1]
"""


def failures(fault: Fault | None) -> int:
    """Return the number of golden tests that fail in a copy of the project with ``fault``."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in ("minibert", "tests", "tools"):
            shutil.copytree(ROOT / name, copy / name)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if fault is not None:
            path = copy / "minibert" / fault.file
            source = path.read_text("utf-8")
            if fault.right not in source:
                raise SystemExit(f"{fault.file} has no line {fault.right!r} any more: bring the fault up to date")
            path.write_text(source.replace(fault.right, fault.wrong) + (SHIFTS if fault.right == MASK else ""), "utf-8")
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "tests/test_golden.py"]
        run = subprocess.run(
            command, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False
        )
        found = re.search(r"(\d+) failed", run.stdout)
        if found is None and " passed" not in run.stdout:
            raise SystemExit(f"the tests did not run:\n{run.stdout}{run.stderr}")
        return int(found.group(1)) if found else 0


def main() -> int:
    """Print how many tests fail for each fault, and return 1 if no test fails for one of them."""
    unseen = 0
    if count := failures(None):
        raise SystemExit(f"{count} golden tests fail without any fault")
    for fault in FAULTS:
        count = failures(fault)
        unseen += not count
        print(f"{fault.name:24} {count:4} golden tests fail")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
