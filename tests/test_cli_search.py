"""``minibert index`` and ``minibert search``: what they find, print and refuse."""

import dataclasses
import io
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from cli_support import BUFFERED, COMMAND, Terminal, listing, records
from safetensors.numpy import save_file
from support import ROOT, edit_json, load, twin

from minibert import BUILTIN_MODEL, SearchIndex, SentenceEncoder
from minibert.cli import main
from minibert.index import Hit

NOTES = b"the cat\n\na man and the hat\n \t\nno violin\r\nthe caf\xc3\xa9\n"
LINES = {1: "the cat", 3: "a man and the hat", 5: "no violin", 6: "the café"}


@pytest.fixture
def here(here):
    """Return an empty folder that is the working directory, but for notes.txt."""
    (here / "notes.txt").write_bytes(NOTES)
    return here


@pytest.fixture
def run(repo, here, monkeypatch):
    """Return a function that runs a command with the repo's model, and with bytes on standard input."""

    def run(command, *argv, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return main([command, "--model", str(repo), *map(str, argv)])

    return run


def expected(repo, question, lines=None, top_k=5, **prompts):
    """Return the hits of the library, as the JSON lines have them."""
    lines = LINES if lines is None else lines
    encoder = SentenceEncoder(repo)
    index = SearchIndex.build(encoder, list(lines.values()), numbers=list(lines), **prompts)
    return [
        {"query": question, "rank": rank, "score": hit.score, "line": hit.number, "text": hit.text}
        for rank, hit in enumerate(index.search(encoder, question, top_k)[0], 1)
    ]


def returning(*hits):
    """Return what can take the place of SearchIndex.search, and finds the same for every query."""
    return lambda _self, _encoder, queries, _top_k: [list(hits)] * (1 if isinstance(queries, str) else len(queries))


# --- search: where the texts are -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--input", "notes.txt"], ["--input", "-"], []], ids=str)
def test_texts_of_a_file(run, repo, capsys, arguments):
    """Blank lines are left out, and the others found under the numbers that they have in the file."""
    assert run("search", "a cat", *arguments, "--json", stdin=NOTES) == 0

    said = capsys.readouterr()
    assert records(said.out) == expected(repo, "a cat")
    assert {record["line"] for record in records(said.out)} == set(LINES)
    assert said.err == ""


@pytest.mark.parametrize("arguments", [["--input", "notes.jsonl"], ["--input-format", "jsonl"]])
def test_texts_of_json_lines(run, repo, here, capsys, arguments):
    """JSON lines are read as by encode; a text of blanks is left out, one with ends of lines is whole."""
    content = b'{"text": "the\\ncat", "id": 1}\n{"text": " "}\n{"text": "no violin"}\n'
    (here / "notes.jsonl").write_bytes(content)

    assert run("search", "a cat", *arguments, "--json", stdin=content) == 0
    assert records(capsys.readouterr().out) == expected(repo, "a cat", {1: "the\ncat", 3: "no violin"})


def test_index_finds_what_its_texts_would(run, repo, here, capsys):
    """A search in an index gives what a search in its texts gives."""
    assert run("index", "--input", "notes.txt", "--output", "notes.safetensors") == 0
    assert run("search", "a cat", "--index", "notes.safetensors", "--json") == 0

    said = capsys.readouterr()
    assert records(said.out) == expected(repo, "a cat")
    assert said.err == ""


@pytest.mark.parametrize("command", ["index", "search"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x must have a text to search, one a line or a JSON object; it has none."),
        (b"\n \n\t\n", "x must have a text to search, one a line or a JSON object; it has 3 blank ones."),
        (b"fine\nna\xefve\n", "x: line 2 must be UTF-8"),
    ],
)
def test_unusable_texts(run, here, capsys, command, content, message):
    """A file with no text in it, or with other bytes, is an error of one line."""
    (here / "x").write_bytes(content)
    arguments = ["--output", "out"] if command == "index" else ["question"]

    assert run(command, "--input", "x", *arguments) == 1

    error = capsys.readouterr().err
    assert error.startswith(f"minibert: error: {message}")
    assert error.count("\n") == 1
    assert listing(here) == ["notes.txt", "x"]


# --- search: questions -----------------------------------------------------------------------------------------------


def test_several_questions(run, repo, capsys):
    """Each question gets its hits, in the order of the questions."""
    assert run("search", "a cat", "the violin", "--input", "notes.txt", "--json", "--top-k", 2) == 0

    found = records(capsys.readouterr().out)
    assert found == [*expected(repo, "a cat", top_k=2), *expected(repo, "the violin", top_k=2)]


@pytest.mark.parametrize("source", ["--input", "--index"])
def test_questions_of_standard_input(run, repo, capsys, source):
    """Without a QUESTION, each line of standard input is one; blank lines are passed over."""
    assert run("index", "--input", "notes.txt", "--output", "notes.safetensors") == 0
    name = "notes.txt" if source == "--input" else "notes.safetensors"

    assert run("search", source, name, "--json", stdin=b"\xef\xbb\xbfa cat\r\n\n  \nthe caf\xc3\xa9") == 0

    said = capsys.readouterr()
    assert records(said.out) == [*expected(repo, "a cat"), *expected(repo, "the café")]
    assert said.err == ""


def test_question_that_is_not_utf8(run, capsys):
    """A question in other bytes is an error with its line; those before it were answered."""
    assert run("search", "--input", "notes.txt", "--json", "--top-k", 1, stdin=b"a cat\n\xe9t\xe9\n") == 1

    said = capsys.readouterr()
    assert "standard input: line 2 must be UTF-8" in said.err
    assert records(said.out)[0]["query"] == "a cat"


def test_no_question_of_standard_input(run, capsys):
    """Standard input without a question is answered by nothing."""
    assert run("search", "--input", "notes.txt") == 0
    assert capsys.readouterr() == ("", "")


def test_questions_of_a_terminal(repo, here, capsys, monkeypatch):
    """Somebody at a terminal is told what to do, and prompted for each question, on standard error."""
    monkeypatch.setattr(sys, "stdin", Terminal(b"a cat\n\nthe violin\n"))

    assert main(["search", "--model", str(repo), "--input", "notes.txt", "--top-k", "1"]) == 0

    said = capsys.readouterr()
    assert said.err == "minibert: reading questions from the terminal, one a line; Ctrl-D ends them\n? ? ? ? \n"
    assert [line.split(" ")[0] for line in said.out.split("\n")] == ["a", "", "", "the", "", ""]


def test_questions_that_are_seen_are_not_repeated(repo, here, capsys, monkeypatch):
    """Where both ends are a terminal, the typed question stands there already."""
    monkeypatch.setattr(sys, "stdin", Terminal(b"a cat\n"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)

    assert main(["search", "--model", str(repo), "--input", "notes.txt", "--top-k", "1"]) == 0
    assert capsys.readouterr().out.startswith("0.")


def test_top_k(run, capsys):
    """--top-k is how many texts are found, at most; 5 by default."""
    lines = b"".join(b"%s\n" % word for word in b"a in no the cat hat man".split())
    for arguments, count in ([], 5), (["--top-k", 2], 2), (["--top-k", 100], 7):
        assert run("search", "a cat", *arguments, stdin=lines) == 0
        assert capsys.readouterr().out.count("\n") == count


@pytest.mark.parametrize("command", ["index", "search"])
def test_prompts(run, repo, here, capsys, command):
    """Prompts are put before texts and questions; an index keeps them, and a search can have another for questions."""
    arguments = ["--document-prompt", "the ", "--query-prompt", "no "]
    prompts = {"document_prompt": "the ", "query_prompt": "no "}
    if command == "index":
        assert run("index", "--input", "notes.txt", "--output", "x", *arguments) == 0
        assert run("search", "cat", "--index", "x", "--json") == 0
    else:
        assert run("search", "cat", "--input", "notes.txt", "--json", *arguments) == 0
    assert records(capsys.readouterr().out) == expected(repo, "cat", **prompts)

    if command == "index":
        assert run("search", "cat", "--index", "x", "--json", "--query-prompt", "a ") == 0
        assert records(capsys.readouterr().out) == expected(repo, "cat", **{**prompts, "query_prompt": "a "})


@pytest.mark.filterwarnings("default")
def test_long_texts(run, capsys):
    """--on-truncate decides about texts and about questions."""
    long = "the cat " * 400
    assert run("search", "a", stdin=long.encode()) == 0
    assert capsys.readouterr().err.startswith("minibert: warning: 1 of 1 texts were cut to max_seq_length = 512")
    assert run("search", "a", "--on-truncate", "ignore", stdin=long.encode()) == 0
    assert capsys.readouterr().err == ""
    assert run("search", long, "--input", "notes.txt", "--on-truncate", "error") == 1
    assert "max_seq_length = 512" in capsys.readouterr().err


# --- search: output --------------------------------------------------------------------------------------------------


def test_output_for_people(run, repo, capsys):
    """A line for each hit: the score with three decimals, the line's number, the text."""
    assert run("search", "a cat", "--input", "notes.txt") == 0

    lines = [f"{hit['score']:.3f}  {hit['line']}  {hit['text']}\n" for hit in expected(repo, "a cat")]
    assert len(lines) == 4
    assert capsys.readouterr().out == "".join(lines)


def test_columns_are_aligned(run, capsys, monkeypatch):
    """Scores and numbers are set to the right, and no score is a negative zero."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 7, "a"), Hit(-0.0001, 1000, "b"), Hit(-12.5, 30, "")))

    assert run("search", "x", "--input", "notes.txt") == 0
    assert capsys.readouterr().out == "  0.500     7  a\n  0.000  1000  b\n-12.500    30  \n"


def test_questions_are_headers(run, capsys, monkeypatch):
    """Of several questions, each stands above its hits; also those of standard input."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, "the cat"), Hit(0.25, 30, "a man")))
    printed = "a\n  0.500   1  the cat\n  0.250  30  a man\n\nb\n  0.500   1  the cat\n  0.250  30  a man\n"

    assert run("search", "a", "b", "--input", "notes.txt") == 0
    assert capsys.readouterr().out == printed
    assert run("search", "--input", "notes.txt", stdin=b"a\nb\n") == 0
    assert capsys.readouterr().out == printed


CONTROLS = {
    "\x1b[2J\x1b]0;title\x07": r"\x1b[2J\x1b]0;title\x07",
    "a\tb\rc\nd\x00": r"a\tb\rc\nd\x00",
    "\x7f\x80\x9b31m": r"\x7f\x80\x9b31m",
    "\u2028\u2029\u202eabc\u202c\u2066\u2069": r"\u2028\u2029\u202eabc\u202c\u2066\u2069",
    "café 猫 👩\u200d💻 \u05d0\xa0\\x1b": "café 猫 👩\u200d💻 \u05d0\xa0\\x1b",
}


@pytest.mark.parametrize(("text", "shown"), CONTROLS.items(), ids=range(len(CONTROLS)))
@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_are_escaped(run, capsys, monkeypatch, text, shown, is_terminal):
    """What a terminal would obey is shown as an escape, in texts and in questions; letters of all kinds are not."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, text)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)

    assert run("search", text, text, "--input", "notes.txt") == 0
    assert capsys.readouterr().out == f"{shown}\n  0.500  1  {shown}\n\n{shown}\n  0.500  1  {shown}\n"


@pytest.mark.parametrize("text", CONTROLS, ids=range(len(CONTROLS)))
def test_json_keeps_control_characters(run, capsys, monkeypatch, text):
    """JSON lines hold texts unchanged, one line each; JSON escapes what it must."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, text)))

    assert run("search", text, "--input", "notes.txt", "--json") == 0

    printed = capsys.readouterr().out
    assert records(printed) == [{"query": text, "rank": 1, "score": 0.5, "line": 1, "text": text}]
    assert not set(printed.removesuffix("\n")) & set("\n\x1b\x9b\u202e\u2028")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1234567", "1234567"),
        ("12345678", "123456…"),
        ("x" * 100_000, "xxxxxx…"),
        ("猫猫猫1", "猫猫猫1"),
        ("猫猫猫猫", "猫猫猫…"),
        ("1猫猫猫猫", "1猫猫…"),
        ("cafe\u0301 e\u0301t", "cafe\u0301 e\u0301t"),
        ("cafe\u0301 e\u0301te", "cafe\u0301 e\u0301…"),
        ("123\x1b567", "123\\x1…"),
    ],
)
def test_lines_fit_a_terminal(run, capsys, monkeypatch, text, shown):
    """On a terminal of 17 columns, 10 of them taken, a text has 7; a letter may take two columns, or none."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, text)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "17")

    assert run("search", "x", "--input", "notes.txt") == 0
    assert capsys.readouterr().out == f"0.500  1  {shown}\n"


def test_questions_and_their_hits_fit_a_terminal(run, capsys, monkeypatch):
    """Headers, and the lines below them, are cut as well."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, "123456")))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "17")

    assert run("search", "y" * 18, "y", "--input", "notes.txt") == 0
    assert capsys.readouterr().out.split("\n")[:2] == ["y" * 16 + "…", "  0.500  1  1234…"]


