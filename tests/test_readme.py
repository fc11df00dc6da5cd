"""README's examples give what they show."""

import doctest
import shlex
import subprocess
import sys
from pathlib import Path

from support import ROOT

from minibert import model


def test_examples():
    """Each Python example runs, and prints what README says."""
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)

    assert attempted > 8
    assert failed == 0


def test_search_example():
    """The search prints what README shows, and says on standard error which model it used."""
    console = (
        (ROOT / "README.md").read_text("utf-8").split("<!-- search example -->\n```console\n$ ")[1].split("```")[0]
    )
    command, texts_and_output = console.split(" <<END\n")
    texts, output = texts_and_output.split("END\n")
    script, *arguments = shlex.split(command)
    run = subprocess.run(
        [sys.executable, "-m", script, *arguments], input=texts, capture_output=True, text=True, check=True
    )

    assert run.stdout == output
    assert "built-in model" in run.stderr


def test_length_of_the_reference():
    """README states how many lines the forward pass has."""
    lines = len(Path(model.__file__).read_text("utf-8").splitlines())

    assert f"{lines} lines of numpy" in (ROOT / "README.md").read_text("utf-8")
