"""``minibert serve``: vectors over HTTP."""

import argparse
import codecs
import ipaddress
import logging
import os
import re
from pathlib import Path

from minibert import __version__
from minibert.cli.encoder import open_encoder
from minibert.index import BUILTIN_NAME

logger = logging.getLogger("minibert")

_KEY_VARIABLE = "MINIBERT_API_KEY"


def run(options: argparse.Namespace) -> None:
    """Serve the model until a signal."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError('minibert serve needs starlette and uvicorn: pip install "minibert[serve]"') from error
    from minibert.serving.app import application
    from minibert.serving.batcher import Batcher
    from minibert.serving.metrics import Metrics
    from minibert.serving.process import bound, run
    from minibert.serving.service import Limits, Service

    keys = _keys(options.api_key_file)
    with bound(options.host, options.port) as own:  # first: a port in use must fail before the model is read
        if not keys and not ipaddress.ip_address(own.getsockname()[0].partition("%")[0]).is_loopback:
            logger.warning(
                "other machines can reach %s, and no key is required: give --api-key-file, or listen on 127.0.0.1",
                options.host,
            )
        encoder = open_encoder(options)
        metrics = Metrics()
        batcher = Batcher(
            encoder,
            max_queue_tokens=options.max_queue_tokens,
            max_batch_tokens=options.max_batch_tokens,
            max_wait=options.max_wait_ms / 1000,
            metrics=metrics,
        )
        limits = Limits(
            client_batch=options.max_client_batch_size,
            body_bytes=options.max_body_bytes,
            queue_tokens=options.max_queue_tokens,
            batch_tokens=options.max_batch_tokens,
            strict_model=options.strict_model,
        )
        service = Service(encoder, batcher, metrics, name=_name(options), version=__version__, limits=limits, keys=keys)
        run(
            application(service, cors_origins=tuple(options.cors_origin)),
            service,
            own,
            keep_alive=options.timeout_keep_alive,
            shutdown_delay=options.shutdown_delay,
            shutdown_timeout=options.shutdown_timeout,
        )


def _name(options: argparse.Namespace) -> str:
    """Return the name of the model for clients. Of a folder, it is the last part: its path is nobody's business."""
    name = options.served_model_name or options.model or BUILTIN_NAME
    if not options.served_model_name and Path(name).is_dir():
        name = Path(name).resolve().name
    return name.encode(errors="replace").decode()  # the name of a folder can have bytes that are no characters


def _keys(file: Path | None) -> list[bytes]:
    """Return the keys in a file and in the environment, one on each line.

    Raises:
        ValueError: One of them is there, but has no keys. The server must not be open then.
    """
    sources = {} if file is None else {str(file): file.read_bytes()}
    if _KEY_VARIABLE in os.environ:
        sources[f"the variable {_KEY_VARIABLE}"] = os.environ[_KEY_VARIABLE].encode("utf-8", "surrogateescape")
    keys = []
    for source, content in sources.items():
        lines = re.split(rb"[\r\n]+", content.removeprefix(codecs.BOM_UTF8))
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"{source} must have a key on each line; it has none. Without keys, leave it out.")
        keys += found
    return keys
