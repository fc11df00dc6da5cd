"""Fuzzing of model folders. Each must give vectors or a documented error, quickly and with little memory.

Tiny repos are made from those under ``tests/golden``: with safetensors, with shards, with both formats of
``pytorch_model.bin``, with every kind of tokenizer, with each module, with a search index, and of each family of
models. A mutant is one of them with a few changes to bytes, JSON values, a safetensors header, the opcodes of a pickle,
or lines; or with a pipe, a device or a link instead of a file. A worker process loads it and encodes some texts. These
are findings: a result that is neither vectors nor a documented error, too much time, too much memory, or the death of
the process. Vectors that are not finite are counted separately.

A mutant depends only on its number. To repeat one:

    python tools/fuzz_folders.py --seed NUMBER --count 1 --keep FOLDER

Linux only: it reads the peak memory from /proc.
"""

import argparse
import collections
import contextlib
import faulthandler
import io
import json
import logging
import multiprocessing
import os
import pickle
import pickletools
import random
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # before numpy loads its BLAS; the tests import this file, and keep their threads
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from repos import FAMILIES
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from minibert import SearchIndex, SentenceEncoder
from minibert.errors import MinibertError

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"

#: Maximum time in seconds, and memory in bytes above the worker's own, for a mutant. Its files are small.
MAX_SECONDS = 5.0
MAX_BYTES = 64 << 20
#: Limit of further memory for a worker, enforced by the system, so that a finding does not stop the machine.
ADDRESS_SPACE = 4 << 30

TEXTS = ["", "a man is playing", "x " * 400, "Grüße [SEP] \x00\ufffd 漢字 e\u0301 😀", "[MASK] " * 3]

Files = dict[str, bytes]


class Outcome(NamedTuple):
    """The result for a mutant.

    Attributes:
        number: The mutant's number.
        base: The repo that it was made from.
        changes: The changes in it.
        kind: ``"vectors"``, ``"not finite"``, the class of a documented error, or ``"FINDING"``.
        detail: Details of the result.
    """

    number: int
    base: str
    changes: str
    kind: str
    detail: str = ""


# ---------------------------------------------------------------- repos


def bases() -> dict[str, Files]:
    """Return the files of each repo that is mutated, by path."""
    twin = _read(GOLDEN / "BertModel-128d" / "repo")
    weights = load_safetensors(twin["model.safetensors"])
    bare = {name: content for name, content in twin.items() if name != "model.safetensors"}
    halves = [dict(list(weights.items())[i::2]) for i in range(2)]
    shards = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    weight_map = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    made = {
        "safetensors": twin,
        "zip": {**bare, "pytorch_model.bin": write_zip(weights)},
        "legacy": {**bare, "pytorch_model.bin": write_legacy(weights)},
        "shards": {
            **bare,
            "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
            **{shard: save_safetensors(half) for shard, half in zip(shards, halves, strict=True)},
        },
        "modules": _with_modules(twin, weights),
        "index": {**twin, "index": _index(twin)},
    }
    for name in ("json-lower", "json-as-is", "unigram", "vocab-added", "vocab-decoder"):
        made[name] = _with_tokenizer(twin, weights, _read(GOLDEN / "tokenizers" / name))
    made |= {name: _read(GOLDEN / name / "repo") for name, card in FAMILIES.items() if "twin" in card}
    return made


