"""The compilation of the CPU kernels: which compiler, which flags, and what happens where there is none."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import build_kernels
import pytest
from build_kernels import SOURCES, TARGETS, ZIG, BuildError
from support import ROOT

SOURCE = """
#include "answer.h"
__attribute__((visibility("default"))) const char *mb_source(void) { return MB_SOURCE; }
__attribute__((visibility("default"))) int answer(void) { return ANSWER; }
int hidden(void) { return 1; }
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Take away the settings of whoever runs the tests."""
    for name in ("CC", "MINIBERT_BUILD_KERNELS", "MINIBERT_KERNELS_TARGET"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def sources(tmp_path):
    """Return a folder with the C sources of a small library."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "answer.c").write_text(SOURCE, "utf-8")
    (folder / "answer.h").write_text("#define ANSWER 42\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def compiler():
    """Return the command of a C compiler, or skip."""
    found = build_kernels.find_compiler()
    if found is None:
        pytest.skip("no C compiler works here: install one, or ziglang")
    return found


@pytest.fixture
def library(sources, compiler, tmp_path):
    """Return the path of the small library, compiled."""
    output = tmp_path / "library.so"
    build_kernels.compile_library(sources, output, compiler)
    return output


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return an empty folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def add_program(folder, name, script):
    """Write a program of the shell."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)


def command(compiler=("cc",), target=None, extra=(), sources=SOURCES):
    """Return the command that compiles a folder."""
    return build_kernels.compile_command(sources, Path("library.so"), compiler, target, extra)


# ---------------------------------------------------------------- the hash of the sources


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "answer.h").write_text("#define ANSWER 43\n"),
        lambda folder: (folder / "new.c").write_text(""),
        lambda folder: (folder / "answer.h").rename(folder / "other.h"),
        lambda folder: (folder / "answer.h").unlink(),
    ],
    ids=["content", "added", "renamed", "removed"],
)
def test_source_hash_sees(sources, change):
    """The hash is 16 hex digits, and changes with the content and the name of each source."""
    before = build_kernels.source_hash(sources)
    change(sources)
    after = build_kernels.source_hash(sources)

    assert re.fullmatch("[0-9a-f]{16}", before)
    assert re.fullmatch("[0-9a-f]{16}", after)
    assert after != before


def test_source_hash_passes_over(sources):
    """The hash does not change with files that are not C."""
    before = build_kernels.source_hash(sources)
    (sources / "minibert_cpu.so").write_bytes(b"library")

    assert build_kernels.source_hash(sources) == before


def test_a_library_says_its_sources(sources, library):
    """A library returns the hash of the sources that it was compiled from."""
    assert build_kernels.library_source(library) == build_kernels.source_hash(sources)


def test_a_library_older_than_its_sources(sources, compiler):
    """A library beside changed sources is found, with the command that helps."""
    assert not build_kernels.outdated(sources)
    build_kernels.compile_and_check(sources, sources / build_kernels.library_name(), compiler)
    assert not build_kernels.outdated(sources)
    (sources / "answer.h").write_text("#define ANSWER 43\n", "utf-8")

    assert build_kernels.outdated(sources).endswith("older than its sources: run python tools/build_kernels.py")


def test_the_library_of_this_checkout_is_current():
    """The library that the tests load, if there is one, is compiled from the sources that there are."""
    assert not build_kernels.outdated(SOURCES)


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize("target", [None, *TARGETS])
@pytest.mark.parametrize("kind", ["gcc", "zig", "other"])
def test_flags(kind, target, monkeypatch):
    """No flag lets a compiler choose the bits of a result, or instructions that another processor lacks."""
    monkeypatch.setattr(build_kernels, "kind_of", lambda _: kind)
    words = command(target=target)

    assert {"-O3", "-std=c11", "-fvisibility=hidden", "-ffp-contract=off"} <= set(words)
    assert [word for word in words if "contract" in word] == ["-ffp-contract=off"]
    assert not [word for word in words if re.match("-m|-Ofast|-ffast-math|-funsafe|-fassociative|-freciprocal", word)]
    assert ("-Wno-psabi" in words) == (kind == "gcc")
    assert ("-fno-sanitize=undefined" in words) == ("-s" in words) == (kind == "zig")


def test_zig_never_compiles_for_this_very_processor():
    """Zig has a target also for this machine: without one, it uses every instruction that the processor has."""
    words = command(ZIG)

    assert words[len(ZIG) : len(ZIG) + 2] == ["-target", build_kernels.this_target()]


@pytest.mark.parametrize("target", TARGETS)
def test_threads_are_linked(target):
    """Linux alone has threads in a library of their own."""
    assert ("-lpthread" in command(target=target)) == ("linux" in target)


def test_extra_flags_come_last(sources):
    """A flag of the command line is after those that it may replace."""
    words = command(extra=["-O1"], sources=sources)

    assert words.index("-O3") < words.index("-O1") < words.index("answer.c")


def test_kinds_of_compilers(programs):
    """GCC is known by what it prints as its version, under any name; zig by its own name."""
    add_program(programs, "cc", "echo 'cc (Debian 12.2.0) 12.2.0'; echo 'Copyright (C) Free Software Foundation, Inc.'")
    add_program(programs, "ziglang", "echo 'Apple clang version 17.0.0'")

    assert build_kernels.kind_of((str(programs / "cc"),)) == "gcc"
    assert build_kernels.kind_of((str(programs / "ziglang"),)) == "other"
    assert build_kernels.kind_of((str(programs / "missing"),)) == "other"
    assert build_kernels.kind_of(ZIG) == build_kernels.kind_of(("/opt/zig/zig", "cc")) == "zig"


# ---------------------------------------------------------------- compilation


def test_compiled(library):
    """All sources are in the library, and only what is exported can be found in it."""
    loaded = ctypes.CDLL(str(library))

    assert loaded.answer() == 42
    assert not hasattr(loaded, "hidden")


def test_extra_flags_arrive(sources, compiler, tmp_path):
    """An extra flag reaches the compiler."""
    (sources / "answer.h").unlink()
    (sources / "answer.c").write_text(SOURCE.replace('#include "answer.h"', ""), "utf-8")
    build_kernels.compile_library(sources, tmp_path / "library.so", compiler, extra=["-DANSWER=7"])

    assert ctypes.CDLL(str(tmp_path / "library.so")).answer() == 7


def test_errors_of_the_compiler(sources, compiler, tmp_path):
    """A failure names the compiler and its first error, in one line, and an older library stays."""
    (tmp_path / "library.so").write_bytes(b"older")
    (sources / "answer.h").write_text("#error so be it\n", "utf-8")
    with pytest.raises(
        BuildError, match=rf"{re.escape(compiler[0])}.* ended with code \d+ \(.*so be it.*\)$"
    ) as failure:
        build_kernels.compile_library(sources, tmp_path / "library.so", compiler)

    assert "\n" not in str(failure.value)
    assert (tmp_path / "library.so").read_bytes() == b"older"


def test_a_library_that_does_not_load(sources, compiler, tmp_path):
    """A library that refers to something missing is refused, and does not get to its place."""
    (sources / "answer.c").write_text(f"int missing(void);{SOURCE.replace('ANSWER;', 'missing();')}", "utf-8")
    with pytest.raises(BuildError, match=r"must load into Python; that ended with OSError: .*missing"):
        build_kernels.compile_and_check(sources, tmp_path / "library.so", compiler)

    assert not (tmp_path / "library.so").exists()


def test_a_library_without_mb_source(sources, compiler, tmp_path):
    """A library that does not say its sources is refused."""
    (sources / "answer.c").write_text("int nothing;", "utf-8")
    with pytest.raises(BuildError, match=r"must load into Python; that ended with AttributeError: .*mb_source"):
        build_kernels.compile_and_check(sources, tmp_path / "library.so", compiler)


def test_a_library_that_crashes(sources, compiler, tmp_path):
    """A library whose code crashes is refused, and does not end the build."""
    (sources / "answer.c").write_text(SOURCE.replace("return MB_SOURCE", "__builtin_trap()"), "utf-8")
    with pytest.raises(BuildError, match=r"must load into Python; that ended with code -?[0-9]+$"):
        build_kernels.compile_and_check(sources, tmp_path / "library.so", compiler)


# ---------------------------------------------------------------- which compiler


def test_cc_is_used_as_it_is(monkeypatch):
    """CC is a command with arguments, and is used even if it does not work."""
    monkeypatch.setenv("CC", "ccache some-cc -m64")

    assert build_kernels.find_compiler() == ("ccache", "some-cc", "-m64")


def test_a_compiler_that_fails_is_passed_over(programs, compiler):
    """A compiler on PATH that cannot build is as good as none, such as macOS' own cc without the tools."""
    if compiler == ZIG:
        pytest.skip("the system has no C compiler")
    add_program(programs, "cc", "exit 1")
    add_program(programs, "gcc", f'PATH={os.defpath} exec {compiler[0]} "$@"')

    assert build_kernels.system_compiler() == (str(programs / "gcc"),)


def test_ziglang_is_asked_for_only_without_a_compiler(sources, programs, compiler):
    """The build needs ziglang if PATH has no compiler, and nothing if it has one."""
    assert build_kernels.requirements(sources) == ["ziglang>=0.15"]
    if compiler == ZIG:
        pytest.skip("the system has no C compiler")
    add_program(programs, "cc", f'PATH={os.defpath} exec {compiler[0]} "$@"')
    assert build_kernels.requirements(sources) == []


@pytest.mark.parametrize(
    ("name", "value"), [("MINIBERT_BUILD_KERNELS", "0"), ("CC", "false"), ("CC", "/no/such/compiler")]
)
def test_ziglang_is_not_asked_for_where_somebody_chose(sources, programs, monkeypatch, name, value):
    """Whoever names a compiler, or wants none, gets no other one."""
    monkeypatch.setenv(name, value)

    assert build_kernels.requirements(sources) == []


def test_ziglang_is_not_asked_for_where_it_is_not(sources, programs, monkeypatch):
    """On a processor that no kernel is for, the build needs nothing: ziglang may have no wheel there."""
    monkeypatch.setattr(build_kernels.platform, "machine", lambda: "riscv64")

    assert build_kernels.requirements(sources) == []
    assert build_kernels.this_target() is None


def test_another_target_needs_ziglang(sources, monkeypatch):
    """A wheel for another machine is built by ziglang alone."""
    monkeypatch.setenv("MINIBERT_KERNELS_TARGET", "aarch64-windows-gnu")

    assert build_kernels.requirements(sources) == ["ziglang>=0.15"]


@pytest.mark.parametrize("machine", ["x86_64", "AMD64", "aarch64", "arm64"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_each_common_machine_is_a_target(monkeypatch, system, machine):
    """Every processor and system that has a wheel is found by the names that Python has for it."""
    monkeypatch.setattr(build_kernels.platform, "machine", lambda: machine)
    monkeypatch.setattr(build_kernels.sys, "platform", system)
    target = build_kernels.this_target()

    assert target.startswith("x86_64-" if machine in {"x86_64", "AMD64"} else "aarch64-")
    assert {"darwin": "macos", "win32": "windows"}.get(system, "linux") in target


# ---------------------------------------------------------------- a build without a library


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MINIBERT_BUILD_KERNELS", "0", "MINIBERT_BUILD_KERNELS is 0."),
        ("CC", "false", r"the C compiler 'false' must build kernels/cpu; it ended with code 1 \(.*\). Set CC to .*"),
        ("CC", "/no/such/cc", "the C compiler must be a program that runs; '/no/such/cc' gave .*. Set CC to .*"),
    ],
)
def test_a_build_without_a_library_says_why(sources, tmp_path, monkeypatch, capsys, name, value, message):
    """Without a library, a build goes on, and stderr has one line with the reason."""
    monkeypatch.setenv(name, value)

    assert not build_kernels.build_or_warn(sources, tmp_path / "library.so")
    assert not (tmp_path / "library.so").exists()
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"minibert: no compiled kernels, numpy does their work: {message}\n", printed), printed


