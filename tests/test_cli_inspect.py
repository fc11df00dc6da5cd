"""``minibert inspect``: what it reports of a repo, and what it refuses."""

import json
import logging

import pytest
from cli_support import ST, add_dense, add_module, half_weights, inspected, renamed, unchanged, usage_error
from support import FAMILIES, copy_twin, edit_json, edit_weights

from minibert import BUILTIN_MODEL, SentenceEncoder
from minibert.cli import main


def test_inspect_json(repo, capsys):
    """The JSON report has the facts of the repo's files."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"query": "the "}, similarity_fn_name="dot")
    edit_json(repo / "config.json", dtype=..., torch_dtype="float32")

    report = inspected(repo, capsys)

    files = {file["path"]: file["bytes"] for file in report["files"]}
    assert files.pop("model.safetensors") == report["weights"]["bytes"] == (repo / "model.safetensors").stat().st_size
    assert "1_Pooling/config.json" in files
    assert report["folder"] == str(repo.resolve())
    assert report["architecture"].items() >= {"class": "BertModel", "num_hidden_layers": 2, "hidden_size": 16}.items()
    assert (
        report["weights"].items()
        >= {
            "files": ["model.safetensors"],
            "format": "safetensors",
            "parameters": 16368,
            "stored_dtypes": {"F32": 39},
            "config_dtype": "float32",
            "computed_in": "float32",
        }.items()
    )
    assert report["modules"] == [
        {"class": "Transformer", "folder": ".", "dimension": 16},
        {"class": "Pooling", "folder": "1_Pooling", "dimension": 16, "modes": ["mean"], "include_prompt": True},
    ]
    assert report["prompts"] == {"query": "the ", "document": ""}
    assert (report["default_prompt_name"], report["similarity"], report["truncate_dim"]) == (None, "dot", None)


def test_inspect_text(repo, capsys):
    """The report for people has the same facts in aligned lines."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"query": "the "}, truncate_dim=8)

    assert main(["inspect", str(repo)]) == 0

    text = capsys.readouterr().out
    assert text.startswith(f"{repo.resolve()}\n\nArchitecture\n  model              BertModel\n")
    for line in (
        "attention heads    2 of 8 dimensions",
        "vocabulary         80",
        "parameters       16,368",
        "2. Pooling      mean",
        "cut to          8",
        "maximum length   512 tokens, special ones included (max_seq_length in sentence_bert_config.json)",
        'prompt query     "the "',
        "prompt document  none",
    ):
        assert f"\n  {line}\n" in text
    assert "Where other runtimes would differ\n  - " in text


@pytest.mark.parametrize("wanted", ["numpy", ""])
def test_inspect_says_what_would_compute(repo, capsys, monkeypatch, wanted):
    """The report names the kernels that an encoder on this machine would have, as the environment chooses them."""
    monkeypatch.setenv("MINIBERT_KERNELS", wanted)
    chosen = SentenceEncoder(repo).kernels
    shown = "numpy" if chosen == "numpy" else f"native kernels ({chosen})"

    assert inspected(repo, capsys)["weights"]["kernels"] == chosen == (wanted or chosen)
    assert main(["inspect", str(repo)]) == 0
    assert f"\n  computed in      float32, by {shown}\n" in capsys.readouterr().out


def test_inspect_with_kernels_that_there_are_not(repo, capsys, monkeypatch):
    """If the environment names unknown kernels, no encoder would load, and the report says why."""
    monkeypatch.setenv("MINIBERT_KERNELS", "mmx")

    assert main(["inspect", str(repo)]) == 1
    assert "MINIBERT_KERNELS must be one of numpy, avx512, avx2, neon; it is 'mmx'" in capsys.readouterr().err


HOSTILE = "\x1b]0;title\x07\x9b2J\u202e"


