"""``minibert encode``: from texts to vectors, as a stream. Memory does not grow with the number of texts."""

import argparse
import collections
import contextlib
import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

from minibert import __version__, quantization
from minibert.cli.encoder import open_encoder, progress_bar, worth_a_bar
from minibert.cli.files import output_file, refuse_own_input
from minibert.cli.outputs import JsonLines, Output, npy_file, safetensors_file
from minibert.cli.texts import Line, as_fields, open_lines
from minibert.encoder import SentenceEncoder
from minibert.index import BUILTIN_NAME
from minibert.safe.escapes import printable_json
from minibert.typing import Array

#: Number of texts that are held in memory and computed at a time.
_CHUNK = 4096
#: The precisions whose ranges come from all vectors.
_IN_RANGES = {"int8", "uint8"}

#: The output for some texts: the fields of their JSON lines, and their vectors.
_Chunk: TypeAlias = tuple[list[str], Array]


def run(options: argparse.Namespace) -> None:
    """Encode the texts and write their vectors. An output file is written completely or not at all."""
    if not options.texts:
        refuse_own_input(options.output, options.input)
    if options.output is None:
        _encode(options, None)
        return
    # Create the file first: a wrong folder must fail before hours of encoding.
    with output_file(options.output, overwrite=options.overwrite) as path:
        shape = _encode(options, path)
    if sys.stderr.isatty():
        sys.stderr.write(f"minibert: wrote {' x '.join(f'{n:,}' for n in shape)} to {options.output}\n")


def _encode(options: argparse.Namespace, path: Path | None) -> tuple[int, int]:
    """Write the vectors to ``path``, or to standard output if it is None; return the shape of all vectors."""
    with contextlib.ExitStack() as stack:
        lines, count = stack.enter_context(_open(options))
        wanted = min(worth_a_bar(options), _CHUNK)
        start = list(itertools.islice(lines, wanted))
        if len(start) < wanted:
            count = len(start)  # unknown for a pipe
        if options.precision in _IN_RANGES and len(start) == 1:
            raise ValueError(
                f"--precision {options.precision} takes its ranges from all the texts together; there is only one. "
                "Give more, or use float32, binary or ubinary."
            )
        encoder = open_encoder(options)
        like = encoder.encode([], precision=options.precision)
        progress = stack.enter_context(progress_bar(count, options))
        chunks = _quantized(_chunks(encoder, itertools.chain(start, lines), options, progress), options, path)
        output = stack.enter_context(_output(options, path, like))
        writing = contextlib.nullcontext if path is None else functools.partial(_writing, path)
        for fields, vectors in chunks:
            with writing():
                output.write(fields, vectors)
        with writing():
            output.finish()
        return output.count, like.shape[1]


@contextlib.contextmanager
def _open(options: argparse.Namespace) -> Iterator[tuple[Iterator[Line], int | None]]:
    """Give the texts, from the command line or the input, and their number if it is known."""
    if options.texts:
        yield map(Line, options.texts), len(options.texts)
        return
    with open_lines(options.input, options.input_format, with_fields=options.fields == "all") as lines:
        yield lines


def _chunks(
    encoder: SentenceEncoder, lines: Iterable[Line], options: argparse.Namespace, progress: Callable[[int], object]
) -> Iterator[_Chunk]:
    """Yield the vectors when they are computed."""
    held = collections.deque[Line]()

    def texts() -> Iterator[str]:
        for line in lines:
            if options.format == "jsonl":
                held.append(line)
            yield line.text

    vectors = encoder.encode_stream(
        texts(),
        options.prompt_name,
        options.prompt if options.method == "encode" else encoder.prompt_for(options.method),
        chunk_size=_CHUNK,
        batch_size=options.batch_size,
        normalize_embeddings=options.normalize,
        progress=progress,
    )
    for chunk in vectors:
        yield [as_fields(line) for line in held], chunk
        held.clear()


def _quantized(chunks: Iterable[_Chunk], options: argparse.Namespace, path: Path | None) -> Iterator[_Chunk]:
    """Yield vectors in the requested precision.

    Ranges come from all vectors. So the vectors are kept on disk, in the folder of the output, until all are computed.
    """
    if options.precision not in _IN_RANGES:
        for fields, vectors in chunks:
            quantized = vectors
            if options.precision != "float32":
                quantized = quantization.quantize_embeddings(vectors, options.precision)
            yield fields, quantized
        return
    ranges, count = quantization.Ranges(), 0
    folder = None if path is None else path.parent
    with tempfile.TemporaryFile(dir=folder) as waiting, tempfile.TemporaryFile(dir=folder) as waiting_fields:
        for fields, vectors in chunks:
            ranges.add(vectors)
            np.save(waiting, vectors)
            waiting_fields.writelines(f"{line}\n".encode() for line in fields)
            count += 1
        if not count:
            return
        limits = ranges.result(options.precision)
        waiting.seek(0)
        waiting_fields.seek(0)
        for _ in range(count):
            vectors = np.load(waiting)
            fields = [line.decode().removesuffix("\n") for line in itertools.islice(waiting_fields, len(vectors))]
            yield fields, quantization.quantize_embeddings(vectors, options.precision, limits)


@contextlib.contextmanager
def _output(options: argparse.Namespace, path: Path | None, like: Array) -> Iterator[Output]:
    """Give the output for vectors with the dtype and width of an empty array."""
    if path is None:
        yield JsonLines(sys.stdout.buffer, printable_json if sys.stdout.isatty() else str)
        return
    file = path.open("wb")
    try:
        with _writing(path):
            output = _file_output(options, file, like)
        yield output
    except BaseException:
        with contextlib.suppress(OSError):  # the disk can still be full
            file.close()
        raise
    file.close()


def _file_output(options: argparse.Namespace, file: BinaryIO, like: Array) -> Output:
    if options.format == "jsonl":
        return JsonLines(file)
    if options.format == "npy":
        return npy_file(file, like)
    model = BUILTIN_NAME if options.model is None else options.model
    metadata = {
        "model": model.encode("utf-8", "backslashreplace").decode("utf-8"),  # a folder name can have any bytes
        "minibert": __version__,
        "precision": options.precision,
        "normalize": str(options.normalize).lower(),
    }
    return safetensors_file(file, like, metadata)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Add the file name to an OSError of the block. Errors such as a full disk have no file name."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error
