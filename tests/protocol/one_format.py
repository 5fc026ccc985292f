"""Kernels on chunks of one format, for tests: elements fp32 [n, length], records uint8 [n, size_bytes]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from protocol.sparseloco.kernels import Inspection, Kernels
from protocol.sparseloco.plan import Group, Plan
from protocol.sparseloco.records import RecordFormat


class OneFormat:
    """`kernel`, for n chunks of one parameter that are all there is."""

    def __init__(self, kernel: Kernels) -> None:
        self.kernel = kernel

    def encode(self, fmt: RecordFormat, beta: float, error: Any, delta: Any, records: np.ndarray) -> bool:
        plan = plan_for(fmt, len(error))
        return self.kernel.encode(plan, beta, error.reshape(-1), delta.reshape(-1), records.reshape(-1))

    def inspect(self, fmt: RecordFormat, records: np.ndarray) -> Inspection:
        return self.kernel.inspect(plan_for(fmt, len(records)), records.reshape(-1))

    def aggregate(
        self,
        fmt: RecordFormat,
        theta: Any,
        records: Sequence[np.ndarray],
        clips: np.ndarray,
        scale: np.float32,
        contributors: bool,
    ) -> None:
        bodies = [peer.reshape(-1) for peer in records]
        plan = plan_for(fmt, len(theta))
        self.kernel.aggregate(plan, theta.reshape(-1), bodies, clips[:, None], scale, contributors)

    def apply(self, fmt: RecordFormat, theta: Any, records: np.ndarray, clip: np.float32, share: np.float32) -> Any:
        plan, clips = plan_for(fmt, len(theta)), np.array([clip], np.float32)
        return self.kernel.apply(plan, theta.reshape(-1), records.reshape(-1), clips, share).reshape(-1, fmt.k)

    def revert(self, fmt: RecordFormat, theta: Any, records: np.ndarray, saved: Any) -> None:
        plan = plan_for(fmt, len(theta))
        self.kernel.revert(plan, theta.reshape(-1), records.reshape(-1), saved.reshape(-1))

    def dot(
        self, fmt: RecordFormat, gradient: Any, records: Sequence[np.ndarray], clips: np.ndarray, share: np.float32
    ) -> np.ndarray:
        plan, bodies = plan_for(fmt, len(gradient)), [peer.reshape(-1) for peer in records]
        return self.kernel.dot(plan, gradient.reshape(-1), bodies, clips[:, None], share)

    def shared(self, fmt: RecordFormat, records: Sequence[np.ndarray], rows: int) -> np.ndarray:
        return self.kernel.shared(plan_for(fmt, len(records[0])), [peer.reshape(-1) for peer in records], rows)


def plan_for(fmt: RecordFormat, count: int) -> Plan:
    """The plan of a parameter that is `count` chunks of one format."""
    return Plan((Group(0, 0, 0, 0, count, fmt),))