SHOWN = r"\x1b]0;title\x07\x9b2J\u202e"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_inspect_escapes_what_a_repo_says(repo, capsys, arguments):
    """Names and texts of a repo cannot steer the terminal that shows them; JSON has its own escapes for them."""
    prompts = {HOSTILE: HOSTILE, "passage": HOSTILE}
    edit_json(repo / ST, prompts=prompts, default_prompt_name=HOSTILE)
    edit_json(repo / "config.json", dtype=HOSTILE)

    assert main(["inspect", str(repo), *arguments]) == 0

    printed = capsys.readouterr().out
    assert not set(printed) & set(HOSTILE) - set("]0;title2J")
    if arguments:
        report = json.loads(printed)
        assert (report["prompts"][HOSTILE], report["default_prompt_name"]) == (HOSTILE, HOSTILE)
    else:
        lines = [line.split() for line in printed.split("\n")]
        assert ["dtype", "in", "config", SHOWN] in lines
        assert ["default", "prompt", SHOWN] in lines
        assert any(line[:2] == ["prompt", SHOWN] for line in lines)


def test_inspect_without_a_model(capsys):
    """Without MODEL, inspect reports on the built-in one, and standard error says so."""
    assert main(["inspect", "--json"]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out)["folder"] == str(BUILTIN_MODEL.resolve())
    assert said.err == "minibert: inspecting the built-in model; MODEL names another\n"
    usage_error("inspect", "--revision", "v2")
    assert "--revision is for a repo of the hub: give its MODEL" in capsys.readouterr().err


def test_inspect_reads_no_weights(repo, capsys, monkeypatch):
    """The values of the BertModel's weights are not read."""
    monkeypatch.setattr("numpy.fromfile", lambda *_, **__: pytest.fail("weights were read"))

    assert main(["inspect", str(repo)]) == 0


@pytest.mark.parametrize(
    ("changes", "tokens", "source"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 64}}, 64, "max_seq_length in sentence_bert_config.json"),
        ({"sentence_bert_config.json": {"max_seq_length": ...}}, 512, "model_max_length in tokenizer_config.json"),
        (
            {
                "sentence_bert_config.json": {"max_seq_length": ...},
                "tokenizer_config.json": {"model_max_length": 10**30},
            },
            512,
            "max_position_embeddings in config.json",
        ),
        (
            {"sentence_bert_config.json": {"max_seq_length": ..., "tokenizer_args": {"model_max_length": 32}}},
            32,
            "model_max_length in sentence_bert_config.json",
        ),
    ],
)
def test_inspect_says_where_the_maximum_length_is_from(repo, capsys, changes, tokens, source):
    """The maximum length comes with the key and the file that decide it (L10)."""
    for name, keys in changes.items():
        edit_json(repo / name, **keys)

    assert inspected(repo, capsys)["max_seq_length"] == {"tokens": tokens, "source": source}


@pytest.mark.parametrize(
    ("flags", "lower_cases", "strips_accents", "source"),
    [
        ({}, True, True, "do_lower_case in tokenizer_config.json"),
        ({"do_lower_case": ...}, True, True, "BERT's default"),
        ({"do_lower_case": False}, False, False, "do_lower_case in tokenizer_config.json"),
        (
            {"do_lower_case": ..., "strip_accents": False},
            True,
            False,
            "BERT's default and strip_accents in tokenizer_config.json",
        ),
        ({"do_lower_case": False, "sentence_bert": True}, True, False, "do_lower_case in sentence_bert_config.json"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True, True, "the normalizer of tokenizer.json"),
    ],
)
def test_inspect_says_what_decides_casing(repo, capsys, flags, lower_cases, strips_accents, source):
    """Casing is what the tokenizer really does, with the flags that decide it (T1, L11)."""
    SentenceEncoder(repo).tokenizer.save(str(repo / "tokenizer.json"))
    edit_json(repo / "sentence_bert_config.json", do_lower_case=flags.pop("sentence_bert", False))
    edit_json(repo / "tokenizer_config.json", **flags)

    assert inspected(repo, capsys)["casing"] == {
        "lower_cases": lower_cases,
        "strips_accents": strips_accents,
        "source": source,
    }


