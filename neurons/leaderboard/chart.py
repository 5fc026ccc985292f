"""Small pictures made of characters: a line chart in braille dots, and bars of half cells."""

from __future__ import annotations

import math
from collections.abc import Sequence

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of a braille cell by column and row (Unicode 2800-28FF: two columns of four dots)."""


def line_chart(points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """A line through `points` (x ascending) as `height` strings of `width` braille characters; points that are not
    finite are left out. The lowest value lies on the bottom row, the highest on the top row."""
    cells = [[0] * width for _ in range(height)]
    drawn = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if drawn:
        columns, rows = 2 * width - 1, 4 * height - 1
        dots = [(_scale(x, drawn[0][0], drawn[-1][0], columns), y) for x, y in drawn]
        low, high = min(y for _, y in drawn), max(y for _, y in drawn)
        previous: int | None = None
        for column, value in _along(dots):
            row = rows - round(_scale(value, low, high, rows))
            # Join with the dot before, so that a steep line has no holes.
            for between in _steps(row if previous is None else previous, row):
                cells[between // 4][column // 2] |= _DOTS[column % 2][between % 4]
            previous = row
    return ["".join(chr(0x2800 + bits) for bits in line) for line in cells]


def bar(share: float, width: int) -> str:
    """`share` of `width` cells as a heavy line, in half cells; what is above zero shows at least half a cell."""
    filled = min(1.0, max(0.0, share)) * width * 2
    full, half = divmod(max(1, round(filled)) if filled > 0 else 0, 2)
    return ("━" * full + "╸" * half).ljust(width)


def _scale(value: float, low: float, high: float, size: int) -> float:
    # Halved first: the difference of two huge values would overflow.
    span = high / 2 - low / 2
    return size * ((value / 2 - low / 2) / span) if span > 0 else size / 2


def _along(dots: Sequence[tuple[float, float]]) -> list[tuple[int, float]]:
    """The value at each dot column from the first point to the last, linear in between."""
    found: list[tuple[int, float]] = []
    place = 0
    for column in range(round(dots[0][0]), round(dots[-1][0]) + 1):
        while place + 1 < len(dots) - 1 and dots[place + 1][0] <= column:
            place += 1
        (x0, y0), (x1, y1) = dots[place], dots[min(place + 1, len(dots) - 1)]
        part = min(1.0, max(0.0, (column - x0) / (x1 - x0))) if x1 > x0 else 0.0
        found.append((column, y0 * (1 - part) + y1 * part))
    return found


def _steps(start: int, end: int) -> range:
    """The rows after `start` up to and with `end`; `end` alone when they are equal."""
    if start == end:
        return range(end, end + 1)
    return range(start + 1, end + 1) if end > start else range(end, start)