@pytest.mark.parametrize(("arguments", "is_terminal"), [([], False), (["--json"], True)])
def test_lines_are_whole_elsewhere(run, capsys, monkeypatch, arguments, is_terminal):
    """In a pipe, and in JSON, texts are whole."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(0.5, 1, "x" * 1000)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)

    assert run("search", "y", "--input", "notes.txt", *arguments) == 0
    assert "x" * 1000 in capsys.readouterr().out


def test_json_has_no_nan(run, capsys, monkeypatch):
    """A score that JSON has no number for is an error, not a line that other programs cannot read."""
    monkeypatch.setattr(SearchIndex, "search", returning(Hit(float("nan"), 1, "a")))

    assert run("search", "x", "--input", "notes.txt", "--json") == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert "JSON compliant" in said.err


# --- the model -------------------------------------------------------------------------------------------------------


def notice():
    """Return what standard error says when the built-in model is used."""
    width = SentenceEncoder().get_embedding_dimension()
    return f"minibert: using the built-in model (English, {width} dimensions); --model names another\n"


def test_built_in_model(here, capsys, monkeypatch):
    """Without --model the built-in one is used, and standard error says so, once; an index knows it."""
    hub_options = ["--cache-folder", "cache", "--local-files-only"]

    assert main(["search", "a cat", "the man", "--input", "notes.txt", "--json", *hub_options]) == 0
    of_texts = capsys.readouterr()
    assert main(["index", "--input", "notes.txt", "--output", "x", *hub_options]) == 0
    assert capsys.readouterr() == ("", notice())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\nthe man\n")))
    assert main(["search", "--index", "x", "--json", *hub_options]) == 0
    of_index = capsys.readouterr()

    assert of_texts == of_index
    assert of_texts.err == notice()
    assert records(of_texts.out) == [*expected(None, "a cat"), *expected(None, "the man")]
    assert load(here / "x")[1]["model"] == "built-in"


@pytest.mark.parametrize("name", ["some/model", "\x1b[2J"])
def test_model_of_an_index_must_be_named(run, repo, here, capsys, monkeypatch, name):
    """The name in an index is not loaded: a file could make minibert fetch anything. The error names it."""
    assert run("index", "--input", "notes.txt", "--output", "x") == 0
    dataclasses.replace(SearchIndex.load("x"), model=name).save("x")
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))

    assert main(["search", "a cat", "--index", "x"]) == 1
    assert capsys.readouterr().err == (
        f"minibert: error: x was made with the model {name!r}, which no file may load by its name: name it with "
        "--model if you trust it.\n"
    )


def test_built_in_model_by_its_folder(here, capsys):
    """An index that was made with the built-in model under another name needs no --model either."""
    SearchIndex.build(SentenceEncoder(BUILTIN_MODEL), ["the cat", "the hat"]).save("x")

    assert main(["search", "the hat", "--index", "x", "--top-k", "1"]) == 0
    assert capsys.readouterr().out == "1.000  2  the hat\n"


@pytest.mark.parametrize("questions", [["a cat"], []])
def test_other_model_is_refused(run, repo, here, capsys, questions):
    """An index is not searched with another model than its own; nor is a question read for that."""
    assert run("index", "--input", "notes.txt", "--output", "x") == 0
    other = twin("SBERT-base-nli-v2")

    assert main(["search", *questions, "--index", "x", "--model", str(other)]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    for part in ("minibert: error: an index must be searched with the model that made it", str(repo), str(other)):
        assert part in said.err
    assert "build the index again" in said.err


def test_other_built_in_model_is_refused(run, here, capsys):
    """An index of another version's built-in model is refused, by its fingerprint."""
    assert run("index", "--input", "notes.txt", "--output", "x") == 0
    dataclasses.replace(SearchIndex.load("x"), model="built-in", fingerprint="0" * 64).save("x")

    assert main(["search", "a cat", "--index", "x"]) == 1
    error = capsys.readouterr().err
    assert "'built-in' with fingerprint 000000000000; the encoder's is 'built-in' with fingerprint" in error


