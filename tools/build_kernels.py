"""Compile the kernels of kernels/cpu into one library.

    python tools/build_kernels.py                         for this machine, into kernels/cpu
    python tools/build_kernels.py --cc clang              with this compiler
    python tools/build_kernels.py --target aarch64-macos.11.0 --output FILE
    python tools/build_kernels.py -O1 -fsanitize=address --output FILE

Every option that this list does not have is passed to the compiler.

Hatch runs this file, too, when it builds a wheel: see :func:`get_build_hook`. Three environment variables are for that:

- ``CC``: the compiler. Without it, the first of cc, gcc and clang that works. If none works: the wheel ``ziglang``.
- ``MINIBERT_BUILD_KERNELS``: 0 builds a wheel without the library. 1 fails if the library cannot be built. Without it,
  the wheel has the library if it can be built.
- ``MINIBERT_KERNELS_TARGET``: the wheel is for this target of ``TARGETS``. tools/build_wheels.py sets it.
"""

import argparse
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels" / "cpu"

#: The library's name, by the system that it is for. pyproject.toml and .gitignore have the same names.
LIBRARY_NAMES = {"linux": "minibert_cpu.so", "macos": "minibert_cpu.dylib", "windows": "minibert_cpu.dll"}

#: For each target of ziglang: the platform tag of its wheel. Both say how old a system may be: they must agree.
TARGETS = {
    "x86_64-linux-gnu.2.17": "manylinux_2_17_x86_64.manylinux2014_x86_64",
    "aarch64-linux-gnu.2.17": "manylinux_2_17_aarch64.manylinux2014_aarch64",
    "x86_64-linux-musl": "musllinux_1_2_x86_64",
    "aarch64-linux-musl": "musllinux_1_2_aarch64",
    "x86_64-macos.11.0": "macosx_11_0_x86_64",  # ARM64 came with 11.0; one version for both
    "aarch64-macos.11.0": "macosx_11_0_arm64",
    "x86_64-windows-gnu": "win_amd64",
    "aarch64-windows-gnu": "win_arm64",
}

#: No -march: each file selects its own instruction set. No -ffast-math, and no fused multiply-add that the source does
#: not write: the bits of a vector would depend on the compiler.
FLAGS = (
    "-O3",
    "-std=c11",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
#: Zig checks for undefined behaviour, and keeps debugging information, unless it is told not to. GCC tells of each
#: wide vector that the ABI of an older GCC had for itself.
FLAGS_OF = {"gcc": ("-Wno-psabi",), "zig": ("-fno-sanitize=undefined", "-s"), "other": ()}
ZIG = (sys.executable, "-m", "ziglang", "cc")
ZIG_REQUIREMENT = "ziglang>=0.15"

OUTDATED = "the library is older than its sources: run python tools/build_kernels.py"

#: What a compiler must be able to build: it has what the kernels need from the system.
PROBE = """
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
typedef float vector __attribute__((vector_size(64)));
__attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma"))) void multiply(vector *x) {
    *x = (vector)_mm512_fmadd_ps((__m512)*x, (__m512)*x, (__m512)*x);
}
#endif

static atomic_uint_least64_t count;
static void *add(void *argument) { return atomic_fetch_add(&count, 1), argument; }

__attribute__((visibility("default"))) const char *mb_source(void) {
    pthread_t thread;
    return pthread_create(&thread, NULL, add, NULL) || pthread_join(thread, NULL) ? "" : MB_SOURCE;
}
"""


class BuildError(Exception):
    """The library cannot be built. The message is one line.

    Attributes:
        output: All that the compiler wrote.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


# ---------------------------------------------------------------- sources and machines


def source_hash(folder: Path = SOURCES) -> str:
    """Return 16 hex digits that change with the name or the content of any C source in ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]"), key=lambda path: path.name):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def processor() -> str:
    """Return this processor as a target names it, or an empty text if the kernels are not for it."""
    if sys.maxsize <= 2**32:  # a 32-bit Python cannot load a 64-bit library
        return ""
    names = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
    return names.get(platform.machine().lower(), "")


def this_target() -> str | None:
    """Return the target of TARGETS that is this machine, or None if no target is."""
    systems = {
        "linux": "linux-gnu.2.17" if platform.libc_ver()[0] == "glibc" else "linux-musl",
        "darwin": "macos.11.0",
        "win32": "windows-gnu",
    }
    target = f"{processor()}-{systems.get(sys.platform)}"
    return target if target in TARGETS else None


