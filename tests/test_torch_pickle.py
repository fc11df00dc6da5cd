"""pytorch_model.bin without PyTorch: what is read, what is refused, and that nothing in it is ever run."""

import base64
import pickle
import pickletools
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibert.errors import WeightsError
from minibert.files.checkpoint import pickle_machine, torch_pickle
from minibert.files.checkpoint.stored import DTYPES, StoredTensor
from minibert.files.checkpoint.torch_pickle import open_torch

CLASSES = {
    "F64": "DoubleStorage",
    "F32": "FloatStorage",
    "F16": "HalfStorage",
    "BF16": "BFloat16Storage",
    "I64": "LongStorage",
    "I32": "IntStorage",
    "I16": "ShortStorage",
    "I8": "CharStorage",
    "U8": "ByteStorage",
    "BOOL": "BoolStorage",
}

# What torch 2.13 wrote, as a zip file and as a legacy one: the state_dict of torch.nn.Linear(2, 1), with weight
# [[0.5, -2.0]] and bias [3.0], to which were added its weight as "tied", and [1.5, -0.25] as "half", in bfloat16.
TORCH_ZIP = zlib.decompress(
    base64.b64decode(
        "eNqlVTtv00AcPztvA+mDR2mB8qwUJEjt1HlBIZWFzGAJ0vBQ1MVyHDe2cOOefWkFUqUKlIoubKwMLHwENtSvAGJggAExMbEycmeH"
        "1HaVBtqTzifZ93vc/R+uSpEoAMkk2DNGwThQbFU31rTZpoKU7OoTUxTSYCkwNmlVtUxTU5FhtR3mvt3UbK15x1ARA8HVGqQy9Tgm"
        "W9eMlo4grSILU2blDjJMh5FtrdExzKaMtLZj2fJajoGRTKaewAgH71RaGox6EEY0LQU98F4yMFan8B4WxusRvKqrHZiQaASTixKQ"
        "KInegimJlqgtyGzrxMURBI/W4LE6PipoGIoD0zrW0aO6x8PBET0hUQiOuvguHCOPcQ97HMETNXjSxSJDa8JTukekK+YynPCIeiYF"
        "1yVX6Ps87fLn4KTu+psi/HQXniH8Zz3+cwhO1+D5zga8UE/hzfKKhhRy4fCi+/1SnUQDXt6AV9yLWdNsB981nJEox3Ea2aqUSDpd"
        "9uVzrERmdWBEJ0C5H9HssmWvKEjusYlCPhTYfxwckX//6+sLck4yB8tPgeKufC+8smIarfaK1kaiMHcQBwWeGKisw580lqD3NTAG"
        "Kn0DjadIs0iyisLNg53cG6aBkKkRD91bPyZJqsf39ZAGtwNVNcuKwo1DGMCUFTx3iINXueI3Ipkc4mA+6IAThRI4uP7CAtHe/vj9"
        "HSmK6BDthaB2ThTmD3P9SzuVzQ9Ef/110xquP+LLgH7mHyr+cwxR//im9Wh4/k2D3G4BuMd3NNvAFfBMId1TNpqikP1PM2yJL/Ol"
        "Uokvlgt5li8V5/Isx5VZtsDyfJEMrljM59wqeTtzj89gHxnXJUXM9n36O8joHufh/0AY7W8AEwHkJwoM6jlhEn8RTwVIFmmwT+cI"
        "8/gLcSxoxsfTbwBhuL+K0gH44wgI1W4Y66+CIPZLGMuFsf4MDmIfRkPYXBjrz7+RAPazDzvg3v1pMR0A12JgSMJWpXj82t/0jlzv"
        "I1Oh9S7trb9j3opxCTfmPQ/enyMW9zApd7+39w/yjete"
    )
)

TORCH_LEGACY = zlib.decompress(
    base64.b64decode(
        "eNptkstu1DAUhh0nM0MDLeVOuZabFDajuaSjYdUKoW4sbsPGGxRlEjM2Msmc+KQIpJFm0wp4Bh6Ap0C8Do+AxAInoZVA44UVn8v/"
        "nd/Okn7x9e+v+7+23357sdVd0qc/XbsvgAR8kxAyL3LMk1xHB6IwKs/AsQV83Wa0QtQiElmq4gzoJ+7bIH6Yi8ioj8KAuwAv4C0b"
        "NDIvEFqMcteeVIbQZh73Ko08m0GHeWVpmYnFaJGgpRj/eZGKQqRPVII+kIcTcALeth3vhZpJBJpgXiSyG5WotPGjQkxLpdMIRWby"
        "IjoY+OAGAe9UdFsZzwR4TYu/r/MYXzVBH1p8w9Y8CnfGw50wDPv94agH7XrQZF7a2egzhFMvGWEOo0ewxihzjsD/LKuZTiOcmcB6"
        "bWWqYgMb0lKlJ/9X7Y3HPTgrO8yxapu12iGcq7bzjdIFhIsTuFQroRIpXJaNrIz1G7jSyP418Lh20B+deLj6D204HowGIWzJZvZr"
        "FY0ewvWKdqOh3US4NYHb5QK2+Zptjd4JjNMYY7hT5+9yGyRwbwH36ys8fvsHzDHGTO1bva7+jxVUZ5VxuuqOXdGlpFk/dpffHXK8"
        "9vboyTfZrdJ/AGBYrY4="
    )
)
TORCH_FILES = {"zip": TORCH_ZIP, "legacy": TORCH_LEGACY}


# ---------------------------------------------------------------- pickles, opcode by opcode


