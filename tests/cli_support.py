"""What the tests of the command line share."""

import io
import json
import os
import sys

import pytest

from minibert.cli import main

COMMAND = [sys.executable, "-m", "minibert"]
#: An environment in which Python buffers standard output, as it does for users.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


class Terminal(io.TextIOWrapper):
    """A standard input that is a terminal, on which these bytes are typed."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))

    def isatty(self):
        """Say that it is one."""
        return True


def records(text):
    """Return the JSON lines of a text."""
    return [json.loads(line) for line in text.removesuffix("\n").split("\n")]


def usage_error(*argv):
    """Run the command line, which must exit with the status of wrong usage."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in argv])
    assert stop.value.code == 2


def listing(folder):
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())
