"""The protocol of Ollama: ``/api/embed``."""

from typing import Any

from minibert.serving.refused import Refused
from minibert.serving.service import Call, dumps, floats, matrix, written


def error(refused: Refused) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of an error."""
    return refused.kind.status, {"error": refused.message}


async def embed(call: Call) -> str:
    """Answer ``POST /api/embed``. No text, or an empty one, gives no vectors."""
    service, fields = call.service, call.fields
    model = fields.text("model")
    service.check_model(model and model.removesuffix(":latest"))
    most = service.width
    dimensions, truncate = fields.whole("dimensions", 0, most) or None, fields.flag("truncate", service.truncates)
    rows, tokens = "[]", 0
    if fields.values.get("input") not in (None, "", []):
        items = fields.items("input", ids=False, blank=True)
        answer = await call.embed("input", items, prompt=service.prompt(None), truncate=truncate)
        rows = matrix(await written(floats, call.service.batcher.finish(answer.vectors, dimensions, normalize=True)))
        tokens = int(answer.lengths.sum())
    return (
        f'{{"model":{dumps(service.name)},"embeddings":{rows},"total_duration":{int(call.seconds * 1e9)},'
        f'"load_duration":0,"prompt_eval_count":{tokens}}}'
    )