def system_of(target: str | None = None) -> str:
    """Return the key of LIBRARY_NAMES for a target, or for this machine."""
    named = target or {"darwin": "macos", "win32": "windows"}.get(sys.platform, "")
    return next((system for system in ("macos", "windows") if system in named), "linux")


def library_name(target: str | None = None) -> str:
    """Return the library's file name for a target, or for this machine."""
    return LIBRARY_NAMES[system_of(target)]


def platform_tag(target: str | None = None) -> str:
    """Return the platform tag of a wheel for a target, or of one that is only for machines like this one."""
    if target is not None:
        return TARGETS[target]
    if sys.platform == "darwin":
        # Python's own platform can name an older macOS and two processors. The compiler built for this macOS alone.
        from packaging.tags import platform_tags

        return next(iter(platform_tags()))
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


# ---------------------------------------------------------------- compilers


def system_compiler() -> tuple[str, ...] | None:
    """Return the command of ``CC``, or of the first compiler on PATH that works, or None.

    ``CC`` is not tried first: if it does not work, whoever set it must know.
    """
    if named := os.environ.get("CC", "").strip():
        return tuple(shlex.split(named, posix=os.name == "posix"))
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        # A compiler without headers is no compiler. Nor is macOS' own /usr/bin/cc before somebody installs the tools.
        if path is not None and works((path,)):
            return (path,)
    return None


def find_compiler() -> tuple[str, ...] | None:
    """Return the command of the system's C compiler, or of ziglang where it is installed, or None."""
    found = system_compiler()
    if found is None and this_target() is not None and importlib.util.find_spec("ziglang") is not None:
        return ZIG
    return found


def works(compiler: Sequence[str]) -> bool:
    """Return whether a compiler builds a small library with a thread, and this Python loads it."""
    with tempfile.TemporaryDirectory(prefix="minibert-") as scratch:
        folder = Path(scratch)
        (folder / "probe.c").write_text(PROBE, "utf-8")
        try:
            compile_and_check(folder, folder / library_name(), compiler)
        except BuildError:
            return False
        return True


@functools.cache
def kind_of(compiler: tuple[str, ...]) -> str:
    """Return which of FLAGS_OF a compiler needs."""
    if "ziglang" in compiler or Path(compiler[0]).stem == "zig":  # by its name: it says that it is clang
        return "zig"
    try:
        told = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return "other"  # the compilation says what is wrong
    return "gcc" if "Free Software Foundation" in told else "other"


def compile_command(
    sources_dir: Path, output: Path, compiler: Sequence[str], target: str | None = None, extra: Sequence[str] = ()
) -> list[str]:
    """Return the command that compiles and links all sources. It must run in ``sources_dir``.

    Sources have no folder in it, so that the library does not depend on where the checkout is.
    """
    kind = kind_of(tuple(compiler))
    if target is None and kind == "zig":
        target = this_target()  # without a target, zig compiles for this very processor and C library
    system = system_of(target)
    return [
        *compiler,
        *(["-target", target] if target else []),
        *FLAGS,
        *FLAGS_OF[kind],
        f'-DMB_SOURCE="{source_hash(sources_dir)}"',
        *(["-Wl,-install_name,@rpath/minibert_cpu.dylib"] if system == "macos" else []),
        *extra,
        *sorted(path.name for path in sources_dir.glob("*.c")),
        "-o",
        str(output),
        *(["-lpthread"] if system == "linux" else []),
    ]


def compile_library(
    sources_dir: Path,
    output: Path,
    compiler: Sequence[str],
    target: str | None = None,
    extra: Sequence[str] = (),
    *,
    cache: Path | None = None,
) -> str:
    """Compile all ``*.c`` of a folder into one library.

    Args:
        sources_dir: The folder of the sources.
        output: The library. It is replaced only by a complete one: a program may be using it.
        compiler: The words of the compiler's command.
        target: A target of ziglang; None for this machine.
        extra: More flags for the compiler.
        cache: Where zig keeps its cache, unless ZIG_GLOBAL_CACHE_DIR says it.

    Returns:
        What the compiler wrote, such as warnings.

    Raises:
        BuildError: The compiler cannot be run, or it fails.
    """
    environment = {**({} if cache is None else {"ZIG_GLOBAL_CACHE_DIR": str(cache)}), **os.environ}
    with tempfile.TemporaryDirectory(prefix="minibert-") as scratch:  # zig writes more files beside its output
        built = Path(scratch) / output.name
        command = compile_command(sources_dir, built, compiler, target, extra)
        try:
            done = subprocess.run(
                command, cwd=sources_dir, env=environment, capture_output=True, text=True, errors="replace", check=False
            )
        except OSError as error:
            raise BuildError(f"the C compiler must be a program that runs; {compiler[0]!r} gave {error}") from error
        written = done.stdout + done.stderr
        if done.returncode or not built.is_file():
            raise BuildError(
                f"the C compiler {shlex.join(compiler)!r} must build kernels/cpu; "
                f"it ended with code {done.returncode} ({first_error(written)})",
                written,
            )
        put(built, output)
    return written