def test_same_model_elsewhere_is_taken(run, repo, here, capsys, tmp_path):
    """It is the model's files that count, not where they are."""
    assert run("index", "--input", "notes.txt", "--output", "x") == 0
    moved = repo.rename(tmp_path / "moved")

    assert main(["search", "a cat", "--index", "x", "--model", str(moved), "--json"]) == 0
    assert records(capsys.readouterr().out) == expected(moved, "a cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"the cat\n"), "a search index must be a safetensors file: x is not a safeten"),
        (
            lambda path: save_file({"\x1b[2J": np.zeros(1, np.uint16)}, path),
            r"a search index must be a safetensors file",
        ),
        (lambda path: path.unlink(), "x does not exist. `minibert index` makes such a file."),
    ],
)
def test_unusable_index(run, here, capsys, monkeypatch, change, message):
    """A file that is no index is one error, before the model is loaded."""
    assert run("index", "--input", "notes.txt", "--output", "x") == 0
    change(here / "x")
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))

    assert run("search", "a cat", "--index", "x") == 1

    error = capsys.readouterr().err
    assert error.startswith(f"minibert: error: {message}")
    assert error.removesuffix("\n").isprintable()


def test_device_goes_to_the_encoder(run, capsys):
    """--device is the encoder's."""
    assert run("search", "a cat", "--input", "notes.txt", "--device", "cpu") == 0
    assert run("search", "a cat", "--input", "notes.txt", "--device", "abacus") == 1
    assert "abacus" in capsys.readouterr().err


