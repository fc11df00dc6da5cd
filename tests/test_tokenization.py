"""Token ids are transformers 5's, for every form of tokenizer files that repos have."""

import json
import shutil

import numpy as np
import pytest
from support import GOLDEN, copy_twin, edit_json, load, split

from minibert.errors import TokenizerError
from minibert.files import tokenizer_files
from minibert.tokenization import TextTokenizer

FOLDER = GOLDEN / "tokenizers"
ARRAYS, METADATA = load(FOLDER / "golden.safetensors")
TEXTS = json.loads(METADATA["texts"])
VARIANTS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def ids_of(tokenizer, texts, limit=10_000):
    """Return a list of ids for each text."""
    return [ids.tolist() for ids in tokenizer(texts, limit).ids]


@pytest.mark.parametrize("limit", [512, 12])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ids_are_those_of_transformers(variant, limit):
    """Every text of the Unicode corpus gets transformers' ids, whole and cut to 12 tokens (T1-T6)."""
    expected = split(ARRAYS[f"{variant}.{limit}.ids"], ARRAYS[f"{variant}.{limit}.lengths"])
    tokenizer = TextTokenizer.from_folder(FOLDER / variant)
    ids, _ = tokenizer(TEXTS, limit)

    for text, own, reference in zip(TEXTS, ids, expected, strict=True):
        assert own.tolist() == reference.tolist(), f"{text!r}"


def test_corpus_tells_the_variants_apart():
    """No two settings of the BERT tokenizer give the whole corpus the same ids, so a flag that is lost shows."""
    flags = [v for v in VARIANTS if v.startswith("vocab") and v not in {"vocab-left", "vocab"}]
    streams = {ARRAYS[f"{variant}.512.ids"].tobytes() for variant in flags}

    assert len(streams) == len(flags)


def test_file_casing_yields_to_the_config():
    """tokenizer_config.json decides on lower case, with true as its default, whatever tokenizer.json says (T2)."""
    lower_by_default = TextTokenizer.from_folder(FOLDER / "json-cased-file-lower-default")
    cased_by_config = TextTokenizer.from_folder(FOLDER / "json-lower-file-cased-config")

    assert ids_of(lower_by_default, ["Hello"]) == ids_of(lower_by_default, ["hello"])
    assert ids_of(cased_by_config, ["Hello"]) != ids_of(cased_by_config, ["hello"])


def test_truncation_and_padding_of_the_file_are_overridden():
    """A tokenizer.json that cuts and pads to 16 tokens does neither here (T4)."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "json-lower")
    (short, long), _ = tokenizer(["a", "ab cd " * 40], 512)

    assert len(short) == 3
    assert len(long) > 16


def test_lengths_are_counted_before_the_cut():
    """The length of a text is the one that it would have uncut, special tokens included."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")
    whole = tokenizer(TEXTS, 10_000)
    cut = tokenizer(TEXTS, 5)

    assert cut.lengths.tolist() == whole.lengths.tolist() == [len(ids) for ids in whole.ids]
    assert [len(ids) for ids in cut.ids] == [min(length, 5) for length in whole.lengths]


@pytest.mark.parametrize(("limit", "expected"), [(3, 3), (2, 2)])
def test_smallest_limits(limit, expected):
    """A limit of 2 leaves the special tokens alone."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")

    assert len(ids_of(tokenizer, ["hello hello hello"], limit)[0]) == expected


@pytest.mark.parametrize("limit", [0, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("variant", ["vocab", "vocab-left"])
def test_cut(variant, limit):
    """Each text keeps its special tokens, and of its own the first, or the last with truncation_side "left"."""
    tokenizer = TextTokenizer.from_folder(FOLDER / variant)
    room, left = max(limit - 2, 0), variant == "vocab-left"
    whole = ids_of(tokenizer, TEXTS)
    expected = [[first, *(own[max(len(own) - room, 0) :] if left else own[:room]), last] for first, *own, last in whole]

    assert max(map(len, whole)) > 30
    assert ids_of(tokenizer, TEXTS, limit) == expected


def test_ids_are_one_array():
    """The ids of all texts are one int32 array, cut or not, and no text gives an empty one."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")
    for texts, limit in ((TEXTS, 512), (TEXTS, 5), ([], 512)):
        ids, lengths = tokenizer(texts, limit)

        assert (ids.flat.dtype, ids.flat.ndim) == (np.int32, 1)
        assert len(ids.flat) == ids.lengths.sum()
        assert len(ids) == len(lengths) == len(texts)


def test_blank_text_is_the_special_tokens():
    """An empty text, or one of white space and zero-width characters, is [CLS][SEP] (T5)."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")

    assert ids_of(tokenizer, ["", "   ", "\u200b\n\t"]) == [[2, 3]] * 3


def test_word_of_101_characters_is_unknown():
    """A word of 100 characters is split, one of 101 is a single [UNK] (T5)."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")
    (split_up, unknown), _ = tokenizer(["x" * 100, "x" * 101], 512)

    assert len(split_up) == 102
    assert unknown.tolist() == [2, 1, 3]


def test_windows_line_ends_in_the_vocabulary(tmp_path):
    """A vocab.txt with CRLF gives the same ids (T3)."""
    lines = (FOLDER / "vocab" / "vocab.txt").read_bytes()
    (tmp_path / "vocab.txt").write_bytes(lines.replace(b"\n", b"\r\n"))

    own, expected = (ids_of(TextTokenizer.from_folder(folder), TEXTS) for folder in (tmp_path, FOLDER / "vocab"))

    assert own == expected


