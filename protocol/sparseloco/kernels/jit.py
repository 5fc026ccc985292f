"""How kernels for the host are compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from blake3 import blake3

from protocol.sparseloco import records

INFINITY = np.int32(0x7F800000)
"""Bits of fp32 infinity; those of NaN are above."""


class Row(NamedTuple):
    """A `Group` as compiled code takes it: a row of `Plan.batches`, in that order."""

    parameter: int
    offset: int
    start: int
    first: int
    chunks: int
    length: int
    k: int
    low_width: int
    upper_bits: int
    value_bits: int
    size_bytes: int


def _sources() -> str:
    """Digest of everything that is compiled into a kernel: numba itself only looks at the file that a kernel is
    defined in, and would go on using what it once compiled from others."""
    folder = Path(__file__).parent
    files = [Path(__file__), folder / "bits.py", *sorted(folder.glob("cpu*.py")), Path(records.__file__)]
    return blake3(b"".join(file.read_bytes() for file in files)).hexdigest(8)


_SOURCES = _sources()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, and keep the result on disk where possible. Calls do not hold Python's lock, and do not
    count references (`_nrt`): all arrays are the caller's, and counting them, atomically, took two thirds of the
    time of reading a record. Without fast-math, so that every operation is rounded on its own."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
    function.__qualname__ += f"_{_SOURCES}"  # part of the name on disk
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write to: compile in each process
        return numba.njit(**options)(function)


def part(function: Callable[..., Any]) -> Any:
    """Compile into each kernel that calls it, so that arrays need not be handed over."""
    return numba.njit(inline="always", error_model="numpy")(function)


@part
def lowest(bits: Any) -> Any:
    """A uint64 with only its lowest `bits` ≥ 1 set; all of them from 64 on."""
    return ~np.uint64(0) >> np.uint64(64 - min(bits, 64))


@part
def row_of(table: Any, number: Any) -> Any:
    """The `Row` with this number."""
    r = table[number]
    return Row(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10])