# --- index -----------------------------------------------------------------------------------------------------------


def test_index_file(run, repo, here):
    """The file holds the texts with the numbers of their lines, their vectors, and the model as it was named."""
    assert run("index", "--output", "notes.safetensors", stdin=NOTES) == 0

    index = SearchIndex.load(here / "notes.safetensors")
    assert dict(zip(index.numbers.tolist(), index.texts, strict=True)) == LINES
    np.testing.assert_array_equal(index.vectors, SentenceEncoder(repo).encode_document(list(LINES.values())))
    assert index.model == str(repo)
    assert listing(here) == ["notes.safetensors", "notes.txt"]


def test_options_are_the_encoders(run, repo, here):
    """An index has vectors of the width and the precision of arithmetic that are asked for, as float32."""
    options = ["--truncate-dim", 5, "--dtype", "float64", "--num-threads", 1]
    assert run("index", "--input", "notes.txt", "--output", "x", *options) == 0

    encoder = SentenceEncoder(repo, dtype="float64", truncate_dim=5)
    vectors = SearchIndex.load("x").vectors
    np.testing.assert_array_equal(vectors, encoder.encode_document(list(LINES.values())).astype(np.float32))


def test_index_of_fewer_dimensions_is_searched(run, repo, here, capsys):
    """A search takes as many dimensions of the questions as the index has."""
    assert run("index", "--input", "notes.txt", "--output", "x", "--truncate-dim", 5) == 0
    assert run("search", "the cat", "--index", "x", "--num-threads", 1, "--dtype", "float32") == 0
    assert capsys.readouterr().out.startswith("1.000  1  the cat\n")


