"""``minibert encode``: what it reads and writes, and what it refuses."""

import io
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from cli_support import BUFFERED, COMMAND, ST, Terminal, listing, records
from support import ROOT, edit_json, load

from minibert import SentenceEncoder, __version__
from minibert.cli import main

TEXTS = ["the cat", "", "a man and the hat", "play\u2028ing"]


@pytest.fixture
def encode(repo, here, monkeypatch):
    """Return a function that runs ``minibert encode`` in ``here``, with bytes on standard input."""

    def run(*argv, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return main(["encode", "--model", str(repo), *map(str, argv)])

    return run


def stream_of(chunks):
    """Return what can take the place of SentenceEncoder.encode_stream, and yields these vectors."""

    def encode_stream(_self, texts, *_, **__):
        for chunk in chunks:
            assert len(list(itertools.islice(texts, len(chunk)))) == len(chunk)
            yield chunk

    return encode_stream


# --- input -----------------------------------------------------------------------------------------------------------


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
@pytest.mark.parametrize("source", ["file", "standard input", "dash"])
def test_input_forms(encode, here, name, content, texts, source):
    """Line n of a file, or of standard input, is row n of the output."""
    (here / name).write_bytes(content)
    kind = "text" if name.endswith(".txt") else "jsonl"
    dash = ["--input", "-"] if source == "dash" else []
    arguments = ["--input", name] if source == "file" else [*dash, "--input-format", kind]

    assert encode(*arguments, "--output", "out.jsonl", stdin=content) == 0

    written = (here / "out.jsonl").read_text("utf-8")
    assert ([record["text"] for record in records(written)] if written else []) == texts


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
    monkeypatch.setattr(sys, "stdin", Terminal(b"the cat\n"))

    assert main(["encode", "--model", str(repo)]) == 0
    assert "reading texts from the terminal, one a line; Ctrl-D ends them" in capsys.readouterr().err


# --- output ----------------------------------------------------------------------------------------------------------


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


# --- streams of texts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
@pytest.mark.parametrize("suffix", ["jsonl", "npy", "safetensors"])
@pytest.mark.parametrize("piped", [False, True])
def test_chunks_change_nothing(encode, repo, here, monkeypatch, suffix, precision, piped):
    """What is written chunk by chunk is, to the byte, what is written at once; a .npy file is what numpy writes."""
    texts = [f"the cat {number}" for number in range(105)]
    content = "\n".join(texts).encode()
    (here / "texts.txt").write_bytes(content)
    outputs = {}
    for chunk in (4096, 10):
        monkeypatch.setattr("minibert.cli.encode._CHUNK", chunk)
        options = ["--precision", precision, "--output", f"{chunk}.{suffix}"]
        assert (encode(*options, stdin=content) if piped else encode(*options, "--input", "texts.txt")) == 0
        outputs[chunk] = (here / f"{chunk}.{suffix}").read_bytes()

    assert outputs[4096] == outputs[10]
    if suffix == "npy":
        expected = io.BytesIO()
        np.save(expected, SentenceEncoder(repo).encode(texts, precision=precision))
        assert outputs[10] == expected.getvalue()
    assert listing(here) == sorted([f"10.{suffix}", f"4096.{suffix}", "texts.txt"])


@pytest.mark.parametrize(("suffix", "piped"), [("jsonl", False), ("npy", True), ("safetensors", False)])
def test_memory_does_not_grow_with_the_input(repo, here, monkeypatch, suffix, piped):
    """10,000 texts take no more memory than 3,000 do, but for a part of what their vectors alone would take."""
    monkeypatch.setattr("minibert.cli.encode._CHUNK", 500)
    peaks = []
    tracemalloc.start()
    try:
        for count in (1000, 3000, 10_000):  # the first makes what is made once
            with (here / "texts.txt").open("w") as file:
                file.writelines(f"the cat {number}\n" for number in range(count))
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with (here / "texts.txt").open() as stdin:
                monkeypatch.setattr("minibert.cli.texts._is_regular", lambda _: not piped)
                monkeypatch.setattr(sys, "stdin", stdin)
                argv = ["encode", "--model", str(repo), "--output", f"x.{suffix}", "--overwrite", "--num-threads", "1"]
                assert main(argv) == 0
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()

    assert peaks[2] - peaks[1] < 7000 * 16 * 4 / 4


def test_vectors_leave_a_pipe_before_its_end(repo):
    """A pipe is not read to its end before the first vectors are written."""
    options = {**dict.fromkeys(("stdin", "stdout"), subprocess.PIPE), "cwd": ROOT, "env": BUFFERED}
    with subprocess.Popen([*COMMAND, "encode", "--model", repo], **options) as process:
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        process.stdin.write(b"the cat\n" * 4096)
        process.stdin.flush()
        assert records(process.stdout.readline().decode())[0]["text"] == "the cat"
        process.stdin.close()
        process.stdout.read()
        assert process.wait() == 0
        deadline.cancel()


def test_line_of_a_pipe_is_checked_in_its_turn(encode, capsys, monkeypatch):
    """What comes before an unusable line of a pipe is on standard output; the error has the line's number."""
    monkeypatch.setattr("minibert.cli.encode._CHUNK", 2)

    assert encode("--batch-size", 1, stdin=b"a\nthe\ncat\nna\xefve\n") == 1

    said = capsys.readouterr()
    assert [record["text"] for record in records(said.out)] == ["a", "the"]
    assert "standard input: line 4 must be UTF-8" in said.err


def test_file_is_checked_before_the_model_is_loaded(encode, here, capsys, monkeypatch):
    """An unusable line at the end of a file, also of one on standard input, does not wait for the encoding."""
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    (here / "a.txt").write_bytes(b"a\n" * 10_000 + b"\xef")

    assert encode("--input", "a.txt", "--output", "out.npy") == 1
    assert "a.txt: line 10001 must be UTF-8" in capsys.readouterr().err
    with (here / "a.txt").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["encode", "--output", "out.npy"]) == 1
    assert "standard input: line 10001 must be UTF-8" in capsys.readouterr().err