def push(value):
    """Opcodes that push a number, a text, None, or a tuple of those."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def name(module, attribute):
    """Opcodes that push a global."""
    return f"c{module}\n{attribute}\n".encode()


def call(function, *arguments):
    """Opcodes that push what the global "module name" returns for the ``arguments``, opcodes themselves."""
    return name(*function.split()) + b"(" + b"".join(arguments) + b"tR"


def mapping(items):
    """Opcodes that push a dict whose values are given as opcodes."""
    return b"}(" + b"".join(push(key) + value for key, value in items.items()) + b"u"


def storage(dtype="F32", key="0", numel=6, view=b""):
    """Opcodes that push a storage; ``view`` is what legacy files add to its description."""
    return (
        b"("
        + push("storage")
        + name("torch", f"{CLASSES[dtype]}")
        + push(key)
        + push("cpu")
        + push(numel)
        + view
        + b"tQ"
    )


def tensor(stored=None, shape=(2, 3), strides=(3, 1), offset=0, more=b""):
    """Opcodes that push a tensor; ``more`` is what follows its usual arguments."""
    hooks = call("collections OrderedDict")
    arguments = (stored or storage(), push(offset), push(shape), push(strides), push(False), hooks, more)
    return call("torch._utils _rebuild_tensor_v2", *arguments)


def pickled(opcodes):
    """A pickle of protocol 2."""
    return b"\x80\x02" + opcodes + b"."


# ---------------------------------------------------------------- files


def write_zip(path, value, arrays, entries=()):
    """Write a zip file of torch >= 1.6: the pickled ``value``, the storages ``arrays``, and further ``entries``."""
    contents = {"data.pkl": pickled(value), "byteorder": b"little", "version": b"3\n"}
    contents |= {f"data/{key}": array.tobytes() for key, array in arrays.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, content in (contents | dict(entries)).items():
            archive.writestr(f"archive/{entry}", content)
    return path


def write_legacy(path, value, arrays, pickles=()):
    """Write a legacy file: five pickles, of which ``pickles`` replaces some by their index, and ``arrays``."""
    contents = {
        0: push(0x1950A86A20F9469CFC6C),
        1: push(1001),
        2: mapping({"protocol_version": push(1001), "little_endian": push(True)}),
        3: value,
        4: b"](" + b"".join(push(key) for key in arrays) + b"e",
    }
    raw = b"".join(pickled(opcodes) for opcodes in (contents | dict(pickles)).values())
    raw += b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    path.write_bytes(raw)
    return path


WRITERS = {"zip": write_zip, "legacy": write_legacy}
SIX = {"0": np.arange(6, dtype="<f4")}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """A function that writes a value, given as opcodes, and storages to a file: one format after the other."""
    return lambda value, arrays: WRITERS[request.param](tmp_path / "pytorch_model.bin", value, arrays)


def read_all(path):
    """The arrays of a file by name."""
    return {name: tensor.read() for name, tensor in open_torch(path).items()}


def assert_same(actual, expected):
    """Fail unless the arrays agree in dtype, shape and every bit."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("written", TORCH_FILES)
def test_file_that_torch_wrote(tmp_path, written):
    """What torch itself saved is read: a module's state_dict with metadata, a tied tensor and bfloat16."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(TORCH_FILES[written])

    tensors = read_all(path)

    assert list(tensors) == ["weight", "bias", "tied", "half"]
    assert_same(tensors["weight"], np.array([[0.5, -2.0]], "<f4"))
    assert_same(tensors["bias"], np.array([3.0], "<f4"))
    assert_same(tensors["tied"], tensors["weight"])
    assert_same(tensors["half"], np.array([1.5, -0.25], "<f4"))


@pytest.mark.parametrize("dtype", CLASSES)
def test_every_dtype(write, dtype):
    """A tensor of each dtype is read with its bits, and says its dtype and shape before."""
    bits = np.random.default_rng(0).integers(0, 2, 48).astype("u1") if dtype == "BOOL" else np.arange(48, dtype="u1")
    array = bits.view(DTYPES[dtype])
    stored = storage(dtype, numel=array.size)
    shape = (2, array.size // 2)

    opened = open_torch(write(mapping({"x": tensor(stored, shape, (shape[1], 1))}), {"0": array}))["x"]

    assert (opened.name, opened.dtype, opened.shape) == ("x", dtype, shape)
    expected = (array.astype("<u4") << 16).view("<f4") if dtype == "BF16" else array
    assert_same(opened.read(), expected.reshape(shape))


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((3,), (2,), 1, [1, 3, 5]),
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((2,), (1,), 4, [4, 5]),
        ((), (), 3, 3),
        ((1, 2), (2**47, 1), 0, [[0, 1]]),
        ((0, 3), (3, 1), 6, np.zeros((0, 3))),
        ((0, 3), (1, 1), 6, np.zeros((0, 3))),
        ((0, 2**40), (2**40, 1), 0, np.zeros((0, 2**40))),
    ],
    ids=["transpose", "step", "columns", "slice", "scalar", "stride of one row", "empty", "empty column", "wide empty"],
)
def test_views(write, shape, strides, offset, expected):
    """A view of a storage is read as a contiguous array of its own."""
    value = mapping({"x": tensor(shape=shape, strides=strides, offset=offset)})

    values = read_all(write(value, SIX))["x"]

    assert_same(values, np.asarray(expected, "<f4"))
    assert values.flags.c_contiguous
    assert values.flags.writeable


def test_storage_may_be_shared(write):
    """Tensors that share a storage are read, each into memory of its own."""
    tensors = read_all(write(mapping({"x": tensor(), "tied": tensor(), "row": tensor(shape=(3,), strides=(1,))}), SIX))
    tensors["x"][:] = -1

    assert tensors["tied"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["row"].tolist() == [0, 1, 2]


def test_names_may_be_any_script(write):
    """Names need not be ASCII, and keep the order of the file."""
    names = ["größe", "重み", "a b", ""]

    assert list(open_torch(write(mapping(dict.fromkeys(names, tensor())), SIX))) == names


def test_parameters(write):
    """A torch.nn.Parameter is the tensor in it."""
    parameter = call("torch._utils _rebuild_parameter", tensor(), push(True), call("collections OrderedDict"))

    assert_same(read_all(write(mapping({"x": parameter}), SIX))["x"], SIX["0"].reshape(2, 3))


def test_tensors_of_the_first_version(write):
    """A tensor that is rebuilt by torch < 0.4's function is read."""
    old = call("torch._utils _rebuild_tensor", storage(), push(0), push((6,)), push((1,)))

    assert_same(read_all(write(mapping({"x": old}), SIX))["x"], SIX["0"])