def add_tokenizer_json(repo, **changes):
    """Add the tokenizer.json that goes with the other files, but for ``changes``."""
    SentenceEncoder(repo).tokenizer.save(str(repo / "tokenizer.json"))
    edit_json(repo / "tokenizer.json", **changes)


DIFFERENCES = {
    "no modules.json": (lambda r: (r / "modules.json").unlink(), "text-embeddings-inference takes cls"),
    "cls": (lambda r: edit_json(r / "1_Pooling/config.json", pooling_mode="cls"), "Pooling is cls: runtimes that"),
    "prompt not pooled": (
        lambda r: edit_json(r / "1_Pooling/config.json", include_prompt=False),
        "A prompt's tokens are not pooled",
    ),
    "dense": (add_dense, "The model goes on after the transformer with Dense"),
    "not normalized": (unchanged, "Vectors keep their length: text-embeddings-inference scales them"),
    "truncate_dim": (lambda r: edit_json(r / ST, truncate_dim=8), "Vectors are cut to 8 dimensions (truncate_dim in"),
    "dtype float16": (
        lambda r: edit_json(r / "config.json", dtype="float16"),
        "sentence-transformers computes in float16 and returns float16, because config.json says so",
    ),
    "torch_dtype bfloat16": (
        lambda r: edit_json(r / "config.json", dtype=..., torch_dtype="bfloat16"),
        "sentence-transformers computes in bfloat16, because config.json says so",
    ),
    "half weights": (
        lambda r: (half_weights(r), edit_json(r / "config.json", dtype=...)),
        "computes in float16 and returns float16, because the weights are",
    ),
    "maximum length": (
        lambda r: edit_json(r / "sentence_bert_config.json", max_seq_length=128),
        "Texts are cut to 128 tokens, as sentence_bert_config.json says: runtimes that look only at the tokenizer",
    ),
    "tokenizer's maximum length": (
        lambda r: (
            edit_json(r / "sentence_bert_config.json", max_seq_length=...),
            edit_json(r / "tokenizer_config.json", model_max_length=64),
        ),
        "at config.json, such as text-embeddings-inference, take 512.",
    ),
    "both maximum lengths": (
        lambda r: (
            edit_json(r / "sentence_bert_config.json", max_seq_length=64),
            edit_json(r / "tokenizer_config.json", model_max_length=64),
        ),
        "at config.json take 512.",
    ),
    "truncation in tokenizer.json": (
        lambda r: add_tokenizer_json(r, truncation={"max_length": 100, "direction": "Right"}),
        "tokenizer.json cuts texts to 100 tokens, which minibert and sentence-transformers override with 512",
    ),
    "padding in tokenizer.json": (
        lambda r: add_tokenizer_json(r, padding={"strategy": {"Fixed": 128}}),
        "tokenizer.json pads every text to 128 tokens",
    ),
    "casing in tokenizer.json": (
        lambda r: add_tokenizer_json(
            r, normalizer={"type": "Sequence", "normalizers": [{"type": "BertNormalizer", "lowercase": False}]}
        ),
        "follow do_lower_case in tokenizer_config.json: the tokenizer lower-cases and strips accents.",
    ),
    "no tokenizer.json": (unchanged, "There is no tokenizer.json: text-embeddings-inference, which needs one"),
    "default prompt": (
        lambda r: edit_json(r / ST, prompts={"query": "the "}, default_prompt_name="query"),
        "encode puts the default prompt 'the ' before every text",
    ),
    "passage": (
        lambda r: edit_json(r / ST, prompts={"query": "the ", "passage": "a "}),
        "Ask for prompt_name='passage'.",
    ),
}


