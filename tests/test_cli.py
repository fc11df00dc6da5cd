"""The command line: what it reads and writes, what it refuses, and that no output is ever left half done."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from cli_support import BUFFERED, COMMAND, listing, records, usage_error
from safetensors.numpy import save_file
from support import ROOT, copy_twin, edit_json, edit_weights, load

from minibert import SentenceEncoder, __version__
from minibert.cli import main
from minibert.files import hub

TEXTS = ["the cat", "", "a man and the hat", "play\u2028ing"]


@pytest.fixture
def encode(repo, here, monkeypatch):
    """Return a function that runs ``minibert encode`` in ``here``, with bytes on standard input."""

    def run(*argv, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return main(["encode", "--model", str(repo), *map(str, argv)])

    return run


# --- encode: input ---------------------------------------------------------------------------------------------------


def test_texts_as_arguments(encode, repo, capsys):
    """Each TEXT gives a JSON line with the vector that SentenceEncoder computes, bit for bit."""
    assert encode(*TEXTS) == 0

    found = records(capsys.readouterr().out)
    assert [record["text"] for record in found] == TEXTS
    vectors = np.array([record["embedding"] for record in found], np.float32)
    np.testing.assert_array_equal(vectors, SentenceEncoder(repo).encode(TEXTS))


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("lines.txt", b"the cat\na man\n", ["the cat", "a man"]),
        ("no-last-end.txt", b"the cat\na man", ["the cat", "a man"]),
        ("windows.txt", b"\xef\xbb\xbfthe cat\r\na man\r\n", ["the cat", "a man"]),
        ("blank-lines.txt", b"\nthe cat\n\n", ["", "the cat", ""]),
        ("separators.txt", "a\u2028b\x0bc\x85d\re\n".encode(), ["a\u2028b\x0bc\x85d\re"]),
        ("empty.txt", b"", []),
        ("records.jsonl", b'{"text": "a\\nman", "id": 3}\r\n{"text": ""}\n', ["a\nman", ""]),
        ("records.ndjson", '{"text": "a\u2028man"}'.encode(), ["a\u2028man"]),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_input_forms(encode, here, name, content, texts, by_name):
    """Line n of a file, or of standard input, is row n of the output."""
    (here / name).write_bytes(content)
    kind = "text" if name.endswith(".txt") else "jsonl"
    arguments = ["--input", name] if by_name else ["--input-format", kind]

    assert encode(*arguments, "--output", "out.jsonl", stdin=content) == 0

    written = (here / "out.jsonl").read_text("utf-8")
    assert ([record["text"] for record in records(written)] if written else []) == texts


def test_dash_is_standard_input(encode, capsys):
    """``--input -`` reads standard input."""
    assert encode("--input", "-", stdin=b"the cat\n") == 0
    assert records(capsys.readouterr().out)[0]["text"] == "the cat"


def test_input_format_overrides_the_suffix(encode, here, capsys):
    """``--input-format text`` takes a .jsonl file for lines of text."""
    (here / "x.jsonl").write_bytes(b"{}\n")

    assert encode("--input", "x.jsonl", "--input-format", "text") == 0
    assert records(capsys.readouterr().out)[0]["text"] == "{}"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nna\xefve\n", "a.txt: line 2 must be UTF-8; its byte 3, 0xef, is not. Convert the file"),
        ("a.jsonl", b'{"text": ""}\n{"text": "\xff"}', "a.jsonl: line 2 must be UTF-8; its byte 11, 0xff, is not"),
        ("a.jsonl", b'{"text": ""}\nthe cat\n', 'line 2 must be a JSON object with a "text" field; it is not JSON'),
        ("a.jsonl", b'{"text": ""}\n\n{"text": ""}', 'line 2 must be a JSON object with a "text" field; it is blank'),
        ("a.jsonl", b"[" * 100_000, 'line 1 must be a JSON object with a "text" field; it is nested too deeply'),
        ("a.jsonl", b'["text"]', 'line 1 must be a JSON object with a "text" field; it is ["text"]'),
        ("a.jsonl", b'{"title": "", "body": ""}', 'a "text" field; its fields are "title", "body"'),
        ("a.jsonl", b"{}", 'a "text" field; its fields are none'),
        ("a.jsonl", b'{"text": null}', "line 1 must have a string in its text field; it has null"),
        ("a.jsonl", b'{"text": ["%s"]}' % (b"x" * 99), 'its text field; it has ["xxx'),
        ("a.jsonl", b'{"text": "a\\ud800"}', "line 1 must have valid Unicode in its text field; character 2 is"),
    ],
)
def test_unusable_line_is_named(encode, here, capsys, name, content, message):
    """An unusable line is an error that has its number, counted from 1, and what was found."""
    (here / name).write_bytes(content)

    assert encode("--input", name, "--output", "out.npy") == 1

    error = capsys.readouterr().err
    assert error.startswith("minibert: error: a.")
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < 200
    assert listing(here) == [name]


def test_missing_input_is_named(encode, capsys):
    """An input file that is not there is an error with its name, without an errno."""
    assert encode("--input", "nowhere.txt") == 1
    assert capsys.readouterr().err == "minibert: error: nowhere.txt: No such file or directory\n"


def test_terminal_is_told_that_it_is_read(repo, capsys, monkeypatch):
    """Before texts are read from a terminal, standard error says so."""
    terminal = types.SimpleNamespace(isatty=lambda: True, buffer=io.BytesIO(b"the cat\n"))
    monkeypatch.setattr(sys, "stdin", terminal)

    assert main(["encode", "--model", str(repo)]) == 0
    assert "reading texts from the terminal, one a line; Ctrl-D ends them" in capsys.readouterr().err


# --- encode: output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("suffix", ["jsonl", "npy", "safetensors"])
@pytest.mark.filterwarnings("error")
def test_output_forms(encode, repo, here, suffix, precision):
    """Each format, chosen by the suffix, holds the vectors of each precision exactly, in order and in their dtype."""
    assert encode(*TEXTS, "--output", f"out.{suffix}", "--precision", precision) == 0

    expected = SentenceEncoder(repo).encode(TEXTS, precision=precision)
    path = here / f"out.{suffix}"
    if suffix == "jsonl":
        rows = [record["embedding"] for record in records(path.read_text("utf-8"))]
        assert {type(number) for row in rows for number in row} == {float if precision == "float32" else int}
        found = np.array(rows, expected.dtype)
    else:
        found = np.load(path) if suffix == "npy" else load(path)[0]["embeddings"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert listing(here) == [path.name]


def test_numbers_are_short(encode, capsys):
    """Numbers in JSON lines have a float32's digits, not a float64's; non-ASCII text stays as it is."""
    assert encode("the café") == 0

    line = capsys.readouterr().out
    assert "café" in line
    assert all(number == str(np.float32(number)) for number in line.split("[")[1].rstrip("]}\n").split(","))


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "safetensors"])
def test_no_text_gives_an_empty_output(encode, here, suffix):
    """No text at all gives no line, or an array of (0, D)."""
    assert encode("--output", f"out.{suffix}", stdin=b"") == 0

    path = here / f"out.{suffix}"
    if suffix == "jsonl":
        assert path.read_bytes() == b""
    else:
        assert (np.load(path) if suffix == "npy" else load(path)[0]["embeddings"]).shape == (0, 16)


def test_safetensors_metadata(encode, repo, here):
    """A safetensors output says what made it."""
    assert encode("the cat", "--output", "out.safetensors", "--normalize") == 0

    assert load(here / "out.safetensors")[1] == {
        "model": str(repo),
        "minibert": __version__,
        "precision": "float32",
        "normalize": "true",
        "count": "1",
    }


def test_built_in_model_is_used_and_named(here, capsys):
    """Without --model the built-in one computes; standard error says so, and so do the metadata."""
    encoder = SentenceEncoder()

    assert main(["encode", "the cat", "--cache-folder", "cache", "--local-files-only"]) == 0

    said = capsys.readouterr()
    (record,) = records(said.out)
    assert record["text"] == "the cat"
    np.testing.assert_array_equal(np.array(record["embedding"], np.float32), encoder.encode("the cat"))
    width = encoder.get_embedding_dimension()
    assert said.err == f"minibert: using the built-in model (English, {width} dimensions); --model names another\n"
    assert listing(here) == []

    assert main(["encode", "the cat", "--output", "out.safetensors"]) == 0
    assert load(here / "out.safetensors")[1]["model"] == "built-in"


def test_format_overrides_the_suffix(encode, here):
    """``--format`` decides, whatever the suffix."""
    assert encode("the cat", "--output", "out.dat", "--format", "npy") == 0
    assert np.load(here / "out.dat").shape == (1, 16)


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "safetensors"])
def test_new_files_have_the_usual_permissions(encode, here, suffix):
    """An output may be read by whom the umask lets, in every format."""
    before = os.umask(0o027)
    try:
        assert encode("the cat", "--output", f"out.{suffix}") == 0
    finally:
        os.umask(before)
    assert (here / f"out.{suffix}").stat().st_mode & 0o777 == 0o640


def test_replaced_file_keeps_its_permissions_and_links(encode, here):
    """--overwrite leaves a private file private, and a symbolic link in its place."""
    (here / "real.npy").touch(mode=0o600)
    (here / "link.npy").symlink_to("real.npy")

    assert encode("the cat", "--output", "link.npy", "--overwrite") == 0

    assert (here / "link.npy").is_symlink()
    assert (here / "real.npy").stat().st_mode & 0o777 == 0o600
    assert np.load(here / "real.npy").shape == (1, 16)


def test_json_has_no_nan(encode, capsys, monkeypatch):
    """A vector with NaN or infinity is an error in JSON lines, which have no such numbers."""
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *_, **__: np.array([[1.0, 2.0], [np.inf, 1.0]], np.float32))

    assert encode("a", "b") == 1
    assert "the vector of text 2 has" in capsys.readouterr().err


# --- encode: options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--normalize"], lambda e: e.encode(TEXTS, normalize_embeddings=True)),
        (["--truncate-dim", "5"], lambda e: e.encode(TEXTS, truncate_dim=5)),
        (["--device", "cpu"], lambda e: e.encode(TEXTS)),
        (["--batch-size", "1"], lambda e: e.encode(TEXTS, batch_size=1)),
        (["--prompt", "the "], lambda e: e.encode(TEXTS, prompt="the ")),
        (["--prompt", ""], lambda e: e.encode(TEXTS, prompt="")),
        (["--prompt-name", "extra"], lambda e: e.encode(TEXTS, prompt_name="extra")),
        (["--query"], lambda e: e.encode_query(TEXTS)),
        (["--document"], lambda e: e.encode_document(TEXTS)),
        ([], lambda e: e.encode(TEXTS, prompt_name="default")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_encodes_arguments(encode, repo, here, arguments, expected):
    """Each option does what the argument of encode does."""
    prompts = {"query": "a ", "document": "the ", "extra": "in ", "default": "no "}
    edit_json(repo / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="default")

    assert encode(*TEXTS, *arguments, "--output", "out.npy") == 0

    np.testing.assert_array_equal(np.load(here / "out.npy"), expected(SentenceEncoder(repo)))


def test_unknown_prompt_name_lists_the_prompts(encode, capsys):
    """A prompt that the model does not have is an error that lists those that it has."""
    assert encode("a", "--prompt-name", "passage") == 1
    assert "prompt_name must be one of query, document" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_truncation_is_one_line_on_stderr(encode, capsys):
    """Texts that are cut give one warning, without a place in the source."""
    assert encode("the cat " * 400, "a", "a man " * 300) == 0

    error = capsys.readouterr().err
    assert error.startswith("minibert: warning: 2 of 3 texts were cut to max_seq_length = 512")
    assert error.count("\n") == 1


def test_truncation_can_be_ignored(encode, capsys):
    """``--on-truncate ignore`` says nothing."""
    assert encode("the cat " * 400, "--on-truncate", "ignore") == 0
    assert capsys.readouterr().err == ""


def test_truncation_can_be_an_error(encode, here, capsys):
    """``--on-truncate error`` writes nothing."""
    assert encode("the cat " * 400, "--on-truncate", "error", "--output", "out.npy") == 1
    assert "max_seq_length = 512" in capsys.readouterr().err
    assert listing(here) == []


def test_log_messages_are_one_line_on_stderr(encode, capsys):
    """What the library logs is told as warnings are, by a handler that is gone afterwards."""
    assert encode("a", "the", "--precision", "uint8") == 0

    assert capsys.readouterr().err.startswith("minibert: warning: uint8 ranges come from 2 vectors only")
    assert not logging.getLogger("minibert").handlers


def test_ranges_of_one_text_are_refused_early(encode, capsys, monkeypatch):
    """int8 of a single text is refused before the model is loaded."""
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))

    assert encode("a", "--precision", "int8") == 1
    assert "Give more, or use float32, binary or ubinary" in capsys.readouterr().err


@pytest.mark.parametrize(("texts", "shown"), [(["a", "the"], True), (["a"], False)])
def test_progress_is_shown_on_a_terminal(encode, capsys, monkeypatch, texts, shown):
    """A terminal gets a progress bar, if there is more than one batch."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    assert encode(*texts, "--batch-size", "1") == 0
    assert ("Texts" in capsys.readouterr().err) == shown