def test_state_dict_is_unwrapped(write):
    """A checkpoint's "state_dict" is what is read; plain values beside it are ignored."""
    beside = {
        "epoch": push(3),
        "loss": push(0.5),
        "best": push(None),
        "args": b"](" + push("a") + push(2**70) + b"e",
        "shape": call("torch Size", push((2, 3))),
        "optimizer": mapping({0: mapping({"step": tensor()})}),
    }
    value = mapping({**beside, "state_dict": mapping({"x": tensor()})})

    assert list(open_torch(write(value, SIX))) == ["x"]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_protocols_of_python_3(tmp_path, protocol):
    """Pickles with STACK_GLOBAL, MEMOIZE and FRAME are read, through the same list of globals."""
    value = push("collections") + b"\x94" + b"\x8c\x0bOrderedDict\x93)R\x94(" + push("x") + tensor() + b"u"
    raw = bytes([0x80, protocol, 0x95]) + struct.pack("<Q", len(value) + 1) + value + b"."
    path = write_zip(tmp_path / "pytorch_model.bin", b"", SIX, {"data.pkl": raw})

    assert list(open_torch(path)) == ["x"]


def test_zip_names_in_the_old_encoding(tmp_path):
    """Zip entries may have names in code page 437, as writers other than torch may choose."""
    path = write_zip(tmp_path / "pytorch_model.bin", mapping({"x": tensor()}), SIX)
    path.write_bytes(path.read_bytes().replace(b"archive/", b"arch\x8bve/"))

    assert_same(read_all(path)["x"], SIX["0"].reshape(2, 3))


def test_opening_reads_no_tensor(write):
    """A file is opened without its tensors' bytes: what is written there afterwards is what is read."""
    path = write(mapping({"x": tensor()}), SIX)
    opened = open_torch(path)
    path.write_bytes(path.read_bytes().replace(SIX["0"].tobytes(), np.full(6, 7, "<f4").tobytes()))

    assert opened["x"].read().tolist() == [[7, 7, 7], [7, 7, 7]]


def test_file_cut_after_opening(write):
    """A file that became shorter since it was opened is an error, not a crash."""
    path = write(mapping({"x": tensor()}), SIX)
    opened = open_torch(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.index(SIX["0"].tobytes()) + 20])

    with pytest.raises(WeightsError, match=r"became shorter while it was read, at x\. Download it again\."):
        opened["x"].read()


def test_missing_file_is_an_oserror(tmp_path):
    """A file that cannot be opened is the system's error."""
    with pytest.raises(FileNotFoundError):
        open_torch(tmp_path / "pytorch_model.bin")


# ---------------------------------------------------------------- what is never run

PAYLOADS = {
    "REDUCE": lambda folder: call("os mkdir", push(folder)),
    "INST": lambda folder: b"(" + push(folder) + b"ios\nmkdir\n",
    "OBJ": lambda folder: b"(" + name("os", "mkdir") + push(folder) + b"o",
    "STACK_GLOBAL": lambda folder: push("os") + push("mkdir") + b"\x93" + push(folder) + b"\x85R",
    "dotted": lambda folder: b"\x80\x04" + push("os") + push("path.os.mkdir") + b"\x93" + push(folder) + b"\x85R",
    "eval": lambda folder: call("builtins eval", push(f"__import__('os').mkdir({folder!r})")),
}
PLACES = {
    "value": lambda payload: payload,
    "tensor": lambda payload: mapping({"x": payload}),
    "beside the state_dict": lambda payload: mapping({"state_dict": mapping({"x": tensor()}), "args": payload}),
    "hooks": lambda payload: mapping({"x": call("torch._utils _rebuild_parameter", tensor(), push(True), payload)}),
    "device": lambda payload: mapping(
        {"x": b"(" + push("storage") + name("torch", "FloatStorage") + push("0") + payload}
    ),
    "metadata": lambda payload: mapping({"x": tensor()}) + mapping({"_metadata": payload}) + b"b",
}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_are_armed(tmp_path, payload):
    """The payloads of the next tests do run where a pickle is loaded as pickles are."""
    pickle.loads(pickled(PAYLOADS[payload](str(tmp_path / "ran"))))  # noqa: S301

    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_payload_does_not_run(write, tmp_path, payload, place):
    """A call that a pickle asks for is refused and not made, wherever it stands."""
    path = write(PLACES[place](PAYLOADS[payload](str(tmp_path / "ran"))), SIX)

    with pytest.raises(WeightsError, match=r"has (a|the) pickle .*Nothing in it was run\. If you trust it, re-save it"):
        open_torch(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("index", range(5))
def test_payload_in_any_legacy_pickle_does_not_run(tmp_path, index):
    """Each of the five pickles of a legacy file is read with the same suspicion."""
    payload = call("os mkdir", push(str(tmp_path / "ran")))
    path = write_legacy(tmp_path / "x.bin", mapping({"x": tensor()}), SIX, {index: payload})

    with pytest.raises(WeightsError, match="names 'os' 'mkdir', which no dict of tensors needs"):
        open_torch(path)
    assert not (tmp_path / "ran").exists()


def test_payload_before_a_break_does_not_run(tmp_path):
    """A pickle that breaks off behind its payload has not run it."""
    raw = pickled(call("os mkdir", push(str(tmp_path / "ran"))))[:-1] + b"X"
    path = write_zip(tmp_path / "x.bin", b"", SIX, {"data.pkl": raw})

    with pytest.raises(WeightsError, match="names 'os' 'mkdir'"):
        open_torch(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("opcode", sorted({op.name for op in pickletools.opcodes} - {"STOP", *pickle_machine.STEPS}))
def test_opcodes_that_no_state_dict_needs(write, opcode):
    """Every other opcode is refused by name, before its argument is looked at."""
    code = next(op.code for op in pickletools.opcodes if op.name == opcode).encode("latin-1")

    with pytest.raises(WeightsError, match=f"has the pickle opcode {opcode}, which no dict of tensors needs"):
        open_torch(write(code + b"'\\q'\n", SIX))


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch._utils", "_rebuild_qtensor"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.modules.linear", "Linear"),
        ("torch.serialization", "load"),
        ("torch", "serialization.load"),
        ("torch", "_utils._rebuild_tensor_v2"),
        ("torch", "QInt8Storage"),
        ("torch", "FloatStorage.from_file"),
        ("torch.storage", "UntypedStorage"),
        ("torch Size", ""),
        ("", "torch Size"),
        ("collections", "Ordered\\x44ict"),
        ("Collections", "OrderedDict"),
        ("__builtin__", "eval"),
    ],
)
def test_globals_must_match_exactly(write, module, forbidden):
    """A global that is not in the list, to the letter, is refused by name."""
    value = mapping({"x": name(module, forbidden)})

    with pytest.raises(WeightsError) as refusal:
        open_torch(write(value, {}))
    assert f"has a pickle that names {module!r} {forbidden!r}, which no dict of tensors needs." in str(refusal.value)


