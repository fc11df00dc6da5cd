"""``minibert embed``: vectors for files of any size, as a job that can be interrupted and continued."""

import argparse
import contextlib
import sys
import time
from typing import Any

from minibert.cli.encoder import open_encoder, shows_progress
from minibert.jobs import Progress, embed_files, verify

#: From this number of bytes on, the check of the input has a progress bar.
_WORTH_A_BAR = 100 << 20


def run(options: argparse.Namespace) -> None:
    """Run or continue a job, or check a finished one."""
    if options.verify is not None:
        checked = verify(options.verify)
        shards, rows = len(checked["shards"]), checked["rows"]
        sys.stdout.write(f"{options.verify}: {shards:,} shards with {rows:,} vectors are as they were written\n")
        return
    keep = options.keep if options.keep in {None, "all", "none"} else options.keep.split(",")
    with contextlib.closing(_Bars(options)) as progress:
        manifest = embed_files(
            lambda: open_encoder(options),
            options.inputs,
            options.output,
            input_format=options.input_format,
            column=options.column,
            id_column=options.id_column,
            keep=keep,
            on_error=options.on_error,
            prompt=options.prompt,
            prompt_name=options.prompt_name,
            kind=None if options.method == "encode" else options.method,
            normalize=options.normalize,
            precision=options.precision,
            batch_size=options.batch_size,
            output_format=options.format,
            compression=options.compression,
            shard_rows=options.shard_rows,
            part=options.shards,
            progress=progress,
        )
    if manifest is None:
        number, parts = options.shards
        sys.stderr.write(f"minibert: part {number}/{parts} is complete; shards of other parts are not yet\n")
    elif sys.stderr.isatty():
        sys.stderr.write(f"minibert: {options.output} is complete, with {manifest['rows']:,} vectors\n")


class _Bars(Progress):
    """Progress bars on a terminal: first of the check of the input, then of the texts."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._bar: Any = None
        self._tokens, self._start = 0, 0.0

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def checking(self, size: int) -> None:
        if sys.stderr.isatty() and size >= 2 * _WORTH_A_BAR:
            from tqdm import tqdm

            self._bar = tqdm(total=size, desc="Checking the input", unit="B", unit_scale=True)

    def checked(self, size: int) -> None:
        if self._bar is not None:
            self._bar.update(size)

    def encoding(self, rows: int, done: int) -> None:
        self.close()
        if done:
            sys.stderr.write(f"minibert: {done:,} of {rows:,} rows are already done\n")
        if done < rows and shows_progress(rows - done, self._options):
            from tqdm import tqdm

            self._bar = tqdm(total=rows, initial=done, desc="Texts", unit=" texts")
            self._start = time.monotonic()

    def encoded(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.update(rows)

    def computed(self, tokens: int) -> None:
        self._tokens += tokens
        if self._bar is not None:
            rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate:,.0f} tokens/s")