def test_do_lower_case_of_the_repo_lowers_a_cased_tokenizer():
    """do_lower_case in sentence_bert_config.json lower-cases before the tokenizer (L11)."""
    cased = TextTokenizer.from_folder(FOLDER / "vocab-cased")
    lowered = TextTokenizer.from_folder(FOLDER / "vocab-cased", do_lower_case=True)

    assert ids_of(lowered, ["HELLO Straße"]) == ids_of(cased, ["hello straße"]) != ids_of(cased, ["HELLO Straße"])


def test_prompt_length_leaves_out_a_special_last_token():
    """A prompt's own [SEP] is not counted, its [CLS] is (P9)."""
    tokenizer = TextTokenizer.from_folder(FOLDER / "vocab")

    assert tokenizer.prompt_length("hello hello ", 512) == 3


@pytest.mark.parametrize(
    ("stated", "limit"),
    [(512, 512), (512.0, 512), (1000000000000000019884624838656, None), (None, None), (..., None)],
)
def test_model_max_length(tmp_path, stated, limit):
    """model_max_length is read; transformers' placeholder for "very large" means that there is none (L10)."""
    copy_twin(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", model_max_length=stated)

    assert TextTokenizer.from_folder(tmp_path).model_max_length == limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
        (
            {"tokenizer_class": "ConvBertTokenizer"},
            "ConvBertTokenizer",
        ),  # rebuilt only where there is no tokenizer.json
        ({"model_max_length": -1}, "model_max_length"),
        ({"model_max_length": "512"}, "model_max_length"),
        ({"truncation_side": "middle"}, "truncation_side"),
        ({"do_lower_case": "yes"}, "cannot be used"),
    ],
)
def test_unusable_tokenizer_config(tmp_path, change, message):
    """A tokenizer_config.json that cannot be honoured is an error that names what is wrong."""
    copy_twin(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", **change)

    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"), [({"unk_token": "<oov>"}, "<oov>"), ({"cls_token": 7}, "special token")]
)
def test_unusable_special_tokens_map(tmp_path, change, message):
    """special_tokens_map.json decides on the special tokens, and must name usable ones."""
    copy_twin(tmp_path)
    edit_json(tmp_path / "special_tokens_map.json", **change)

    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_folder(tmp_path)


def test_panic_of_the_library(tmp_path):
    """A tokenizer.json at which the library's Rust code panics is an error like any other."""
    shutil.copytree(FOLDER / "json-as-is", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    content["post_processor"]["single"] = [{"Sequence": {"id": "B", "type_id": 0}}]
    path.write_text(json.dumps(content), "utf-8")

    with pytest.raises(TokenizerError, match="cannot be used"):
        TextTokenizer.from_folder(tmp_path)


@pytest.mark.reference
@pytest.mark.parametrize("variant", ["json-lower-file-cased-config", "json-cased-file-lower-default"])
@pytest.mark.parametrize("name", [*tokenizer_files._RECIPES, "BertTokenizerFast", "DistilBertTokenizerFast"])
def test_class_is_that_of_transformers(name, variant, tmp_path):
    """Each tokenizer_class that is known sets the library up as transformers does, where file and config differ."""
    from transformers import AutoTokenizer

    source = "unigram" if name == "XLMRobertaTokenizer" else variant
    shutil.copytree(FOLDER / source, tmp_path, dirs_exist_ok=True)
    edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=name)
    peer = AutoTokenizer.from_pretrained(tmp_path)

    ids = ids_of(TextTokenizer.from_folder(tmp_path), TEXTS)
    assert ids == [peer(text, truncation=False, padding=False)["input_ids"] for text in TEXTS]


@pytest.mark.weights
def test_real_vocabulary(minilm):
    """With all-MiniLM-L6-v2's own vocabulary the corpus gets transformers' ids."""
    arrays, metadata = load(GOLDEN / "all-MiniLM-L6-v2.safetensors")
    texts = json.loads(metadata["unicode"])
    ids, _ = TextTokenizer.from_folder(minilm)(texts, 256)

    np.testing.assert_array_equal(ids.lengths, arrays["unicode.lengths"])
    np.testing.assert_array_equal(ids.flat, arrays["unicode.ids"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_largest_id(variant):
    """The largest id is that of all tokens, whatever file they come from."""
    tokenizer = TextTokenizer.from_folder(FOLDER / variant)

    assert tokenizer.largest_id == max(tokenizer.backend.get_vocab(with_added_tokens=True).values())


def test_largest_id_of_a_vocabulary_with_gaps(tmp_path):
    """Ids need not follow each other, and the largest need not be a special token's."""
    folder = copy_twin(tmp_path / "model")
    tokens = (folder / "vocab.txt").read_text("utf-8").splitlines()
    vocabulary = {token: 3 * i for i, token in enumerate(tokens)}
    model = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model}), "utf-8")

    assert TextTokenizer.from_folder(folder).largest_id == 3 * (len(tokens) - 1)


def test_largest_id_of_a_unigram_vocabulary(tmp_path):
    """So it is of a piece that comes after the special tokens."""
    folder = shutil.copytree(FOLDER / "unigram", tmp_path / "unigram")
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"].append(["zzz", -9.0])
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")

    assert TextTokenizer.from_folder(folder).largest_id == len(content["model"]["vocab"]) - 1
