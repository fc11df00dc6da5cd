"""Safetensors files, written here by hand: what is read, bit by bit, and what is refused."""

import json
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minibert.errors import WeightsError
from minibert.files.checkpoint import safetensors_file
from minibert.files.checkpoint.safetensors_file import open_safetensors
from minibert.files.checkpoint.stored import DTYPES, widen_bfloat16


def encode(header, values=b"", length=None):
    """Return a safetensors file: a header (a dict, or its bytes), the values, and perhaps a false header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + values


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    """Return a tensor's entry in the header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def tensor(body):
    """Return the file of one tensor of four bytes whose entry is the JSON text ``body``."""
    return encode(f'{{"a": {body}}}'.encode(), bytes(4))


FOUR = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'
GOOD = encode({"a": entry(shape=[2], offsets=[0, 8]), "b": entry("I64", [], [8, 16])}, bytes(range(16)))
HEADER = f'{{"a":{{{FOUR}}}}}'.encode()
NOT = "is not a safetensors file, or is cut short"
INVALID = "is not a valid safetensors file"
UNUSABLE = "has an unusable safetensors header"

#: Malformed files, by what the format's own library does with them.
REFUSED_BY_THE_LIBRARY = {
    "empty": (b"", NOT),
    "7 bytes": (bytes(7), NOT),
    "header of 0 bytes": (encode({}, length=0), NOT),
    "header of 2**63 bytes": (encode({}, length=2**63), NOT),
    "header of 2**64-1 bytes": (encode({}, length=2**64 - 1), NOT),
    "header longer than the file": (encode({}, length=3), NOT),
    "header cut": (encode(HEADER[:-1], bytes(4)), UNUSABLE),
    "header not UTF-8": (encode(b'{"\xff":{}}'), UNUSABLE),
    "byte order mark": (encode(b"\xef\xbb\xbf" + HEADER, bytes(4)), NOT),
    "array": (encode(b"[]"), NOT),
    "NUL behind": (encode(HEADER + b"\0", bytes(4)), UNUSABLE),
    "garbage behind": (encode(HEADER + b"x", bytes(4)), UNUSABLE),
    "100,000 brackets": (encode(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), UNUSABLE),
    "overlap": (encode({"a": entry(), "b": entry()}, bytes(4)), INVALID),
    "overlap in part": (encode({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, bytes(8)), INVALID),
    "hole at the start": (encode({"a": entry(offsets=[4, 8])}, bytes(8)), INVALID),
    "hole in the middle": (encode({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)), INVALID),
    "byte behind": (encode({"a": entry()}, bytes(5)), INVALID),
    "values cut": (encode({"a": entry()}, bytes(3)), INVALID),
    "offsets reversed": (encode({"a": entry(offsets=[4, 0])}, bytes(4)), INVALID),
    "offset negative": (encode({"a": entry(offsets=[-4, 0])}, bytes(4)), INVALID),
    "offset beyond 2**64": (encode({"a": entry(offsets=[2**64, 2**64 + 4])}, bytes(4)), INVALID),
    "offset a float": (encode({"a": entry(offsets=[0, 4.0])}, bytes(4)), INVALID),
    "three offsets": (encode({"a": entry(offsets=[0, 2, 4])}, bytes(4)), INVALID),
    "dimension negative": (encode({"a": entry(shape=[-1])}, bytes(4)), INVALID),
    "dimension a float": (encode({"a": entry(shape=[1.0])}, bytes(4)), INVALID),
    "dimension a string": (encode({"a": entry(shape=["1"])}, bytes(4)), INVALID),
    "dimension a boolean": (encode({"a": entry(shape=[True])}, bytes(4)), INVALID),
    "dimension NaN": (tensor('{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}'), "NaN is not JSON"),
    "more bytes than the shape": (encode({"a": entry(offsets=[0, 8])}, bytes(8)), INVALID),
    "fewer bytes than the shape": (encode({"a": entry(shape=[2])}, bytes(4)), INVALID),
    "shape of 2**80 values": (encode({"a": entry(shape=[2**40, 2**40])}, bytes(4)), INVALID),
    "shape that wraps round to 1": (encode({"a": entry(shape=[3, 12297829382473034411])}, bytes(4)), INVALID),
    "dtype unknown": (encode({"a": entry("F31")}, bytes(4)), INVALID),
    "dtype in lower case": (encode({"a": entry("f32")}, bytes(4)), INVALID),
    "metadata of numbers": (encode({"__metadata__": {"step": 1}, "a": entry()}, bytes(4)), INVALID),
    "name a lone surrogate": (encode(b'{"\\ud800":{' + FOUR.encode() + b"}}", bytes(4)), UNUSABLE),
    "same name at other offsets": (
        encode(HEADER[:-1] + b',"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)),
        r"repeated keys \['a'\]",
    ),
    "field missing": (encode({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "entry of 'a' must have"),
    "field doubled": (tensor(f'{{{FOUR},"dtype":"F32"}}'), r"repeated keys \['dtype'\]"),
    "entry an array": (tensor("[]"), "entry of 'a' must have"),
}

PASSED_BY_THE_LIBRARY = {
    "spaces before the brace": (encode(b"  " + HEADER, bytes(4)), NOT),
    "same name, same offsets": (encode(HEADER[:-1] + b"," + HEADER[1:], bytes(4)), r"repeated keys \['a'\]"),
    "metadata null": (encode({"__metadata__": None, "a": entry()}, bytes(4)), "not an object with metadata"),
    "field too many": (encode({"a": entry(order="F")}, bytes(4)), "entry of 'a' must have dtype, shape and data_off"),
    "10,001 tensors": (
        encode({str(i): entry(shape=[0], offsets=[0, 0]) for i in range(10_001)}),
        "lists 10,001 tensors; at most 10,000 are read",
    ),
}

OTHER_FORMATS = {
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "run `git lfs pull`"),
    "web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "is a web page"),
    "web page, indented": (b"\r\n\t <html><body>Not found</body></html>", "is a web page"),
    "zip file": (b"PK\x03\x04\x14\x00" + bytes(100), "zip file, probably a pytorch_model.bin"),
}


@pytest.fixture
def path(tmp_path):
    """Return the path of a file that does not exist yet."""
    return tmp_path / "model.safetensors"


def open_bytes(path, content):
    """Return the tensors of a file with this content."""
    path.write_bytes(content)
    return open_safetensors(path)


@pytest.mark.parametrize("name", [*REFUSED_BY_THE_LIBRARY, *PASSED_BY_THE_LIBRARY, *OTHER_FORMATS])
def test_malformed_file_is_refused(path, name):
    """Each is one WeightsError, which names the file and says what is wrong."""
    content, reason = {**REFUSED_BY_THE_LIBRARY, **PASSED_BY_THE_LIBRARY, **OTHER_FORMATS}[name]

    with pytest.raises(WeightsError, match=rf"(?i)^{re.escape(str(path))}\b.*{reason}"):
        open_bytes(path, content)


def test_header_beyond_the_limit(path):
    """A header of more than 16 MiB is refused unread, though the file holds that much."""
    with path.open("wb") as file:
        file.write(encode(b"{", length=safetensors_file.MAX_HEADER_BYTES + 1))
        file.truncate(safetensors_file.MAX_HEADER_BYTES + 100)

    with pytest.raises(WeightsError, match="has a header of 16,777,217 bytes; at most 16,777,216 are read"):
        open_safetensors(path)


@pytest.mark.parametrize("size", range(len(GOOD)))
def test_truncated_file_is_refused(path, size):
    """A file that ends too early is refused when it is opened, wherever it ends."""
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        open_bytes(path, GOOD[:size])


@pytest.mark.parametrize("shape", [[0, 2**62], [1] * 101], ids=["0 x 2**62", "101 dimensions"])
def test_shape_that_numpy_lacks(path, shape):
    """A shape that the format allows and numpy does not is refused by name when it is read."""
    size = 4 * (0 not in shape)
    opened = open_bytes(path, encode({"a": entry(shape=shape, offsets=[0, size])}, bytes(size)))

    with pytest.raises(WeightsError, match=r"model\.safetensors: a has shape .* which cannot be read"):
        opened["a"].read()


@pytest.mark.parametrize("length", [60, 256 + 60, 0x3C20, 0x203C20], ids=hex)
def test_header_length_that_spells_a_bracket(path, length):
    """A header whose length, in bytes, looks like the beginning of a web page is a header like any other."""
    content = encode(HEADER.ljust(length), np.float32(2.5).tobytes())
    assert content.lstrip().startswith(b"<")

    assert open_bytes(path, content)["a"].read() == [2.5]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U16", "U32", "U64"])
def test_unreadable_dtype_is_named(path, dtype):
    """A dtype that is not read is refused, with the names of the tensor, the dtype, and those that are read (W6)."""
    shape = [{"U64": 1, "U32": 2, "U16": 4}.get(dtype, 8)]

    with pytest.raises(WeightsError, match=rf"model\.safetensors: a has dtype {dtype}; minibert reads F64, .*BOOL\."):
        open_bytes(path, encode({"a": entry(dtype, shape, [0, 8])}, bytes(8)))


@pytest.mark.parametrize("dtype", sorted(DTYPES.keys() - {"BF16", "BOOL"}))
def test_values_are_read_bit_by_bit(path, dtype):
    """Every dtype is read as it was written, NaN, subnormal numbers and the sign of zero included (W6)."""
    numpy_type = np.dtype(DTYPES[dtype])
    raw = np.random.default_rng(0).bytes(6 * numpy_type.itemsize)
    stored = open_bytes(path, encode({"a": entry(dtype, [3, 2], [0, len(raw)])}, raw))["a"]
    values = stored.read()

    assert (stored.path, stored.name, stored.dtype, stored.shape) == (path, "a", dtype, (3, 2))
    assert (values.dtype, values.shape) == (numpy_type, (3, 2))
    assert values.tobytes() == raw


def test_every_float16_is_read(path):
    """All 65,536 half-precision patterns come back."""
    raw = np.arange(1 << 16, dtype="<u2").tobytes()

    assert open_bytes(path, encode({"a": entry("F16", [1 << 16], [0, 1 << 17])}, raw))["a"].read().tobytes() == raw


def test_every_bfloat16_is_widened_exactly(path):
    """A bfloat16 becomes the float32 with the same sixteen bits in front of zeros (W6)."""
    bits = np.arange(1 << 16, dtype="<u2")
    raw = np.stack([np.zeros_like(bits), bits], axis=1).tobytes()  # little-endian: the zeros come first
    values = open_bytes(path, encode({"a": entry("BF16", [1 << 16], [0, 1 << 17])}, bits.tobytes()))["a"].read()

    assert values.dtype == np.float32
    assert values.tobytes() == raw


@pytest.mark.parametrize(
    ("bits", "value"), [(0x3FC0, 1.5), (0xC000, -2.0), (0x0000, 0.0), (0x7F80, np.inf), (0x0001, 2.0**-133)]
)
def test_bfloat16_values(bits, value):
    """The widened numbers are the format's (W6)."""
    assert widen_bfloat16(np.array([[bits]], np.uint16)) == np.array([[value]], np.float32)


def test_booleans(path):
    """Booleans are read as such."""
    values = open_bytes(path, encode({"a": entry("BOOL", [3], [0, 3])}, b"\0\1\1"))["a"].read()

    np.testing.assert_array_equal(values, [False, True, True], strict=True)


def test_memory_is_the_readers_own(path):
    """Values are aligned and contiguous however they lie in the file, and outlive a change of it."""
    values = np.arange(6, dtype="<f4")
    header = {"byte": entry("U8", [1], [0, 1]), "a": entry(shape=[2, 3], offsets=[1, 25])}
    tensors = open_bytes(path, encode(header, b"\7" + values.tobytes()))
    read = tensors["a"].read()
    path.write_bytes(bytes(path.stat().st_size))

    assert read.flags.aligned
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, values.reshape(2, 3))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 0)])
def test_scalars_and_empty_tensors(path, shape):
    """A tensor without dimensions has one value, one with an empty dimension none."""
    save_file({"a": np.full(shape, 2.5, np.float32)}, path)

    np.testing.assert_array_equal(open_safetensors(path)["a"].read(), np.full(shape, 2.5, np.float32), strict=True)