def _read(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _with_tokenizer(twin: Files, weights: dict[str, Any], tokenizer: Files) -> Files:
    """Return the twin with another tokenizer, and a table of word embeddings for it."""
    config = json.loads(twin["config.json"])
    table = "embeddings.word_embeddings.weight"
    config["vocab_size"] = 2_000
    grown = {**weights, table: np.resize(weights[table], (2_000, config["hidden_size"]))}
    kept = {name: content for name, content in twin.items() if "token" not in name and name != "vocab.txt"}
    own = {name: content for name, content in tokenizer.items() if name != "config.json"}
    return {**kept, **own, "config.json": json.dumps(config).encode(), "model.safetensors": save_safetensors(grown)}


def _with_modules(twin: Files, weights: dict[str, Any]) -> Files:
    """Return the twin with every module that has its own files."""
    config = json.loads(twin["config.json"])
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    words = twin["vocab.txt"].decode().split()
    rng = np.random.default_rng(0)

    def random_array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    chain: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("WeightedLayerPooling", {"num_hidden_layers": layers, "layer_start": 0}, {"layer_weights": layers + 1}),
        ("WordWeights", {"vocab": words}, {"emb_layer.weight": (len(words), 1)}),
        ("Pooling", {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}, {}),
        (
            "Dense",
            {"in_features": width, "out_features": 8, "activation_function": "torch.nn.modules.activation.Tanh"},
            {"linear.weight": (8, width), "linear.bias": 8},
        ),
        ("LayerNorm", {"dimension": 8}, {"norm.weight": 8, "norm.bias": 8}),
        ("Normalize", {}, {}),
    ]
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    files = {name: content for name, content in twin.items() if not name.startswith("1_Pooling")}
    for i, (kind, settings, shapes) in enumerate(chain, 1):
        folder = f"{i}_{kind}"
        modules.append({"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"})
        files[f"{folder}/config.json"] = json.dumps(settings).encode()
        if shapes:
            arrays = {name: random_array(*np.atleast_1d(shape)) for name, shape in shapes.items()}
            files[f"{folder}/model.safetensors"] = save_safetensors(arrays)
    settings = {"prompts": {"query": "a ", "document": ""}, "default_prompt_name": "query", "similarity_fn_name": "dot"}
    files["config_sentence_transformers.json"] = json.dumps(settings).encode()
    files["modules.json"] = json.dumps(modules).encode()
    return {**files, "model.safetensors": save_safetensors(weights)}


def _index(twin: Files) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "model", twin)
        encoder = SentenceEncoder(Path(folder) / "model")
        SearchIndex.build(encoder, ["a man", "the cat", "is"]).save(Path(folder) / "index")
        return (Path(folder) / "index").read_bytes()


def _push(value: Any) -> bytes:
    """Return the opcodes that push a number, a text or a tuple."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


def _state_dict(weights: dict[str, Any], more: bytes) -> bytes:
    """Return the opcodes of torch.save for a state_dict. ``more`` follows the size of each storage."""
    items = b""
    for number, (name, array) in enumerate(weights.items()):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        description = _push("storage") + b"ctorch\nFloatStorage\n" + _push(str(number)) + _push("cpu")
        storage = b"(" + description + _push(array.size) + more + b"tQ"
        tensor = storage + _push(0) + _push(array.shape) + _push(strides) + _push(False)
        hooks = b"ccollections\nOrderedDict\n)R"
        items += _push(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + tensor + hooks + b"tR"
    return b"}(" + items + b"u"


def write_zip(weights: dict[str, Any], pickled: bytes | None = None) -> bytes:
    """Return a pytorch_model.bin as torch writes it since 1.6. ``pickled`` replaces its data.pkl."""
    contents = {"data.pkl": pickled or b"\x80\x02" + _state_dict(weights, b"") + b".", "version": b"3\n"}
    contents |= {f"data/{number}": array.tobytes() for number, array in enumerate(weights.values())}
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"archive/{name}", content)
    return raw.getvalue()


def write_legacy(weights: dict[str, Any]) -> bytes:
    """Return a pytorch_model.bin as torch wrote it before 1.6."""
    keys = [str(number) for number in range(len(weights))]
    system = b"}(" + _push("protocol_version") + _push(1001) + _push("little_endian") + _push(True) + b"u"
    values = (_push(0x1950A86A20F9469CFC6C), _push(1001), system, _state_dict(weights, b"N"), _push(keys))
    raw = b"".join(b"\x80\x02" + value + b"." for value in values)
    return raw + b"".join(struct.pack("<q", array.size) + array.tobytes() for array in weights.values())


def write(folder: Path, files: Files) -> None:
    """Create a folder and write the files into it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# ---------------------------------------------------------------- changes to bytes

_INTEGERS = [0, 1, 2, 255, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**47, 2**62, 2**63 - 1, 2**64 - 1]


def _span(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice([1, 2, 4, 8, 16, 64, 256, 4096]))


