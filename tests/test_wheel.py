"""What a user installs."""

import subprocess
import sys
from zipfile import ZipFile

import pytest
from support import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel and return its names and metadata."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    with ZipFile(path) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        return archive.namelist(), archive.read(metadata).decode("utf-8")


def test_one_top_level_name(wheel):
    """The wheel adds one import name: `kernels` at the top level is another project's."""
    assert {name.split("/")[0] for name in wheel[0] if ".dist-info/" not in name} == {"minibert"}


def test_kernels_arrive(wheel):
    """Every file of kernels/, its README included, is in the wheel once, under minibert/_kernels."""
    expected = {f"minibert/_kernels/{path.name}" for path in (ROOT / "kernels").iterdir()}

    assert "minibert/_kernels/README.md" in expected
    assert {name for name in wheel[0] if "kernels" in name} == expected


def test_code_arrives(wheel):
    """Every module, and the marker that says that the package is typed, is in the wheel."""
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "minibert").rglob("*.py")} | {"minibert/py.typed"}

    assert expected <= set(wheel[0])


def test_licence_arrives(wheel):
    """The licence text and its name are in the wheel."""
    assert any(name.endswith("licenses/LICENSE") for name in wheel[0])
    assert "License-Expression: Apache-2.0" in wheel[1]


def test_dependencies(wheel):
    """The core needs small well-kept packages only, and CuPy is an extra."""
    requires = [
        line.removeprefix("Requires-Dist: ") for line in wheel[1].splitlines() if line.startswith("Requires-Dist")
    ]
    core = {line.split(">")[0].split("<")[0].strip() for line in requires if "extra ==" not in line}

    assert core == {"huggingface-hub", "numpy", "safetensors", "threadpoolctl", "tokenizers", "tqdm"}
    assert any(line.startswith("cupy-cuda12x[ctk]") and "extra == 'cuda12'" in line for line in requires)
    assert any(line.startswith("cupy-cuda13x[ctk]") and "extra == 'cuda13'" in line for line in requires)