# --- the other fields of JSON lines ----------------------------------------------------------------------------------

FIELDS = {
    '{"id": 7, "text": "the cat"}': '{"id": 7, "text": "the cat"',
    ' {"text":"a" , "n": 12345678901234567890.10, "x": [1, {"embedding": 2}] }\t\r': (
        '{"text":"a" , "n": 12345678901234567890.10, "x": [1, {"embedding": 2}]'
    ),
    '{"text": "caf\\u00e9 \u2028", "t": "\\ud800"}': '{"text": "caf\\u00e9 \u2028", "t": "\\ud800"',
    '{"embedding": [1, "}"], "text": "a"}': '{"text": "a"',
    '{"text": "a", "\\u0065mbedding" : {"a": ":"} , "b": 1e400, "c": "}" }': '{"text": "a","b": 1e400,"c": "}"',
}


@pytest.mark.parametrize(("line", "kept"), FIELDS.items(), ids=range(len(FIELDS)))
@pytest.mark.parametrize("precision", ["float32", "uint8"])
def test_fields_are_kept(encode, repo, here, line, kept, precision):
    """A JSON line keeps its fields as they are written, but for an old embedding; the new one comes last."""
    (here / "in.jsonl").write_bytes(f"{line}\n".encode() * 2)

    assert encode("--input", "in.jsonl", "--output", "out.jsonl", "--precision", precision) == 0

    vector = SentenceEncoder(repo).encode([json.loads(line)["text"]] * 2, precision=precision)[0]
    numbers = ",".join(map(str, vector))
    assert (here / "out.jsonl").read_bytes() == f'{kept},"embedding":[{numbers}]}}\n'.encode() * 2