def _flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64]) if content else 0):
        # Usually near the start, where the headers are.
        where = rng.randrange(min(len(content), rng.choice([16, 128, 2048, len(content)])))
        changed[where] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _integer(rng: random.Random) -> bytes:
    size = rng.choice([2, 4, 8])
    return (rng.choice(_INTEGERS) % 256**size).to_bytes(size, rng.choice(["little", "big"]))


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with one change."""
    start, end = _span(rng, content)
    size, before, piece, after = end - start, content[:start], content[start:end], content[end:]
    changes: list[Callable[[], bytes]] = [
        lambda: _flip_bits(rng, content),
        lambda: before,
        lambda: before + after,
        lambda: before + piece + piece + after,
        lambda: before + rng.randbytes(size) + after,
        lambda: before + bytes([rng.choice([0, 255])]) * size + after,
        lambda: before + (number := _integer(rng)) + content[start + len(number) :],
        lambda: before + after[:size] + piece + after[size:],
    ]
    return rng.choice(changes)()


# ---------------------------------------------------------------- changes to JSON


class Raw(str):
    """A piece of JSON text that is written unchanged."""

    __slots__ = ()


def _value(rng: random.Random, old: Any) -> Any:
    """Return a value that replaces another."""
    if type(old) in {int, float} and rng.random() < 0.5:
        return rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, float(old), str(old), [old]])
    if isinstance(old, str) and rng.random() < 0.5:
        return rng.choice(["", old + "x", old[:-1], old.upper(), old * 1000, [old], {"content": old}, "../" + old])
    return rng.choice(
        [
            None,
            True,
            False,
            0,
            -1,
            1,
            0.5,
            1e308,
            -1e308,
            5e-324,
            2**31,
            2**32,
            2**63,
            2**64,
            10**30,
            10**400,
            Raw("NaN"),
            Raw("Infinity"),
            Raw("-Infinity"),
            Raw("1e999"),
            Raw("-0.0"),
            Raw("9" * 5000),
            "",
            "a",
            "\0",
            "[UNK]",
            "[CLS]",
            "right",
            "left",
            "../x",
            "/dev/zero",
            "1_Pooling",
            "\x1b[2J",
            Raw('"\\ud800"'),
            Raw('"\\udc00\\ud800"'),
            "😀" * 50,
            "x" * 100_000,
            [],
            {},
            [[]],
            [{}],
            {"a": {}},
            [None],
            [0],
            [2**70],
            ["a"],
            [["a", 0]],
            [["a", float(10**20)], ["a", -1.5]],
            {"a": 0},
            {"a": -1},
            {"a": 2**32},
            {"": None},
            {"content": None},
            {"content": 5},
            {"content": ""},
            {"id": 2**40, "content": "x"},
            {"id": -1, "content": "x"},
            Raw('["' + "x" * 100_000 + '", 0]'),
            {"type": "Replace", "pattern": {"Regex": "(a+)+$|(x|xx)+y"}, "content": "x" * 50},
            {"type": "Replace", "pattern": {"Regex": ""}, "content": "[UNK]"},
            {"type": "Prepend", "prepend": "x" * 1000},
            {"type": "Precompiled", "precompiled_charsmap": "////////////////"},
            {"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": True},
            {"type": "Sequence", "normalizers": []},
            {"type": "Sequence", "pretokenizers": []},
            Raw("[" * 90 + "]" * 90),
            Raw("[" * 900 + "]" * 900),
            Raw('{"a":' * 600 + "0" + "}" * 600),
            Raw("[" + "[]," * 100_000 + "[]]"),
        ]
    )


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, list | dict) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _key(rng: random.Random, container: Any) -> Any:
    return rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Return JSON with one value, key or item changed. Change unreadable or deeply nested JSON as bytes."""
    try:
        return _change_value(rng, json.loads(content))
    except (ValueError, RecursionError, OverflowError):  # the last: a number beyond float
        return change_bytes(rng, content)


def _change_value(rng: random.Random, value: Any) -> bytes:
    """Return the JSON text of a value with one value, key or item in it changed."""
    places = list(_containers(value))
    if not places:
        return _dump(_value(rng, value))
    # Choose the few outer places as often as the many inner ones.
    container = rng.choice(rng.choice([places, places[:10]]))
    key = _key(rng, container)
    how = rng.randrange(10)
    if how < 6:
        container[key] = _value(rng, container[key])
    elif how == 6:
        del container[key]
    elif how == 7:
        other = rng.choice(places)
        container[key] = json.loads(json.dumps(other[_key(rng, other)]))
    elif isinstance(container, dict):
        renamed = rng.choice(["", "a", key + "x", key[:-1], "__metadata__", "unk_token", "model_max_length"])
        if how == 8:
            container[renamed] = container.pop(key)
        else:
            container[renamed] = container[key]
    elif how == 8:
        container.append(container[key])
    else:
        rng.shuffle(container)
    return _dump(value)