# ---------------------------------------------------------------- pickles that are refused

WRONG_TENSOR = "the shape, strides or offset of a tensor in storage 0 is wrong"
NO_CALL = "otherwise than a plain tensor needs"
NO_STORAGE = "refers to a storage otherwise than torch.save does"
LIST_IN_ITSELF = b"]q\x00h\x00a"
BAD_PICKLES = {
    "nothing": (b"", "uses a value that is not there"),
    "two values": (push(1) + mapping({}), "leaves values unused"),
    "open mark": (b"(" + mapping({}), "leaves values unused"),
    "no mark": (b"t", "uses a value that is not there"),
    "pop below a mark": (push(1) + b"(\x85", "uses a value that is not there"),
    "unknown opcode": (b"\xff", r"goes on with b'\\xff', which is no opcode"),
    "memo without the value": (b"h\x05", "uses a value that is not there"),
    "memo with a gap": (b"}r" + struct.pack("<I", 2**31), "puts a value at 2147483648 in its memo of 0"),
    "text of 4 GiB": (b"X" + struct.pack("<I", 2**32 - 1) + b"x", "expected 4294967295 bytes"),
    "not UTF-8": (b"X" + struct.pack("<I", 1) + b"\xff", "can't decode byte 0xff"),
    "number cut off": (b"\x8a\xff", "expected 255|not enough data"),
    "set an item of a tensor": (tensor() + push("x") + push(1) + b"s", "uses a Tensor as a dict"),
    "set an item of a list": (b"]" + push(0) + push(1) + b"s", "uses a list as a dict"),
    "append to a dict": (b"}" + push(1) + b"a", "uses a dict as a list"),
    "key without a value": (b"}(" + push("x") + b"u", "a dict with a key and no value"),
    "key of another type": (b"}" + push((1,)) + push(1) + b"s", "keys other than texts and"),
    "huge number as a key": (b"}" + push(2**61 - 1) + push(1) + b"s", "keys other than texts and"),
    "state of a list": (b"]}b", "uses a list as a dict"),
    "state of a tensor": (tensor() + b"}b", "uses a Tensor as a dict"),
    "call of a text": (push("os") + b")R", "calls what is no function"),
    "call of a storage class": (call("torch FloatStorage", push(6)), "calls torch FloatStorage otherwise"),
    "call with a list": (name("torch", "Size") + b"]R", "calls torch Size otherwise"),
    "OrderedDict of items": (call("collections OrderedDict", b"]"), "calls collections OrderedDict otherwise"),
    "tensor that is negated": (mapping({"x": tensor(more=mapping({"neg": push(True)}))}), NO_CALL),
    "tensor of a tensor": (mapping({"x": tensor(tensor())}), NO_CALL),
    "parameter of a dict": (call("torch._utils _rebuild_parameter", b"}", b"}", b"}"), NO_CALL),
    "global by numbers": (push(1) + push(2) + b"\x93", "names a global by something else than text"),
    "reference to no storage": (push("0") + b"Q", NO_STORAGE),
    "reference to a module": (push(("module", None, "0", "cpu", 6)) + b"Q", NO_STORAGE),
    "storage of no class": (push(("storage", "torch FloatStorage", "0", "cpu", 6)) + b"Q", NO_STORAGE),
    "storage of a wrong class": (
        b"(" + push("storage") + name("torch", "Size") + push("0") + push("cpu") + push(6) + b"tQ",
        NO_STORAGE,
    ),
    "view of a storage": (storage(view=push(("1", 0, 3))), NO_STORAGE),
    "storage with two sizes": (b"]" + storage() + b"a" + storage(numel=7) + b"a", "describes storage 0 twice"),
    "storage with two dtypes": (b"]" + storage() + b"a" + storage("I32") + b"a", "describes storage 0 twice"),
    "key with a path": (storage(key="../0"), r"the key or size of storage '\.\./0' is wrong"),
    "key without digits": (storage(key=""), "the key or size of storage '' is wrong"),
    "key of other digits": (storage(key="٣"), "the key or size of storage '٣' is wrong"),
    "negative size of a storage": (storage(numel=-1), "the key or size of storage '0' is wrong"),
    "yes as the size of a storage": (storage(numel=True), "the key or size of storage '0' is wrong"),
    "negative size": (tensor(shape=(-2, 3)), WRONG_TENSOR),
    "negative stride": (tensor(strides=(3, -1)), WRONG_TENSOR),
    "negative offset": (tensor(offset=-1), WRONG_TENSOR),
    "size that is no number": (tensor(shape=(2, 3.0)), WRONG_TENSOR),
    "yes as a size": (tensor(shape=(2, True)), WRONG_TENSOR),
    "shape that is no tuple": (tensor(shape=6), WRONG_TENSOR),
    "fewer strides than sizes": (tensor(strides=(1,)), WRONG_TENSOR),
    "65 dimensions": (tensor(shape=(1,) * 65, strides=(1,) * 65), WRONG_TENSOR),
    "shape beyond memory": (tensor(shape=(0, 2**40, 2**40), strides=(0, 0, 0)), WRONG_TENSOR),
    "stride beyond 64 bits": (tensor(shape=(1, 6), strides=(2**61, 1)), WRONG_TENSOR),
    "size beyond 64 bits": (tensor(shape=(2**64, 0)), WRONG_TENSOR),
    "offset past the end": (mapping({"x": tensor(offset=1)}), "'x' ends at element 7 of 6"),
    "stride past the end": (mapping({"x": tensor(strides=(4, 1))}), "'x' ends at element 7 of 6"),
    "shape past the end": (mapping({"x": tensor(shape=(3, 3))}), "'x' ends at element 9 of 6"),
    "offset of nothing past the end": (mapping({"x": tensor(shape=(0, 3), offset=7)}), "'x' ends at element 7 of 6"),
    "stride 0": (mapping({"x": tensor(strides=(0, 1))}), "has 'x' expanded: 6 elements in 3 places"),
    "stride 0 bomb": (
        mapping({"x": tensor(shape=(2**40,), strides=(0,))}),
        "has 'x' expanded: 1,099,511,627,776 elements in 1 places",
    ),
    "overlap": (mapping({"x": tensor(shape=(3, 3), strides=(1, 1))}), "has 'x' expanded: 9 elements in 5 places"),
    "storage longer than in the file": (mapping({"x": tensor(storage(numel=7))}), "storage 0 must have"),
    "storage shorter than in the file": (mapping({"x": tensor(storage(numel=5), (), ())}), "storage 0 must have"),
    "storage of a terabyte": (mapping({"x": tensor(storage(numel=2**38))}), "storage 0 must have"),
    "storage that is missing": (mapping({"x": tensor(storage(key="1"))}), "storage 1 must have|must name each"),
    "list": (b"](" + tensor() + b"e", "must hold a dict of tensors"),
    "list in itself": (LIST_IN_ITSELF, "must hold a dict of tensors"),
    "only a tensor": (tensor(), "must hold a dict of tensors"),
    "None": (push(None), "must hold a dict of tensors"),
    "state_dict in another": (mapping({"state_dict": mapping({"state_dict": b"}"})}), "'state_dict' is of type dict"),
    "number": (mapping({"x": tensor(), "version": push(1)}), "must hold tensors only; its 'version' is of type int"),
    "None among tensors": (mapping({"x": push(None)}), "must hold tensors only; its 'x' is of type NoneType"),
    "list in itself among tensors": (mapping({"x": LIST_IN_ITSELF}), "must hold tensors only; its 'x' is of type list"),
    "storage among tensors": (mapping({"x": storage()}), "must hold tensors only; its 'x' is of type Storage"),
    "wrapped otherwise": (mapping({"model": mapping({"x": tensor()})}), "its 'model' is of type dict"),
    "number as a name": (mapping({1: tensor()}), "has a tensor with the name 1, which must be printable text"),
    "name with an escape": (mapping({"\x1b[2J": tensor()}), r"has a tensor with the name '\\x1b\[2J'"),
    "name with half a character": (mapping({"\ud800": tensor()}), r"has a tensor with the name '\\ud800'"),
    "too many tensors": (
        mapping({str(index): push(None) for index in range(torch_pickle.MAX_TENSORS + 1)}),
        "must hold a dict of tensors, at most 10,000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickle(write, case):
    """A pickle that torch.save does not write for plain tensors is refused: path, reason and remedy."""
    opcodes, reason = BAD_PICKLES[case]
    path = write(opcodes, SIX if b"Storage" in opcodes else {})

    with pytest.raises(WeightsError, match=reason) as refusal:
        open_torch(path)
    assert str(refusal.value).startswith(f"{path} ")
    assert len(str(refusal.value)) < 500
    assert str(refusal.value).endswith(
        (
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors').",
            "Download it again, from a source you trust.",
        )
    )


# ---------------------------------------------------------------- files that are refused

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
SAFETENSORS = struct.pack("<Q", 128) + b'{"x":{"dtype":"F32"' + bytes(200)
OTHER_FILES = {
    "empty": (b"", r"is empty\. Download it again\."),
    "Git LFS": (LFS_POINTER, r"is a Git LFS pointer, not the weights\. Run `git lfs pull`"),
    "HTML": (b"\n<!DOCTYPE html><html>", r"is a web page, not weights\. Was the download refused\?"),
    "safetensors": (SAFETENSORS, r"is a safetensors file by another name\. Rename it"),
    "tar": (b"tensors" + bytes(250) + b"ustar\x0000", "is a tar file, as torch before 0.1.10 wrote"),
    "text": (b"hello", "must be a file of torch.save; it is neither a zip file nor a pickle"),
    "other pickle": (pickle.dumps([1, 2], protocol=2), "is a pickle, but not one of torch.save"),
    "numpy pickle": (pickle.dumps(np.arange(3), protocol=2), "names 'numpy.*' '_reconstruct'"),
    "other zip": (b"PK\x03\x04", "is damaged, or made to mislead: File is not a zip"),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_other_file(tmp_path, case):
    """A file of another kind is refused with what it is, and what to do."""
    raw, reason = OTHER_FILES[case]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(raw)

    with pytest.raises(WeightsError, match=reason):
        open_torch(path)


LOCAL, DIRECTORY = b"PK\x03\x04", b"PK\x01\x02"


def patched(raw, header, offset, form, *values, which=0):
    """The zip file ``raw`` with other values in the ``which``-th header of its kind, at an offset."""
    start = -1
    for _ in range(which + 1):
        start = raw.index(header, start + 1)
    values = struct.pack(form, *values)
    return raw[: start + offset] + values + raw[start + offset + len(values) :]


def resized(raw, size):
    """The zip file ``raw`` with another size of its last entry, said in both headers."""
    last = raw.count(LOCAL) - 1
    return patched(patched(raw, LOCAL, 18, "<LL", size, size, which=last), DIRECTORY, 20, "<LL", size, size, which=last)


def flagged(raw, flags):
    """The zip file ``raw`` with the flags of its first entry set, in both headers."""
    return patched(patched(raw, LOCAL, 6, "<H", flags), DIRECTORY, 8, "<H", flags)


# Of a zip file whose first entry is archive/data.pkl and whose last, archive/version_, is empty.
BAD_ZIPS = {
    "encrypted": (lambda raw: flagged(raw, 0x1), "has the zip entry 'archive/data.pkl' compressed or encrypted"),
    "strongly encrypted": (lambda raw: flagged(raw, 0x41), "compressed or encrypted"),
    "flags differ": (lambda raw: patched(raw, LOCAL, 6, "<H", 1), "a header that disagrees"),
    "methods differ": (lambda raw: patched(raw, LOCAL, 8, "<H", 8), "a header that disagrees"),
    "methods differ, too": (lambda raw: patched(raw, DIRECTORY, 10, "<H", 8), "a header that disagrees"),
    "names differ": (lambda raw: patched(raw, LOCAL, 30, "7s", b"Archive"), "a header that disagrees"),
    "names differ, too": (lambda raw: patched(raw, DIRECTORY, 46, "7s", b"Archive"), "a header that disagrees"),
    "name with NUL": (lambda raw: raw.replace(b"archive/version", b"archive/versi\0n"), "a header that disagrees"),
    "sizes differ": (lambda raw: patched(raw, LOCAL, 18, "<LL", 20, 20), "has 2 sizes"),
    "one size differs": (lambda raw: patched(raw, DIRECTORY, 20, "<L", 20), "has 2 sizes"),
    "sizes that follow differ": (
        lambda raw: patched(flagged(patched(raw, LOCAL, 18, "<LL", 0, 0), 0x8), DIRECTORY, 20, "<L", 20),
        "has 2 sizes",
    ),
    "sizes 0 without a flag": (lambda raw: patched(raw, LOCAL, 18, "<LL", 0, 0), "has 2 sizes"),
    "entry beyond the file": (lambda raw: resized(raw, 1 << 20), "its last zip entry is cut off"),
    "header beyond the file": (lambda raw: patched(raw, DIRECTORY, 42, "<L", len(raw) - 9, which=5), "or is cut off"),
    "same name twice": (lambda raw: raw.replace(b"archive/data/1", b"archive/data/0"), "comes twice"),
    "two data.pkl": (lambda raw: raw.replace(b"archive/version_", b"another/data.pkl"), "it has 2"),
    "no data.pkl": (lambda raw: raw.replace(b"data.pkl", b"code.pkl"), "must be a zip file with one <folder>/data.pkl"),
    "data.pkl without a folder": (lambda raw: raw.replace(b"archive/data.pkl", b"archive_data.pkl"), "it has 0"),
    "data.pkl two folders deep": (lambda raw: raw.replace(b"archive/data.pkl", b"arch/ve/data.pkl"), "it has 0"),
    "no entry of a storage": (lambda raw: raw.replace(b"archive/data/0", b"archive/data_0"), "it has None"),
    "header overwritten": (lambda raw: patched(raw, LOCAL, 0, "4s", b"PK..", which=1), "a header that disagrees"),
    "big-endian": (lambda raw: raw.replace(b"little", b"big..."), "holds numbers that are not little-endian"),
    "bytes behind": (lambda raw: raw + b"\0", "before the first or after the last"),
    "another zip before": (lambda raw: raw + raw, "before the first or after the last"),
    "header before": (lambda raw: LOCAL + raw, "before the first or after the last"),
    "empty directory": (lambda raw: raw[:4] + b"PK\x05\x06" + bytes(18), "before the first or after the last"),
    "directory beyond the file": (lambda raw: raw[:-10] + struct.pack("<LLH", 1 << 20, 0, 0), "Bad offset for central"),
    "another directory size": (lambda raw: raw[:-10] + struct.pack("<LLH", 46, 0, 0), "Bad magic number for central"),
    "newer zip version": (lambda raw: patched(raw, DIRECTORY, 6, "<H", 99), "zip file version 9.9"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ZIPS)
def test_bad_zip(tmp_path, case):
    """A zip file that two readers could understand differently is refused."""
    edit, reason = BAD_ZIPS[case]
    arrays = {**SIX, "1": np.zeros(1, "<f4")}
    path = write_zip(tmp_path / "pytorch_model.bin", mapping({"x": tensor()}), arrays, {"version_": b""})
    raw = path.read_bytes()
    assert list(open_torch(path)) == ["x"]
    path.write_bytes(edit(raw))
    assert path.read_bytes() != raw

    with pytest.raises(WeightsError, match=reason):
        open_torch(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_entry(tmp_path, compression):
    """A compressed entry is refused before anything is decompressed."""
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(push("x" * 1000)))

    with pytest.raises(WeightsError, match=r"has the zip entry 'archive/data\.pkl' compressed or encrypted"):
        open_torch(path)


def test_entries_that_share_bytes(tmp_path):
    """Zip entries of which one lies in the other are refused."""
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(b"}"))
        (info,) = archive.infolist()
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("archive/outer", path.read_bytes())
        info.header_offset = zipfile.sizeFileHeader + len("archive/outer")
        archive.filelist.append(info)
    path = tmp_path / "outer.zip"

    with pytest.raises(WeightsError, match=r"'archive/data\.pkl' comes twice, overlaps or is cut off"):
        open_torch(path)


def test_bytes_after_the_pickle(tmp_path):
    """A data.pkl that goes on behind its pickle is refused."""
    pickles = pickled(mapping({"x": tensor()})) + pickled(b"}")
    path = write_zip(tmp_path / "pytorch_model.bin", b"", SIX, {"data.pkl": pickles})

    with pytest.raises(WeightsError, match=r"its data\.pkl goes on behind the pickle"):
        open_torch(path)


@pytest.mark.parametrize(
    ("pickles", "reason"),
    [
        ({0: push(0x1950A86A20F9469CFC6D)}, "is a pickle, but not one of torch.save"),
        ({1: push(1002)}, "is a pickle, but not one of torch.save"),
        ({2: mapping({"little_endian": push(False)})}, "not little-endian"),
        ({2: mapping({})}, "not little-endian"),
        ({2: push(1)}, "not little-endian"),
        ({4: push("0")}, "must name each of them once"),
        ({4: b"]"}, "must name each of them once"),
        ({4: b"](" + push("0") + push("0") + b"e"}, "must name each of them once"),
        ({4: b"](" + push(("0",)) + b"e"}, "must name each of them once"),
        ({4: b"](" + push("0") + push(1) + b"e"}, "must name each of them once"),
        ({4: b"](" + push("1") + b"e"}, "must name each of them once"),
    ],
    ids=[
        "magic",
        "version",
        "big-endian",
        "no endian",
        "no system",
        "text",
        "none",
        "twice",
        "tuple",
        "number",
        "other",
    ],
)
def test_bad_legacy_pickle(tmp_path, pickles, reason):
    """A legacy file whose pickles around the value are not as torch.save writes them is refused."""
    path = write_legacy(tmp_path / "pytorch_model.bin", mapping({"x": tensor()}), SIX, pickles)

    with pytest.raises(WeightsError, match=reason):
        open_torch(path)


def test_bytes_after_a_legacy_file(tmp_path):
    """A legacy file with bytes behind its last storage is refused."""
    path = write_legacy(tmp_path / "pytorch_model.bin", mapping({"x": tensor()}), SIX)
    path.write_bytes(path.read_bytes() + b"\0")

    with pytest.raises(WeightsError, match=r"its storages take .* bytes, and the file has"):
        open_torch(path)


@pytest.mark.parametrize("written", TORCH_FILES)
def test_truncation_anywhere(tmp_path, written):
    """A file that was cut at any byte is refused, with the one error."""
    path = tmp_path / "pytorch_model.bin"
    for length in range(len(TORCH_FILES[written])):
        path.write_bytes(TORCH_FILES[written][:length])
        with pytest.raises(WeightsError):
            open_torch(path)


# ---------------------------------------------------------------- bombs

MANY = pickle_machine.MAX_OPCODES - 10
COLLIDING = b"".join(push(index * (2**61 - 1)) + b"N" for index in range(MANY // 4))
BOMBS = {
    "opcodes": b"N" * (torch_pickle.MAX_INDEX_BYTES - 10),
    "dicts": b"}" * (torch_pickle.MAX_INDEX_BYTES - 10),
    "marks": b"(" * (torch_pickle.MAX_INDEX_BYTES - 10),
    "nested tuples": b")" + b"\x85" * MANY,
    "nested lists": b"]" * (MANY // 2) + b"a" * (MANY // 2 - 1),
    "memo": b"]" + b"\x94" * MANY,
    "one list many times": b"]q\x00(" + b"h\x00" * MANY + b"e",
    "doubling tuples": b")" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(200)),
    "colliding keys": b"}(" + COLLIDING + b"u",
    "long text": b"X" + struct.pack("<I", 4_000_000) + "\U0001f600".encode() * 1_000_000,
    "huge pickle": bytes(torch_pickle.MAX_INDEX_BYTES + 1),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bomb_takes_no_time(tmp_path, case):
    """A file made to take long is refused within seconds: one, where this was written."""
    path = write_zip(tmp_path / "pytorch_model.bin", BOMBS[case], {})

    start = time.process_time()
    with pytest.raises(WeightsError):
        open_torch(path)
    assert time.process_time() - start < 5


def peak_of(function, *arguments):
    """The most memory that Python held while a function ran that must raise WeightsError, in bytes."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("case", ["dicts", "marks", "long text", "huge pickle"])
def test_bomb_takes_no_memory(tmp_path, case):
    """A file made to take much memory is refused within 64 MiB."""
    path = write_zip(tmp_path / "pytorch_model.bin", BOMBS[case], {})

    assert peak_of(open_torch, path) < 64 << 20


def test_zip_directory_bomb(tmp_path):
    """A zip directory that is too large is refused unread."""
    count = torch_pickle.MAX_INDEX_BYTES // 46 + 1
    directory = (b"PK\x01\x02" + bytes(42)) * count
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), 30)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 30 + len(directory), 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"PK\x03\x04" + bytes(26) + directory + end64 + locator + end)

    with pytest.raises(WeightsError, match="must describe itself in 4,194,304 bytes; it takes 4,194,326"):
        open_torch(path)
    assert peak_of(open_torch, path) < 1 << 20


# ---------------------------------------------------------------- mutations

MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["flip", "insert", "delete"]), st.integers(0, 2300), st.integers(1, 255)),
    min_size=1,
    max_size=4,
)


def mutated(raw, mutations):
    """``raw`` with some bytes changed, put in or left out."""
    raw = bytearray(raw)
    for kind, position, byte in mutations:
        at = position % len(raw)
        if kind == "flip":
            raw[at] ^= byte
        elif kind == "insert":
            raw.insert(at, byte)
        else:
            del raw[at]
    return bytes(raw)


def assert_refused_or_sound(path):
    """Fail unless the file is refused with WeightsError, or all that it holds can be read as it says."""
    try:
        opened = open_torch(path)
    except WeightsError:
        return
    for tensor_name, stored in opened.items():
        assert isinstance(stored, StoredTensor)
        values = stored.read()
        expected = "<f4" if stored.dtype == "BF16" else DTYPES[stored.dtype]
        assert (stored.name, values.shape, values.dtype) == (tensor_name, stored.shape, np.dtype(expected))


@pytest.mark.parametrize("written", TORCH_FILES)
@given(mutations=MUTATIONS)
@settings(max_examples=300, deadline=None, database=None)
def test_mutated_file(tmp_path_factory, written, mutations):
    """A file with a few bytes changed is refused, or read as what it says it is; no other error escapes."""
    path = tmp_path_factory.getbasetemp() / "mutated.bin"
    path.write_bytes(mutated(TORCH_FILES[written], mutations))

    assert_refused_or_sound(path)


@given(mutations=MUTATIONS)
@settings(max_examples=500, deadline=None, database=None)
def test_mutated_pickle(tmp_path_factory, mutations):
    """A sound zip file whose pickle has a few bytes changed is refused, or read as what it says it is."""
    value = mapping({"x": tensor(), "row": tensor(shape=(3,), strides=(1,), offset=3), "c": tensor(shape=())})
    raw = mutated(pickled(value), mutations)
    path = write_zip(tmp_path_factory.getbasetemp() / "mutated.bin", b"", SIX, {"data.pkl": raw})

    assert_refused_or_sound(path)


# ---------------------------------------------------------------- PyTorch itself


def torch_families():
    """State dicts of every kind that torch saves and minibert reads."""
    import torch

    generator = torch.Generator().manual_seed(0)
    base = torch.randn(4, 6, generator=generator)
    tied = torch.randn(3, 5, generator=generator)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.BatchNorm1d(4))
    integers = torch.arange(-3, 9)
    return {
        "float32": {"x": base},
        "float16": {"x": base.half()},
        "bfloat16": {"x": base.bfloat16()},
        "float64": {"x": base.double()},
        "integers": {str(d): integers.to(d) for d in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": {"x": base > 0},
        "tied and views": {"a": tied, "b": tied, "row": tied[1], "flat": tied.view(-1)},
        "not contiguous": {
            "t": base.t(),
            "step": base[:, ::2],
            "slice": base[1:3, 2:5],
            "permuted": tied[None].permute(2, 0, 1),
        },
        "scalar and empty": {"scalar": torch.tensor(3.5), "empty": torch.empty(0), "wide": torch.empty(0, 768)},
        "parameter": {"x": torch.nn.Parameter(base.clone())},
        "requires_grad": {"x": base.clone().requires_grad_()},
        "names": {"größe": base, "重み.weight": tied},
        "module": module.state_dict(),
    }


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_torch_saves_what_is_read(tmp_path, zipped, protocol):
    """All kinds of plain state dicts that torch saves are read, bit by bit; wrapped in a checkpoint, too."""
    import torch

    path = tmp_path / "pytorch_model.bin"
    for family, state in torch_families().items():
        for value in (state, {"state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}):
            torch.save(value, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
            tensors = read_all(path)
            assert list(tensors) == list(state), family
            for key, expected in state.items():
                wide = expected.float() if expected.dtype == torch.bfloat16 else expected
                assert_same(tensors[key], wide.detach().contiguous().numpy())


@pytest.mark.reference
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda torch: {"x": torch.ones(3).expand(2, 3)}, "has 'x' expanded: 6 elements in 3 places"),
        (lambda torch: {"x": torch.ones(3).to(torch.float8_e4m3fn)}, "_rebuild_tensor_v3"),
        (lambda torch: {"x": torch.eye(2).to_sparse()}, "_rebuild_sparse_tensor"),
        (lambda torch: {"x": torch._neg_view(torch.ones(3))}, NO_CALL),
        (lambda torch: {"x": torch.ones(2, dtype=torch.complex64)}, "ComplexFloatStorage"),
        (lambda torch: {"x": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, "QInt8Storage|qtensor"),
        (lambda torch: torch.nn.Linear(2, 2), "'torch.nn.modules.linear' 'Linear'"),
        (lambda torch: [torch.ones(2)], "must hold a dict of tensors"),
        (lambda torch: torch.ones(2), "must hold a dict of tensors"),
        (lambda torch: {"x": torch.ones(2), "step": 1}, "its 'step' is of type int"),
        (lambda torch: {"x": torch.ones(2), "device": torch.device("cpu")}, "'torch' 'device'"),
    ],
    ids=[
        "expanded",
        "fp8",
        "sparse",
        "negated",
        "complex",
        "quantised",
        "module",
        "list",
        "tensor",
        "number",
        "device",
    ],
)
def test_torch_saves_what_is_refused(tmp_path, zipped, make, reason):
    """What else torch saves is refused, with what it is."""
    import torch

    path = tmp_path / "pytorch_model.bin"
    with warnings.catch_warnings(action="ignore"):
        torch.save(make(torch), path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(WeightsError, match=reason):
        open_torch(path)