@pytest.mark.parametrize(("change", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_inspect_says_where_others_differ(repo, capsys, change, expected):
    """Each property of a repo that other runtimes treat differently gets its sentence."""
    change(repo)

    assert sum(expected in sentence for sentence in inspected(repo, capsys)["differences"]) == 1


#: By name: a card, a function that changes its repo, and what is said then.
DIFFERENCES_OF_FAMILIES = {
    "nothing stated": (
        "all-distilroberta-v1",
        lambda r: (
            edit_json(r / "sentence_bert_config.json", max_seq_length=...),
            edit_json(r / "tokenizer_config.json", model_max_length=...),
        ),
        "sentence-transformers allows 514 tokens, and fails on texts of more than 512; minibert cuts them to 512.",
    ),
    "the rows stated": (
        "multilingual-e5-base",
        lambda r: edit_json(r / "sentence_bert_config.json", max_seq_length=513),
        "sentence-transformers allows 513 tokens, and fails on texts of more than 512",
    ),
    "MPNet": (
        "multi-qa-mpnet-base-dot-v1",
        lambda r: edit_json(r / "sentence_bert_config.json", max_seq_length=...),
        "text-embeddings-inference allows 514 tokens for MPNet, 2 more",
    ),
    "space before a text": (
        "all-distilroberta-v1",
        lambda r: byte_level(r, add_prefix_space=True),
        "tokenizer.json adds a space before a text, but",
    ),
    "no space before a text": (
        "all-distilroberta-v1",
        lambda r: (
            byte_level(r, add_prefix_space=False),
            edit_json(r / "tokenizer_config.json", add_prefix_space=True),
        ),
        "tokenizer.json adds no space before a text, but",
    ),
    "sparse vectors": (
        "multilingual-e5-base",
        lambda r: [(r / name).touch() for name in ("sparse_linear.pt", "colbert_linear.pt")],
        "sparse_linear.pt and colbert_linear.pt are not read",
    ),
}


def byte_level(repo, **settings):
    """Give a repo of RoBERTa a tokenizer.json."""
    merges = (repo / "merges.txt").read_text("utf-8").splitlines()[1:]
    model = {"type": "BPE", "vocab": json.loads((repo / "vocab.json").read_text("utf-8")), "merges": merges}
    content = {"model": model, "pre_tokenizer": {"type": "ByteLevel", **settings}}
    (repo / "tokenizer.json").write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(("card", "change", "expected"), DIFFERENCES_OF_FAMILIES.values(), ids=DIFFERENCES_OF_FAMILIES)
def test_inspect_says_where_others_differ_about_a_family(tmp_path, capsys, card, change, expected):
    """So does each property of a repo of another family; the repo as it is does not."""
    repo = copy_twin(tmp_path / "model", card)
    before = inspected(repo, capsys)["differences"]
    change(repo)

    assert not any(expected in sentence for sentence in before)
    assert sum(expected in sentence for sentence in inspected(repo, capsys)["differences"]) == 1


@pytest.mark.parametrize("said", [5, [5], {"pretokenizers": [5, None]}, {"pretokenizers": 5}], ids=str)
def test_inspect_of_a_malformed_pre_tokenizer(tmp_path, capsys, said):
    """Inspect does not fail on a pre_tokenizer in RoBERTa's tokenizer.json, which transformers does not read."""
    repo = copy_twin(tmp_path / "model", "all-distilroberta-v1")
    byte_level(repo)
    edit_json(repo / "tokenizer.json", pre_tokenizer=said)

    assert not any("space before a text" in sentence for sentence in inspected(repo, capsys)["differences"])


def test_inspect_of_a_nested_pre_tokenizer(tmp_path, capsys):
    """A step of a sequence in a sequence counts, too."""
    repo = copy_twin(tmp_path / "model", "all-distilroberta-v1")
    byte_level(repo)
    step = {"type": "ByteLevel", "add_prefix_space": True}
    for _ in range(2):
        step = {"type": "Sequence", "pretokenizers": [step]}
    edit_json(repo / "tokenizer.json", pre_tokenizer=step)

    assert any("adds a space before a text" in sentence for sentence in inspected(repo, capsys)["differences"])


def test_inspect_warns_once(tmp_path, capsys, caplog):
    """That a stated limit is larger than the positions serve is said once."""
    repo = copy_twin(tmp_path / "model", "multilingual-e5-base")
    edit_json(repo / "sentence_bert_config.json", max_seq_length=514)
    with caplog.at_level(logging.WARNING, "minibert"):
        inspected(repo, capsys)

    assert [record.message.endswith("texts are cut to 512 tokens") for record in caplog.records] == [True]


@pytest.mark.parametrize("card", FAMILIES)
def test_inspect_of_a_family(tmp_path, capsys, card):
    """The report names the family's class, and how many tokens the positions are enough for."""
    repo = copy_twin(tmp_path / "model", card)
    config = json.loads((repo / "config.json").read_text("utf-8"))
    architecture = inspected(repo, capsys)["architecture"]

    assert architecture["class"] == config["architectures"][0]
    assert architecture["model_type"] == config["model_type"]
    assert architecture["max_tokens"] == 512
    assert main(["inspect", str(repo)]) == 0
    shown = capsys.readouterr().out
    assert ("514, for texts of up to 512 tokens" in shown) == (config["model_type"] != "distilbert")


def test_inspect_says_only_what_applies(repo, capsys):
    """A repo that every runtime understands in the same way gets none."""
    add_module(repo, "Normalize", {})
    add_tokenizer_json(repo, padding={"strategy": "BatchLongest"}, truncation={"max_length": 512})
    edit_json(repo / ST, prompts={"document": "the ", "passage": "a "}, default_prompt_name="query")

    assert inspected(repo, capsys)["differences"] == []
    assert main(["inspect", str(repo)]) == 0
    assert capsys.readouterr().out.endswith("differ\n  - Nowhere that minibert knows of.\n")


BROKEN = {
    "no config": (lambda r: (r / "config.json").unlink(), "config.json does not exist"),
    "no tokenizer": (lambda r: (r / "vocab.txt").unlink(), "holds no tokenizer"),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), "holds no weights"),
    "no pooling": (lambda r: (r / "1_Pooling/config.json").unlink(), "1_Pooling/config.json does not exist"),
    "too few layers": (lambda r: edit_json(r / "config.json", num_hidden_layers=3), "missing: encoder.layer.2."),
    "absurdly few": (lambda r: edit_json(r / "config.json", num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "too many layers": (lambda r: edit_json(r / "config.json", num_hidden_layers=1), "unexpected: encoder.layer.1."),
    "wrong shape": (lambda r: edit_json(r / "config.json", vocab_size=90), "must have shape (90, 16)"),
    "ids": (lambda r: (r / "vocab.txt").write_text("[UNK]\n" * 81), "ids must be below vocab_size = 80"),
    "prompt": (lambda r: edit_json(r / ST, default_prompt_name="x"), "default_prompt_name must be one of"),
    "other model": (
        lambda r: edit_weights(r / "model.safetensors", lambda arrays: {"x": arrays.popitem()[1]}),
        "a checkpoint of an encoder has one tensor called",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_inspect_of_a_broken_repo(repo, capsys, change, message):
    """A repo that cannot be used gets the exact error of loading it, although no weights are read."""
    change(repo)

    assert main(["inspect", str(repo)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minibert: error: ")
    assert message in error


def test_inspect_counts_what_is_passed_over(repo, capsys):
    """Heads and buffers in a checkpoint are counted, and are no part of the parameters."""
    edit_weights(repo / "model.safetensors", renamed)

    weights = inspected(repo, capsys)["weights"]
    assert (weights["parameters"], weights["tensors"], weights["tensors_passed_over"]) == (16368, 39, 2)