def first_error(written: str) -> str:
    """Return the line of a compiler's output that says most."""
    lines = [line.strip() for line in written.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "it wrote no message")


def put(built: Path, output: Path) -> None:
    """Copy a library to its place. Nobody sees half of it, and who has loaded the old one keeps the old one."""
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    try:
        shutil.copyfile(built, part)
        part.replace(output)
    except OSError as error:
        raise BuildError(f"the library must be written to {str(output)!r}; that gave {error}") from error
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------- libraries


def library_source(library: Path) -> str:
    """Return the hash of the sources that a library says it was compiled from.

    Another process loads it, since a library that crashes must not end this one.

    Raises:
        BuildError: It cannot be loaded, or does not say it.
    """
    code = (
        "import ctypes, sys\n"
        "source = ctypes.CDLL(sys.argv[1]).mb_source\n"
        "source.restype = ctypes.c_char_p\n"
        "print(source().decode())"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(library.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = (done.stderr.splitlines() or [f"code {done.returncode}"])[-1]
        raise BuildError(f"the library must load into Python; that ended with {said}", done.stderr)
    return done.stdout.strip()


def check(library: Path, source: str) -> None:
    """Fail unless a library loads and was compiled from these sources."""
    if (said := library_source(library)) != source:
        raise BuildError(f"mb_source() must return the hash of the sources, {source!r}; it returns {said!r}")


def compile_and_check(sources_dir: Path, output: Path, compiler: Sequence[str], *, cache: Path | None = None) -> str:
    """Compile a library for this machine; it gets to its place only if it loads. See :func:`compile_library`."""
    with tempfile.TemporaryDirectory(prefix="minibert-") as scratch:
        built = Path(scratch) / output.name
        written = compile_library(sources_dir, built, compiler, cache=cache)
        check(built, source_hash(sources_dir))
        put(built, output)
    return written


def outdated(folder: Path = SOURCES) -> str:
    """Return what to do if the library in a folder is not compiled from the sources there, or an empty text."""
    library = folder / library_name()
    return OUTDATED if library.exists() and library_source(library) != source_hash(folder) else ""


# ---------------------------------------------------------------- wheels


def setting() -> str:
    """Return MINIBERT_BUILD_KERNELS."""
    value = os.environ.get("MINIBERT_BUILD_KERNELS", "")
    if value not in {"", "0", "1"}:
        raise ValueError(f"MINIBERT_BUILD_KERNELS must be 0, 1 or not set; it is {value!r}. Unset it to try to build.")
    return value


def wheel_target() -> str | None:
    """Return MINIBERT_KERNELS_TARGET, or None if the wheel is for this machine."""
    target = os.environ.get("MINIBERT_KERNELS_TARGET") or None
    if target is not None and target not in TARGETS:
        raise ValueError(f"MINIBERT_KERNELS_TARGET must be one of {', '.join(TARGETS)}; it is {target!r}.")
    return target


def reason_against(sources: Path, target: str | None = None) -> str:
    """Return why the library is not to be built at all, or an empty text."""
    if setting() == "0":
        return "MINIBERT_BUILD_KERNELS is 0"
    if not any(sources.glob("*.c")):
        return "kernels/cpu has no C source"
    if target is None and not processor():
        return f"they need a 64-bit x86 or ARM processor, and this Python runs on {platform.machine() or 'another one'}"
    return ""


def requirements(sources: Path) -> list[str]:
    """Return the packages that a wheel's build needs beside hatchling: ziglang, if nothing else can compile."""
    target = wheel_target()
    if reason_against(sources, target):
        return []
    if target is not None:
        return [ZIG_REQUIREMENT]
    # ziglang has no wheel for some machines. There, asking for it would end the installation.
    return [ZIG_REQUIREMENT] if this_target() is not None and system_compiler() is None else []


def build(sources: Path, output: Path, target: str | None = None, cache: Path | None = None) -> None:
    """Build the library of a wheel; one for this machine must load.

    Raises:
        BuildError: The library is not to be built, or cannot be.
    """
    if reason := reason_against(sources, target):
        raise BuildError(reason)
    compiler = find_compiler() if target is None else ZIG
    if compiler is None:
        raise BuildError("a C compiler must be there; cc, gcc, clang and ziglang are missing, or do not work")
    if target is None:
        compile_and_check(sources, output, compiler, cache=cache)
    else:
        compile_library(sources, output, compiler, target)


def build_or_warn(sources: Path, output: Path, target: str | None = None, cache: Path | None = None) -> bool:
    """Build the library of a wheel, or say on stderr why there is none; return whether there is one.

    Raises:
        BuildError: The library must be there, as MINIBERT_BUILD_KERNELS or MINIBERT_KERNELS_TARGET says, and is not.
    """
    try:
        build(sources, output, target, cache)
    except BuildError as error:
        if setting() == "1" or target is not None:
            raise
        remedy = "" if setting() == "0" else " Set CC to a C compiler, or MINIBERT_BUILD_KERNELS=0 to do without."
        print(f"minibert: no compiled kernels, numpy does their work: {error}.{remedy}", file=sys.stderr, flush=True)
        return False
    return True


def get_build_hook() -> type:
    """Return the class that hatch calls when it builds a wheel. Only hatch has what it is made of."""
    from hatchling.builders.config import BuilderConfig
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class KernelHook(BuildHookInterface[BuilderConfig]):
        """Puts the library into the wheel, or into the source tree of an editable installation."""

        def dependencies(self) -> list[str]:
            """Return the packages that the build needs."""
            return requirements(Path(self.root, "kernels", "cpu"))

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Build the library, and set the tag of a wheel that has it."""
            sources = Path(self.root, "kernels", "cpu")
            self.folder = tempfile.TemporaryDirectory(prefix="minibert-")
            cache = Path(self.folder.name, "zig")  # nobody builds again soon: leave nothing in the home folder
            if version == "editable":
                in_place = sources / library_name()
                if not build_or_warn(sources, in_place, cache=cache):
                    in_place.unlink(missing_ok=True)  # an older one is not what was asked for
                return
            target = wheel_target()
            library = Path(self.folder.name, library_name(target))
            if build_or_warn(sources, library, target, cache):
                build_data["force_include"][str(library)] = f"minibert/_kernels/cpu/{library.name}"
                build_data["tag"] = f"py3-none-{platform_tag(target)}"
                build_data["pure_python"] = False

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
            """Remove the folder of the build."""
            self.folder.cleanup()

    return KernelHook


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one library; return 1 if that fails."""
    parser = argparse.ArgumentParser(
        description="Compile the kernels of kernels/cpu into one library. Other options are passed to the compiler.",
        allow_abbrev=False,
    )
    parser.add_argument("--cc", help="the compiler's command (CC, else cc, gcc or clang, else ziglang)")
    parser.add_argument("--target", help=f"a target of ziglang, such as {', '.join(TARGETS)} (this machine)")
    parser.add_argument("--output", type=Path, help="the library (in kernels/cpu)")
    parser.add_argument("--verbose", action="store_true", help="print the command")
    options, extra = parser.parse_known_args(arguments)
    if strange := [word for word in extra if not word.startswith("-")]:
        parser.error(f"a flag for the compiler must be one word that begins with '-'; {strange[0]!r} does not")
    if options.target and options.output is None:
        parser.error("--target needs --output: a library for another machine must not replace this machine's")
    output: Path = (options.output or SOURCES / library_name()).resolve()
    compiler = shlex.split(options.cc) if options.cc else ZIG if options.target else find_compiler()
    if compiler is None:
        parser.error("a C compiler must be there, and none works here. Install one, or: pip install ziglang")
    if options.verbose:
        print(shlex.join(compile_command(SOURCES, output, compiler, options.target, extra)))
    try:
        if options.target or extra:  # with a sanitizer, for one, it needs more than Python to load
            written = compile_library(SOURCES, output, compiler, options.target, extra)
        else:
            written = compile_and_check(SOURCES, output, compiler)
    except BuildError as error:
        print(f"{error.output}{parser.prog}: {error}", file=sys.stderr)
        return 1
    sys.stderr.write(written)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