def test_a_build_where_nothing_compiles(sources, programs, tmp_path, monkeypatch, capsys):
    """Where neither a compiler nor ziglang is, a build goes on without the library."""
    monkeypatch.setattr(build_kernels.importlib.util, "find_spec", lambda _: None)

    assert not build_kernels.build_or_warn(sources, tmp_path / "library.so")
    assert "cc, gcc, clang and ziglang are missing, or do not work. Set CC" in capsys.readouterr().err


def test_a_build_without_sources(tmp_path, capsys):
    """A source tree without kernels/cpu can be built."""
    assert not build_kernels.build_or_warn(tmp_path / "cpu", tmp_path / "library.so")
    assert "kernels/cpu has no C source" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("MINIBERT_BUILD_KERNELS", "1"), ("MINIBERT_KERNELS_TARGET", "x86_64-linux-musl")]
)
def test_a_build_that_must_have_a_library(sources, tmp_path, monkeypatch, name, value):
    """A build that was told to have the library, or for which machine, fails without it."""
    monkeypatch.setenv("CC", "false")
    monkeypatch.setenv(name, value)
    (sources / "answer.h").write_text("#error so be it\n", "utf-8")
    with pytest.raises(BuildError):
        build_kernels.build_or_warn(sources, tmp_path / "library.so", build_kernels.wheel_target())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MINIBERT_BUILD_KERNELS", "no", "MINIBERT_BUILD_KERNELS must be 0, 1 or not set; it is 'no'"),
        ("MINIBERT_KERNELS_TARGET", "x86_64", r"MINIBERT_KERNELS_TARGET must be one of x86_64-.*; it is 'x86_64'"),
    ],
)
def test_settings_are_checked(sources, monkeypatch, name, value, message):
    """A setting that means nothing is refused, with those that mean something."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        build_kernels.requirements(sources)


# ---------------------------------------------------------------- names


def test_library_names_are_kept_out():
    """Git and the source package pass over the library of each system, and a half written one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    patterns = {f"/kernels/cpu/{name}*" for name in build_kernels.LIBRARY_NAMES.values()}
    assert patterns == set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"])
    if not (ROOT / ".git").exists():
        pytest.skip("there is no .gitignore without a checkout")
    assert {pattern.removeprefix("/") for pattern in patterns} <= set((ROOT / ".gitignore").read_text().split())


