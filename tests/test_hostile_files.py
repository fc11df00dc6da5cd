"""Files made to take memory, to hang or to crash: each ends in a documented error, or within its bounds.

What ``tools/fuzz_folders.py`` found is here, too, each finding made anew by the shortest way.
"""

import base64
import itertools
import json
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import fuzz_folders
import pytest
from support import FAMILIES, GOLDEN, copy_twin, edit_json, twin

from minibert import BertModel, SearchIndex, SentenceEncoder
from minibert.errors import ConfigError, IndexFileError, ModelFileError, TokenizerError, WeightsError
from minibert.files import tokenizer_files
from minibert.files.hub import resolve
from minibert.safe import jsonfile
from minibert.tokenization import TextTokenizer

MIB = 1 << 20


@pytest.fixture
def repo(tmp_path):
    """Return a repo that a test may change."""
    return copy_twin(tmp_path / "repo")


def files(folder):
    """Return the files in a folder and below it."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- pipes and devices


@pytest.mark.parametrize(
    ("card", "name"),
    [(card, str(path.relative_to(twin(card)))) for card in ("BertModel-128d", *FAMILIES) for path in files(twin(card))],
)
@pytest.mark.parametrize("kind", ["pipe", "link to /dev/zero", "link to itself", "link to nothing"])
def test_every_file_must_be_regular(tmp_path, card, name, kind):
    """A pipe, a device or a broken link in the place of any file of a repo is an error that names it, at once."""
    repo = copy_twin(tmp_path / "repo", card)
    (repo / name).unlink()
    fuzz_folders.SPECIAL[kind](repo / name)

    with pytest.raises(ModelFileError, match=re.escape(name)):
        SentenceEncoder(repo)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors.index.json", "tokenizer.json", "config_sentence_transformers.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "link to /dev/zero"])
def test_every_other_file_must_be_regular(repo, name, kind):
    """So it is with the files that other repos have."""
    (repo / "model.safetensors").unlink()
    fuzz_folders.SPECIAL[kind](repo / name)

    with pytest.raises(ModelFileError, match=re.escape(name)):
        SentenceEncoder(repo)


def test_shard_must_be_regular(repo):
    """A pipe in the place of a shard is an error."""
    (repo / "model.safetensors").unlink()
    edit_json(repo / "model.safetensors.index.json", weight_map={"a": "model-1-of-1.safetensors"})
    os.mkfifo(repo / "model-1-of-1.safetensors")

    with pytest.raises(WeightsError, match=r"model-1-of-1\.safetensors must be a regular file; it is a named pipe"):
        SentenceEncoder(repo)


def test_bert_model_with_a_pipe(repo):
    """BertModel refuses a pipe in the place of its config."""
    (repo / "config.json").unlink()
    os.mkfifo(repo / "config.json")

    with pytest.raises(ConfigError, match=r"config\.json must be a regular file; it is a named pipe"):
        BertModel.from_pretrained(repo)


@pytest.mark.parametrize("kind", ["pipe", "link to /dev/zero"])
def test_index_must_be_regular(tmp_path, kind):
    """A pipe or a device is no search index."""
    fuzz_folders.SPECIAL[kind](tmp_path / "index")

    with pytest.raises(IndexFileError, match=r"must be a regular file; it is a .*Build the index again"):
        SearchIndex.load(tmp_path / "index")


@pytest.mark.parametrize("kind", ["pipe", "link to /dev/zero", "10 MB of zeros"])
def test_ref_of_the_cache_must_be_regular(tmp_path, kind):
    """What the hub's cache keeps about a branch is looked at before huggingface_hub reads all of it."""
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    fuzz_folders.SPECIAL[kind](refs / "main")

    with pytest.raises(ConfigError, match=r"refs/main (must be a regular file|has 10,485,760 bytes)"):
        resolve("some/model", cache_folder=tmp_path, local_files_only=True)


# ---------------------------------------------------------------- memory


def names(count):
    """Return that many different words of four letters."""
    return map("".join, itertools.islice(itertools.product(string.ascii_lowercase, repeat=4), count))


