"""``minibert inspect``: the properties of a model repo, and differences of other runtimes."""

import argparse
import collections
import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from minibert.cli.differences import differences
from minibert.cli.files import model_folder
from minibert.cli.opened import OpenedRepo
from minibert.engine.devices import described, open_engine
from minibert.families import FAMILIES
from minibert.files.checkpoint import find_weights
from minibert.modules.kinds import Pooling
from minibert.safe.escapes import printable, printable_json

_WIDTH = 88


def run(options: argparse.Namespace) -> None:
    """Print the report on the model."""
    if options.model is None:
        sys.stderr.write("minibert: inspecting the built-in model; MODEL names another\n")
    report = facts(OpenedRepo.open(model_folder(options)))
    text = (
        printable_json(json.dumps(report, indent=2, ensure_ascii=False)) if options.json else "\n".join(_lines(report))
    )
    sys.stdout.write(f"{text}\n")


def facts(opened: OpenedRepo) -> dict[str, Any]:
    """Return the content of the report as values for JSON."""
    repo, tensors = opened.repo, opened.tensors
    weights = {tensor.path for tensor in tensors}
    return {
        "folder": str(repo.folder),
        "architecture": {
            "class": f"{FAMILIES[repo.config.model_type].classes}Model",
            **dataclasses.asdict(repo.config),
            "max_tokens": repo.config.max_tokens,
        },
        "weights": {
            "files": sorted(path.relative_to(repo.folder).as_posix() for path in weights),
            "format": "pytorch" if ".bin" in find_weights(repo.transformer_folder).suffixes else "safetensors",
            "bytes": sum(path.stat().st_size for path in weights),
            "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            "tensors": len(tensors),
            "tensors_passed_over": len(opened.stored) - len(tensors),
            "stored_dtypes": dict(collections.Counter(tensor.dtype for tensor in tensors)),
            "config_dtype": repo.dtype,
            "computed_in": "float32",
            "kernels": open_engine("cpu", "float32").kernels,
        },
        "modules": list(_modules(opened)),
        "dimension": opened.dimensions[-1],
        "truncate_dim": repo.truncate_dim,
        "similarity": repo.similarity_fn_name or "cosine",
        "max_seq_length": {"tokens": opened.max_seq_length, "source": opened.max_seq_length_source},
        "casing": {**opened.casing._asdict(), "source": opened.casing_source},
        "prompts": opened.prompts,
        "default_prompt_name": repo.default_prompt_name,
        "files": [{"path": name, "bytes": (repo.folder / name).stat().st_size} for name in repo.files()],
        "differences": differences(opened),
    }


def _modules(opened: OpenedRepo) -> Iterator[dict[str, Any]]:
    """Yield class, folder, output width and other properties of each module."""
    first, *widths = opened.dimensions
    folder = opened.repo.transformer_folder
    yield {"class": "Transformer", "folder": folder.relative_to(opened.repo.folder).as_posix(), "dimension": first}
    for (kind, path), module, width in zip(opened.repo.modules, opened.modules, widths, strict=True):
        where = None if path is None else path.relative_to(opened.repo.folder).as_posix()
        fact: dict[str, Any] = {"class": kind, "folder": where, "dimension": width}
        if isinstance(module, Pooling):
            fact |= {"modes": list(module.modes), "include_prompt": module.include_prompt}
        yield fact


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the report as plain text. Content of the repo is escaped."""
    yield printable(report["folder"])
    for title, section in _sections(report):
        rows = [(printable(label), printable(str(value))) for label, value in section]
        yield f"\n{title}"
        width = max(len(label) for label, _ in rows)
        yield from (f"  {label:{width}}  {value}".rstrip() for label, value in rows)
    yield "\nWhere other runtimes would differ"
    for sentence in report["differences"] or ["Nowhere that minibert knows of."]:
        yield textwrap.fill(printable(sentence), _WIDTH, initial_indent="  - ", subsequent_indent="    ")


def _sections(report: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield title and rows of each section."""
    architecture, weights, limit, casing = (
        report[key] for key in ("architecture", "weights", "max_seq_length", "casing")
    )
    heads = architecture["num_attention_heads"]
    yield (
        "Architecture",
        [
            ("model", architecture["class"]),
            ("layers", str(architecture["num_hidden_layers"])),
            ("hidden size", f"{architecture['hidden_size']:,}"),
            ("attention heads", f"{heads} of {architecture['hidden_size'] // heads} dimensions"),
            ("intermediate size", f"{architecture['intermediate_size']:,}"),
            ("activation", architecture["hidden_act"]),
            ("layer_norm_eps", str(architecture["layer_norm_eps"])),
            ("vocabulary", f"{architecture['vocab_size']:,}"),
            ("positions", _positions(architecture)),
        ],
    )
    passed_over = weights["tensors_passed_over"]
    dtypes = ", ".join(f"{count} x {dtype}" for dtype, count in weights["stored_dtypes"].items())
    yield (
        "Weights",
        [
            ("file" if len(weights["files"]) == 1 else "files", ", ".join(weights["files"])),
            ("format", f"{weights['format']}, {_size(weights['bytes'])}"),
            ("parameters", f"{weights['parameters']:,}"),
            ("tensors", dtypes + (f"; heads and buffers, not used: {passed_over}" if passed_over else "")),
            ("dtype in config", weights["config_dtype"] or "not stated"),
            ("computed in", f"{weights['computed_in']}, by {described(weights['kernels'])}"),
        ],
    )
    yield (
        "Vectors",
        [
            *((f"{number}. {module['class']}", _module(module)) for number, module in enumerate(report["modules"], 1)),
            ("dimension", f"{report['dimension']:,}"),
            *([("cut to", f"{report['truncate_dim']:,}")] if report["truncate_dim"] is not None else []),
            ("similarity", report["similarity"]),
        ],
    )
    yield (
        "Texts",
        [
            ("maximum length", f"{limit['tokens']:,} tokens, special ones included ({limit['source']})"),
            ("lower-cases", f"{_yes(casing['lower_cases'])} ({casing['source']})"),
            ("strips accents", _yes(casing["strips_accents"])),
            *((f"prompt {name}", _quoted(text)) for name, text in report["prompts"].items()),
            ("default prompt", report["default_prompt_name"] or "none"),
        ],
    )
    yield "Files", [(file["path"], _size(file["bytes"])) for file in report["files"]]


def _positions(architecture: Mapping[str, Any]) -> str:
    rows, tokens = architecture["max_position_embeddings"], architecture["max_tokens"]
    return f"{rows:,}" if tokens == rows else f"{rows:,}, for texts of up to {tokens:,} tokens"


def _module(module: Mapping[str, Any]) -> str:
    if module["class"] == "Pooling":
        return f"{' + '.join(module['modes'])}{'' if module['include_prompt'] else ', without the prompt'}"
    return f"{module['dimension']:,} dimensions" if module["class"] not in {"Normalize", "Dropout"} else ""


def _size(count: int) -> str:
    """Return a number of bytes in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else "none"
