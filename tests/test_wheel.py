"""What a user installs."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import build_kernels
import pytest
from support import ROOT

pytestmark = pytest.mark.slow

LIBRARY = f"minibert/_kernels/cpu/{build_kernels.library_name()}"
#: The settings of whoever runs the tests do not count.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MINIBERT_") and name != "CC"}


class Wheel(NamedTuple):
    """A wheel: its names, its metadata, the packed size of each file, the size of each, its path, and its WHEEL."""

    names: list[str]
    metadata: str
    packed: dict[str, int]
    sizes: dict[str, int]
    path: Path
    tags: str


def opened(path):
    """Return what is in a wheel."""
    with ZipFile(path) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        tags = archive.read(metadata.replace("METADATA", "WHEEL")).decode("utf-8")
        packed = {entry.filename: entry.compress_size for entry in archive.infolist()}
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        return Wheel(archive.namelist(), archive.read(metadata).decode("utf-8"), packed, sizes, path, tags)


def pip_wheel(folder, out, **settings):
    """Return the wheel that pip builds of a folder or a source package."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(folder)]
    subprocess.run(command, check=True, env=ENVIRONMENT | settings)
    (path,) = out.glob("*.whl")
    return opened(path)


def hatch(project, kind, out, **settings):
    """Build a wheel or a source package with the installed hatchling; return its path, and what was on stderr."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: it builds the packages")
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the wheel of this checkout."""
    return pip_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture
def project(tmp_path):
    """Return a copy of what a wheel is built from, without the built-in model, and without what others built."""
    folder = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", *build_kernels.LIBRARY_NAMES.values())
    for name in ("minibert", "kernels", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_one_top_level_name(wheel):
    """The wheel adds one import name: `kernels` at the top level is another project's."""
    assert {name.split("/")[0] for name in wheel[0] if ".dist-info/" not in name} == {"minibert"}


def test_kernels_arrive(wheel):
    """Under minibert/_kernels, the wheel has every file of kernels/ once, and the library in place of its C sources."""
    kernels = ROOT / "kernels"
    files = {path.relative_to(kernels).as_posix() for path in kernels.rglob("*") if path.is_file()}
    expected = {f"minibert/_kernels/{name}" for name in files if not name.startswith("cpu/")} | {LIBRARY}

    assert "minibert/_kernels/README.md" in expected
    assert sorted(name for name in wheel[0] if "kernels" in name) == sorted(expected)


def test_the_page_arrives(wheel):
    """The wheel has the files of the page of `minibert explain --html`, which are no Python."""
    assert {f"minibert/study/page.{kind}" for kind in ("css", "html", "js", "py")} <= set(wheel.names)


def test_the_library_in_the_wheel(wheel, tmp_path):
    """The library in the wheel loads, is compiled from the sources of this checkout, and takes less than 0.5 MB."""
    with ZipFile(wheel.path) as archive:
        library = Path(archive.extract(LIBRARY, tmp_path))

    assert build_kernels.library_source(library) == build_kernels.source_hash()
    assert wheel.sizes[LIBRARY] < 500_000


def test_the_tag_of_the_wheel(wheel):
    """A wheel with a library is for one platform, and for every Python."""
    tag = f"py3-none-{build_kernels.platform_tag()}"

    assert wheel.path.name.endswith(f"-{tag}.whl")
    assert f"Root-Is-Purelib: false\nTag: {tag}\n" in wheel.tags


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"MINIBERT_BUILD_KERNELS": "0"}, "MINIBERT_BUILD_KERNELS is 0"), ({"CC": "false"}, "'false' must build kernels")],
    ids=["not wanted", "compiler fails"],
)
def test_a_wheel_without_a_library(project, tmp_path, settings, reason):
    """Without a library, a wheel is for every platform, and stderr has one line of minibert's with the reason."""
    path, stderr = hatch(project, "wheel", tmp_path, **settings)
    wheel = opened(path)

    assert path.name.endswith("-py3-none-any.whl")
    assert "Root-Is-Purelib: true\nTag: py3-none-any\n" in wheel.tags
    assert not [name for name in wheel.names if "/cpu/" in name]
    lines = [line for line in stderr.splitlines() if "kernels" in line]
    assert len(lines) == 1
    assert lines[0].startswith("minibert: no compiled kernels, numpy does their work: ")
    assert reason in lines[0]


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_libraries_of_the_source_tree_stay_there(project, tmp_path, kind):
    """What an editable installation left in kernels/cpu gets into no package."""
    for name in build_kernels.LIBRARY_NAMES.values():
        (project / "kernels" / "cpu" / name).write_bytes(b"stale")
        (project / "kernels" / "cpu" / f"{name}.123.part").write_bytes(b"stale")
    path, _ = hatch(project, kind, tmp_path, MINIBERT_BUILD_KERNELS="0")
    if kind == "wheel":
        names = opened(path).names
    else:
        with tarfile.open(path) as archive:
            names = archive.getnames()

    assert len(names) > 50
    assert not [name for name in names if "minibert_cpu." in name]


def test_a_new_library_replaces_one_of_the_source_tree(project, tmp_path):
    """A wheel has the library that was compiled for it, whatever lies in kernels/cpu."""
    (project / "kernels" / "cpu" / build_kernels.library_name()).write_bytes(b"stale")
    path, _ = hatch(project, "wheel", tmp_path, MINIBERT_BUILD_KERNELS="1")
    with ZipFile(path) as archive:
        library = Path(archive.extract(LIBRARY, tmp_path))

    assert build_kernels.library_source(library) == build_kernels.source_hash(project / "kernels" / "cpu")


def test_a_wheel_of_the_source_package(project, tmp_path):
    """The source package has all that a wheel with a library needs."""
    source_package, _ = hatch(project, "sdist", tmp_path)
    wheel = pip_wheel(source_package, tmp_path, MINIBERT_BUILD_KERNELS="1")

    assert LIBRARY in wheel.names


def test_a_wheel_without_a_compiler(project, tmp_path):
    """Where there is no C compiler, pip gets one from the package index for the build."""
    (tmp_path / "bin").mkdir()
    wheel = pip_wheel(project, tmp_path, MINIBERT_BUILD_KERNELS="1", PATH=str(tmp_path / "bin"))

    assert LIBRARY in wheel.names


def test_an_editable_installation(project, tmp_path):
    """It puts the library into the source tree; one without a library takes it away."""
    library = project / "kernels" / "cpu" / build_kernels.library_name()
    venv = str(tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", venv, "install", "--quiet", "--no-deps", "-e", str(project)]
    subprocess.run(pip, check=True, env=ENVIRONMENT | {"MINIBERT_BUILD_KERNELS": "1"})
    assert build_kernels.library_source(library) == build_kernels.source_hash(library.parent)
    assert [path.name for path in library.parent.glob("*minibert_cpu*")] == [library.name]

    subprocess.run(pip, check=True, env=ENVIRONMENT | {"MINIBERT_BUILD_KERNELS": "0"})
    assert not library.exists()


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
    libraries = build_kernels.LIBRARY_NAMES.values()
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if "__pycache__" not in path.parts and path.name not in libraries
    }
    expected |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"}

    assert len(expected) > 150
    assert expected <= names
