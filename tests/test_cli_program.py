"""What all commands have in common: files, streams, signals, wrong usage, and errors of one line."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cli_support import BUFFERED, COMMAND, fail_with, listing, program, usage_error
from support import ROOT

from minibert import SentenceEncoder, __version__
from minibert.cli import main
from minibert.files import hub

# --- files -----------------------------------------------------------------------------------------------------------


def hard_link(path):
    """Give a file a second name."""
    os.link(path, "other")
    return "other"


def symbolic_link(path):
    """Make a link to a file."""
    path.with_name("other").symlink_to(path)
    return "other"


NAMES = {
    "its name": lambda path: path.name,
    "another spelling": lambda path: f"../{path.parent.name}/{path.name}",
    "its full name": str,
    "a hard link": hard_link,
    "a symbolic link": symbolic_link,
}


@pytest.mark.parametrize("command", [["encode", "--format", "jsonl"], ["index", "--overwrite"]])
@pytest.mark.parametrize("source", ["its name", "standard input"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_input_is_not_overwritten(repo, here, capsys, monkeypatch, command, source, name):
    """An output that is the input, by whatever name, is refused before the model is loaded."""
    notes = here / "notes.jsonl"
    notes.write_text('{"text": "the cat", "id": 7}\n')
    output = name(notes)
    monkeypatch.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    before = listing(here), notes.read_bytes()

    with notes.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        where = ["--input", notes.name] if source == "its name" else ["--input-format", "jsonl"]
        assert main([*command, "--model", str(repo), *where, "--output", output]) == 1

    named = notes.name if source == "its name" else source
    assert capsys.readouterr().err == (
        f"minibert: error: the output must be another file than the input; {output} and {named} are the same file. "
        "Give another --output.\n"
    )
    assert (listing(here), notes.read_bytes()) == before


@pytest.mark.parametrize(
    "command",
    [["encode", "--input", "x"], ["search", "q", "--input", "x"], ["search", "q", "--index", "x"], ["encode"]],
)
def test_output_is_not_appended_to_the_input(repo, here, command):
    """Standard output that is appended to the file that is read is refused, or a stream would never end."""
    (here / "x").write_text("the cat\n")

    with (here / "x").open("ab") as stdout, (here / "x").open("rb") as stdin:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = program(*command, "--model", repo, stdin=stdin, stdout=stdout, cwd=here, env=environment)

    assert done.returncode == 1
    assert b"the output must be another file than the input; standard output and" in done.stderr
    assert (here / "x").read_text() == "the cat\n"


def test_another_file_is_no_input(repo, here):
    """A file of the same content is another one; so is any file where the texts are arguments."""
    for name in ("a.jsonl", "b.jsonl"):
        (here / name).write_text('{"text": "the cat"}\n')

    argv = ["encode", "--model", str(repo), "--output", "b.jsonl", "--overwrite"]
    assert main([*argv, "--input", "a.jsonl"]) == 0
    assert main([*argv, "the cat"]) == 0


#: Commands that write a file, and what they compute with.
ENCODE, INDEX = "minibert.encoder.SentenceEncoder.encode_stream", "minibert.encoder.SentenceEncoder.encode"
WRITERS = {
    "jsonl": (["encode", "--format", "jsonl"], ENCODE),
    "npy": (["encode", "--format", "npy"], ENCODE),
    "safetensors": (["encode", "--format", "safetensors"], ENCODE),
    "index": (["index"], INDEX),
}
WRITING = pytest.mark.parametrize(("command", "compute"), WRITERS.values(), ids=WRITERS)


@pytest.fixture
def write(repo, here):
    """Return a function that runs a command with the repo's model, on a file of three lines, to a file."""
    (here / "notes.txt").write_text("the cat\na man\nthe hat\n")

    def run(command, output, *argv):
        files = ["--input", "notes.txt", "--output", str(output)]
        return main([*command, "--model", str(repo), *files, *argv])

    return run


@WRITING
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize(
    ("target", "error", "status"),
    [
        (None, MemoryError("no"), 1),
        (None, ValueError("no"), 1),
        (None, KeyboardInterrupt(), 130),
        ("os.fsync", OSError(5, "Input/output error"), 1),
        ("pathlib.Path.replace", PermissionError(13, "Permission denied"), 1),
        ("pathlib.Path.replace", KeyboardInterrupt(), 130),
    ],
)
def test_failure_leaves_no_file(write, here, monkeypatch, command, compute, target, error, status, old):
    """Whatever fails, and whenever: no new file is there, and an old one is as it was."""
    if old is not None:
        (here / "x").write_text(old)
    monkeypatch.setattr(target or compute, fail_with(error))

    assert write(command, "x", "--overwrite") == status

    assert listing(here) == (["notes.txt"] if old is None else ["notes.txt", "x"])
    assert old is None or (here / "x").read_text() == old


