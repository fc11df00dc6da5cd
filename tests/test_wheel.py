"""What a user installs."""

import re
import subprocess
import sys
import tarfile
from zipfile import ZipFile

import pytest
from support import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel and return its names, its metadata, and the packed size of each file."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    with ZipFile(path) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        sizes = {entry.filename: entry.compress_size for entry in archive.infolist()}
        return archive.namelist(), archive.read(metadata).decode("utf-8"), sizes


def test_one_top_level_name(wheel):
    """The wheel adds one import name: `kernels` at the top level is another project's."""
    assert {name.split("/")[0] for name in wheel[0] if ".dist-info/" not in name} == {"minibert"}


def test_kernels_arrive(wheel):
    """Every file of kernels/, its README included, is in the wheel once, under minibert/_kernels."""
    kernels = ROOT / "kernels"
    expected = {f"minibert/_kernels/{path.relative_to(kernels)}" for path in kernels.rglob("*") if path.is_file()}

    assert "minibert/_kernels/README.md" in expected
    assert {name for name in wheel[0] if "kernels" in name} == expected


def test_code_arrives(wheel):
    """Every module, and the marker that says that the package is typed, is in the wheel."""
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "minibert").rglob("*.py")} | {"minibert/py.typed"}

    assert expected <= set(wheel[0])


def test_builtin_model_arrives(wheel):
    """Every file of the built-in model is in the wheel, its card included; packed they have less than 10 MB."""
    folder = ROOT / "minibert" / "builtin"
    expected = {str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()}
    packed = sum(size for name, size in wheel[2].items() if name.startswith("minibert/builtin/"))

    assert {"minibert/builtin/model.safetensors", "minibert/builtin/README.md"} <= expected
    assert {name for name in wheel[0] if name.startswith("minibert/builtin/")} == expected
    assert 1e6 < packed < 10e6


def test_addresses_arrive(wheel):
    """A package index links to the project's pages."""
    addresses = dict(re.findall(r"^Project-URL: (\w+), (\S+)$", wheel[1], re.MULTILINE))

    assert addresses.keys() == {"Homepage", "Documentation", "Changelog", "Issues"}
    assert {address.split("/")[2] for address in addresses.values()} == {"github.com"}


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


def test_the_source_package_is_whole(tmp_path):
    """Whoever has only the source package has the documentation, the examples and what a contributor needs."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: it builds the source package")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("docs", "examples", "kernels", "minibert", "tests", "tools")
    files = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    expected |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"}

    assert len(expected) > 150
    assert expected <= names
