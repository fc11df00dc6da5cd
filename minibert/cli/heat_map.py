"""Maps of numbers on a terminal, in colours or without."""

from collections.abc import Iterator, Sequence

import numpy as np

from minibert.cli.terminal import columns_of
from minibert.typing import Array, Float

#: Colours of the 256-colour palette, from pale to strong, for positive and for negative numbers. Black text is readable
#: on all of them, and they do not depend on the background of the terminal.
_WARM, _COLD = (230, 223, 216, 209, 202), (195, 153, 117, 75, 39)
_CELL = 6


def heat_map(
    rows: Sequence[str], columns: Sequence[str], values: Float[Array, "rows columns"], *, colours: bool
) -> list[str]:
    """Return the lines of a map. The names of the columns are like stairs above it.

    Args:
        rows: The names of the rows.
        columns: The names of the columns.
        values: The numbers. They are printed with one digit after the point.
        colours: Whether cells have ANSI colours.
    """
    left, largest = max(map(columns_of, rows)), float(np.abs(values).max())
    lines = []
    for number, name in enumerate(columns):
        before = "".join(f"{'│':>{_CELL}}" for _ in range(number))
        lines.append(f"{'':{left}}{before}{'':{_CELL - 1}}{name}")
    for name, row in zip(rows, values, strict=True):
        cells = [_cell(float(value), largest, colours=colours) for value in row]
        lines.append(f"{'':{left - columns_of(name)}}{name}{''.join(cells)}")
    return lines


def width_of(lines: Sequence[str]) -> int:
    """Return the number of terminal columns of the widest of some lines without colours."""
    return max(map(columns_of, lines))


def strongest(
    rows: Sequence[str], columns: Sequence[str], values: Float[Array, "rows columns"], count: int
) -> Iterator[str]:
    """Yield a line for each of the ``count`` largest numbers, by their absolute values."""
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:count]
    for row, column in zip(*np.unravel_index(order, values.shape), strict=True):
        yield f"{values[row, column]:{_CELL + 1}.3g}  {rows[row]} · {columns[column]}"


def _cell(value: float, largest: float, *, colours: bool) -> str:
    text = f"{value:z{_CELL}.1f}"
    strength = abs(value) / largest if largest else 0.0
    if not colours or strength < 0.05:
        return text
    palette = _WARM if value > 0 else _COLD
    return f"\x1b[38;5;16;48;5;{palette[min(int(strength * len(palette)), len(palette) - 1)]}m{text}\x1b[0m"
