"""A pseudo-gradient becomes records, and records become a sparse update (protocol §8)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import NotFinite, Reason, Rejected
from protocol.run import SparseLoCo
from protocol.sparseloco import kernels
from protocol.sparseloco.kernels.reference import norm_of_values
from protocol.sparseloco.layout import Layout
from protocol.sparseloco.plan import Elements, Plan, plan_of
from protocol.sparseloco.records import Flaw, refusal, unpack

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class SparseUpdate:
    """ŝ of one peer, as its records: uint8 [body bytes], checked by `decompress`, which alone makes it. `norms` are
    the 2-norms of the parameters."""

    plan: Plan
    records: U8
    norms: tuple[float, ...]

    @property
    def indices(self) -> I64:
        """int64 [m], strictly ascending in the flat array: what is sent. Unpacked anew at each call."""
        return self.entries()[0]

    @property
    def values(self) -> F32:
        """fp32 [m], at `indices`. Unpacked anew at each call."""
        return self.entries()[1]

    def entries(self) -> tuple[I64, F32]:
        """`indices` and `values`, for those who want to look; the kernels work on the records."""
        indices, values = [], []
        for group in self.plan.groups:
            positions, codes = unpack(group.format, group.records(self.records))
            origins = group.offset + np.arange(group.count)[:, None] * group.format.length
            indices.append((positions + origins).reshape(-1))
            values.append(codes.values().reshape(-1))
        return np.concatenate(indices), np.concatenate(values)


def compress(layout: Layout, scheme: SparseLoCo, error: Elements, delta: Elements) -> bytes:
    """Records of top-k(β·e + Δ), quantised. `error` becomes a − ŝ in place, ready for the next window.

    `error` and `delta` are flat fp32 arrays of the layout, in the host's memory or both on one GPU. Raises
    `NotFinite`, with `error` all zero as after a window in which nothing was sent, when Δ or the sum holds NaN or
    infinity: that must be the owner's error, never the network's.
    """
    layout.check(error)
    layout.check(delta)
    plan = plan_of(layout, scheme)
    body = np.empty(plan.body_bytes, np.uint8)
    if not kernels.of(error).encode(plan, scheme.error_feedback, error, delta, body):
        error[:] = 0
        raise NotFinite("the pseudo-gradient holds NaN or infinity; lower the learning rate or check the data")
    return body.tobytes()


def decompress(layout: Layout, scheme: SparseLoCo, body: bytes | memoryview) -> SparseUpdate:
    """Check records and take their norms; raises `Rejected` for anything that is not canonical. `body` is
    untrusted, and stays as it is: what is kept of a peer is what it sent, 0.02 bytes a parameter."""
    plan = plan_of(layout, scheme)
    if len(body) != plan.body_bytes:
        raise Rejected(Reason.NOT_CANONICAL, f"{len(body)} bytes of records, expected {plan.body_bytes}")
    # The kernels trust what was checked, so it must not be able to change.
    data = np.frombuffer(body if memoryview(body).readonly else bytes(body), np.uint8)
    kernel = kernels.of(data)
    found = kernel.inspect(plan, data)
    if found.flaw is not Flaw.NONE:
        raise refusal(found.format, found.flaw)
    norms = _norms_of_values(plan, data) if scheme.value_bits == 32 else kernel.norms(found.counts)
    return SparseUpdate(plan, data, norms)


def _norms_of_values(plan: Plan, data: U8) -> tuple[float, ...]:
    parts: dict[int, list[F32]] = {}
    for group in plan.groups:
        _, codes = unpack(group.format, group.records(data))
        parts.setdefault(group.parameter, []).append(codes.raw.reshape(-1))
    return tuple(norm_of_values(np.concatenate(values)) for values in parts.values())
