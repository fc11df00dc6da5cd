"""The wheels of a release: what tools/build_wheels.py checks of each library, and two real builds."""

import platform
import sys
from pathlib import Path
from zipfile import ZipFile

import build_wheels
import pytest
from build_kernels import BuildError, library_name, platform_tag
from build_wheels import Needs


@pytest.mark.parametrize(
    ("target", "needs"),
    [
        ("x86_64-linux-gnu.2.17", Needs("x86_64", "gnu", (2, 17))),
        ("x86_64-linux-gnu.2.17", Needs("x86_64", "gnu", (2, 2, 5))),
        ("aarch64-linux-musl", Needs("aarch64", "musl")),
        ("aarch64-macos.11.0", Needs("aarch64", "macos", (11, 0))),
        ("x86_64-windows-gnu", Needs("x86_64", "windows")),
    ],
    ids=str,
)
def test_a_library_as_its_tag_says(target, needs):
    """A library may need an older system than its wheel's tag says, or the same."""
    build_wheels.check_needs(target, needs)


@pytest.mark.parametrize(
    ("target", "needs"),
    [
        ("x86_64-linux-gnu.2.17", Needs("x86_64", "gnu", (2, 18))),
        ("x86_64-linux-gnu.2.17", Needs("aarch64", "gnu", (2, 17))),
        ("x86_64-linux-gnu.2.17", Needs("x86_64", "musl")),
        ("aarch64-linux-musl", Needs("aarch64", "gnu", (2, 17))),
        ("aarch64-macos.11.0", Needs("aarch64", "macos", (13, 0))),
        ("aarch64-macos.11.0", Needs("aarch64", "2", (11, 0))),
        ("x86_64-windows-gnu", Needs("aarch64", "windows")),
    ],
    ids=str,
)
def test_a_library_that_needs_more(target, needs):
    """A library for another processor, another system or a newer one than the tag says is refused."""
    with pytest.raises(BuildError, match=f"the library for {target} must need no more than that"):
        build_wheels.check_needs(target, needs)


@pytest.mark.skipif(sys.platform != "linux", reason="Python itself is of ELF on Linux alone")
def test_what_a_program_of_this_machine_needs():
    """The needs of a real program are its processor and its C library."""
    found = build_wheels.needs(Path(sys.executable).read_bytes())

    assert found.processor == platform.machine()
    assert found.system == ("gnu" if platform.libc_ver()[0] == "glibc" else "musl")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh", b"\x7fELF\x01\x01"])
def test_what_is_no_library(content):
    """A file of another format is refused."""
    with pytest.raises(BuildError, match="a library must be of ELF, Mach-O or PE with 64 bits"):
        build_wheels.needs(content)


def test_unknown_targets(tmp_path, capsys):
    """A target without a tag is refused, with those that have one."""
    with pytest.raises(SystemExit):
        build_wheels.main([str(tmp_path), "sparc"])

    assert "TARGET must be one of x86_64-linux-gnu.2.17, " in capsys.readouterr().err


@pytest.mark.slow
def test_wheels_for_others(tmp_path, capsys):
    """For other machines, the tool builds wheels with a library, and prints the tag and both sizes."""
    for package in ("hatchling", "ziglang"):
        pytest.importorskip(package, reason=f"{package} is not installed: it builds wheels for other machines")
    targets = ["aarch64-linux-musl", "x86_64-macos.11.0", "pure"]
    assert build_wheels.main([str(tmp_path), *targets]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]

    assert [row.split()[0] for row in rows] == targets
    for row in rows[:2]:
        target, tag, size, library_size = row.split()[:4]
        (path,) = tmp_path.glob(f"*-{tag}.whl")
        assert tag == f"py3-none-{platform_tag(target)}"
        assert path.stat().st_size == int(size.replace(",", ""))
        with ZipFile(path) as archive:
            library = archive.getinfo(f"minibert/_kernels/cpu/{library_name(target)}")
        assert library.file_size == int(library_size.replace(",", "")) < 500_000
        assert row.endswith("linked, untested here")
    assert rows[2].split()[1:] == ["py3-none-any", rows[2].split()[2], "0", "no", "library"]