@WRITING
def test_existing_file_is_replaced_on_request_only(write, here, capsys, monkeypatch, command, compute):
    """Without --overwrite, a file that is there is refused before texts are read or the model is loaded.

    A file that is replaced keeps its permissions, and a link that leads to it stays.
    """
    (here / "real").touch(mode=0o600)
    (here / "x").symlink_to("real")
    with monkeypatch.context() as early:
        early.setattr(SentenceEncoder, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
        early.setattr("minibert.cli.texts._open", lambda *_: pytest.fail("texts were read"))
        assert write(command, "x") == 1
    assert capsys.readouterr().err == (
        "minibert: error: x exists. Give another --output, or --overwrite to replace it.\n"
    )
    assert (here / "real").read_bytes() == b""

    assert write(command, "x", "--overwrite") == 0
    assert (here / "x").is_symlink()
    assert (here / "real").stat().st_mode & 0o777 == 0o600
    assert (here / "real").read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("nowhere/x", "--output must lie in a folder; there is no folder nowhere"),
        ("folder", "--output must be a regular file; folder is not"),
        ("/dev/null", "--output must be a regular file; /dev/null is not"),
    ],
)
@WRITING
def test_impossible_output_is_refused_before_the_work(
    write, here, capsys, monkeypatch, output, message, command, compute
):
    """What cannot be written to is refused before texts are read, also with --overwrite."""
    (here / "folder").mkdir()
    monkeypatch.setattr("minibert.cli.texts._open", lambda *_: pytest.fail("texts were read"))

    assert write(command, output, "--overwrite") == 1
    assert message in capsys.readouterr().err


@WRITING
def test_full_disk_is_one_error(repo, here, command, compute):
    """Where there is no room for the file, there is one error and no file."""
    resource = pytest.importorskip("resource")
    (here / "notes.txt").write_text("the cat\na man\n" * 10)
    files = ["--input", here / "notes.txt", "--output", here / "x"]
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)), "text": True}
    done = program(*command, "--model", repo, *files, **limit)
    assert done.returncode == 1
    assert re.fullmatch(r"minibert: error: .*/x cannot be written: .*File too large.*\n", done.stderr)
    assert listing(here) == ["notes.txt"]


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        ("search q --input notes.txt >&-", 1, "minibert: error: standard output is closed; results would be lost\n"),
        ("encode q >&-", 1, "minibert: error: standard output is closed; results would be lost\n"),
        ("index --input notes.txt --output x >&-", 0, ""),
        ("encode q <&- 2>&1 >/dev/null", 0, ""),
        (
            "search q <&-",
            1,
            "minibert: error: standard input must have a text to search, one a line or a JSON object; ",
        ),
        ("search --input notes.txt <&-", 0, ""),
        ("search q --input notes.txt 2>&-", 0, ""),
    ],
)
def test_closed_streams(repo, here, command, status, message):
    """Standard streams that are closed are no traceback: nothing is read, and results are not lost unsaid."""
    (here / "notes.txt").write_text("the cat\n")
    name, rest = command.split(" ", 1)
    line = f'"$0" -m minibert {name} --model "$1" {rest}'
    run = subprocess.run(["sh", "-c", line, sys.executable, repo], capture_output=True, text=True, check=False)

    assert run.returncode == status
    assert run.stderr.startswith(message)
    assert "Traceback" not in run.stderr
    assert message or not run.stderr


#: Commands that write to standard output.
PRINTERS = [["encode", "--model"], ["search", "q", "--input", "notes.txt", "--model"], ["inspect"]]


@pytest.mark.parametrize("command", PRINTERS, ids=["encode", "search", "inspect"])
def test_reader_that_goes_away(repo, here, command):
    """Where nobody reads standard output any more, a run ends quietly with 141."""
    (here / "notes.txt").write_text("the cat\n")
    read, write = os.pipe()
    os.close(read)
    environment = {**BUFFERED, "PYTHONPATH": str(ROOT)}
    with os.fdopen(write, "wb") as stdout:
        done = program(*command, repo, input=b"the cat\n", stdout=stdout, cwd=here, env=environment)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_standard_output_is_one_error(repo):
    """Standard output that cannot be written is one error, which the interpreter's exit does not repeat."""
    with Path("/dev/full").open("wb") as stdout:
        done = program("encode", "--model", repo, "the cat", stdout=stdout)
    assert (done.returncode, done.stderr) == (1, b"minibert: error: No space left on device\n")