def test_no_progress_elsewhere(encode, capsys):
    """Where standard error is not a terminal, a successful run writes nothing to it."""
    assert encode("a", "the", "--batch-size", "1") == 0
    assert capsys.readouterr().err == ""


# --- encode: whole or nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize("suffix", ["jsonl", "npy", "safetensors"])
@pytest.mark.parametrize(
    ("target", "error", "status"),
    [
        ("minibert.encoder.SentenceEncoder.encode", MemoryError("no"), 1),
        ("minibert.encoder.SentenceEncoder.encode", ValueError("no"), 1),
        ("minibert.encoder.SentenceEncoder.encode", KeyboardInterrupt(), 130),
        ("minibert.cli.encode._write", OSError(28, "No space left on device"), 1),
        ("os.fsync", OSError(5, "Input/output error"), 1),
        ("pathlib.Path.replace", PermissionError(13, "Permission denied"), 1),
        ("pathlib.Path.replace", KeyboardInterrupt(), 130),
    ],
)
def test_failure_leaves_no_file(encode, here, monkeypatch, target, error, status, suffix, overwrite):
    """Whatever fails, and whenever: no new file is there, and an old one is as it was."""

    def fail(*_, **__):
        raise error

    old = here / f"out.{suffix}"
    if overwrite:
        old.write_text("old")
    monkeypatch.setattr(target, fail)

    assert encode("the cat", "--output", old.name, *overwrite) == status

    assert listing(here) == ([old.name] if overwrite else [])
    assert not overwrite or old.read_text() == "old"


