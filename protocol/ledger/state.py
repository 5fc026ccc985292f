"""The replicated state and its 32-byte root (protocol §13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from protocol.sparseloco.layout import Layout

LEAF_BYTES = 16 * 2**20
_ROOT_CONTEXT = "windrow 1 state root"


def leaf_digests(theta: npt.NDArray[np.float32]) -> tuple[bytes, ...]:
    """BLAKE3 of each 16 MiB of the fp32 little-endian bytes of flat `theta`; the last leaf may be shorter."""
    data = np.ascontiguousarray(theta, "<f4").view(np.uint8)
    return tuple(blake3(data[start : start + LEAF_BYTES].data).digest() for start in range(0, len(data), LEAF_BYTES))


def state_root(theta: npt.NDArray[np.float32]) -> str:
    """The root of θ: that of its leaf digests."""
    return root_of(leaf_digests(theta))


def root_of(leaves: Sequence[bytes]) -> str:
    """The root: BLAKE3 in key-derivation mode over the leaf digests, so that no leaf can pass for a root."""
    return blake3(b"".join(leaves), derive_key_context=_ROOT_CONTEXT).hexdigest()


@dataclass(slots=True, eq=False)
class State:
    """θ at the start of `window`: the one thing all honest nodes share. `theta` is flat fp32 in layout order
    and is changed in place by replay; `previous` is the digest of the last manifest applied."""

    layout: Layout
    theta: npt.NDArray[np.float32]
    window: int
    previous: str

    def root(self) -> str:
        """Root of θ."""
        return state_root(self.theta)
