"""The command line: ``minibert encode``, ``index``, ``search``, ``inspect``, ``convert`` and ``download``.

Exit status: 0; 1 for an error, which standard error tells; 2 for wrong usage; 130, 143 or 129 when stopped by
SIGINT, SIGTERM or SIGHUP; 141 when the reader of standard output went away.
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
    """Run the command line ``argv``, by default the process's own, and return the exit status."""
    options = arguments.parse(argv)
    if not _standard_streams(options):
        return 1
    try:
        with _terminable(), _one_line_messages():
            # Imported now, so that --help and usage errors do not wait for what the commands need.
            importlib.import_module(f"minibert.cli.{options.command}").run(options)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _abandon_stdout()
        return 141
    except (MinibertError, MemoryError, OSError, TypeError, ValueError) as error:
        _abandon_stdout()
        lines = [printable(line) for line in _message(error).split("\n")]  # what a file holds may be quoted in it
        sys.stderr.write("\n".join(["minibert: error: " + lines[0], *lines[1:]]) + "\n")
        return 1
    return 0


def _standard_streams(options: argparse.Namespace) -> bool:
    """Give closed standard streams something to read and write; return whether results have somewhere to go."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    if sys.stdout is None:
        if getattr(options, "output", None) is None:
            sys.stderr.write("minibert: error: standard output is closed; results would be lost\n")
            return False
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
    return True


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP unwind the stack, so that what is half written gets removed.

    Only in the main thread: Python lets no other one set what a signal does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> Never:
        raise SystemExit(128 + number)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # Only those with the default action: under nohup, SIGHUP is ignored and must stay so.
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
    """Print warnings, and what the library logs, as single lines without a place in the source."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        # What a file holds may be quoted in it.
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
    """Return what ``error`` says; without the number that the system's own errors begin with."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def _abandon_stdout() -> None:
    """Send what standard output cannot take nowhere: or the interpreter would fail on it again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