def test_bug_keeps_its_traceback(encode, here, monkeypatch):
    """An exception that is no error of the user's passes through; the file is removed all the same."""
    monkeypatch.setattr(SentenceEncoder, "encode", lambda *_, **__: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        encode("the cat", "--output", "out.npy")
    assert listing(here) == []


def test_existing_output_is_refused_before_the_work(encode, here, capsys, monkeypatch):
    """Without --overwrite, an existing file is refused before texts are read or the model is loaded."""
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    (here / "out.npy").write_text("old")

    assert encode("--input", "nowhere.txt", "--output", "out.npy") == 1
    assert capsys.readouterr().err == (
        "minibert: error: out.npy exists. Give another --output, or --overwrite to replace it.\n"
    )
    assert (here / "out.npy").read_text() == "old"


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/out.npy", "--output must lie in a folder; there is no folder nowhere"),
        ("folder.npy", "--output must be a regular file; folder.npy is not"),
        ("/dev/null", "--output must be a regular file; /dev/null is not"),
    ],
)
def test_impossible_output_is_refused_before_the_work(encode, here, capsys, output, message):
    """What cannot be written to is refused before texts are read, also with --overwrite."""
    (here / "folder.npy").mkdir()

    assert encode("--input", "nowhere.txt", "--output", output, "--format", "npy", "--overwrite") == 1
    assert message in capsys.readouterr().err


