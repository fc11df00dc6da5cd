"""Add one fault at a time to the reference and to ``minibert.study``, and check that tests fail.

    python tools/plant_faults.py

Each fault is added to a copy of the project. A fault in the arithmetic must fail golden tests; a fault in a tap or in
``minibert.study``, the tests of ``minibert.study``. Run it once per release, and when the golden files change: a test
that fails for no fault proves nothing.
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


GOLDEN = "tests/test_golden.py"
TRACE, CONTRIBUTIONS, EXPLAIN = (f"tests/test_study_{name}.py" for name in ("trace", "contributions", "explain"))


class Fault(NamedTuple):
    """A fault: its name, the file, the right code and the wrong code, and the tests that must see it."""

    name: str
    file: str
    right: str
    wrong: str
    tests: str = GOLDEN


#: The results of model.py.
TAPS = [
    "words",
    "types",
    "positions",
    "x",
    "Q",
    "K",
    "V",
    "scores",
    "weights",
    "heads",
    "multihead",
    "attended",
    "inner",
    "outer",
]
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
    *(Fault(f"no tap of {name}", "model.py", f'tap("{name}", ', f'untapped("{name}", ', TRACE) for name in TAPS),
    Fault("Q and K swapped", "model.py", 'f"{part}.{name}"', 'f"{part}.{name}".translate({75: "Q", 81: "K"})', TRACE),
    Fault("scores for weights", "model.py", 'tap("weights", ops', 'tap("scores", ops', TRACE),
    Fault("weights not replaced", "model.py", 'tap("weights", ', '(lambda n, v: (v, tap(n, v))[0])("weights", ', TRACE),
    Fault("layers from the end", "model.py", "layers.{number}", "layers.{len(model.layers) - 1 - number}", TRACE),
    Fault("prompt pooled", "study/reference.py", "if prompt_length:", "if not prompt_length:", TRACE),
    Fault("not truncated", "study/reference.py", "[:, : self.truncate_dim]", "[:, :]", TRACE),
    Fault("edited in place", "study/traces.py", "own = value[0, ...].copy()", "own = value[0, ...]", TRACE),
    Fault("not copied", "study/traces.py", "new = np.array(returned)", "new = np.asarray(returned)", TRACE),
    Fault("another norm", "study/traces.py", "2 * number + 1)", "2 * number + 2)", CONTRIBUTIONS),
    Fault("no biases of W_O", "study/traces.py", "constant + bias", "constant", CONTRIBUTIONS),
    Fault("columns for rows", "study/traces.py", "heads @ output.T.reshape", "heads @ output.reshape", CONTRIBUTIONS),
    Fault("equal blanks kept", "study/similar.py", "sizes > 1e-9 * sizes[0]", "sizes >= 0", EXPLAIN),
    Fault("nothing aside", "study/similar.py", " - (added_a @ aside) @ (added_b @ aside).T", "", EXPLAIN),
    Fault(
        "one setting for both", "study/similar.py", "trace.model.unscaled() if", "self.a.model.unscaled() if", EXPLAIN
    ),
    Fault("prompt faded in", "study/similar.py", "trace.special | (", "trace.special | (0 > ", EXPLAIN),
    Fault("lengths forgotten", "study/similar.py", 'if self.function == "dot":', "if False:", EXPLAIN),
    Fault("token after it", "study/similar.py", "np.delete(trace.ids, i)", "np.delete(trace.ids, i + 1)", EXPLAIN),
    Fault("other head", "study/similar.py", "number % heads] = 0", "(number + 1) % heads] = 0", EXPLAIN),
    Fault("never halved", "study/similar.py", "> allowed:", "> 9e9:", EXPLAIN),
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
    """Return the number of tests that fail in a copy of the project with ``fault``; without one, of all tests."""
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
        tests = (GOLDEN, TRACE, CONTRIBUTIONS, EXPLAIN) if fault is None else (fault.tests,)
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--tb=no", "-p", "no:cacheprovider", *tests]
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
        raise SystemExit(f"{count} tests fail without any fault")
    for fault in FAULTS:
        count = failures(fault)
        unseen += not count
        print(f"{fault.name:24} {count:4} tests fail")
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main())
