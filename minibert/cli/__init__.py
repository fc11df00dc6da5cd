"""The command line: ``minibert encode``, ``index``, ``search``, ``explain``, ``embed``, ``serve``, ``inspect``, ...

Exit status: 0; 1 for an error, with a message on standard error; 2 for wrong usage; 130, 143 or 129 after SIGINT,
SIGTERM or SIGHUP, but 0 for ``serve``, which then ends in order; 141 if standard output was closed.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Never

from minibert.cli import arguments
from minibert.errors import MinibertError
from minibert.safe.escapes import printable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (by default, that of the process) and return the exit status."""
    options = arguments.parse(argv)
    if not _standard_streams(options):
        return 1
    try:
        with _terminable(), _one_line_messages():
            # Import late, so that --help and usage errors do not wait for the imports of the commands.
            importlib.import_module(f"minibert.cli.{options.command}").run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except (MinibertError, MemoryError, OSError, TypeError, ValueError) as error:
        _abandon_stdout()
        lines = [printable(line) for line in _message(error).split("\n")]  # a message can quote a file
        sys.stderr.write("\n".join(["minibert: error: " + lines[0], *lines[1:]]) + "\n")
        return 1
    return 0


def _standard_streams(options: argparse.Namespace) -> bool:
    """Replace closed standard streams by the null device; return whether there is a place for results."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdout is None:
        if getattr(options, "output", None) is None and options.command != "serve":
            sys.stderr.write("minibert: error: standard output is closed; results would be lost\n")
            return False
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack, so that partial files are removed.

    Only in the main thread: in Python, other threads cannot set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> Never:
        raise SystemExit(128 + number)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Only signals with the default action: under nohup, SIGHUP is ignored, and this must not change.
    signals = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _one_line_messages() -> Iterator[None]:
    """Print warnings and log messages of the library as single lines, without a source location."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        # A message can quote the content of a file.
        sys.stderr.write(f"minibert: warning: {printable(' '.join(str(message).split()))}\n")

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            show(record.getMessage())

    handler = Handler()
    logger = logging.getLogger("minibert")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)


def _message(error: Exception) -> str:
    """Return the message of ``error``, without the error number of an OSError."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def _abandon_stdout() -> None:
    """Redirect standard output to the null device. Otherwise, the interpreter would fail on it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