# --- encode: wrong usage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text", "--revision", "v2"], "--revision is for a repo of the hub: give its --model"),
        (["--model", "m", "text", "--input", "x"], "TEXT and --input cannot be given together"),
        (["--model", "m", "text", "--input-format", "jsonl"], "--input-format is for --input and standard input"),
        (["--model", "m", "text", "--format", "npy"], "npy is not for standard output: give --output FILE"),
        (["--model", "m", "text", "--output", "-", "--format", "safetensors"], "safetensors is not for standard"),
        (["--model", "m", "text", "--output", "x.txt"], "--output must end in .jsonl, .ndjson, .npy, .safetensors"),
        (["--model", "m", "text", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
        (["--model", "m", "text", "--truncate-dim", "x"], "--truncate-dim: must be a whole number of at least 1"),
        (["--model", "m", "text", "--precision", "float16"], "invalid choice: 'float16'"),
        (["--model", "m", "text", "--query", "--prompt", "x"], "not allowed with argument"),
        (["--model", "m", "text", "--norm"], "unrecognized arguments: --norm"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    """Arguments that contradict each other or are unknown exit with 2 and say why; nothing is abbreviated."""
    usage_error("encode", *arguments)
    assert message in capsys.readouterr().err


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["encode", "index", "search", "inspect", "convert", "download"])
def test_help_has_examples(capsys, monkeypatch, command):
    """Each command's help has examples that begin with the command, and below the usage fits 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])

    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert 2 <= text.split("examples:")[1].count(f"minibert {command} ") <= 5
    assert max(map(len, text.split("\n\n", 1)[1].split("\n"))) <= 80


def test_version_and_missing_command(capsys):
    """--version prints name and version; no command at all is wrong usage."""
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"minibert {__version__}\n"
    usage_error()


def test_help_does_not_wait_for_the_commands():
    """Parsing the arguments imports no command, and nothing that only a command needs."""
    code = (
        "import sys; from minibert.cli import arguments; arguments.parse(['inspect', 'x']);"
        "print([name for name in sys.modules if name in "
        "('minibert.cli.encode', 'minibert.cli.inspect', 'huggingface_hub', 'tqdm')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_module_runs(repo):
    """``python -m minibert`` is the command line; output is UTF-8 whatever the locale says."""
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*COMMAND, "encode", "--model", repo],
        input="café\n".encode(),
        capture_output=True,
        check=True,
        cwd=ROOT,
        env=environment,
    )
    assert records(done.stdout.decode("utf-8"))[0]["text"] == "café"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=str,
)
def test_stopped_run_leaves_no_file(repo, here, number, status):
    """A run that a signal stops says nothing, leaves no file, and exits with 128 plus the signal's number."""
    (here / "old.npy").write_text("old")
    command = [*COMMAND, "encode", "--model", repo, "--output", here / "old.npy", "--overwrite"]

    def heed_signals():  # who runs the tests in the background may have them ignored, which is inherited
        for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, cwd=ROOT, preexec_fn=heed_signals) as process:  # noqa: PLW1509
        _wait_until(lambda: len(listing(here)) == 2)  # it now waits for its standard input
        process.send_signal(number)
        assert process.wait(timeout=30) == status
        assert process.stderr.read() == b""
    assert listing(here) == ["old.npy"]
    assert (here / "old.npy").read_text() == "old"


def _wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("command", [["encode", "--model"], ["inspect"]])
def test_reader_that_goes_away(repo, command):
    """Where nobody reads standard output any more, a run ends quietly with 141."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, *command, repo],
            input=b"the cat\n",
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            cwd=ROOT,
            env=BUFFERED,
        )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_error(repo):
    """Standard output that cannot be written is one error, which the interpreter's exit does not repeat."""
    with Path("/dev/full").open("wb") as stdout:
        done = subprocess.run(
            [*COMMAND, "encode", "--model", repo, "the cat"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
            cwd=ROOT,
            env=BUFFERED,
        )
    assert (done.returncode, done.stderr) == (1, b"minibert: error: No space left on device\n")


# --- inspect ---------------------------------------------------------------------------------------------------------


def inspected(repo, capsys):
    """Return what ``minibert inspect --json`` prints."""
    assert main(["inspect", "--json", str(repo)]) == 0
    return json.loads(capsys.readouterr().out)


def test_inspect_json(repo, capsys):
    """The JSON report has the facts of the repo's files."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"query": "the "}, similarity_fn_name="dot")
    edit_json(repo / "config.json", dtype=..., torch_dtype="float32")

    report = inspected(repo, capsys)

    files = {file["path"]: file["bytes"] for file in report["files"]}
    assert files.pop("model.safetensors") == report["weights"]["bytes"] == (repo / "model.safetensors").stat().st_size
    assert "1_Pooling/config.json" in files
    assert report["folder"] == str(repo.resolve())
    assert report["architecture"].items() >= {"class": "BertModel", "num_hidden_layers": 2, "hidden_size": 16}.items()
    assert (
        report["weights"].items()
        >= {
            "files": ["model.safetensors"],
            "format": "safetensors",
            "parameters": 16368,
            "stored_dtypes": {"F32": 39},
            "config_dtype": "float32",
            "computed_in": "float32",
        }.items()
    )
    assert report["modules"] == [
        {"class": "Transformer", "folder": ".", "dimension": 16},
        {"class": "Pooling", "folder": "1_Pooling", "dimension": 16, "modes": ["mean"], "include_prompt": True},
    ]
    assert report["prompts"] == {"query": "the ", "document": ""}
    assert (report["default_prompt_name"], report["similarity"], report["truncate_dim"]) == (None, "dot", None)


def test_inspect_text(repo, capsys):
    """The report for people has the same facts in aligned lines."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"query": "the "}, truncate_dim=8)

    assert main(["inspect", str(repo)]) == 0

    text = capsys.readouterr().out
    assert text.startswith(f"{repo.resolve()}\n\nArchitecture\n  model              BertModel\n")
    for line in (
        "attention heads    2 of 8 dimensions",
        "vocabulary         80",
        "parameters       16,368",
        "2. Pooling      mean",
        "cut to          8",
        "maximum length   512 tokens, special ones included (max_seq_length in sentence_bert_config.json)",
        'prompt query     "the "',
        "prompt document  none",
    ):
        assert f"\n  {line}\n" in text
    assert "Where other runtimes would differ\n  - " in text


def test_inspect_reads_no_weights(repo, capsys, monkeypatch):
    """The values of the BertModel's weights are not read."""
    monkeypatch.setattr("numpy.fromfile", lambda *_, **__: pytest.fail("weights were read"))

    assert main(["inspect", str(repo)]) == 0


@pytest.mark.parametrize(
    ("changes", "tokens", "source"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 64}}, 64, "max_seq_length in sentence_bert_config.json"),
        ({"sentence_bert_config.json": {"max_seq_length": ...}}, 512, "model_max_length in tokenizer_config.json"),
        (
            {
                "sentence_bert_config.json": {"max_seq_length": ...},
                "tokenizer_config.json": {"model_max_length": 10**30},
            },
            512,
            "max_position_embeddings in config.json",
        ),
        (
            {"sentence_bert_config.json": {"max_seq_length": ..., "tokenizer_args": {"model_max_length": 32}}},
            32,
            "model_max_length in sentence_bert_config.json",
        ),
    ],
)
def test_inspect_says_where_the_maximum_length_is_from(repo, capsys, changes, tokens, source):
    """The maximum length comes with the key and the file that decide it (L10)."""
    for name, keys in changes.items():
        edit_json(repo / name, **keys)

    assert inspected(repo, capsys)["max_seq_length"] == {"tokens": tokens, "source": source}