def repeated(item, items):
    """Return a JSON object with an array of many equal items, as bytes; each item has ``items`` punctuation marks."""
    return b'{"a":[' + b",".join([item] * ((jsonfile.MAX_ITEMS - 10) // items)) + b"]}"


#: JSON texts that are as costly as can be, with as many items as are read.
COSTLY = {
    "arrays": repeated(b"[]", 2),
    "arrays of one": repeated(b"[0]", 2),
    "objects": repeated(b"{}", 2),
    "objects of one": repeated(b'{"":0}', 3),
    "numbers": repeated(b"1e9", 1),
    "texts": repeated('"Ā"'.encode(), 1),
    "keys": ("{" + ",".join(f'"{name}":0' for name in names(jsonfile.MAX_ITEMS // 2 - 10)) + "}").encode(),
    "one wide character": b'{"a":"' + "😀".encode() + b"x" * (10 * MIB) + b'"}',
    "too many items": b'{"a":[' + b"[]," * (4 * MIB) + b"[]]}",
    "too many brackets": b'{"a":' + b"[" * (12 * MIB),
}


def header(text):
    """Return a safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text


#: Files by name, and with what they are read, as an expression of ``path``.
BOMBS = {
    **{f"config: {name}": (text, "jsonfile.read_object(path)") for name, text in COSTLY.items()},
    **{f"header: {name}": (header(text), "open_safetensors(path)") for name, text in COSTLY.items()},
    **{f"index: {name}": (header(text), "SearchIndex.load(path)") for name, text in COSTLY.items()},
    "header: metadata": (
        header(b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(199_000)) + b"}}"),
        "open_safetensors(path)",
    ),
    "tokenizer: too many items": (
        b'{"model":{"vocab":[' + b"[]," * (8 * MIB) + b"[]]}}",
        "jsonfile.read_object(path, tokenizer_files.MAX_BYTES, tokenizer_files.MAX_ITEMS)",
    ),
    "vocab.txt: empty lines": (b"\n" * (16 * MIB), "tokenizer_files._read_vocab(path)"),
    "vocab.txt: one line": ("😀".encode() + b"x" * (10 * MIB), "tokenizer_files._read_vocab(path)"),
}

#: Reads files, and prints for each by how much the peak of memory rose, in bytes.
MEASURE = """
import json, re, sys
from pathlib import Path
from minibert import SearchIndex
from minibert.safe import jsonfile
from minibert.files import tokenizer_files
from minibert.files.checkpoint import open_safetensors
from minibert.errors import MinibertError

def status(key):
    return int(re.search(rf"^{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024

for file, expression in json.load(sys.stdin):
    path = Path(file)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from now on, VmHWM is the peak
    try:
        eval(expression)
    except MinibertError:
        pass
    print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
def test_no_file_takes_much_memory(tmp_path):
    """No file makes the process take more than nine times its size and 64 MiB: not the costliest there is."""
    jobs = []
    for number, (content, expression) in enumerate(BOMBS.values()):
        path = tmp_path / str(number)
        path.write_bytes(content)
        jobs.append((str(path), expression))

    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=True)

    taken = dict(zip(BOMBS, map(int, done.stdout.split()), strict=True))
    allowed = {name: 64 * MIB + 9 * len(content) for name, (content, _) in BOMBS.items()}
    assert {name: taken[name] / MIB for name in BOMBS if taken[name] > allowed[name]} == {}


def test_limit_of_items(tmp_path):
    """The items of a JSON text are counted before there are any: one more than the limit is refused."""
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a":[0,0,0]}')  # two brackets, a colon, two commas

    assert jsonfile.read_object(path, max_items=5) == {"a": [0, 0, 0]}
    with pytest.raises(ConfigError, match="it has 5 brackets, commas and colons; at most 4 are read"):
        jsonfile.read_object(path, max_items=4)


@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"[a":', b"}]")])
def test_limit_of_depth(opened, closed):
    """Arrays and objects are nested to the limit, and not deeper: the repr of a value in a message must not fail."""
    most = jsonfile.MAX_DEPTH // len(closed)

    jsonfile.parse(opened * most + b"0" + closed * most)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        jsonfile.parse(opened * (most + 1) + b"0" + closed * (most + 1))


def test_deep_value_in_a_message(repo):
    """A value nested deeper than Python can print is a ConfigError, not a RecursionError."""
    text = (repo / "config.json").read_text("utf-8").rstrip().removesuffix("}")
    (repo / "config.json").write_text(f'{text}, "embedding_size": {"[" * 900}{"]" * 900}}}', "utf-8")

    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        SentenceEncoder(repo)


def test_many_repeated_keys():
    """Of many repeated keys the message lists some, cut."""
    text = "{" + ",".join(f'"{i}{"x" * 200}":0' for i in range(1000)) * 2 + "}"

    with pytest.raises(ValueError, match="repeated keys") as error:
        jsonfile.parse(text.replace('0"', '0,"').encode())

    assert str(error.value).endswith(" and 995 more")
    assert len(str(error.value)) < 600


def test_half_a_character():
    """Half of a surrogate pair is refused in any value; a whole pair, and a backslash before, are read."""
    for text in (rb'"\ud800"', rb'["\uDC00\uD800"]', rb'{"\udbff": 1}'):
        with pytest.raises(ValueError, match="surrogates not allowed"):
            jsonfile.parse(text)
    assert jsonfile.parse(rb'"\ud83d\ude00 \\ud800"') == "😀 \\ud800"


# ---------------------------------------------------------------- tokenizers


def tokenizer_json(folder, vocabulary, kind="XLMRobertaTokenizer", **more):
    """Write tokenizer files with a vocabulary of pieces, or another; return their folder."""
    pieces = [["<s>", 0], ["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["<mask>", 0]]
    model = {"type": "Unigram", "unk_id": 3, "vocab": pieces + [[piece, -1.5] for piece in vocabulary]}
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, **more}, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}), "utf-8")
    return folder


KINDS = ("XLMRobertaTokenizer", "PreTrainedTokenizerFast")


@pytest.mark.parametrize("kind", KINDS)
def test_long_piece(tmp_path, kind):
    """A piece of a million bytes would make the library overflow the stack: the process would die."""
    with pytest.raises(TokenizerError, match="at most 1,000 characters; one has 1,000,000"):
        TextTokenizer.from_folder(tokenizer_json(tmp_path, ["x" * 1_000_000], kind))


@pytest.mark.parametrize("kind", KINDS)
def test_limit_of_pieces(tmp_path, kind, monkeypatch):
    """The pieces of a vocabulary have a limit together, in bytes; the five special tokens have 23 of them."""
    monkeypatch.setattr(tokenizer_files, "MAX_PIECES_BYTES", 123)
    folder = tokenizer_json(tmp_path, ["ü" * 50], kind)

    TextTokenizer.from_folder(folder)
    monkeypatch.setattr(tokenizer_files, "MAX_PIECES_BYTES", 122)
    with pytest.raises(TokenizerError, match="pieces of a vocabulary must have at most 122 bytes; received 123"):
        TextTokenizer.from_folder(folder)


TOKENIZERS = [f"tokenizers/{kind}" for kind in ("vocab", "json-lower", "json-as-is", "unigram")]


@pytest.mark.parametrize("name", [*TOKENIZERS, *(f"{card}/repo" for card in FAMILIES)])
def test_limit_of_tokens(name, monkeypatch):
    """A vocabulary has a limit of tokens, in every kind of file."""
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENS", 30)

    with pytest.raises(TokenizerError, match=r"at most 30 (tokens|are read)"):
        TextTokenizer.from_folder(GOLDEN / name)


def test_limit_of_merges(tmp_path, monkeypatch):
    """The merges of a BPE tokenizer have the same limit, here in a tokenizer whose vocabulary is within it."""
    folder = copy_twin(tmp_path / "repo", "all-distilroberta-v1")
    tokens = len(json.loads((folder / "vocab.json").read_text("utf-8")))
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("t h\n" * tokens)
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENS", tokens)

    with pytest.raises(TokenizerError, match=rf"merges\.txt has \d+ lines; at most {tokens} are read"):
        TextTokenizer.from_folder(folder)


def test_limit_of_lines(tmp_path, monkeypatch):
    """The lines of vocab.txt are counted before there are any: one more than the limit is refused."""
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n", "utf-8")
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENS", 3)

    assert tokenizer_files._read_vocab(tmp_path / "vocab.txt") == {"a": 0, "b": 1, "c": 2}
    monkeypatch.setattr(tokenizer_files, "MAX_TOKENS", 2)
    with pytest.raises(TokenizerError, match=r"vocab\.txt has 3 lines; at most 2 are read"):
        tokenizer_files._read_vocab(tmp_path / "vocab.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_limit_of_added_tokens(tmp_path, kind, monkeypatch):
    """Added tokens have a limit together: the library makes an automaton of them, slowly."""
    monkeypatch.setattr(tokenizer_files, "MAX_ADDED_BYTES", 99)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = [{"id": 5, "content": "x" * 100, **flags}]

    with pytest.raises(TokenizerError, match="added tokens must have at most 99 bytes"):
        TextTokenizer.from_folder(tokenizer_json(tmp_path, ["a"], kind, added_tokens=added))


def replace(pattern, content):
    """Return a step of a normalizer that replaces one by another."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def charsmap(replacement):
    """Return a step of a normalizer with an empty table of characters, and what takes their place."""
    table = bytes(4) + replacement + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


@pytest.mark.parametrize(
    "steps",
    [
        [replace({"String": "a"}, "aa")] * 30,
        [replace({"Regex": ""}, "a")] * 30,
        [{"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 30}],
        [charsmap(b"x" * 1001)],
        [charsmap(b"x" * 40), charsmap(b"x" * 40)],
    ],
    ids=["texts", "expressions", "sequence", "table", "tables"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_normalizer_that_multiplies(tmp_path, kind, steps):
    """A normalizer that would make texts a billion times longer is refused."""
    normalizer = {"type": "Sequence", "normalizers": steps}

    with pytest.raises(TokenizerError, match="at most 1,000 times longer"):
        TextTokenizer.from_folder(tokenizer_json(tmp_path, ["a"], kind, normalizer=normalizer))


@pytest.mark.parametrize("kind", KINDS)
def test_large_table_of_characters(tmp_path, kind):
    """A normalizer's table of characters has a limit: each byte of it can take twenty."""
    with pytest.raises(TokenizerError, match="precompiled_charsmap must have at most 4,000,000 bytes"):
        TextTokenizer.from_folder(tokenizer_json(tmp_path, ["a"], kind, normalizer=charsmap(bytes(3_000_000))))


def test_modest_normalizer(tmp_path):
    """The steps of real tokenizers are read."""
    steps = [replace({"String": "``"}, '"'), replace({"Regex": " {2,}"}, " "), replace({"String": " "}, "▁")] * 2

    tokenizer_files._require_modest(tmp_path, {"type": "Sequence", "normalizers": steps})


def test_tokenizer_that_fails_on_a_text(tmp_path):
    """A panic of the library while it encodes is a TokenizerError: an expression may be too slow for its own limit."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    folder = tokenizer_json(tmp_path, ["a", "b"], "PreTrainedTokenizerFast", pre_tokenizer=split)
    tokenizer = TextTokenizer.from_folder(folder)

    with pytest.raises(TokenizerError, match=r"failed on a text: .*retry-limit-in-match"):
        tokenizer.encode(["a" * 60 + "b"])


def test_out_of_memory_while_a_tokenizer_is_built():
    """That there is no memory is no fault of the files: a MemoryError stays one, for whoever makes smaller batches."""
    with pytest.raises(MemoryError), tokenizer_files.library_errors(Path("x")):
        raise MemoryError


def test_vocab_txt_is_read_as_the_library_does(tmp_path):
    """Lines end as in the library: white space behind a token goes, and of equal tokens the last counts."""
    from tokenizers import models

    path = tmp_path / "vocab.txt"
    odd = [chr(i) for i in (*range(32), 0x7F, 0x85, 0xA0, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029)]
    odd += [chr(i) for i in (0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)]
    for end in ("", "\n", "\r\n", "\n\n", " \n "):
        tokens = ["[UNK]", "", " a", *(f"{c}b{c}" for c in odd), *(f"c{c}\r" for c in odd), "x", "x", end]
        path.write_bytes("\n".join(tokens).encode() + end.encode())

        assert tokenizer_files._read_vocab(path) == models.WordPiece.read_file(str(path))


# ---------------------------------------------------------------- what the fuzzer found


def test_prompt_with_half_a_character(repo):
    """A prompt that is no text was a TypeError of the tokenizers library, in encode."""
    (repo / "config_sentence_transformers.json").write_text(r'{"prompts": {"query": "\ud800"}}', "utf-8")

    with pytest.raises(ConfigError, match=r"config_sentence_transformers\.json is not usable JSON: .*surrogates"):
        SentenceEncoder(repo)


def test_fuzzer_knows_a_finding(tmp_path, monkeypatch):
    """The fuzzer reports an error that is not documented, and the number that makes it again."""
    made = {"safetensors": fuzz_folders.bases()["safetensors"]}
    monkeypatch.setattr(fuzz_folders, "run", lambda *_: {}["nothing"])

    outcome = fuzz_folders.examine(7, made, tmp_path)

    assert (outcome.number, outcome.kind) == (7, "FINDING")
    assert "KeyError: 'nothing'" in outcome.detail


def test_fuzzer_repeats_a_mutant(tmp_path):
    """A mutant depends on its number alone."""
    made = fuzz_folders.bases()
    for folder in ("first", "second"):
        described = {
            number: fuzz_folders.make_mutant(number, made, tmp_path / folder / str(number)) for number in range(30)
        }
    again = {number: fuzz_folders.make_mutant(number, made, tmp_path / "third" / str(number)) for number in range(30)}

    assert described == again
    for path in (tmp_path / "first").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


def test_mutants(monkeypatch):
    """Some hundred mutants end as they must."""
    outcomes = list(fuzz_folders.fuzz(0, 200, jobs=1, seconds=60))

    assert [outcome for outcome in outcomes if outcome.kind == "FINDING"] == []
    assert len(outcomes) == 200
    assert {"vectors", "ConfigError", "WeightsError", "TokenizerError"} <= {outcome.kind for outcome in outcomes}


@pytest.mark.filterwarnings("ignore::minibert.errors.TruncationWarning")
@pytest.mark.parametrize("base", fuzz_folders.bases())
def test_repos_of_the_fuzzer(tmp_path, base, monkeypatch):
    """Each repo that the fuzzer changes can be used as it is: or its mutants would show nothing."""
    fuzz_folders.write(tmp_path, fuzz_folders.bases()[base])
    monkeypatch.setattr(fuzz_folders, "_ENCODER", [SentenceEncoder(twin("BertModel-128d"))])

    assert fuzz_folders.run(tmp_path, base) == "vectors"
