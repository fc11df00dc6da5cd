"""The errors that a client can get, and what each protocol calls them."""

import math
from typing import Final, NamedTuple

__all__ = ["KINDS", "Kind", "Refused"]


class Kind(NamedTuple):
    """A kind of error.

    Attributes:
        status: The HTTP status, except in the protocol of TEI.
        type: OpenAI's type.
        code: OpenAI's code.
        tei_status: The HTTP status in the protocol of TEI.
        tei_type: TEI's type.
        metric: TEI's name in the metrics.
    """

    status: int
    type: str
    code: str | None
    tei_status: int
    tei_type: str
    metric: str = "validation"


_INVALID: Final = "invalid_request_error"

#: All kinds of errors.
KINDS: Final = {
    "validation": Kind(400, _INVALID, None, 422, "Validation"),
    "empty": Kind(400, _INVALID, None, 400, "Empty"),
    "batch_size": Kind(400, _INVALID, None, 422, "Validation", "batch_size"),
    "too_long": Kind(400, _INVALID, "context_length_exceeded", 422, "Validation"),
    "key": Kind(401, _INVALID, "invalid_api_key", 401, "Validation"),
    "model": Kind(404, _INVALID, "model_not_found", 404, "Validation"),
    "route": Kind(404, _INVALID, "unknown_url", 404, "Validation"),
    "method": Kind(405, _INVALID, "method_not_allowed", 405, "Validation"),
    "body_size": Kind(413, _INVALID, None, 413, "Validation"),
    "overloaded": Kind(429, "overloaded", "overloaded", 429, "Overloaded", "overloaded"),
    "tokenization": Kind(500, "server_error", None, 422, "Tokenizer", "tokenization"),
    "bug": Kind(500, "server_error", None, 500, "Backend", "inference"),
    "inference": Kind(500, "server_error", None, 424, "Backend", "inference"),
    "stopping": Kind(503, "overloaded", "stopping", 503, "Unhealthy", "overloaded"),
}


class Refused(Exception):  # noqa: N818 - it is no error of the program
    """A request that gets an error as its answer.

    Attributes:
        kind: What is wrong.
        message: The rule, and what was found. It can quote the request, so it is for the client, never for a log.
        field: The name of the field that is wrong, or None.
        headers: The headers of the answer, in every protocol.
    """

    def __init__(self, kind: str, message: str, field: str | None = None, *, retry_after: float | None = None) -> None:
        """Refuse a request for a reason of :data:`KINDS`. The client can try again after some seconds, or not."""
        super().__init__(kind)
        self.kind = KINDS[kind]
        self.message = message
        self.field = field
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            milliseconds = max(1, math.ceil(retry_after * 1000))
            self.headers = {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}
        elif kind == "key":
            self.headers = {"www-authenticate": "Bearer"}
        elif kind == "body_size":
            self.headers = {"connection": "close"}  # the rest of the body is not read
        elif self.kind.status == 500:
            self.headers = {"x-should-retry": "false"}