@pytest.mark.parametrize(
    ("flags", "lower_cases", "strips_accents", "source"),
    [
        ({}, True, True, "do_lower_case in tokenizer_config.json"),
        ({"do_lower_case": ...}, True, True, "BERT's default"),
        ({"do_lower_case": False}, False, False, "do_lower_case in tokenizer_config.json"),
        (
            {"do_lower_case": ..., "strip_accents": False},
            True,
            False,
            "BERT's default and strip_accents in tokenizer_config.json",
        ),
        ({"do_lower_case": False, "sentence_bert": True}, True, False, "do_lower_case in sentence_bert_config.json"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, True, True, "the normalizer of tokenizer.json"),
    ],
)
def test_inspect_says_what_decides_casing(repo, capsys, flags, lower_cases, strips_accents, source):
    """Casing is what the tokenizer really does, with the flags that decide it (T1, L11)."""
    SentenceEncoder(repo).tokenizer.save(str(repo / "tokenizer.json"))
    edit_json(repo / "sentence_bert_config.json", do_lower_case=flags.pop("sentence_bert", False))
    edit_json(repo / "tokenizer_config.json", **flags)

    assert inspected(repo, capsys)["casing"] == {
        "lower_cases": lower_cases,
        "strips_accents": strips_accents,
        "source": source,
    }


def add_module(repo, kind, config):
    """Add a module to the end of modules.json."""
    modules = json.loads((repo / "modules.json").read_text("utf-8"))
    path = f"{len(modules)}_{kind}"
    modules.append({"name": path, "path": path, "type": f"sentence_transformers.models.{kind}"})
    (repo / "modules.json").write_text(json.dumps(modules), "utf-8")
    (repo / path).mkdir()
    edit_json(repo / path / "config.json", **config)
    return repo / path


def add_dense(repo, dtype=np.float32):
    """Add a Dense module with weights of its own."""
    weight = np.random.default_rng(0).normal(0, 1, (4, 16)).astype(dtype)
    folder = add_module(repo, "Dense", {"in_features": 16, "out_features": 4, "bias": False})
    save_file({"linear.weight": weight}, folder / "model.safetensors")


def add_tokenizer_json(repo, **changes):
    """Add the tokenizer.json that goes with the other files, but for ``changes``."""
    SentenceEncoder(repo).tokenizer.save(str(repo / "tokenizer.json"))
    edit_json(repo / "tokenizer.json", **changes)


def unchanged(repo):
    """Leave the repo as it is."""


def half_weights(repo):
    """Make the weights float16."""
    edit_weights(
        repo / "model.safetensors", lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()}
    )