@pytest.mark.parametrize("arguments", [["--fields", "all"], []])
def test_all_fields_are_the_default(encode, capsys, arguments):
    """``--fields all`` is what happens without the option, also from standard input."""
    assert encode("--input-format", "jsonl", *arguments, stdin=b'{"id": 7, "text": "a"}\n') == 0
    assert list(records(capsys.readouterr().out)[0]) == ["id", "text", "embedding"]


def test_fields_can_be_left_out(encode, capsys):
    """``--fields text`` writes the text alone beside the embedding."""
    assert encode("--input-format", "jsonl", "--fields", "text", stdin=b'{"id": 7, "text": "a"}\n') == 0
    assert list(records(capsys.readouterr().out)[0]) == ["text", "embedding"]


# --- what is written -------------------------------------------------------------------------------------------------


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


def test_json_has_no_nan(encode, capsys, monkeypatch):
    """A vector with NaN or infinity is an error in JSON lines, which have no such numbers."""
    chunks = [np.ones((3, 2), np.float32), np.array([[1.0, 2.0], [np.inf, 1.0]], np.float32)]
    monkeypatch.setattr(SentenceEncoder, "encode_stream", stream_of(chunks))

    assert encode(*"abcde") == 1
    assert "the vector of text 5 has" in capsys.readouterr().err


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--normalize"], lambda e: e.encode(TEXTS, normalize_embeddings=True)),
        (["--truncate-dim", "5"], lambda e: e.encode(TEXTS, truncate_dim=5)),
        (["--device", "cpu"], lambda e: e.encode(TEXTS)),
        (["--dtype", "float32"], lambda e: e.encode(TEXTS)),
        (
            ["--dtype", "float64"],
            lambda e: SentenceEncoder(e.get_params()["model_name_or_path"], dtype="float64").encode(TEXTS),
        ),
        (["--num-threads", "1"], lambda e: e.encode(TEXTS)),
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

    found, vectors = np.load(here / "out.npy"), expected(SentenceEncoder(repo))
    assert found.dtype == vectors.dtype
    np.testing.assert_array_equal(found, vectors)


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
@pytest.mark.parametrize("piped", [False, True])
def test_progress_is_shown_on_a_terminal(encode, capsys, monkeypatch, texts, shown, piped):
    """A terminal gets a progress bar, if there is more than one batch; of a pipe it knows no total."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("minibert.cli.encode._CHUNK", 2)

    argv, stdin = ([], "\n".join(texts).encode()) if piped else (texts, b"")
    assert encode(*argv, "--batch-size", "1", stdin=stdin) == 0

    error = capsys.readouterr().err
    assert ("Texts" in error) == shown
    assert not shown or ("2it" if piped else "2/2") in error


def test_no_progress_elsewhere(encode, capsys):
    """Where standard error is not a terminal, a successful run writes nothing to it."""
    assert encode("a", "the", "--batch-size", "1") == 0
    assert capsys.readouterr().err == ""


# --- errors and terminals --------------------------------------------------------------------------------------------


def test_bug_keeps_its_traceback(encode, here, monkeypatch):
    """An exception that is no error of the user's passes through; the file is removed all the same."""
    monkeypatch.setattr(SentenceEncoder, "encode_stream", lambda *_, **__: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        encode("the cat", "--output", "out.npy")
    assert listing(here) == []


def test_warnings_escape_what_a_repo_says(encode, repo, capsys):
    """A logged warning that quotes a repo is one line without escapes of a terminal."""
    edit_json(repo / ST, model_type="\x1b[2J\nminibert: all is well")

    assert encode("a") == 0

    error = capsys.readouterr().err
    assert r"was saved as a \x1b[2J\nminibert: all is well: its" in error
    assert error.removesuffix("\n").isprintable()


def test_terminal_gets_printable_json(encode, capsys, monkeypatch):
    """On a terminal, control characters in the JSON lines of encode are escaped; they mean the same."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    assert encode("\x9b2J\u202e") == 0

    printed = capsys.readouterr().out
    assert r"\u009b2J\u202e" in printed
    assert records(printed)[0]["text"] == "\x9b2J\u202e"
