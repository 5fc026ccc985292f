"""The arithmetic of SparseLoCo, one module per kind of device; `reference` is the definition.

A kernel works on runs of chunks: n chunks of one format (`RecordFormat`), with their elements as fp32
[n, length] and their records as uint8 [n, size_bytes], always from the host's memory. `of` chooses the module by
where the elements lie. Whatever a module does, it does to the same bits as `reference`; only `dot` may differ, in its
last bits, and `encode` on a GPU, by one step of a level, where sums are not exact: they add in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.records import Flaw, RecordFormat

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
T = TypeVar("T")
R = TypeVar("R")

Elements = Any
"""fp32 elements where the kernel works: a NumPy array, or a tensor on a GPU."""


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What is in a run of records: the first flaw, and how often each level code is used, int64 [256] (32-bit
    values: all zero). Records with a flaw may be counted or not."""

    flaw: Flaw
    counts: I64


class Kernels(Protocol):
    """What each module provides."""

    RUN_ELEMENTS: int
    """About how many elements a run should have: enough to be worth a call, few enough to be spread."""

    def each(self, work: Callable[[T], R], runs: Sequence[T], elements: int) -> list[R]:
        """`work` of every run, in any order and on as many threads as `elements` in all are worth; results in
        order."""

    def encode(self, fmt: RecordFormat, beta: float, error: Elements, delta: Elements, records: U8) -> bool:
        """Write the records of top-k(β·e + Δ) and leave e = β·e + Δ − ŝ in `error`. False, with `error` and
        `records` in any state, if a sum is NaN or infinite."""

    def inspect(self, fmt: RecordFormat, records: U8) -> Inspection:
        """Check untrusted records. Memory is bounded by the format."""

    def aggregate(
        self,
        fmt: RecordFormat,
        theta: Elements,
        records: Sequence[U8],
        clips: F32,
        scale: np.float32,
        contributors: bool,
    ) -> None:
        """θ ← θ − scale · Σ_p clips[p]·ŝ_p in place, in the order given; with `contributors` the sum at each
        element is first divided by the number of peers that sent it. Records must have passed `inspect`, here and
        below."""

    def apply(self, fmt: RecordFormat, theta: Elements, records: U8, clip: np.float32, share: np.float32) -> Elements:
        """θ ← θ − share·(clip·ŝ) in place; returns the originals, fp32 [n, k], for `revert`."""

    def revert(self, fmt: RecordFormat, theta: Elements, records: U8, saved: Elements) -> None:
        """Put the originals back, to the bit."""

    def dot(self, fmt: RecordFormat, gradient: Elements, records: U8, clip: np.float32, share: np.float32) -> float:
        """⟨gradient, share·(clip·ŝ)⟩ with products and sums in binary64, in any order."""

    def shared(self, fmt: RecordFormat, records: Sequence[U8]) -> I64:
        """int64 [peers, peers]: at how many positions both peers send something that is not zero."""


def of(elements: Elements) -> Kernels:
    """The kernels for the device that holds `elements`."""
    if isinstance(elements, np.ndarray):
        from protocol.sparseloco.kernels import cpu

        return cpu
    from protocol.sparseloco.kernels import gpu

    return gpu