ST = "config_sentence_transformers.json"
DIFFERENCES = {
    "no modules.json": (lambda r: (r / "modules.json").unlink(), "text-embeddings-inference takes cls"),
    "cls": (lambda r: edit_json(r / "1_Pooling/config.json", pooling_mode="cls"), "Pooling is cls: runtimes that"),
    "prompt not pooled": (
        lambda r: edit_json(r / "1_Pooling/config.json", include_prompt=False),
        "A prompt's tokens are not pooled",
    ),
    "dense": (add_dense, "The model goes on after the transformer with Dense"),
    "not normalized": (unchanged, "Vectors keep their length: text-embeddings-inference scales them"),
    "truncate_dim": (lambda r: edit_json(r / ST, truncate_dim=8), "Vectors are cut to 8 dimensions (truncate_dim in"),
    "dtype float16": (
        lambda r: edit_json(r / "config.json", dtype="float16"),
        "sentence-transformers computes in float16 and returns float16, because config.json says so",
    ),
    "torch_dtype bfloat16": (
        lambda r: edit_json(r / "config.json", dtype=..., torch_dtype="bfloat16"),
        "sentence-transformers computes in bfloat16, because config.json says so",
    ),
    "half weights": (
        lambda r: (half_weights(r), edit_json(r / "config.json", dtype=...)),
        "computes in float16 and returns float16, because the weights are",
    ),
    "maximum length": (
        lambda r: edit_json(r / "sentence_bert_config.json", max_seq_length=128),
        "Texts are cut to 128 tokens, as sentence_bert_config.json says: runtimes that look only at the tokenizer",
    ),
    "tokenizer's maximum length": (
        lambda r: (
            edit_json(r / "sentence_bert_config.json", max_seq_length=...),
            edit_json(r / "tokenizer_config.json", model_max_length=64),
        ),
        "at config.json, such as text-embeddings-inference, take 512.",
    ),
    "both maximum lengths": (
        lambda r: (
            edit_json(r / "sentence_bert_config.json", max_seq_length=64),
            edit_json(r / "tokenizer_config.json", model_max_length=64),
        ),
        "at config.json take 512.",
    ),
    "truncation in tokenizer.json": (
        lambda r: add_tokenizer_json(r, truncation={"max_length": 100, "direction": "Right"}),
        "tokenizer.json cuts texts to 100 tokens, which minibert and sentence-transformers override with 512",
    ),
    "padding in tokenizer.json": (
        lambda r: add_tokenizer_json(r, padding={"strategy": {"Fixed": 128}}),
        "tokenizer.json pads every text to 128 tokens",
    ),
    "casing in tokenizer.json": (
        lambda r: add_tokenizer_json(
            r, normalizer={"type": "Sequence", "normalizers": [{"type": "BertNormalizer", "lowercase": False}]}
        ),
        "follow do_lower_case in tokenizer_config.json: the tokenizer lower-cases and strips accents.",
    ),
    "no tokenizer.json": (unchanged, "There is no tokenizer.json: text-embeddings-inference, which needs one"),
    "default prompt": (
        lambda r: edit_json(r / ST, prompts={"query": "the "}, default_prompt_name="query"),
        "encode puts the default prompt 'the ' before every text",
    ),
    "passage": (
        lambda r: edit_json(r / ST, prompts={"query": "the ", "passage": "a "}),
        "Ask for prompt_name='passage'.",
    ),
}


