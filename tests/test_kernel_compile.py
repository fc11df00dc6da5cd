"""Every kernel compiles for every architecture, without spilling, in the registers and shared memory on record.

The record, tests/kernel_resources.json, has the most registers that a kernel of a file needs, by architecture and
storage, and apart from these for kernels with a bias by distance; a kernel may have up to 8 more. To make it anew:
``MINIBERT_RECORD_KERNELS=1 python -m pytest -m "" tests/test_kernel_compile.py``.
"""

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from kernel_list import ARCHITECTURES, FILES, names_of, storages_on, with_bias

from minibert.engine.fused_cuda import _TENSOR_CORE_SIZES, STORAGES, Kernel

RECORD = Path(__file__).parent / "kernel_resources.json"
#: Of Turing and later: registers of a thread, and bytes of shared memory that a block may ask for.
MOST_REGISTERS, SHARED_MEMORY = 255, {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
REPORT = re.compile(
    r"Function properties for (\S+)\s+ptxas\W+"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
    r"ptxas info\s+: Used (\d+) registers"
)


@pytest.fixture(scope="session")
def nvrtc():
    """Return NVRTC, or skip; fail under MINIBERT_REQUIRE_NVRTC."""
    give_up = pytest.fail if "MINIBERT_REQUIRE_NVRTC" in os.environ else pytest.skip
    if importlib.util.find_spec("cupy") is None:
        give_up('no NVRTC: pip install "minibert[kernels]"')
    from cupy.cuda import nvrtc

    return nvrtc


def compile_file(file, architecture):
    """Return the most registers that a kernel of a file needs, by kind; none may spill or need a stack."""
    from minibert.engine.cuda_device import compile_kernels

    kernels = {name: storage for storage in storages_on(architecture) for name in names_of(file, storage)}
    lowered, code, log = compile_kernels(file, list(kernels), architecture, ("--ptxas-options=-v",))
    assert code.startswith(b"\x7fELF")
    found = {name: rest for name, *rest in REPORT.findall(log)}
    registers = {}
    for (name, storage), in_code in zip(kernels.items(), lowered, strict=True):
        stack, stores, loads, used = found[in_code]
        assert (stack, stores, loads) == ("0", "0", "0"), f"{name} on sm_{architecture} spills or needs a stack"
        kind = f"{storage}, biased" if name in with_bias(file, storage) else storage
        registers[kind] = max(int(used), registers.get(kind, 0))
    return registers


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile(nvrtc, file, architecture):
    """No kernel spills, and none has many more registers than are on record for its file."""
    registers = compile_file(file, architecture)
    key = f"{file} sm_{architecture}"
    if "MINIBERT_RECORD_KERNELS" in os.environ:
        record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
        record[key] = registers
        lines = [f"{json.dumps(key)}: {json.dumps(record[key])}" for key in sorted(record)]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    recorded = json.loads(RECORD.read_text("utf-8"))[key]

    assert registers.keys() == recorded.keys()
    assert {kind: used for kind, used in registers.items() if used > min(recorded[kind] + 8, MOST_REGISTERS)} == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensor_core_attention_fits_shared_memory(architecture):
    """All head sizes fit; but on Turing the largest, for which the general kernel stands in."""
    too_large = [size for size in _TENSOR_CORE_SIZES if 5 * 64 * size * 2 > SHARED_MEMORY[architecture] * 1024]

    assert too_large == ([128] if architecture == 75 else [])


@pytest.mark.slow
def test_a_kernel_is_compiled_once(nvrtc, tmp_path, monkeypatch):
    """The machine code is kept; a new process finds it by its source, name, architecture and compiler."""
    from minibert.engine import cuda_device as device

    kernel = Kernel("pool", f"pool<{STORAGES['float32'].cuda}, 4>")
    first = device.cached_kernel(kernel, 90, tmp_path / "new")
    monkeypatch.setattr(device, "compile_kernels", None)

    assert device.cached_kernel(kernel, 90, tmp_path / "new") == first
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".cubin"]
    with pytest.raises(TypeError):  # another architecture is another kernel
        device.cached_kernel(kernel, 80, tmp_path / "new")


@pytest.mark.slow
def test_what_cannot_be_compiled_is_an_error(nvrtc):
    """A GPU that is too old, and a kernel that is not there; the compiler's own words are in the error."""
    from minibert.engine.cuda_device import compile_kernels
    from minibert.errors import DeviceError

    with pytest.raises(DeviceError, match="must compile for sm_13 or older; it knows sm_75 to"):
        compile_kernels("pool", ["pool<float, 4>"], 13)
    with pytest.raises(DeviceError, match=r"cannot compile nonsense<float> for sm_90.*nonsense"):
        compile_kernels("pool", ["nonsense<float>"], 90)


@pytest.mark.slow
def test_a_newer_gpu_gets_ptx(nvrtc):
    """NVRTC makes PTX for the newest architecture that it knows; it names the kernel as the linker does."""
    from minibert.engine.cuda_device import compile_kernels

    newest = max(nvrtc.getSupportedArchs())
    (lowered,), code, _ = compile_kernels("pool", ["pool<float, 4>"], newest + 7)

    assert f".target sm_{newest}".encode() in code
    assert lowered.encode() in code
