"""Token ids are transformers 5's, for every form of tokenizer files that repos have."""

import json
import shutil

import numpy as np
import pytest
from repo_tokenizers import write_tokenizer
from support import FAMILIES, GOLDEN, copy_twin, edit_json, load, split

from minibert.errors import TokenizerError
from minibert.files import tokenizer_files
from minibert.files.tokenizer_files import TokenizerFiles
from minibert.pipeline import open_tokenizer
from minibert.repo import ModelRepo
from minibert.tokenization import TextTokenizer

FOLDER = GOLDEN / "tokenizers"
ARRAYS, METADATA = load(FOLDER / "golden.safetensors")
TEXTS = json.loads(METADATA["texts"])
#: The corpus, and texts that spell out special tokens of the families.
MARKED = [
    *TEXTS,
    "<pad>no<pad><pad> man <pad>",
    "a <mask> b<mask>c",
    "[PAD] [UNK] [MASK] <s>a</s> <unk> [SEP] [CLS]",
    "a <MASK> b, [unk], <S> x </S>, <Pad>",  # a normalizer may make these the names of special tokens
]
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

    source = "unigram" if name in {"CamembertTokenizer", "XLMRobertaTokenizer"} else variant
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


# ---------------------------------------------------------------- the families


def family_repo(folder, card, texts=TEXTS, *, lower=False):
    """Return a copy of a card's twin with a tokenizer of its class for other texts. The weights do not fit."""
    copy_twin(folder, card)
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    size = write_tokenizer(folder, FAMILIES[card]["tokenizer"], texts, lower=lower)
    edit_json(folder / "config.json", vocab_size=size)
    return folder


def as_tokenizer_json(folder, **changes):
    """Put the tokenizer of a folder into a tokenizer.json, as transformers saves it, with changes of its settings."""
    files = TokenizerFiles.read(folder, {})
    backend, _, _ = tokenizer_files.build_tokenizer(files, None)
    content = json.loads(backend.to_str())
    content["pre_tokenizer"].update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    for name in ("vocab.json", "merges.txt", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


def own_ids(folder, texts=TEXTS, limit=10_000):
    """Return the ids of texts by the tokenizer of a repo."""
    return ids_of(open_tokenizer(ModelRepo.open(folder)), texts, limit)


def without_class(folder):
    """Let the class of the tokenizer follow from the model_type alone."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class=...)


def without_config(folder):
    """Remove tokenizer_config.json."""
    (folder / "tokenizer_config.json").unlink()


def with_fast(folder):
    """Give the class the name that transformers 4 gave it."""
    kind = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["tokenizer_class"]
    edit_json(folder / "tokenizer_config.json", tokenizer_class=f"{kind}Fast")


def with_special_map(folder):
    """Let special_tokens_map.json give the mask token other flags."""
    mask = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["mask_token"]
    flags = {"lstrip": False, "rstrip": True, "normalized": False}
    edit_json(folder / "special_tokens_map.json", mask_token={"content": mask, **flags})


#: Forms of tokenizer files. Each changes a folder with the files that the tests of a family start with.
FORMS = {
    "as written": lambda _: None,
    "class by the model_type": without_class,
    "no tokenizer_config.json": without_config,
    "class with Fast": with_fast,
    "tokenizer.json": as_tokenizer_json,
    "as it is": lambda folder: (
        as_tokenizer_json(folder),
        edit_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast"),
    ),
    "prefix space": lambda folder: edit_json(folder / "tokenizer_config.json", add_prefix_space=True),
    "no prefix space": lambda folder: edit_json(folder / "tokenizer_config.json", add_prefix_space=False),
    "lower case": lambda folder: edit_json(folder / "tokenizer_config.json", do_lower_case=True),
    "special_tokens_map.json": with_special_map,
    "cut on the left": lambda folder: edit_json(folder / "tokenizer_config.json", truncation_side="left"),
}


@pytest.mark.reference
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("card", FAMILIES)
def test_ids_of_families(card, form, tmp_path):
    """In every form of the files, each text of the Unicode corpus has transformers' ids, whole and cut (U1-U6)."""
    from transformers import AutoTokenizer

    folder = family_repo(tmp_path, card)
    FORMS[form](folder)
    peer = AutoTokenizer.from_pretrained(folder)
    for limit in (512, 12):
        expected = [peer(text, truncation=True, max_length=limit)["input_ids"] for text in MARKED]

        assert own_ids(folder, MARKED, limit) == expected


@pytest.mark.reference
@pytest.mark.parametrize("of_config", [True, False, ...])
@pytest.mark.parametrize("of_file", [True, False])
def test_prefix_space(of_file, of_config, tmp_path):
    """Whether a space comes before a text is said by tokenizer_config.json alone, and is false by default (U5)."""
    from transformers import AutoTokenizer

    folder = family_repo(tmp_path, "all-distilroberta-v1")
    as_tokenizer_json(folder, add_prefix_space=of_file)
    edit_json(folder / "tokenizer_config.json", add_prefix_space=of_config)
    peer = AutoTokenizer.from_pretrained(folder)

    assert own_ids(folder) == [peer(text)["input_ids"] for text in TEXTS]
    assert own_ids(folder, ["the", " the"])[0] == own_ids(folder, [" the" if of_config is True else "the"])[0]


@pytest.mark.reference
@pytest.mark.parametrize("card", FAMILIES)
def test_lower_case_of_the_repo(card, tmp_path):
    """do_lower_case in sentence_bert_config.json comes before the normalizer, as it does there (U10)."""
    import sentence_transformers

    folder = copy_twin(tmp_path, card)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    texts = ["The CAT and a Man", "ÄÖ ﬁ ＡＢ", *TEXTS[:40]]
    peer = sentence_transformers.SentenceTransformer(str(folder), device="cpu")

    assert own_ids(folder, texts, 512) == [peer.preprocess([text])["input_ids"][0].tolist() for text in texts]


@pytest.mark.parametrize("card", FAMILIES)
def test_tokenizer_json_of_families(card, tmp_path):
    """A tokenizer.json gives the ids that the older files, or the repo's own tokenizer.json, give."""
    folder = copy_twin(tmp_path, card)
    before = own_ids(folder, MARKED)
    as_tokenizer_json(folder)

    assert own_ids(folder, MARKED) == before


@pytest.mark.parametrize("card", FAMILIES)
def test_class_follows_from_the_model_type(card, tmp_path):
    """Where no file names a class, it is that of the family (U1)."""
    folder = copy_twin(tmp_path, card)
    before = own_ids(folder, MARKED)
    without_class(folder)

    assert own_ids(folder, MARKED) == before


def test_merges_with_other_line_ends(tmp_path):
    """A merges.txt that was saved on Windows has the same merges."""
    folder = copy_twin(tmp_path, "all-distilroberta-v1")
    before, merges = own_ids(folder, MARKED), folder / "merges.txt"
    merges.write_bytes(merges.read_bytes().replace(b"\n", b"\r\n"))

    assert own_ids(folder, MARKED) == before


def test_class_of_a_file_wins(tmp_path):
    """A class that a file names wins over the family's: first that of the tokenizer, then that of config.json (U2)."""
    folder = copy_twin(tmp_path, "multi-qa-mpnet-base-dot-v1")
    edit_json(folder / "tokenizer_config.json", tokenizer_class=...)
    edit_json(folder / "config.json", tokenizer_class="RobertaTokenizer")

    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor both vocab\.json and merges\.txt"):
        own_ids(folder)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="MPNetTokenizer")
    assert own_ids(folder, ["a"])


