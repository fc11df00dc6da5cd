"""The protocol of OpenAI: ``/v1/embeddings`` and ``/v1/models``."""

from typing import Any, Final

from minibert.serving.fields import Refused
from minibert.serving.service import Call, base64s, dumps, floats, matrix, written

#: The status, type and code of each kind of error.
ERRORS: Final[dict[str, tuple[int, str, str | None]]] = {
    "validation": (400, "invalid_request_error", None),
    "empty": (400, "invalid_request_error", None),
    "batch_size": (400, "invalid_request_error", None),
    "too_long": (400, "invalid_request_error", "context_length_exceeded"),
    "key": (401, "invalid_request_error", "invalid_api_key"),
    "model": (404, "invalid_request_error", "model_not_found"),
    "route": (404, "invalid_request_error", "unknown_url"),
    "method": (405, "invalid_request_error", "method_not_allowed"),
    "body_size": (413, "invalid_request_error", None),
    "overloaded": (429, "overloaded", "overloaded"),
    "bug": (500, "server_error", None),
    "inference": (500, "server_error", None),
    "stopping": (503, "overloaded", "stopping"),
}


def error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error."""
    status, kind, code = ERRORS[refused.kind]
    return status, {"error": {"message": refused.message, "type": kind, "param": refused.field, "code": code}}


async def embeddings(call: Call) -> str:
    """Answer ``POST /v1/embeddings``. ``prompt_name``, ``truncate`` and ``normalize`` are our extensions."""
    fields = call.fields
    call.service.check_model(fields.text("model"))
    items = fields.items("input")
    write = base64s if fields.choice("encoding_format", ("float", "base64"), "float") == "base64" else floats
    dimensions, normalize = call.dimensions(), fields.flag("normalize", True)
    prompt, truncate = call.service.prompt(fields.text("prompt_name")), fields.flag("truncate", call.service.truncates)
    answer = await call.embed("input", items, prompt=prompt, truncate=truncate)
    rows = await written(write, call.service.batcher.finish(answer.vectors, dimensions, normalize=normalize))
    data = [f'{{"object":"embedding","index":{index},"embedding":{row}}}' for index, row in enumerate(rows)]
    tokens = int(answer.lengths.sum())
    usage = f'{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}'
    return f'{{"object":"list","data":{matrix(data)},"model":{dumps(call.service.name)},"usage":{usage}}}'


async def models(call: Call) -> str:
    """Answer ``GET /v1/models``."""
    return dumps({"object": "list", "data": [_model(call)]})


async def model(call: Call) -> str:
    """Answer ``GET /v1/models/{id}``."""
    name = call.request.path_params["id"]
    if name != call.service.name:
        found = f"The model {name!a} does not exist; this server has {call.service.name!a}."
        raise Refused("model", found, "model")
    return dumps(_model(call))


def _model(call: Call) -> dict[str, Any]:
    service = call.service
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "minibert"}