@pytest.mark.parametrize("target", TARGETS)
def test_library_names(target):
    """Each system has the ending that its own libraries have."""
    endings = {"linux": ".so", "macos": ".dylib", "windows": ".dll"}

    assert Path(build_kernels.library_name(target)).suffix == next(endings[s] for s in endings if s in target)


@pytest.mark.parametrize("target", TARGETS)
def test_tags_agree_with_targets(target):
    """The tag of a wheel has the processor, and the oldest system, that the library is compiled for."""
    tag = build_kernels.platform_tag(target)
    processor = {"win_amd64": "x86_64", "macosx_11_0_arm64": "aarch64", "win_arm64": "aarch64"}.get(tag, tag)

    assert processor.endswith(target.split("-")[0])
    for version in re.findall(r"\d+\.\d+$", target):
        assert f"_{version.replace('.', '_')}_" in tag


def test_the_tag_of_this_machine():
    """A wheel from here is for machines like this one, not for each Linux."""
    tag = build_kernels.platform_tag()

    assert re.fullmatch(r"[a-z0-9_]+", tag)
    if sys.platform == "linux":
        assert tag == f"linux_{build_kernels.platform.machine()}"


# ---------------------------------------------------------------- command line


@pytest.fixture
def checkout(sources, tmp_path):
    """Return a checkout that has tools/build_kernels.py and the small library alone."""
    (tmp_path / "checkout" / "tools").mkdir(parents=True)
    shutil.copy(build_kernels.__file__, tmp_path / "checkout" / "tools")
    (tmp_path / "checkout" / "kernels").mkdir()
    sources.rename(tmp_path / "checkout" / "kernels" / "cpu")
    return tmp_path / "checkout"


def run(checkout, *arguments):
    """Run the command line of a checkout."""
    program = [sys.executable, str(checkout / "tools" / "build_kernels.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_command_line(checkout, compiler):
    """The library is built in its place, and its path is printed; --verbose also prints the command."""
    library = checkout / "kernels" / "cpu" / build_kernels.library_name()
    done = run(checkout, "--verbose", "-DUNUSED=3")

    assert done.returncode == 0, done.stderr
    printed, path = done.stdout.splitlines()
    assert "-O3" in printed
    assert "-DUNUSED=3" in printed
    assert path == str(library)
    assert build_kernels.library_source(library) == build_kernels.source_hash(library.parent)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cc", "false"], "the C compiler 'false' must build kernels/cpu"),
        (["--target", "x86_64-linux-musl"], "--target needs --output"),
        (["-D", "NAME"], "a flag for the compiler must be one word that begins with '-'; 'NAME' does not"),
    ],
)
def test_errors_of_the_command_line(checkout, arguments, message):
    """What cannot be built is said, and the exit code is not 0."""
    done = run(checkout, *arguments)

    assert done.returncode != 0
    assert message in done.stderr
    assert not list(checkout.rglob("minibert_cpu.*"))