def _dump(value: Any) -> bytes:
    """Return JSON text with every Raw unchanged."""
    pieces: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            pieces.append(value)
            return f"<raw {len(pieces) - 1}>"
        if isinstance(value, dict):
            return {key: mark(inner) for key, inner in value.items()}
        return [mark(inner) for inner in value] if isinstance(value, list) else value

    text = json.dumps(mark(value), ensure_ascii=False)
    text = re.sub(r'"<raw (\d+)>"', lambda match: pieces[int(match[1])], text)
    return text.encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- changes to weights, pickles and lines

_NUMBERS = [0.0, -0.0, 1e-45, 1e-30, 1e10, 1e20, 3e38, -3e38, float("inf"), float("nan")]


def change_numbers(rng: random.Random, content: bytes) -> bytes:
    """Return weights with some float32 numbers changed. They are in the last part of the file."""
    changed = bytearray(content)
    number = struct.pack("<f", rng.choice(_NUMBERS))
    start = rng.randrange(len(content) // 8, max(len(content) // 4, len(content) // 8 + 1)) * 4
    changed[start : start + 4] = number
    if rng.random() < 0.3:
        end = min(len(content), start + 4 * rng.choice([8, 64, 512]))
        changed[start:end] = number * ((end - start) // 4) + bytes(changed[end - (end - start) % 4 : end])
    return bytes(changed)


def change_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with a changed header, with a right or wrong header length."""
    if len(content) < 8:
        return change_bytes(rng, content)
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    header = (change_json if rng.random() < 0.8 else change_bytes)(rng, header)
    if rng.random() < 0.1:
        values = change_bytes(rng, values)
    stated = len(header) if rng.random() < 0.9 else rng.choice(_INTEGERS)
    return (stated % 2**64).to_bytes(8, "little") + header + values


def change_zip(rng: random.Random, content: bytes) -> bytes:
    """Return a new zip file with an entry changed, removed, renamed or compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, KeyError, EOFError):
        return change_bytes(rng, content)
    if not entries:
        return change_bytes(rng, content)
    name = rng.choice([*entries, *[entry for entry in entries if entry.endswith(".pkl")] * len(entries)])
    how = rng.randrange(8)
    if how < 6:
        entries[name] = (change_pickle if name.endswith(".pkl") else change_bytes)(rng, entries[name])
    elif how == 6:
        del entries[name]
    else:
        entries[rng.choice(["archive/data/0", "data.pkl", "x/data.pkl", "../x"])] = entries.pop(name)
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", rng.choice([zipfile.ZIP_STORED] * 9 + [zipfile.ZIP_DEFLATED])) as archive:
        for entry, inner in entries.items():
            archive.writestr(entry, inner)
    return raw.getvalue()


def change_pickle(rng: random.Random, content: bytes) -> bytes:
    """Return pickles with an opcode removed, doubled, moved, or with another argument."""
    try:
        starts = [position for _, _, position in pickletools.genops(content) if position is not None]
    except (ValueError, IndexError, UnicodeDecodeError, KeyError, OverflowError):
        return change_bytes(rng, content)
    i = rng.randrange(len(starts))
    start, end = starts[i], (starts[i + 1] if i + 1 < len(starts) else len(content))
    opcode = content[start:end]
    how = rng.randrange(6)
    if how == 0:
        opcode = b""
    elif how == 1:
        opcode *= rng.choice([2, 3, 1000])
    elif how == 2:
        other = rng.randrange(len(starts) - 1) if len(starts) > 1 else 0
        opcode = content[starts[other] : starts[other + 1]] if len(starts) > 1 else opcode
    elif how == 3:
        opcode = _push(rng.choice([*_INTEGERS, -1, None, "", "x", (), (1,), (2**62, 2**62), 0.5, True]))
    elif how == 4:
        opcode = change_bytes(rng, opcode)
    else:
        opcode += rng.choice([b"(", b")", b"]", b"}", b"t", b"R", b"Q", b"0", b"2", b"u", b"e", b"b", b"\x85", b"."])
    return content[:start] + opcode + content[end:]


def change_lines(rng: random.Random, content: bytes) -> bytes:
    """Return text with lines changed."""
    lines = content.split(b"\n")
    i = rng.randrange(len(lines))
    how = rng.randrange(8)
    if how == 0:
        del lines[i]
    elif how == 1:
        lines.insert(i, rng.choice(lines))
    elif how == 2:
        lines[i] = rng.choice([b"", b" ", b"\xff", b"\xc2\xa0x", b"x" * 100_000, b"[UNK]", b"##", b"\x00", b"a\r"])
    elif how == 3:
        rng.shuffle(lines)
    elif how == 4:
        lines = [line + b"\r" for line in lines]
    elif how == 5:
        lines *= rng.choice([2, 100])
    elif how == 6:
        lines = lines[: i + 1]
    else:
        lines[i] = change_bytes(rng, lines[i])
    return b"\n".join(lines)


# ---------------------------------------------------------------- changes to files


def _make_socket(path: Path) -> None:
    here = Path.cwd()  # the path of a socket must be short
    os.chdir(path.parent)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "nothing": Path.exists,
    "empty": Path.touch,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _make_socket,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to /dev/random": lambda path: path.symlink_to("/dev/random"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("gone"),
    "link to its folder": lambda path: path.symlink_to("."),
    "10 MB of zeros": lambda path: _make_sparse(path, 10 << 20),
    "1 TB of zeros": lambda path: _make_sparse(path, 1 << 40),
    "Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}


def changers(name: str, content: bytes) -> list[Callable[[random.Random, bytes], bytes]]:
    """Return the possible mutations of a file with this name and content."""
    if name.endswith(".json"):
        return [change_json, change_json, change_json, change_json, change_bytes]
    if name.endswith(".safetensors") or name == "index":
        return [change_safetensors, change_safetensors, change_numbers, change_bytes]
    if content.startswith(b"PK"):
        return [change_zip, change_zip, change_numbers, change_bytes]
    if name.endswith(".bin"):
        return [change_pickle, change_pickle, change_numbers, change_bytes]
    return [change_lines, change_lines, change_bytes]


def make_mutant(number: int, made: dict[str, Files], folder: Path) -> tuple[str, str]:
    """Write a mutant; return the name of its base repo, and the changes."""
    rng = random.Random(number)  # noqa: S311 - not for secrets
    base = rng.choice(list(made))
    files = dict(made[base])
    changes, special = [], {}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        # In the repo with an index, change only the index. The other repos cover the rest.
        name = rng.choice([name for name in files if base != "index" or name == "index"])
        if rng.random() < 0.05:
            special[name] = rng.choice(list(SPECIAL))
            changes.append(f"{name}: {special[name]}")
            continue
        change = rng.choice(changers(name, files[name]))
        files[name] = change(rng, files[name])
        changes.append(f"{name}: {change.__name__}")
    write(folder, files)
    for name, what in special.items():
        (folder / name).unlink()
        SPECIAL[what](folder / name)
    return base, ", ".join(changes)


# ---------------------------------------------------------------- results


def run(folder: Path, base: str) -> str:
    """Load a mutant and encode some texts; return ``"vectors"`` or ``"not finite"``."""
    if base == "index":
        index = SearchIndex.load(folder / "index")
        index = SearchIndex(**{**vars(index), "fingerprint": ""})
        object.__setattr__(index, "check_model", lambda _: None)
        hits = index.search(_ENCODER[0], TEXTS)
        return "vectors" if all(np.isfinite(hit.score) for row in hits for hit in row) else "not finite"
    encoder = SentenceEncoder(folder, num_threads=1)
    vectors = encoder.encode(TEXTS)
    encoder.encode(TEXTS[:2], output_value="token_embeddings")
    _ = encoder.fingerprint
    return "vectors" if np.isfinite(vectors).all() else "not finite"


def _documented(error: BaseException) -> bool:
    """Return whether the error is documented: an error of minibert, or a ValueError of a known setting."""
    known = (
        "default_prompt_name must be",  # from encode, with a repo's setting
        "vectors to search must be finite",
        "scores must be finite",
        "the index has vectors of",
    )
    return isinstance(error, MinibertError) or (type(error) is ValueError and str(error).startswith(known))


_ENCODER: list[SentenceEncoder] = []


def examine(number: int, made: dict[str, Files], folder: Path) -> Outcome:
    """Write a mutant into ``folder`` and return its result."""
    base, changes = make_mutant(number, made, folder)
    size = sum(os.lstat(path).st_blocks * 512 for path in folder.rglob("*"))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # from now on, VmHWM is the peak
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, detail = run(folder, base), ""
    except BaseException as error:  # noqa: BLE001 - any other error is a finding
        if _documented(error):
            kind, detail = type(error).__name__, str(error)
        else:
            lines = traceback.format_exception(error, limit=-6)
            kind, detail = "FINDING", f"undocumented {type(error).__name__}\n{''.join(lines)[-4000:]}"
    taken = _status("VmHWM") - before
    if taken > MAX_BYTES + 16 * size:
        return Outcome(number, base, changes, "FINDING", f"{taken / 2**20:.0f} MB of memory; then {kind} {detail}")
    return Outcome(number, base, changes, kind, detail)


def _status(key: str) -> int:
    """Return a number from /proc/self/status in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def work(numbers: Connection, outcomes: Connection, made: dict[str, Files], scratch: Path) -> None:
    """Receive numbers of mutants until None comes; examine each mutant and send its result."""
    import resource

    logging.disable()
    # A panic in the tokenizers library prints its own report.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    limit = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while (number := numbers.recv()) is not None:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        outcomes.send(examine(number, made, scratch))


class Worker:
    """A process that examines mutants, and its current mutant."""

    def __init__(self, made: dict[str, Files], scratch: Path) -> None:
        theirs, self.numbers = multiprocessing.Pipe(duplex=False)
        self.outcomes, their_outcomes = multiprocessing.Pipe(duplex=False)
        arguments = (theirs, their_outcomes, made, scratch)
        self.process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        their_outcomes.close()
        self.number, self.since = -1, 0.0

    def give(self, number: int | None) -> None:
        """Send the number of a mutant, or None for the end."""
        self.number, self.since = (-1 if number is None else number), time.monotonic()
        self.numbers.send(number)

    def stop(self) -> int | None:
        """End the process if it still runs; return its exit code."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode


def fuzz(start: int, count: int, jobs: int, seconds: float) -> Iterator[Outcome]:
    """Yield the results of the mutants from ``start`` on, when they are known."""
    made = bases()
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch) / "searched", made["safetensors"])
        _ENCODER[:] = [SentenceEncoder(Path(scratch) / "searched", num_threads=1)]
        pending = iter(range(start, start + count))
        folders = [Path(scratch) / str(job) for job in range(jobs)]
        workers = [Worker(made, folder) for folder in folders]

        def give(worker: Worker) -> None:
            worker.give(next(pending, None) if time.monotonic() < deadline else None)

        for worker in workers:
            give(worker)
        while any(worker.number >= 0 for worker in workers):
            ready = wait([worker.outcomes for worker in workers if worker.number >= 0], timeout=0.5)
            for job, worker in enumerate(workers):
                if worker.number < 0:
                    continue
                took = time.monotonic() - worker.since
                if worker.outcomes in ready:
                    with contextlib.suppress(EOFError):
                        yield worker.outcomes.recv()
                        give(worker)
                        continue
                elif took < MAX_SECONDS:
                    continue
                number, what = worker.number, f"more than {MAX_SECONDS:g} s" if took >= MAX_SECONDS else "died"
                code = worker.stop()
                base, changes = make_mutant(number, made, Path(tempfile.mkdtemp(dir=scratch)))
                yield Outcome(number, base, changes, "FINDING", f"{what}; exit code {code}")
                workers[job] = Worker(made, folders[job])
                give(workers[job])
        for worker in workers:
            worker.stop()


def main() -> int:
    """Run the command line; return 1 if there were findings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="how many mutants (default 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="the number of the first mutant (default 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (default: processors)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the first mutant there, and load nothing")
    options = parser.parse_args()
    faulthandler.enable()
    if options.keep is not None:
        print(*make_mutant(options.seed, bases(), options.keep), sep=": ")
        return 0
    began, kinds, findings = time.monotonic(), collections.Counter[str](), 0
    for outcome in fuzz(options.seed, options.count, options.jobs, options.seconds):
        kinds[outcome.kind] += 1
        if outcome.kind == "FINDING":
            findings += 1
            print(f"--seed {outcome.number} ({outcome.base}; {outcome.changes}): {outcome.detail}\n", flush=True)
    took = time.monotonic() - began
    total = sum(kinds.values())
    print(f"{total:,} mutants in {took:.0f} s, {total / took:.0f} a second, {findings} findings")
    for kind, number in kinds.most_common():
        print(f"  {number:7,} {kind}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