@pytest.mark.parametrize("command", [["encode"], ["search", "the café"]], ids=["encode", "search"])
def test_output_is_utf8(repo, command):
    """``python -m minibert`` is the command line; its output is UTF-8 whatever the locale says."""
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    done = program(*command, "--model", repo, input="café\n".encode(), env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "café" in done.stdout.decode("utf-8")


# --- signals and threads ---------------------------------------------------------------------------------------------


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


def test_another_thread_can_run_a_command(repo, here):
    """A program may call ``main`` outside its main thread, where signals cannot be handled."""
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(main, ["encode", "--model", str(repo), "the cat", "--output", "x.npy"]).result() == 0
    assert listing(here) == ["x.npy"]


# --- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["encode", "index", "search", "embed", "inspect", "convert", "download"])
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "text", "--revision", "v2"], "--revision is for a repo of the hub: give its --model"),
        (["encode", "--model", "m", "text", "--input", "x"], "TEXT and --input cannot be given together"),
        (
            ["encode", "--model", "m", "text", "--input-format", "jsonl"],
            "--input-format is for --input and standard input",
        ),
        (["encode", "--model", "m", "text", "--format", "npy"], "npy is not for standard output: give --output FILE"),
        (
            ["encode", "--model", "m", "text", "--output", "-", "--format", "safetensors"],
            "safetensors is not for standard",
        ),
        (
            ["encode", "--model", "m", "text", "--output", "x.txt"],
            "--output must end in .jsonl, .ndjson, .npy, .safetensors",
        ),
        (["encode", "--model", "m", "text", "--batch-size", "0"], "--batch-size: must be a whole number of at least 1"),
        (
            ["encode", "--model", "m", "text", "--truncate-dim", "x"],
            "--truncate-dim: must be a whole number of at least 1",
        ),
        (["encode", "--model", "m", "text", "--fields", "all"], "--fields is for JSON lines as input and as output"),
        (
            ["encode", "--input", "x.jsonl", "--output", "x.npy", "--fields", "all"],
            "--fields is for JSON lines as input and as",
        ),
        (["encode", "--model", "m", "text", "--precision", "float16"], "invalid choice: 'float16'"),
        (["encode", "--model", "m", "text", "--query", "--prompt", "x"], "not allowed with argument"),
        (["encode", "--model", "m", "text", "--norm"], "unrecognized arguments: --norm"),
        (["search"], "give a QUESTION, or --input or --index a file; standard input cannot hold texts and questions"),
        (["search", "--input", "-"], "give a QUESTION, or --input or --index a file"),
        (["search", "q", "--index", "x", "--input", "y"], "--input is for texts that are not in an index"),
        (["search", "q", "--index", "x", "--input-format", "text"], "--input-format is for texts that are not in an"),
        (["search", "q", "--index", "x", "--document-prompt", ""], "--document-prompt is for texts that are not in an"),
        (["search", "q", "--index", "x", "--batch-size", "2"], "--batch-size is for texts that are not in an index"),
        (["search", "q", " ", "--input", "x"], "a QUESTION must not be blank"),
        (["search", "q", "--top-k", "0"], "--top-k: must be a whole number of at least 1"),
        (["search", "q", "--revision", "v2"], "--revision is for a repo of the hub: give its --model"),
        (["search", "q", "--index", "x", "--revision", "v2"], "--revision is for a repo of the hub: give its --model"),
        (["search", "q", "--top", "3"], "unrecognized arguments: --top"),
        (["index", "--output", "x", "--revision", "v2"], "--revision is for a repo of the hub: give its --model"),
        (["index", "--input", "x"], "the following arguments are required: --output"),
        (["index", "--input", "x", "--output", "-"], "an index is not for standard output: give --output a file"),
        (["index", "text", "--output", "x"], "unrecognized arguments: text"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    """Arguments that contradict each other or are unknown exit with 2 and say why; nothing is abbreviated."""
    usage_error(*arguments)
    assert message in capsys.readouterr().err


# --- download and the hub --------------------------------------------------------------------------------------------


def test_download_prints_the_folder(capsys, monkeypatch):
    """``minibert download`` prints the folder that hub.resolve returns for its arguments, and nothing else."""
    monkeypatch.setattr(hub, "resolve", lambda name, **options: f"{name} {sorted(options.items())}")

    assert main(["download", "some/model", "--revision", "v2", "--cache-folder", "here"]) == 0
    assert capsys.readouterr().out == (
        "some/model [('cache_folder', 'here'), ('local_files_only', False), ('revision', 'v2')]\n"
    )


HUB_COMMANDS = (
    ["encode", "a", "--model"],
    ["index", "--input", "notes.txt", "--output", "x", "--model"],
    ["search", "a", "--input", "notes.txt", "--model"],
    ["inspect"],
    ["download"],
    ["convert"],
)


@pytest.mark.parametrize("command", HUB_COMMANDS, ids=lambda command: command[0])
def test_every_command_takes_hub_ids(here, capsys, command):
    """A repo id goes to the hub; here to an empty cache, which is an error with its remedy."""
    (here / "notes.txt").write_text("the cat\n")
    argv = [*command, "some/model", "--local-files-only", "--cache-folder", "cache", "--revision", "v2"]

    assert main([*argv, "new"] if command == ["convert"] else argv) == 1

    error = capsys.readouterr().err
    assert error.startswith("minibert: error: some/model at revision v2 is not in the cache")
    assert "minibert download some/model" in error