def test_prompts_of_the_model_are_kept(run, repo, here):
    """Without options, an index has the model's own prompts."""
    edit_json(repo / "config_sentence_transformers.json", prompts={"query": "a ", "document": "the "})
    assert run("index", "--input", "notes.txt", "--output", "x") == 0

    index = SearchIndex.load("x")
    assert (index.document_prompt, index.query_prompt) == ("the ", "a ")


@pytest.mark.parametrize("command", ["index", "search"])
@pytest.mark.parametrize(("size", "shown"), [("1", True), ("4", False)])
def test_terminal_is_told(run, capsys, monkeypatch, command, size, shown):
    """A terminal gets a progress bar if there is more than one batch, and is told what was written."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    arguments = ["--output", "x"] if command == "index" else ["a cat"]

    assert run(command, "--input", "notes.txt", "--batch-size", size, *arguments) == 0

    error = capsys.readouterr().err
    assert ("Texts" in error) == shown
    assert error.endswith("minibert: wrote 4 texts to x\n") == (command == "index")


# --- the program -----------------------------------------------------------------------------------------------------


def test_questions_are_answered_at_once(repo, here):
    """Who writes a question gets its answer before the next one is written; Ctrl-C ends with 130, quietly."""

    def heed_signals():  # who runs the tests in the background may have them ignored, which is inherited
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*COMMAND, "search", "--model", repo, "--input", here / "notes.txt", "--json", "--top-k", "1"]
    options = {**dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE), "cwd": ROOT, "env": BUFFERED}
    with subprocess.Popen(command, **options, preexec_fn=heed_signals) as process:  # noqa: PLW1509
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        for question in ("a cat", "the café"):
            process.stdin.write(f"{question}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == expected(repo, question, top_k=1)[0]
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr.read() == b""
        deadline.cancel()
