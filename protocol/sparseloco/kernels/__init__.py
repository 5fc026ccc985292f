"""The arithmetic of SparseLoCo, one module per kind of device; `reference` is the definition.

A kernel works on whole payloads: flat fp32 elements, and bodies of records, uint8 [body bytes], always in the host's
memory; a `Plan` says where in them each chunk lies. `of` chooses the module by where the elements are. Whatever a
module does, it does to the same bits as `reference`; only `dot` may differ, in its last bits, and `encode` on a GPU,
by one step of a level, where sums are not exact: they add in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.sparseloco.plan import Elements, Plan
from protocol.sparseloco.records import Flaw, RecordFormat

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """What is in a body: the first flaw and the format of its record, and for each parameter how often each level code
    is used, int64 [parameters, 256] (32-bit values: all zero). With a flaw the counts mean nothing."""

    flaw: Flaw
    format: RecordFormat
    counts: I64


class Kernels(Protocol):
    """What each module provides."""

    def encode(self, plan: Plan, beta: float, error: Elements, delta: Elements, body: U8) -> bool:
        """Write the records of top-k(β·e + Δ) and leave e = β·e + Δ − ŝ in `error`. False, with `error` and `body` in
        any state, if a sum is NaN or infinite."""

    def inspect(self, plan: Plan, body: U8) -> Inspection:
        """Check untrusted records. Memory is bounded by the plan."""

    def norms(self, counts: I64) -> tuple[float, ...]:
        """‖ŝ‖₂ of each parameter from the counts of an `Inspection`: the square root of the exact sum of squares, each
        rounded once."""

    def aggregate(
        self,
        plan: Plan,
        theta: Elements,
        bodies: Sequence[U8],
        clips: F32,
        scale: np.float32,
        contributors: bool,
    ) -> None:
        """θ ← θ − scale · Σ_p clips[p]·ŝ_p in place, in the order given; `clips` is fp32 [peers, parameters]. With
        `contributors` the sum at each element is first divided by the number of peers that sent it. Bodies must have
        passed `inspect`, here and below."""

    def apply(self, plan: Plan, theta: Elements, body: U8, clips: F32, share: np.float32) -> Elements:
        """θ ← θ − share·(clip·ŝ) in place, `clips` fp32 [parameters]; returns the originals, fp32 [values], for
        `revert`."""

    def revert(self, plan: Plan, theta: Elements, body: U8, saved: Elements) -> None:
        """Put the originals back, to the bit."""

    def dot(self, plan: Plan, gradient: Elements, bodies: Sequence[U8], clips: F32, share: np.float32) -> F64:
        """⟨gradient, share·(clips[p]·ŝ_p)⟩ of each peer, binary64 [peers], `clips` fp32 [peers, parameters]; products
        and sums in binary64, in any order."""

    def shared(self, plan: Plan, bodies: Sequence[U8], rows: int) -> I64:
        """int64 [rows, peers]: at how many positions one of the first `rows` peers and any peer both send something
        that is not zero."""


def of(elements: Elements) -> Kernels:
    """The kernels for the device that holds `elements`."""
    if isinstance(elements, np.ndarray):
        from protocol.sparseloco.kernels import cpu

        return cpu
    from protocol.sparseloco.kernels import gpu

    return gpu
