"""Build the wheels of a release: one for each platform that has a compiled library, and one without a library.

    python tools/build_wheels.py OUTDIR
    python tools/build_wheels.py OUTDIR x86_64-linux-gnu.2.17 pure

It needs the packages hatchling and ziglang, and no other compiler. Each library is checked: its processor, and the
oldest system that it runs on, are those of the wheel's tag. Only a library for this machine can be loaded here.
"""

import argparse
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from build_kernels import ROOT, TARGETS, BuildError, library_name, library_source, source_hash, this_target

PURE = "pure"


class Wheel(NamedTuple):
    """A wheel, as the table shows it."""

    target: str
    tag: str
    size: int
    library_size: int
    state: str


def build_wheel(target: str, outdir: Path) -> Wheel:
    """Build and check one wheel.

    Raises:
        BuildError: The library in it is not what the tag says, or does not load where it must.
        subprocess.CalledProcessError: Hatch fails.
    """
    chosen = {"MINIBERT_BUILD_KERNELS": "0"} if target == PURE else {"MINIBERT_KERNELS_TARGET": target}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MINIBERT_")}
    with tempfile.TemporaryDirectory(prefix="minibert-") as scratch:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", scratch]
        done = subprocess.run(command, cwd=ROOT, env=inherited | chosen, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            done.check_returncode()
        (built,) = Path(scratch).glob("*.whl")
        wheel = outdir / built.name
        wheel.write_bytes(built.read_bytes())
        tag = wheel.stem.split("-", 2)[2]
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith("minibert/_kernels/cpu/")]
            expected = [] if target == PURE else [f"minibert/_kernels/cpu/{library_name(target)}"]
            if names != expected:
                raise BuildError(f"the wheel for {target} must have {expected} of kernels/cpu; it has {names}")
            if target == PURE:
                return Wheel(target, tag, wheel.stat().st_size, 0, "no library")
            library = Path(archive.extract(names[0], scratch))
        check_needs(target, needs(library.read_bytes()))
        return Wheel(target, tag, wheel.stat().st_size, library.stat().st_size, state(target, library))


def state(target: str, library: Path) -> str:
    """Return whether this machine loads a library; it must load its own."""
    try:
        source = library_source(library)
    except BuildError:
        if target == this_target():
            raise
        return "linked, untested here"
    if source != source_hash():
        raise BuildError(f"the library for {target} must have the hash of the sources; it has {source!r}")
    return "loaded here"


# ---------------------------------------------------------------- what a library needs


class Needs(NamedTuple):
    """What a library needs: a processor, a system, and the oldest version of that system."""

    processor: str
    system: str
    version: tuple[int, ...] = ()


def needs(library: bytes) -> Needs:
    """Read what a library needs from its headers.

    Raises:
        BuildError: It is of no format that minibert is built in.
    """
    if library[:6] == b"\x7fELF\x02\x01":
        (machine,) = struct.unpack_from("<H", library, 18)
        # Each symbol of glibc has the version that it came with, by name.
        versions = [tuple(map(int, found[0].split(b"."))) for found in re.finditer(rb"(?<=GLIBC_)[\d.]+", library)]
        processor = {62: "x86_64", 183: "aarch64"}.get(machine, str(machine))
        return Needs(processor, "gnu", max(versions)) if versions else Needs(processor, "musl")
    if library[:4] == b"\xcf\xfa\xed\xfe":
        processor_type, commands = struct.unpack_from("<4xI8xI", library)
        processor = {0x01000007: "x86_64", 0x0100000C: "aarch64"}.get(processor_type, hex(processor_type))
        at = 32
        for _ in range(commands):
            command, size = struct.unpack_from("<II", library, at)
            if command == 0x32:  # LC_BUILD_VERSION: platform, then the oldest system
                platform, patch, minor, major = struct.unpack_from("<IBBH", library, at + 8)
                return Needs(processor, "macos" if platform == 1 else str(platform), (major, minor, patch)[:2])
            at += size
        raise BuildError("a library for macOS must say the oldest macOS; this one does not")
    if library[:2] == b"MZ":
        (start,) = struct.unpack_from("<I", library, 0x3C)
        (machine,) = struct.unpack_from("<H", library, start + 4)
        return Needs({0x8664: "x86_64", 0xAA64: "aarch64"}.get(machine, hex(machine)), "windows")
    raise BuildError(f"a library must be of ELF, Mach-O or PE with 64 bits; this one begins with {library[:6]!r}")


def check_needs(target: str, found: Needs) -> None:
    """Fail if a library needs more than its wheel's tag says."""
    processor, system, *rest = re.split("[-.]", target, maxsplit=2)
    named = {"linux": rest[0].partition(".")[0] if rest else ""}.get(system, system)
    version = tuple(int(number) for number in re.findall(r"\d+", target.partition("-")[2]))
    if (processor, named) != found[:2] or found.version > version:
        raise BuildError(f"the library for {target} must need no more than that; it needs {found}")


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the wheels and print a table of them; return 1 if one fails."""
    parser = argparse.ArgumentParser(description="Build a wheel for each target.", allow_abbrev=False)
    parser.add_argument("outdir", type=Path, metavar="OUTDIR", help="where the wheels go")
    everything = [*TARGETS, PURE]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"{', '.join(everything)} (all)")
    options = parser.parse_args(arguments)
    targets = options.targets or everything
    if unknown := [target for target in targets if target not in everything]:
        parser.error(f"TARGET must be one of {', '.join(everything)}; it is {unknown[0]!r}")
    outdir: Path = options.outdir.resolve()
    outdir.mkdir(parents=True, exist_ok=True)
    print(f"{'target':24}{'tag':58}{'wheel':>12}{'library':>10}  here", flush=True)
    failed = 0
    for target in targets:
        try:
            wheel = build_wheel(target, outdir)
        except (BuildError, subprocess.CalledProcessError) as error:
            print(f"{target:24}failed: {error}", flush=True)
            failed = 1
            continue
        print(f"{target:24}{wheel.tag:58}{wheel.size:12,}{wheel.library_size:10,}  {wheel.state}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
