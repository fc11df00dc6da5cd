"""The protocol of OpenAI: ``/v1/embeddings`` and ``/v1/models``."""

from typing import Any

from minibert.serving.refused import Refused
from minibert.serving.service import Call, base64s, dumps, floats, matrix, written


def error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error."""
    kind = refused.kind
    found = {"message": refused.message, "type": kind.type, "param": refused.field, "code": kind.code}
    return kind.status, {"error": found}


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
