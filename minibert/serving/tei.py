"""The protocol of text-embeddings-inference (TEI), by Hugging Face."""

from collections.abc import Sequence
from typing import Any, Final

from minibert.files.tokenizer_files import encoding_errors
from minibert.modules.kinds import Pooling
from minibert.serving.fields import Fields, Items
from minibert.serving.refused import Refused
from minibert.serving.service import Call, Service, dumps, floats, matrix, written
from minibert.similarity import cosine
from minibert.typing import Array

#: The most characters of ``/tokenize``: a token takes up to a thousand bytes on its way into the answer.
_MOST_CHARACTERS: Final = 1 << 20
#: The most numbers of ``/embed_all``: an answer has about 11 bytes for each, and exists three times on its way.
_MOST_NUMBERS: Final = 1 << 24


def error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error."""
    return refused.kind.tei_status, {"error": refused.message, "error_type": refused.kind.tei_type}


async def embed(call: Call) -> str:
    """Answer ``POST /embed``: one vector for each text."""
    items, dimensions = call.fields.items("inputs"), call.dimensions()
    normalize = call.fields.flag("normalize", True)
    answer = await call.embed("inputs", items, **_options(call, call.fields))
    return matrix(await written(floats, call.service.batcher.finish(answer.vectors, dimensions, normalize=normalize)))


async def embed_all(call: Call) -> str:
    """Answer ``POST /embed_all``: one vector for each token of each text."""
    service, items, options = call.service, call.fields.items("inputs"), _options(call, call.fields)
    limit, most = service.encoder.max_seq_length, _MOST_NUMBERS // service.encoder._pipeline.dimension  # noqa: SLF001
    around = len(options["prompt"]) + len(service.prefix) + len(service.suffix)
    if (tokens := sum(min(len(item) + around, limit) for item in items)) > most:
        message = f"`inputs` must have at most {most} tokens together. Given: {tokens}, if each character is one"
        raise Refused("batch_size", message, "inputs")
    answer = await call.embed("inputs", items, tokens=True, **options)
    return matrix(await written(_matrices, answer.vectors))


async def similarity(call: Call) -> str:
    """Answer ``POST /similarity``: the cosine of a text with each of some sentences."""
    inputs, parameters = call.fields.nested("inputs"), call.fields.nested("parameters")
    source = inputs.text("source_sentence")
    if source is None:
        raise Refused("validation", "`source_sentence` is required: a text.", "source_sentence")
    sentences: Items = inputs.items("sentences", ids=False)
    if not source:
        raise Refused("empty", "`source_sentence` cannot be empty.", "source_sentence")
    # The source comes last, so that an error has the index of a sentence.
    answer = await call.embed("sentences", [*sentences, source], **_options(call, parameters))
    vectors = call.service.batcher.finish(answer.vectors, None, normalize=False)
    return floats(cosine(vectors[-1:], vectors[:-1]))[0]


async def root(call: Call) -> str:
    """Answer ``POST /``. The client of huggingface_hub sends two kinds of requests to it."""
    return await (similarity if type(call.fields.values.get("inputs")) is dict else embed)(call)


async def tokenize(call: Call) -> str:
    """Answer ``POST /tokenize``: the tokens of each text, and where they are in it."""
    service, fields = call.service, call.fields
    texts: list[Any] = fields.items("inputs", ids=False)
    service.check_batch("inputs", len(texts))
    special, prompt = fields.flag("add_special_tokens", True), service.prompt(fields.text("prompt_name"))
    texts = [prompt + text for text in texts]
    if (characters := sum(map(len, texts))) > _MOST_CHARACTERS:
        message = f"`inputs` must have at most {_MOST_CHARACTERS} characters together. Given: {characters}"
        raise Refused("batch_size", message, "inputs")
    return await call.or_gone(service.alone(_tokens, service, texts, special))


async def decode(call: Call) -> str:
    """Answer ``POST /decode``: the texts of token ids."""
    skip, ids = call.fields.flag("skip_special_tokens", True), call.fields.array("ids")
    if ids and type(ids[0]) is int:
        ids = [ids]
    if ids is None or not all(type(row) is list and all(type(id_) is int for id_ in row) for row in ids):
        raise Refused("validation", "`ids` must be a list of token ids, or a list of such lists.", "ids")
    if not ids:
        raise Refused("empty", "`ids` cannot be empty.", "ids")
    call.service.check_batch("ids", len(ids))
    call.service.check_ids("ids", ids, whole=False)
    return dumps(await call.or_gone(call.service.alone(call.service.tokenizer.backend.decode_batch, ids, skip)))


async def info(call: Call) -> str:
    """Answer ``GET /info``."""
    service, encoder = call.service, call.service.encoder
    modules = encoder._pipeline.modules  # noqa: SLF001  # no public name tells the pooling
    pooling = "+".join(mode for module in modules if isinstance(module, Pooling) for mode in module.modes)
    return dumps(
        {
            "model_id": service.name,
            "model_sha": service.fingerprint,
            "model_dtype": str(encoder.dtype),
            "served_model_name": service.name,
            "model_type": {"embedding": {"pooling": pooling}},
            # TEI counts texts, and this server tokens: so many texts of the greatest length.
            "max_concurrent_requests": max(1, service.limits.queue_tokens // encoder.max_seq_length),
            "max_input_length": encoder.max_seq_length,
            "max_batch_tokens": service.limits.batch_tokens or encoder.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": service.limits.client_batch,
            "auto_truncate": service.truncates,
            "tokenization_workers": 1,
            "version": service.version,
            "sha": None,
            "docker_label": None,
        }
    )


def _options(call: Call, fields: Fields) -> dict[str, Any]:
    """Return the options that all routes with texts have."""
    side = fields.choice("truncation_direction", ("Right", "Left", "right", "left"), "")
    return {
        "prompt": call.service.prompt(fields.text("prompt_name")),
        "truncate": fields.flag("truncate", call.service.truncates),
        "side": side.lower() or None,
    }


def _matrices(vectors: Sequence[Array]) -> list[str]:
    """Return the vectors of the tokens of each text as JSON."""
    return [matrix(floats(each)) for each in vectors]


def _tokens(service: Service, texts: Sequence[str], special_tokens: bool) -> str:
    """Return the tokens of each text as JSON. Those that the tokenizer adds have no place in the text."""
    with encoding_errors(service.tokenizer.folder):
        encodings = service.tokenizer.backend.encode_batch(texts, add_special_tokens=special_tokens)
    rows = []
    for text, encoding in zip(texts, encodings, strict=True):
        columns = encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets
        rows.append(
            matrix(
                [
                    dumps({"id": id_, "text": name, "special": True, "start": None, "stop": None})
                    if special
                    else dumps({"id": id_, "text": text[start:stop], "special": False, "start": start, "stop": stop})
                    for id_, name, special, (start, stop) in zip(*columns, strict=True)
                ]
            )
        )
    return matrix(rows)
