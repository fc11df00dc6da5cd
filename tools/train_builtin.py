"""Make the built-in model: a BertModel of 2 layers and 128 dimensions, distilled from a larger sentence encoder.

    python tools/train_builtin.py TEACHER TEXTS [TEXTS ...] --work DIR --output DIR --sts PAIRS.csv [PAIRS.csv ...]

TEACHER is a model folder. TEXTS have one text per line, and may be gzipped. The --work folder has the teacher's vectors
and a checkpoint. If a run is stopped, the same command continues it. The output is a sentence-transformers repo with
float16 weights and a model card. The --sts files are only for measurements, not for training.

The teacher's vectors are the slow part: on two cores with AVX2, all-MiniLM-L6-v2 took 93 s for 20,000 texts of the
corpus. The vectors depend only on the teacher and the texts. Runs with other settings (--recipe) can use them again, if
--vectors names their folder.

It needs torch, transformers and SciPy: pip install -e '.[dev,reference]' torch==2.13.0
"""

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from distillation import (
    Recipe,
    digest,
    new_student,
    principal_directions,
    remember,
    teacher_vectors,
    tokenize,
    train,
)
from repo_tokenizers import dump
from sts import read_pairs, score
from tokenizers import Tokenizer

import minibert
from minibert import SentenceEncoder
from minibert.cli.convert import convert
from minibert.cli.files import whole_folder
from minibert.repo import ModelRepo
from minibert.typing import Array, Float

CARD = Path(__file__).parent / "builtin_card.md"


def read_texts(paths: Sequence[Path], count: int) -> list[str]:
    """Return the first ``count`` lines of some files."""

    def lines() -> Iterator[str]:
        for path in paths:
            content = path.read_bytes()
            text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
            yield from text.removesuffix("\n").split("\n")

    return list(islice(lines(), count))


def start_of_words(
    encoder: SentenceEncoder, directions: Float[Array, "D width"], counts: Float[Array, "V"]
) -> Float[Array, "V width"]:
    """Return the student's initial word embeddings.

    They are the teacher's vectors of single tokens, minus their mean weighted by frequency, reduced to the student's
    width, and scaled to a standard deviation of 0.05.
    """
    tokenizer = encoder.tokenizer
    tokens = [tokenizer.id_to_token(i).removeprefix("##") for i in range(len(counts))]
    vectors = encoder.encode(tokens)
    vectors = (vectors - (counts[:, None] * vectors).sum(axis=0) / counts.sum()) @ directions
    return (vectors * (0.05 / vectors.std())).astype(np.float32)


def save(student: Any, tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """Write a sentence-transformers repo with float32 weights."""
    student.save_pretrained(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), "utf-8")
    tokens = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    lower = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    dump(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "model_max_length": positions, **lower, **tokens},
    )
    dump(folder / "special_tokens_map.json", tokens)  # older programs read them from here
    dump(folder / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})
    names = ("Transformer", "Pooling", "Normalize")
    paths = ["" if i == 0 else f"{i}_{name}" for i, name in enumerate(names)]
    dump(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(zip(names, paths, strict=True))
        ],
    )
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in modes}
    dump(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": student.config.hidden_size, **pooling})
    dump(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine", "prompts": {}})


def scores(encoder: SentenceEncoder, paths: Sequence[Path]) -> dict[str, float]:
    """Return the Spearman correlation for each STS file."""
    found = {}
    for path in paths:
        pairs = read_pairs(path)
        found[path.stem] = score(encoder.encode([*pairs.left, *pairs.right]), pairs)
    return found


def card(recipe: Recipe, texts: Sequence[str], measured: dict[str, dict[str, float]], teacher: str) -> str:
    """Return the model card."""
    table = ["| | " + " | ".join(measured["student"]) + " |", "|---|" + "--:|" * len(measured["student"])]
    for who, name in (("student", "this model"), ("teacher", teacher)):
        table.append(f"| {name} | " + " | ".join(f"{value:.4f}" for value in measured[who].values()) + " |")
    settings = "\n".join(f"| {name} | {value} |" for name, value in recipe._asdict().items())
    return CARD.read_text("utf-8").format(
        scores="\n".join(table),
        recipe=f"| setting | value |\n|---|---|\n{settings}",
        texts=f"{len(texts):,}",
        digest=digest(texts),
        teacher=teacher,
        versions=f"torch {torch.__version__}, transformers {transformers.__version__}, minibert {minibert.__version__}",
    )


def main() -> None:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path, help="a model folder with a WordPiece tokenizer that ignores case")
    parser.add_argument("texts", type=Path, nargs="+", help="text files, one text per line; .gz are gzipped")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--vectors", type=Path, help="folder for the teacher's vectors (default: in --work)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model; an existing one is replaced")
    parser.add_argument("--sts", type=Path, nargs="+", default=[], help="STS files to measure with: text, text, score")
    parser.add_argument("--teacher-name", default="all-MiniLM-L6-v2", help="for the model card")
    parser.add_argument("--recipe", type=json.loads, default={}, help='other settings, as JSON: {"epochs": 1}')
    options = parser.parse_args()
    if unknown := options.recipe.keys() - Recipe._fields:
        parser.error(f"--recipe has {', '.join(Recipe._fields)}; not {', '.join(sorted(unknown))}")
    recipe = Recipe(**options.recipe)
    texts = read_texts(options.texts, recipe.texts)
    if texts == [""]:
        parser.error("the text files are empty")
    encoder = SentenceEncoder(options.teacher, on_truncate="ignore")
    vectors = teacher_vectors(options.teacher, texts, options.vectors or options.work / "teacher")
    recipe = recipe._replace(texts=len(texts))
    made_from = {"teacher": ModelRepo.open(options.teacher).fingerprint, "SHA-256 of the texts": digest(texts)}
    remember(options.work / "recipe.json", {**recipe._asdict(), **made_from})

    directions = principal_directions(vectors, recipe.hidden_size)
    backend = Tokenizer.from_str(encoder.tokenizer.to_str())
    tokenized = tokenize(backend, texts, min(encoder.max_seq_length, recipe.positions))
    counts = np.bincount(tokenized.ids, minlength=backend.get_vocab_size()) + 1.0
    student = new_student(recipe, start_of_words(encoder, directions, counts))
    train(student, tokenized, vectors, directions, recipe, options.work)

    full = options.work / "float32"
    save(student, backend, full, recipe.positions)
    with whole_folder(options.output, overwrite=True) as folder:
        convert(ModelRepo.open(full), folder, np.dtype(np.float16))
        measured = {
            "student": scores(SentenceEncoder(folder), options.sts),
            "teacher": scores(encoder, options.sts),
        }
        (folder / "README.md").write_text(card(recipe, texts, measured, options.teacher_name), "utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
