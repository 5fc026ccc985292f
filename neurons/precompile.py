"""Compiling the kernels ahead of their first use, which should not fall into the end of a window. It takes some
seconds once; later starts read them from disk."""

from __future__ import annotations

import numpy as np

from protocol.run import SparseLoCo
from protocol.sparseloco.aggregate import Trial, descents, outer_step, shared_positions
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.layout import CHUNK, Layout


def precompile() -> None:
    """Call every kernel once, on a single chunk."""
    layout, scheme = Layout.from_shapes([("chunk", (CHUNK,))]), SparseLoCo()
    theta = np.zeros(CHUNK, np.float32)
    update = decompress(layout, scheme, compress(layout, scheme, theta.copy(), theta))
    outer_step(theta, [update], scheme, 0)
    trial = Trial(update, np.ones(1, np.float32), np.float32(1))
    trial.revert(theta, trial.apply(theta))
    descents(theta, [trial])
    shared_positions([update, update])
