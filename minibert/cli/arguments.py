"""The arguments of each command."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from minibert import __version__
from minibert.cli import help_texts

#: The output formats by file suffix.
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".npy": "npy", ".safetensors": "safetensors"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check ``argv``. Wrong usage prints a message and exits with status 2."""
    parser = _Parser(
        prog="minibert",
        description=help_texts.DESCRIPTION,
        epilog=help_texts.EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"minibert {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add(name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=description, epilog=epilog)

    encode = add("encode", "turn texts into vectors", help_texts.ENCODE, help_texts.ENCODE_EPILOG)
    index = add("index", "encode texts for many searches", help_texts.INDEX, help_texts.INDEX_EPILOG)
    search = add("search", "find texts by their meaning", help_texts.SEARCH, help_texts.SEARCH_EPILOG)
    explain = add("explain", "show why texts are similar", help_texts.EXPLAIN, help_texts.EXPLAIN_EPILOG)
    embed = add("embed", "encode files of any size, as a job", help_texts.EMBED, help_texts.EMBED_EPILOG)
    serve = add("serve", "serve vectors over HTTP", help_texts.SERVE, help_texts.SERVE_EPILOG)
    inspect = add("inspect", "print the facts about a model repo", help_texts.INSPECT, help_texts.INSPECT_EPILOG)
    convert = add(
        "convert", "write a model repo with safetensors weights", help_texts.CONVERT, help_texts.CONVERT_EPILOG
    )
    download = add("download", "download a model from the hub", help_texts.DOWNLOAD, help_texts.DOWNLOAD_EPILOG)
    _add_encode(encode)
    _add_index(index)
    _add_search(search)
    _add_explain(explain)
    _add_embed(embed)
    _add_serve(serve)
    _add_model(inspect, nargs="?", default_text=" (default: the built-in English model)")
    inspect.add_argument("--json", action="store_true", help="print one JSON object, for other programs")
    _add_model(convert)
    _add_convert(convert)
    _add_model(download)

    options = parser.parse_args(argv)
    checks = {
        "encode": _check_encode,
        "index": _check_index,
        "search": _check_search,
        "explain": _check_explain,
        "embed": _check_embed,
        "inspect": _check_inspect,
        "serve": _check_serve,
    }
    if options.command in checks:
        checks[options.command](commands.choices[options.command], options)
    return options


class _Parser(argparse.ArgumentParser):
    """argparse's parser. It keeps the lines of texts. It has no abbreviations: a new option could break them."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)


def _add_encode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="a text to encode; put -- before a text that begins with a dash"
    )
    _add_model_option(parser)

    files = parser.add_argument_group("input and output")
    _add_input(files, "default, where no TEXT is given")
    files.add_argument("--output", metavar="FILE", help='the file to write; "-" is standard output (default)')
    files.add_argument(
        "--format",
        choices=sorted(set(FORMATS.values())),
        help="the output format (default: by the suffix of FILE; jsonl for standard output)",
    )
    files.add_argument(
        "--fields",
        choices=("all", "text"),
        help="what an output line has besides the embedding, if input and output are JSON lines: all fields of the "
        "input line (default), or only the text",
    )
    files.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")

    vectors = _add_vectors(parser)
    vectors.add_argument(
        "--precision",
        choices=("float32", "int8", "uint8", "binary", "ubinary"),
        default="float32",
        help="float32 (default); int8, uint8: one byte per dimension, with ranges from all the texts; "
        "binary, ubinary: one bit per dimension, eight in a byte (int8, uint8)",
    )

    _add_prompt(parser)
    _add_computation(parser)
    _add_hub(parser)


def _add_embed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="a file, a folder, or a pattern in quotation marks, in this order"
    )
    _add_model_option(parser)
    source = parser.add_argument_group("input")
    source.add_argument(
        "--input-format",
        choices=("text", "jsonl", "csv", "parquet", "arrow"),
        help="the format of all files (default: by their names)",
    )
    source.add_argument("--column", metavar="NAME", default="text", help="the column of texts (default: text)")
    source.add_argument(
        "--id-column",
        metavar="NAME",
        help='the column that becomes "id" (default: "id" is the number of the row, from 0)',
    )
    source.add_argument(
        "--on-error",
        choices=("error", "skip"),
        default="error",
        help="what to do with a row that cannot be encoded, such as null or invalid UTF-8: stop before anything is "
        "computed (default), or write it to a file .skipped.jsonl",
    )
    result = parser.add_argument_group("output")
    result.add_argument("--output", metavar="DIR", help="the folder to write, or to continue")
    result.add_argument("--verify", metavar="DIR", help="check the files of a finished job instead")
    result.add_argument("--format", choices=("parquet", "npy"), default="parquet", help="the format (default: parquet)")
    result.add_argument(
        "--keep",
        metavar="NAMES",
        help="the columns of the input to keep: all, none, or names with commas (default: all; for npy, none)",
    )
    result.add_argument(
        "--compression", choices=("none", "zstd"), default="none", help="the compression of Parquet (default: none)"
    )
    result.add_argument(
        "--shard-rows", metavar="N", type=_positive, default=65536, help="input rows of a shard (default: 65536)"
    )
    result.add_argument(
        "--shards",
        metavar="I/N",
        type=_part,
        default=(1, 1),
        help="compute only every N-th shard, from shard I on; other processes compute the others (I is 1 to N)",
    )
    vectors = _add_vectors(parser)
    vectors.add_argument(
        "--precision",
        choices=("float32", "float16", "binary", "ubinary"),
        default="float32",
        help="float32 (default), float16; binary, ubinary: one bit per dimension, eight in a byte",
    )
    _add_prompt(parser)
    _add_computation(parser)
    _add_hub(parser)


def _add_vectors(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("vectors")
    group.add_argument(
        "--normalize", action="store_true", help="scale the vectors to length 1, even if the model does not"
    )
    _add_truncate_dim(group)
    return group


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_argument_group(
        "prompts", "A prompt is put before each text. By default it is the model's default prompt,\nif there is one."
    ).add_mutually_exclusive_group()
    prompts.add_argument("--prompt", metavar="TEXT", help='this prompt, such as "query: "; "" for no prompt')
    prompts.add_argument("--prompt-name", metavar="NAME", help="the model's prompt with this name")
    for method, what in (("query", "queries"), ("document", "documents")):
        prompts.add_argument(
            f"--{method}",
            dest="method",
            action="store_const",
            const=method,
            default="encode",
            help=f"the model's prompt for {what}, as in encode_{method}",
        )


def _add_index(parser: argparse.ArgumentParser) -> None:
    _add_model_option(parser)
    files = parser.add_argument_group("input and output")
    _add_input(files, "default")
    files.add_argument("--output", metavar="FILE", required=True, type=Path, help="the file to write")
    files.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    _add_truncate_dim(parser.add_argument_group("vectors"))
    _add_prompts(parser, 'By default the model\'s own; "" for no prompt. The index keeps both.')
    _add_computation(parser)
    _add_hub(parser)


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "questions",
        nargs="*",
        metavar="QUESTION",
        help="what to look for; put -- before a question that begins with a dash",
    )
    _add_model_option(parser)
    files = parser.add_argument_group("where to search")
    _add_input(files, "default, where no --index is given")
    files.add_argument("--index", metavar="FILE", help="search in FILE, which `minibert index` wrote")

    output = parser.add_argument_group("output")
    output.add_argument(
        "--top-k", metavar="N", type=_positive, default=5, help="how many texts to find for each question (default: 5)"
    )
    output.add_argument("--json", action="store_true", help="print JSON lines, for other programs")
    parser.set_defaults(truncate_dim=None)  # the index defines the dimensions
    _add_prompts(parser, 'By default those of the index, or the model\'s own; "" for no prompt.')
    _add_computation(parser)
    _add_hub(parser)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", help="a text; put -- before a text that begins with a dash")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="a text to compare it with")
    _add_model_option(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--html", metavar="FILE", type=Path, help="write a page to FILE instead")
    output.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument_group("prompts", "By default the model's default prompt, if there is one.").add_argument(
        "--prompt", metavar="TEXT", help='what is put before each text; "" for no prompt'
    )
    # The reference computes, in float64 and on a CPU.
    parser.set_defaults(device=None, dtype=None, num_threads=None, truncate_dim=None, on_truncate="warn")
    _add_hub(parser)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_model_option(parser)
    parser.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients (default: its own)")
    address = parser.add_argument_group("address and access")
    address.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    address.add_argument("--port", metavar="N", type=_port, default=8080, help="the port (default: 8080; 0: any)")
    address.add_argument("--api-key-file", metavar="FILE", type=Path, help="require one of the keys in FILE")
    address.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let web pages of ORIGIN call the server; can be given several times (default: none)",
    )
    address.add_argument(
        "--strict-model", action="store_true", help="refuse requests that name another model (default: answer them)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-queue-tokens",
        metavar="N",
        type=_positive,
        default=262_144,
        help="the most tokens that wait; further requests get 429 (default: 262144)",
    )
    limits.add_argument(
        "--max-batch-tokens",
        metavar="N",
        type=_positive,
        help="tokens that each thread computes at a time (default: depends on the model and the machine)",
    )
    limits.add_argument(
        "--max-wait-ms",
        metavar="MS",
        type=_seconds,
        default=0.0,
        help="how long a request waits for others, to make larger batches (default: 0)",
    )
    limits.add_argument(
        "--max-client-batch-size",
        metavar="N",
        type=_positive,
        default=2048,
        help="the most texts of a request (default: 2048)",
    )
    limits.add_argument(
        "--max-body-bytes",
        metavar="N",
        type=_positive,
        default=8_000_000,
        help="the most bytes of a request (default: 8000000)",
    )
    times = parser.add_argument_group("connections and stopping")
    times.add_argument(
        "--timeout-keep-alive",
        metavar="S",
        type=_positive,
        default=75,
        help="seconds after which an idle connection is closed (default: 75)",
    )
    times.add_argument(
        "--shutdown-delay",
        metavar="S",
        type=_seconds,
        default=0.0,
        help="seconds between the first failing health check and the end of listening, for load balancers (default: 0)",
    )
    times.add_argument(
        "--shutdown-timeout",
        metavar="S",
        type=_seconds,
        default=30.0,
        help="seconds that requests in flight have at most (default: 30)",
    )
    _add_truncate_dim(parser.add_argument_group("vectors"))
    work = parser.add_argument_group("computation")
    _add_device(work)
    work.add_argument(
        "--on-truncate",
        choices=("ignore", "error"),
        default="ignore",
        help="what to do with texts that have more tokens than the model's maximum length, if a request does not say: "
        "cut them (default), or refuse them",
    )
    _add_hub(parser)


def _add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="a folder, or a repo id of the Hugging Face hub (default: the built-in English model)",
    )


def _add_input(group: argparse._ArgumentGroup, when: str) -> None:
    group.add_argument("--input", metavar="FILE", help=f'the file with the texts; "-" is standard input ({when})')
    group.add_argument(
        "--input-format",
        choices=("text", "jsonl"),
        help="the input format (default: jsonl if FILE ends in .jsonl or .ndjson, else text)",
    )


def _add_truncate_dim(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--truncate-dim", metavar="N", type=_positive, help="keep the first N dimensions (default: what the model says)"
    )


def _add_prompts(parser: argparse.ArgumentParser, default: str) -> None:
    prompts = parser.add_argument_group("prompts", default)
    prompts.add_argument("--document-prompt", metavar="TEXT", help="what is put before each text")
    prompts.add_argument("--query-prompt", metavar="TEXT", help="what is put before each question")


def _add_computation(parser: argparse.ArgumentParser) -> None:
    work = parser.add_argument_group("computation")
    _add_device(work)
    work.add_argument(
        "--batch-size",
        metavar="N",
        type=_positive,
        help="the most texts in a batch (default: no limit; batches are limited by their tokens)",
    )
    work.add_argument(
        "--on-truncate",
        choices=("warn", "ignore", "error"),
        default="warn",
        help="what to do if texts have more tokens than the model's maximum length and are cut: warn once (default), "
        "say nothing, or stop with an error",
    )


def _add_device(work: argparse._ArgumentGroup) -> None:
    work.add_argument("--device", metavar="DEVICE", help="cpu (default); cuda or cuda:N for an NVIDIA GPU")
    work.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="the precision of the arithmetic: on a CPU float32 (default) or float64, on a GPU float16 (default), "
        "bfloat16 or float32",
    )
    work.add_argument(
        "--num-threads",
        metavar="N",
        type=_positive,
        help="the number of threads that compute (default: one for each core); on a GPU, of streams (default: 2)",
    )


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "output", metavar="OUTPUT_DIR", type=Path, help="the folder to write; it must not exist, or be empty"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="the dtype of the weights in the file (default: float32)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace OUTPUT_DIR if it is the folder of another model"
    )


def _add_model(parser: argparse.ArgumentParser, nargs: Literal["?"] | None = None, default_text: str = "") -> None:
    parser.add_argument(
        "model", metavar="MODEL", nargs=nargs, help=f"a folder, or a repo id of the Hugging Face hub{default_text}"
    )
    _add_hub(parser)


def _add_hub(parser: argparse.ArgumentParser) -> None:
    hub = parser.add_argument_group("Hugging Face hub")
    hub.add_argument("--revision", metavar="REV", help="a branch, tag or commit of the repo (default: main)")
    hub.add_argument("--cache-folder", metavar="DIR", help="the folder of the cache (default: the Hugging Face cache)")
    hub.add_argument("--local-files-only", action="store_true", help="use only the cache, not the network")


def _check_encode(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set the defaults that depend on other arguments, and refuse contradictions."""
    if options.texts and options.input is not None:
        parser.error("TEXT and --input cannot be given together")
    if options.texts and options.input_format is not None:
        parser.error("--input-format is for --input and standard input, not for TEXT")
    _check_input_and_model(parser, options)
    if options.output in {None, "-"}:
        options.output = None
        options.format = options.format or "jsonl"
        if options.format != "jsonl":
            parser.error(f"{options.format} is not for standard output: give --output FILE")
    else:
        options.output = Path(options.output)
        options.format = options.format or FORMATS.get(options.output.suffix)
        if options.format is None:
            parser.error(f"--output must end in {', '.join(FORMATS)}, or give --format; it is {options.output}")
    copies = not options.texts and options.input_format == options.format == "jsonl"
    if options.fields is not None and not copies:
        parser.error("--fields is for JSON lines as input and as output")
    options.fields = (options.fields or "all") if copies else "text"


def _check_index(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    _check_input_and_model(parser, options)
    if str(options.output) == "-":
        parser.error("an index is not for standard output: give --output a file")


def _check_search(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not all(question.strip() for question in options.questions):
        parser.error("a QUESTION must not be blank")
    if options.index is not None:
        for name in ("input", "input_format", "document_prompt", "batch_size"):
            if getattr(options, name) is not None:
                parser.error(
                    f"--{name.replace('_', '-')} is for texts that are not in an index: leave it or --index out"
                )
    elif not options.questions and options.input in {None, "-"}:
        parser.error("give a QUESTION, or --input or --index a file; standard input cannot hold texts and questions")
    _check_input_and_model(parser, options)


def _check_input_and_model(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Set the source and the format of the texts."""
    if options.input is None:
        options.input = "-"
    if options.input_format is None:
        options.input_format = "jsonl" if FORMATS.get(Path(options.input).suffix) == "jsonl" else "text"
    _check_revision(parser, options, "--model")


def _check_explain(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.overwrite and options.html is None:
        parser.error("--overwrite is for --html")
    if options.html is not None and str(options.html) in {"-", "."}:  # "." is the path of an empty name
        parser.error("a page is not for standard output: give --html a file")
    _check_revision(parser, options, "--model")


def _check_embed(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.verify is not None:
        if options.inputs or options.output is not None:
            parser.error("--verify is for a finished job: leave INPUT and --output out")
    elif not options.inputs or options.output is None:
        parser.error("give INPUT and --output, or --verify")
    if options.compression != "none" and options.format != "parquet":
        parser.error("--compression is for --format parquet")
    _check_revision(parser, options, "--model")


def _check_inspect(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    _check_revision(parser, options, "MODEL")


def _check_serve(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.served_model_name is not None and not options.served_model_name.strip():
        parser.error("--served-model-name must not be blank")
    _check_revision(parser, options, "--model")


def _check_revision(parser: argparse.ArgumentParser, options: argparse.Namespace, model: str) -> None:
    """Refuse a revision without a model."""
    if options.model is None and options.revision is not None:
        parser.error(f"--revision is for a repo of the hub: give its {model}")


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 3/8; it is {text!r}")
    return int(number), int(parts)


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; it is {text!r}")
    return number


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535; it is {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0; it is {text!r}")
    return number
