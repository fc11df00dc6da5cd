"""The protocol of Cohere: ``/v2/embed`` and ``/v1/embed``. It alone tells queries from documents."""

from typing import Any, Final, Literal

from minibert.quantization import quantize_embeddings
from minibert.serving.refused import Refused
from minibert.serving.service import Call, base64s, dumps, floats, matrix, written
from minibert.typing import Array, Float

#: The input types that have prompts of their own.
_KINDS: Final[dict[str, Literal["query", "document"]]] = {"search_query": "query", "search_document": "document"}
_INPUT_TYPES: Final = (*_KINDS, "classification", "clustering")


def error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error."""
    return refused.kind.status, {"message": refused.message}


async def embed(call: Call) -> str:
    """Answer ``POST /v2/embed``, and ``POST /v1/embed``, which gives plain lists if no type is named."""
    service, fields = call.service, call.fields
    service.check_model(fields.text("model"))
    texts = fields.items("texts", ids=False, blank=True)
    kinds = fields.array("embedding_types")
    for kind in kinds or ():
        if kind in ("int8", "uint8"):
            message = f"`embedding_types` cannot have {kind} here: its ranges come from many texts together."
            raise Refused("validation", f"{message} Use float, base64, binary or ubinary.", "embedding_types")
        if type(kind) is not str or kind not in _WRITERS:
            message = f"`embedding_types` must be a list of {', '.join(_WRITERS)}; it has another item."
            raise Refused("validation", message, "embedding_types")
    purpose = fields.choice("input_type", _INPUT_TYPES, "")
    prompt = service.encoder.prompt_for(_KINDS[purpose]) if purpose in _KINDS else service.prompt(None)
    dimensions = call.dimensions("output_dimension")
    cut = fields.choice("truncate", ("END", "START", "NONE"), "")
    side, truncate = {"END": "right", "START": "left"}.get(cut), cut != "NONE" if cut else service.truncates
    answer = await call.embed("texts", texts, prompt=prompt, truncate=truncate, side=side)
    vectors = call.service.batcher.finish(answer.vectors, dimensions, normalize=True)
    version = "1" if call.request.url.path.startswith("/v1/") else "2"
    if version == "1" and not kinds:
        embeddings, kind = matrix(await written(floats, vectors)), "embeddings_floats"
    else:
        each_once = dict.fromkeys(kinds or ["float"])
        parts = [f'"{each}":{matrix(await written(_WRITERS[each], vectors))}' for each in each_once]
        embeddings, kind = f"{{{','.join(parts)}}}", "embeddings_by_type"
    meta = {"api_version": {"version": version}, "billed_units": {"input_tokens": int(answer.lengths.sum())}}
    start = dumps({"id": call.id, "response_type": kind, "texts": texts, "meta": meta})
    return f'{start[:-1]},"embeddings":{embeddings}}}'


def _binary(vectors: Float[Array, "n D"]) -> list[str]:
    return list(map(dumps, quantize_embeddings(vectors, "binary").tolist()))


def _ubinary(vectors: Float[Array, "n D"]) -> list[str]:
    return list(map(dumps, quantize_embeddings(vectors, "ubinary").tolist()))


_WRITERS: Final = {"float": floats, "base64": base64s, "binary": _binary, "ubinary": _ubinary}
