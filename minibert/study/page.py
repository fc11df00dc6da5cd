"""The viewer of ``minibert explain --html``: one file with the results of texts. It loads nothing.

``page.html``, ``page.css`` and ``page.js`` are the viewer. The data are JSON in the page. Results are float16 in
base64. The script computes numbers of a result again, from the results before it.
"""

import base64
import hashlib
import inspect
import itertools
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minibert import model, pooling
from minibert.modules.kinds import Module, Pooling
from minibert.positions import bias_by_distance
from minibert.safe.escapes import printable
from minibert.study.names import in_words, kind_of, line_of, meaning_of, names_of
from minibert.study.similar import Similarity
from minibert.study.traces import Trace
from minibert.typing import Array

__all__ = ["page"]

#: A page has at most so many numbers of results: 4 MB in base64.
_MOST_NUMBERS = 1_500_000
#: In models with more heads than this, the shares of the heads of a layer are added up.
_MOST_HEADS = 24


def page(traces: Sequence[Trace], similarity: Similarity | None, *, name: str) -> str:
    """Return the page of one or more texts, as HTML.

    Long texts and large models are cut, so that the page stays below about 5 MB. The page says what is left out. Where
    ``similarity.words_are_quick`` is False, the parts that need many forward passes are left out, too.

    Args:
        traces: The results of each text, by one model. They must have all results.
        similarity: Of the first two texts. None leaves its view out.
        name: What the page calls the model.

    Raises:
        ValueError: There is no trace, or a trace was made with ``keep`` and lacks results.
    """
    if not traces:
        raise ValueError("a page needs at least one trace; received none.")
    for trace in traces:
        if lacking := sorted(set(names_of(trace.model.bert.config)).difference(trace)):
            raise ValueError(f"a page needs traces with all results; {lacking[0]} was not kept: trace without keep.")
    parts = {"STYLE": _read("page.css"), "SCRIPT": _read("page.js"), "DATA": _json(_data(traces, similarity, name))}
    parts["POLICY"] = (
        f"default-src 'none'; style-src '{_hash(parts['STYLE'])}'; script-src '{_hash(parts['SCRIPT'])}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # In one pass over the template: a text may contain the name of a place.
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json(data: Any) -> str:
    """Return JSON in which no HTML parser finds the end of an element, or a comment."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _packed(value: Array, kind: str = "f4") -> dict[str, Any]:
    """Return an array for the script: as ``f4``, or as ``f2`` if its numbers are in the range of float16."""
    if kind == "f2" and np.abs(np.nan_to_num(value, posinf=0, neginf=0)).max(initial=0) > np.finfo(np.float16).max:
        kind = "f4"
    data = base64.b64encode(value.astype(f"<{kind}").tobytes()).decode()
    return {"shape": value.shape, "type": kind, "data": data}


def _data(traces: Sequence[Trace], similarity: Similarity | None, name: str) -> dict[str, Any]:
    first, bert, cut = traces[0], traces[0].model.bert, _Cut.fitting(traces)
    table = bert.params.relative_bias
    norms = {"embeddings": bert.params.embeddings.norm}
    for number, layer in enumerate(bert.params.layers):
        norms |= {f"layers.{number}.attended": layer.attention.norm, f"layers.{number}.x": layer.feed_forward.norm}
    return {
        "name": printable(name),
        "layers": bert.config.num_hidden_layers,
        "heads": bert.config.num_attention_heads,
        "hidden": bert.config.hidden_size,
        "eps": bert.config.layer_norm_eps,
        "bias": None if table is None else _packed(bias_by_distance(table, cut.tokens)),
        "steps": list(first),
        "about": {kind_of(each): meaning_of(each) for each in first},
        "source": list(_source(first)),
        "modules": _modules(first),
        "norms": {key: {"weight": _packed(w, "f2"), "bias": _packed(b, "f2")} for key, (w, b) in norms.items()},
        "texts": [_text(trace, cut) for trace in traces],
        "notes": list(cut.notes(traces)),
        "similarity": None if similarity is None else _similarity(similarity, slice(cut.tokens)),
    }


# ---------------------------------------------------------------- what a page has room for


class _Cut(NamedTuple):
    """What the page has of each text: the first tokens, perhaps no ``inner``, perhaps no details of most layers."""

    tokens: int
    inner: bool
    details: bool

    @classmethod
    def fitting(cls, traces: Sequence[Trace]) -> "_Cut":
        """Return the first cut that a page has room for. Details go before tokens."""
        longest = max(len(trace.tokens) for trace in traces)
        lengths = [longest, *(n for n in (256, 192, 128, 96, 64, 48, 32, 24, 16) if n < longest)]
        for tokens, (inner, details) in itertools.product(lengths, ((True, True), (False, True), (False, False))):
            cut = cls(tokens, inner, details)
            if sum(value.size for trace in traces for value in cut.results(trace).values()) <= _MOST_NUMBERS:
                break
        return cut

    def results(self, trace: Trace) -> dict[str, Array]:
        """Return what the page has of the results of a text."""
        found = {}
        for name, value in trace.items():
            part, *number, last = name.split(".")
            detail = part == "layers" and last not in {"weights", "x"}
            in_middle = detail and 0 < int(number[0]) < len(trace.layers) - 1
            if (last == "inner" and not self.inner) or (in_middle and not self.details):
                continue
            tokens = value if value.ndim < 2 else value[..., : self.tokens, :]
            found[name] = tokens[..., : self.tokens] if last in {"scores", "weights"} else tokens
        return found

    def notes(self, traces: Sequence[Trace]) -> Iterator[str]:
        """Yield sentences on what is left out."""
        small = "To keep the page small, it"
        for number, trace in enumerate(traces):
            read, which = len(trace.ids), f"Text {chr(65 + number)}" if len(traces) > 1 else "The text"
            if trace.length > read:
                yield f"{which} has {trace.length} tokens. The model reads only {read} of them."
        if any(self.tokens < len(trace.ids) for trace in traces):
            yield f"{small} shows the first {self.tokens} tokens of a text. The model read the others, too."
        if not self.details and len(traces[0].layers) > 2:
            yield f"{small} has all results of the first and the last layer only: of others, weights and x."
        if not self.inner:
            yield f"{small} does not have inner, the inside of the feed-forward layers."


# ---------------------------------------------------------------- the source


def _source(trace: Trace) -> Iterator[dict[str, Any]]:
    """Yield the functions that compute the results: their lines, and the name of the result of a line."""
    lines = inspect.getsource(model).splitlines()
    start = lines.index("def bert(")
    end = next(number for number, line in enumerate(lines) if line.startswith("def pool_first_token("))
    text = "\n".join(lines[start:end]).rstrip().split("\n")
    results: dict[int, str] = {line: kind_of(name) for name in trace if (line := line_of(name))}
    yield {"file": "minibert/model.py", "start": start + 1, "lines": text, "results": results}
    for name, module in _module_of(trace).items():
        lines, start = inspect.getsourcelines(type(module).__call__)
        writes = re.compile(rf'\s*features\[("{name.split(".")[-1]}"|self\.target)\] =')
        result = next((start + number for number, line in enumerate(lines) if writes.match(line)), start)
        text = textwrap.dedent("".join(lines)).rstrip().split("\n")
        file = f"minibert/modules/kinds.py, {type(module).__name__}"
        yield {"file": file, "start": start, "lines": text, "results": {result: name}}


def _module_of(trace: Trace) -> dict[str, Module]:
    """Return the module after the transformer that computed each of the results ``modules.*``."""
    return {name: trace.model.modules[int(name.split(".")[1]) - 1] for name in trace if name.startswith("modules.")}


def _modules(trace: Trace) -> dict[str, dict[str, Any]]:
    """Return what the page says about each of the results ``modules.*``."""
    about: dict[str, dict[str, Any]] = {}
    for name, module in _module_of(trace).items():
        described = [pooling.MODES[mode] for mode in module.modes] if isinstance(module, Pooling) else [type(module)]
        words = " Beside it: ".join((inspect.getdoc(each) or "").split("\n")[0] for each in described)
        before = next((other for other in reversed(about) if other.endswith(name.split(".")[-1])), None)
        about[name] = {"kind": type(module).__name__, "words": words, "before": before}
    return about


# ---------------------------------------------------------------- the texts


def _text(trace: Trace, cut: _Cut) -> dict[str, Any]:
    shown = slice(cut.tokens)
    return {
        "text": printable(trace.prompt + trace.text),
        "count": len(trace.tokens),
        "tokens": [printable(token) for token in trace.tokens[shown]],
        "special": trace.fixed[shown].tolist(),
        "shapes": {name: in_words(name, value.shape).replace(" x ", " \u00d7 ") for name, value in trace.items()},
        "results": {name: _packed(value, "f2") for name, value in cut.results(trace).items()},
        "valueNorms": [_packed(trace.value_norms(number)[:, shown]) for number in range(len(trace.layers))],
        "habits": [[_habit(trace, weights) for weights in part.weights] for part in trace.layers],
        "progress": {key: _packed(value[:, shown]) for key, value in _progress(trace).items()},
        "pooling": _pooling(trace),
        "parts": _parts(trace, shown),
    }


def _habit(trace: Trace, weights: Array) -> str:
    """Return where most of the attention of the words goes in a head, in a few words."""
    words, last = np.flatnonzero(~trace.special), len(weights) - 1
    if not len(words):
        return "no words"
    goals = {"itself": words, "previous": np.maximum(words - 1, 0), "next": words + 1}
    goals |= {printable(trace.tokens[i]): np.full(len(words), i) for i in (0, last) if trace.special[i]}
    share, goal = max((weights[words, np.minimum(to, last)].mean(), goal) for goal, to in goals.items())
    return f"{goal} {share:.0%}" if share > 0.35 else "spread"


def _progress(trace: Trace) -> dict[str, Array]:
    """Return, for each token after each layer: its length, its cosine with the mean of all, and how far it turned."""
    x = np.stack([part.x for part in (trace.embeddings, *trace.layers)])  # (L + 1, S, H)
    length, mean = np.linalg.norm(x, axis=-1), x.mean(axis=1, keepdims=True)
    cosines = [
        (a * b).sum(axis=-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-300)
        for a, b in ((x, mean), (x[1:], x[:-1]))
    ]
    return {"length": length, "likeness": cosines[0], "turn": 1 - cosines[1]}


def _pooling(trace: Trace) -> list[list[float]] | None:
    """Return the weight of each token in the pooled vector, for each mode; None if it depends on the dimension."""
    reference = trace.model
    if reference.why_not_pooled() or "max" in getattr(reference.pooling, "modes", ["max"]):
        return None
    weights = reference.pooling_weights(trace.layers[-1].x, trace.ids, trace.prompt_length)  # (modes, S, H)
    alike: list[list[float]] = weights[..., 0].tolist()
    return alike


def _parts(trace: Trace, shown: slice) -> dict[str, Any]:
    """Return the share of each part of the model and of each token in the pooled vector, or why there is none."""
    if why := "the trace has edits" if trace.edited else trace.model.why_not_pooled():
        return {"reason": f"This is not exact for this model: {why}."}
    shares: dict[str, Array] = {}
    apart = len(trace.layers) * len(trace.layers[0].heads) <= _MOST_HEADS
    for name, share in trace.shares().items():
        group = name if apart or ".heads." not in name else name.rpartition(".")[0]
        shares[group] = shares.get(group, 0) + share
    table = np.stack(list(shares.values()))
    totals = {"totals": _packed(table.sum(axis=1)), "tokens": _packed(table.sum(axis=0)[shown])}
    return {"names": list(shares), "shares": _packed(table[:, shown]), **totals}


# ---------------------------------------------------------------- similarity


def _similarity(similarity: Similarity, shown: slice) -> dict[str, Any]:
    sizes = f"{len(similarity.a.ids)} and {len(similarity.b.ids)}"
    why = f"This takes long, so it is left out for long texts and large models. These texts have {sizes} tokens."
    left_out = None if similarity.words_are_quick else {"reason": why}

    def pairs(values: Array, **facts: float) -> dict[str, Any]:
        return {"pairs": _packed(values[shown, shown]), "sum": float(values.sum()), **facts}

    vectors, by_layer = similarity.vectors, similarity.by_layer
    not_exact = {"reason": f"This is not exact for this model: {similarity.why_no_vectors}."}
    return {
        "function": similarity.function,
        "score": similarity.score,
        "words": left_out or pairs(similarity.words, rest=similarity.rest, error=similarity.error),
        "vectors": not_exact if vectors is None else pairs(vectors),
        "withoutToken": left_out or {"falls": [_packed(falls[shown]) for falls in similarity.without_token]},
        "withoutHead": left_out or {"falls": _packed(similarity.without_head)},
        "byLayer": {"reason": f"This cannot be computed: {similarity.a.model.why_not_pooled()}."}
        if by_layer is None
        else _packed(by_layer),
    }