def test_special_tokens_of_mpnet(tmp_path):
    """In MPNet, [SEP], [CLS] and <unk> in a text are no special tokens; <s>, </s>, <pad>, <mask>, [UNK] are (U6)."""
    folder = family_repo(tmp_path, "multi-qa-mpnet-base-dot-v1", MARKED)
    backend = open_tokenizer(ModelRepo.open(folder)).backend

    for token in ("<s>", "</s>", "<pad>", "<mask>", "[UNK]"):
        assert own_ids(folder, [f"a {token} b"])[0][2] == backend.token_to_id(token)
    for token in ("[SEP]", "[CLS]", "<unk>"):
        assert len(own_ids(folder, [f"a {token} b"])[0]) > 6


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "sentencepiece.model", "spiece.model"])
@pytest.mark.parametrize("card", ["multilingual-e5-base", "sentence-camembert-base"])
def test_sentencepiece_alone(card, name, tmp_path):
    """A sentencepiece file without a tokenizer.json is refused by its name, with the remedy (U7)."""
    folder = copy_twin(tmp_path, card)
    (folder / "tokenizer.json").rename(folder / name)

    with pytest.raises(TokenizerError) as error:
        own_ids(folder)
    assert str(error.value) == (
        f"{folder}: the tokenizer must be a tokenizer.json; there is only {name}. Write one where transformers and "
        "sentencepiece are installed: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
    )


def write(name, text):
    """Return a function that writes a file of a folder."""
    return lambda folder: (folder / name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "merges.txt").unlink(), "neither tokenizer.json nor both vocab.json and merges.txt"),
        (lambda folder: (folder / "vocab.json").unlink(), "neither tokenizer.json nor both vocab.json and merges.txt"),
        (write("vocab.json", "[]"), r"vocab.json must hold a JSON object"),
        (write("vocab.json", '{"a": "b"}'), "cannot be used"),
        (write("vocab.json", '{"a": -1}'), "cannot be used"),
        (write("merges.txt", "t h e\n"), r"merges\.txt: a merge must have two parts, .*; it is 't h e'"),
        (write("merges.txt", "nothing else\n"), "cannot be used"),
        (
            write("tokenizer.json", '{"model": {"vocab": [["a", 0]], "merges": []}}'),
            "needs a BPE vocabulary",
        ),
        (write("tokenizer.json", '{"model": {"vocab": {}, "merges": [["a"]]}}'), r"a merge must .*; it is \['a'\]"),
        (write("tokenizer.json", '{"model": {"vocab": {}, "merges": 5}}'), "cannot be used"),
        (lambda folder: edit_json(folder / "tokenizer_config.json", add_prefix_space="no"), "cannot be used"),
    ],
    ids=[
        "no merges", "no vocabulary", "array", "texts for ids", "negative id", "three parts", "unknown parts",
        "Unigram", "merge of one", "merges of another type", "add_prefix_space",
    ],
)  # fmt: skip
def test_unusable_files_of_roberta(change, message, tmp_path):
    """Files that cannot be a BPE tokenizer are an error that names what is wrong."""
    folder = copy_twin(tmp_path, "all-distilroberta-v1")
    change(folder)

    with pytest.raises(TokenizerError, match=message):
        own_ids(folder)
