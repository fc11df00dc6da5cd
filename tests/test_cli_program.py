"""What all commands have in common: files, streams, signals, wrong usage, and errors of one line."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli_support import COMMAND, listing
from support import ROOT

from minibert import SentenceEncoder
from minibert.cli import main

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
        argv = [*COMMAND, *command, "--model", repo]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False, cwd=here, env=environment, timeout=60
        )

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


# --- threads ---------------------------------------------------------------------------------------------------------


def test_another_thread_can_run_a_command(repo, here):
    """A program may call ``main`` outside its main thread, where signals cannot be handled."""
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(main, ["encode", "--model", str(repo), "the cat", "--output", "x.npy"]).result() == 0
    assert listing(here) == ["x.npy"]