def test_many_tensors(path):
    """A file may hold as many tensors as the limit says."""
    header = {str(i): entry(shape=[0], offsets=[0, 0]) for i in range(10_000)}

    assert len(open_bytes(path, encode(header))) == 10_000


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"format": "pt"}}])
def test_no_tensors(path, header):
    """A file may hold nothing; whether that is enough is for others to say."""
    assert open_bytes(path, encode(header)) == {}


def test_name_is_never_a_path(path):
    """Names such as "" and "../../x" are names: nothing else is opened."""
    header = {"": entry(), "../../x": entry(offsets=[4, 8])}
    opened = open_bytes(path, encode(header, np.float32([1.5, 2.5]).tobytes()))

    assert {name: stored.read().tolist() for name, stored in opened.items()} == {"": [1.5], "../../x": [2.5]}


def test_file_cut_between_opening_and_reading(path):
    """A file that becomes shorter is refused, not padded and not mapped (which would end the process)."""
    tensors = open_bytes(path, GOOD)
    path.write_bytes(GOOD[:-9])

    with pytest.raises(WeightsError, match=r"model\.safetensors became shorter while it was read, at a\b"):
        tensors["a"].read()
    with pytest.raises(WeightsError, match="became shorter while it was read, at b"):
        tensors["b"].read()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_mutated_file_gives_an_error_or_tensors(tmp_path_factory, data):
    """A file with some bytes changed, inserted or removed is refused as a WeightsError, or read as it says."""
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(max_size=2) | st.sampled_from([b"0", b"9", b'"', b"-", b"[", b"]", b"}", b","]))
        content[at : at + data.draw(st.integers(0, 2))] = new
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)

    try:
        for stored in open_safetensors(path).values():
            assert stored.read().shape == stored.shape
    except WeightsError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.skipif(sys.byteorder != "little", reason="compares with the machine's own byte order")
def test_what_the_library_writes(path):
    """A file of the format's own library is read as it was given."""
    arrays = {dtype: np.arange(6).reshape(2, 3).astype(DTYPES[dtype]) for dtype in DTYPES if dtype != "BF16"}
    save_file(arrays, path, metadata={"format": "pt"})

    for name, stored in open_safetensors(path).items():
        np.testing.assert_array_equal(stored.read(), arrays.pop(name), strict=True)
    assert not arrays