@pytest.mark.parametrize(("change", "expected"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_inspect_says_where_others_differ(repo, capsys, change, expected):
    """Each property of a repo that other runtimes treat differently gets its sentence."""
    change(repo)

    assert sum(expected in sentence for sentence in inspected(repo, capsys)["differences"]) == 1


def test_inspect_says_only_what_applies(repo, capsys):
    """A repo that every runtime understands in the same way gets none."""
    add_module(repo, "Normalize", {})
    add_tokenizer_json(repo, padding={"strategy": "BatchLongest"}, truncation={"max_length": 512})
    edit_json(repo / ST, prompts={"document": "the ", "passage": "a "}, default_prompt_name="query")

    assert inspected(repo, capsys)["differences"] == []
    assert main(["inspect", str(repo)]) == 0
    assert capsys.readouterr().out.endswith("differ\n  - Nowhere that minibert knows of.\n")


BROKEN = {
    "no config": (lambda r: (r / "config.json").unlink(), "config.json does not exist"),
    "no tokenizer": (lambda r: (r / "vocab.txt").unlink(), "holds no tokenizer"),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), "holds no weights"),
    "no pooling": (lambda r: (r / "1_Pooling/config.json").unlink(), "1_Pooling/config.json does not exist"),
    "too few layers": (lambda r: edit_json(r / "config.json", num_hidden_layers=3), "missing: encoder.layer.2."),
    "absurdly few": (lambda r: edit_json(r / "config.json", num_hidden_layers=10**9), "num_hidden_layers = 1000000000"),
    "too many layers": (lambda r: edit_json(r / "config.json", num_hidden_layers=1), "unexpected: encoder.layer.1."),
    "wrong shape": (lambda r: edit_json(r / "config.json", vocab_size=90), "must have shape (90, 16)"),
    "ids": (lambda r: (r / "vocab.txt").write_text("[UNK]\n" * 81), "ids must be below vocab_size = 80"),
    "prompt": (lambda r: edit_json(r / ST, default_prompt_name="x"), "default_prompt_name must be one of"),
    "other model": (
        lambda r: edit_weights(r / "model.safetensors", lambda arrays: {"x": arrays.popitem()[1]}),
        "a BertModel checkpoint has one tensor called",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_inspect_of_a_broken_repo(repo, capsys, change, message):
    """A repo that cannot be used gets the exact error of loading it, although no weights are read."""
    change(repo)

    assert main(["inspect", str(repo)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minibert: error: ")
    assert message in error


def test_inspect_counts_what_is_passed_over(repo, capsys):
    """Heads and buffers in a checkpoint are counted, and are no part of the parameters."""
    edit_weights(repo / "model.safetensors", renamed)

    weights = inspected(repo, capsys)["weights"]
    assert (weights["parameters"], weights["tensors"], weights["tensors_passed_over"]) == (16368, 39, 2)


# --- convert ---------------------------------------------------------------------------------------------------------


def renamed(arrays):
    """Return a checkpoint as BertForMaskedLM wrote it in 2018: a prefix, a head, a buffer, TensorFlow's names."""
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in arrays.items()
    }
    head = {"cls.predictions.bias": np.zeros(80, np.float32)}
    return old | head | {"bert.embeddings.position_ids": np.arange(512, dtype=np.int64)}


def shard(repo):
    """Split the weights over two files with an index."""
    arrays, _ = load(repo / "model.safetensors")
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(arrays))}
    for file in set(files.values()):
        save_file({name: arrays[name] for name in files if files[name] == file}, repo / file)
    edit_json(repo / "model.safetensors.index.json", metadata={}, weight_map=files)
    (repo / "model.safetensors").unlink()


SOURCES = {
    "as it is": unchanged,
    "prefix, head, buffer, gamma and beta": lambda r: edit_weights(r / "model.safetensors", renamed),
    "shards": shard,
    "dense": add_dense,
    "no modules.json": lambda r: (r / "modules.json").unlink(),
    "float16": lambda r: (half_weights(r), edit_json(r / "config.json", dtype=..., torch_dtype="float16")),
}


@pytest.mark.parametrize("change", SOURCES.values(), ids=SOURCES)
def test_converted_repo_gives_the_same_vectors(repo, here, change):
    """A converted repo has BertModel's own names and float32, and gives identical vectors."""
    names = set(load(repo / "model.safetensors")[0])
    change(repo)
    expected = SentenceEncoder(repo).encode(TEXTS)

    assert main(["convert", str(repo), "new"]) == 0

    arrays, metadata = load(here / "new" / "model.safetensors")
    assert set(arrays) == names
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert metadata == {"format": "pt"}
    np.testing.assert_array_equal(SentenceEncoder(here / "new").encode(TEXTS), expected)


def test_converted_repo_has_what_is_needed(repo, here):
    """A converted repo has all files that are read, no others, and config.json says float32."""
    shard(repo)
    (repo / "README.md").touch()
    (repo / "onnx").mkdir()
    (repo / "onnx" / "config.json").write_text("{}")
    edit_json(repo / "config.json", dtype=..., torch_dtype="float16")

    assert main(["convert", str(repo), "new"]) == 0

    found = {path.relative_to("new").as_posix() for path in Path("new").rglob("*") if path.is_file()}
    assert found == {
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    config = json.loads((here / "new" / "config.json").read_text("utf-8"))
    assert config["dtype"] == "float32"
    assert "torch_dtype" not in config
    assert (here / "new" / "vocab.txt").read_bytes() == (repo / "vocab.txt").read_bytes()


def test_float16_halves_the_weights(repo, here):
    """--dtype float16 stores all weights, modules' too, in float16; config.json still asks for float32."""
    add_dense(repo)
    expected = SentenceEncoder(repo).encode(TEXTS)

    assert main(["convert", str(repo), "new", "--dtype", "float16"]) == 0

    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        assert {array.dtype for array in load(here / "new" / name)[0].values()} == {np.dtype(np.float16)}
    assert json.loads((here / "new" / "config.json").read_text("utf-8"))["dtype"] == "float32"
    vectors = SentenceEncoder(here / "new").encode(TEXTS)
    assert vectors.dtype == np.float32
    assert 0 < np.abs(vectors - expected).max() < 1e-2


def test_float16_weights_of_a_module_become_float32(repo, here):
    """The weights of modules are converted as well."""
    add_dense(repo, np.float16)

    assert main(["convert", str(repo), "new"]) == 0
    assert load(here / "new" / "2_Dense" / "model.safetensors")[0]["linear.weight"].dtype == np.float32


def test_overflow_names_the_tensor(repo, here, capsys):
    """A value beyond float16 is an error that names file and tensor, and nothing is written."""
    name = "encoder.layer.1.output.dense.weight"
    edit_weights(repo / "model.safetensors", lambda arrays: arrays | {name: arrays[name] * 0 - 1e5})

    assert main(["convert", str(repo), "new", "--dtype", "float16"]) == 1

    error = capsys.readouterr().err
    assert (
        f"{repo / 'model.safetensors'}: {name} must fit in float16, which ends at 65504; it goes up to 100000" in error
    )
    assert listing(here) == []


def test_broken_repo_is_not_converted(repo, here, capsys):
    """What minibert cannot load it does not convert."""
    edit_json(repo / "config.json", vocab_size=90)

    assert main(["convert", str(repo), "new"]) == 1
    assert "must have shape (90, 16)" in capsys.readouterr().err
    assert listing(here) == []


@pytest.mark.parametrize(
    ("output", "overwrite", "message"),
    [
        ("full", [], "full is not empty. Give another OUTPUT_DIR, or --overwrite to replace it."),
        ("full", ["--overwrite"], "full has other files, and neither config.json nor modules.json"),
        ("file", ["--overwrite"], "file is not. Give another name."),
        ("nowhere/new", [], "there is no folder"),
        ("../model", ["--overwrite"], "OUTPUT_DIR must not hold the model itself"),
        ("..", ["--overwrite"], "OUTPUT_DIR must not hold the model itself"),
    ],
)
def test_output_folder_that_is_refused(repo, here, capsys, monkeypatch, output, overwrite, message):
    """A folder that may hold something else is refused before the model is loaded."""
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").touch()
    (here / "file").touch()
    before = listing(here), listing(repo)

    assert main(["convert", str(repo), output, *overwrite]) == 1
    assert message in capsys.readouterr().err
    assert (listing(here), listing(repo)) == before


def test_empty_folder_is_used(repo, here):
    """An OUTPUT_DIR that is there and empty is used."""
    (here / "new").mkdir()

    assert main(["convert", str(repo), "new"]) == 0
    assert listing(here) == ["new"]
    assert (here / "new" / "config.json").is_file()


def test_overwrite_replaces_a_model(repo, here):
    """--overwrite leaves nothing of the model that was there."""
    copy_twin(here / "new")
    (here / "new" / "old.txt").touch()

    assert main(["convert", str(repo), "new", "--overwrite"]) == 0
    assert listing(here) == ["new"]
    assert not (here / "new" / "old.txt").exists()


@pytest.mark.parametrize(
    ("target", "error", "status"),
    [
        ("minibert.cli.convert.convert", OSError(28, "No space left on device"), 1),
        ("minibert.cli.convert.convert", KeyboardInterrupt(), 130),
        ("os.fsync", OSError(5, "Input/output error"), 1),
    ],
)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_failed_conversion_leaves_nothing(repo, here, monkeypatch, target, error, status, overwrite):
    """A conversion that fails or is interrupted leaves no folder, and an old one as it was."""

    def fail(*_, **__):
        raise error

    if overwrite:
        copy_twin(here / "new")
    monkeypatch.setattr(target, fail)

    assert main(["convert", str(repo), "new", *overwrite]) == status
    assert listing(here) == (["new"] if overwrite else [])
    assert not overwrite or listing(here / "new") == listing(repo)


def test_failed_exchange_brings_the_old_folder_back(repo, here, monkeypatch):
    """If the new folder cannot take the old one's place, the old one is put back."""
    copy_twin(here / "new")
    (here / "new" / "old.txt").touch()
    rename = Path.rename

    def rename_but_the_second(path, target):
        if path.name != "new" and target.name == "new" and not (path / "old.txt").exists():
            raise PermissionError(13, "Permission denied", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_but_the_second)

    assert main(["convert", str(repo), "new", "--overwrite"]) == 1
    assert listing(here) == ["new"]
    assert (here / "new" / "old.txt").exists()


# --- download and the hub --------------------------------------------------------------------------------------------


def test_download_prints_the_folder(capsys, monkeypatch):
    """``minibert download`` prints the folder that hub.resolve returns for its arguments, and nothing else."""
    monkeypatch.setattr(hub, "resolve", lambda name, **options: f"{name} {sorted(options.items())}")

    assert main(["download", "some/model", "--revision", "v2", "--cache-folder", "here"]) == 0
    assert capsys.readouterr().out == (
        "some/model [('cache_folder', 'here'), ('local_files_only', False), ('revision', 'v2')]\n"
    )


@pytest.mark.parametrize("command", [["encode", "a", "--model"], ["inspect"], ["download"], ["convert"]])
def test_every_command_takes_hub_ids(here, capsys, command):
    """A repo id goes to the hub; here to an empty cache, which is an error with its remedy."""
    argv = [*command, "some/model", "--local-files-only", "--cache-folder", "cache"]

    assert main([*argv, "new"] if command == ["convert"] else argv) == 1

    error = capsys.readouterr().err
    assert error.startswith("minibert: error: some/model is not in the cache")
    assert "minibert download some/model" in error


# --- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_converted_repo_works_in_sentence_transformers(repo, here, capsys, dtype):
    """A repo converted from pytorch_model.bin gives sentence-transformers the vectors that it gives minibert."""
    import torch
    from sentence_transformers import SentenceTransformer

    add_module(repo, "Normalize", {})
    add_dense(repo)
    state = {name: torch.from_numpy(array) for name, array in renamed(load(repo / "model.safetensors")[0]).items()}
    torch.save(state, repo / "pytorch_model.bin")
    (repo / "model.safetensors").unlink()
    assert "`minibert convert` writes safetensors." in inspected(repo, capsys)["differences"][-1]

    assert main(["convert", str(repo), "new", "--dtype", dtype]) == 0

    peer = SentenceTransformer(str(here / "new"), device="cpu").encode(TEXTS)
    vectors = SentenceEncoder(here / "new").encode(TEXTS)
    assert peer.dtype == vectors.dtype == np.float32
    assert np.abs(peer - vectors).max() < 1e-5
    assert dtype == "float16" or np.array_equal(vectors, SentenceEncoder(repo).encode(TEXTS))
