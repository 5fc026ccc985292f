"""SparseLoCo as a chain of torch operations: what one writes first, and the baseline of `benchmarks.codec`.

Vectorised over all chunks of a tensor, in place where that is natural, nothing fused. Positions take 12 bits, values
one of four bins around the mean of the tensor with edges at −2.25, −0.75 and +0.75 sigma, each bin sent as the mean of
what fell into it. Pieces of tensors are those of `protocol.sparseloco.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F

from protocol.sparseloco.plan import Group

BINS = 4
_RANGE_SIGMAS = 6.0


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What is sent of one piece: `positions` uint8 [n, 3·ceil(k/2)], `codes` uint8 [n, k], `centres` fp32 [4]."""

    positions: torch.Tensor
    codes: torch.Tensor
    centres: torch.Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes of all three."""
        return sum(part.numel() * part.element_size() for part in (self.positions, self.codes, self.centres))


def encode(pieces: Sequence[Group], error: torch.Tensor, delta: torch.Tensor, beta: float) -> list[Packed]:
    """Top-k of β·e + Δ of every piece of flat fp32 tensors, quantised; `error` becomes what was not sent."""
    return [_encode(piece.format.k, piece.chunks(error), piece.chunks(delta), beta) for piece in pieces]


def _encode(k: int, error: torch.Tensor, delta: torch.Tensor, beta: float) -> Packed:
    error.mul_(beta).add_(delta)
    positions = error.abs().topk(k, dim=1, sorted=False).indices
    codes, centres = quantise(error.gather(1, positions))
    sent = torch.zeros_like(error).scatter_(1, positions, dequantise(codes, centres))
    error.sub_(sent)
    return Packed(pack12(positions), codes, centres)


def aggregate(
    pieces: Sequence[Group],
    theta: torch.Tensor,
    payloads: Sequence[Sequence[Packed]],
    alpha: float,
    contributors: bool,
    norms: Sequence[torch.Tensor] | None = None,
) -> None:
    """θ ← θ − α · mean of the payloads in place, each clipped to the median norm of its piece.

    The mean is over all peers, or with `contributors` at each element over those who sent it. `norms`, fp32 [peers]
    for each piece, are taken here unless given. (In the models of the benchmark a parameter is one piece.)
    """
    for number, piece in enumerate(pieces):
        decoded = [decode(piece.format.k, payload[number]) for payload in payloads]
        sizes = torch.stack([values.norm() for _, values in decoded]) if norms is None else norms[number]
        positions = torch.cat([each for each, _ in decoded], dim=1)
        values = torch.cat([each * clip for (_, each), clip in zip(decoded, _clips(sizes), strict=True)], dim=1)
        chunks = piece.chunks(theta)
        dense = torch.zeros_like(chunks)
        if contributors:
            dense.scatter_reduce_(1, positions, values, "mean", include_self=False)
            chunks.sub_(dense, alpha=alpha)
        else:
            dense.scatter_add_(1, positions, values)
            chunks.sub_(dense, alpha=alpha / len(payloads))


def norms_of(pieces: Sequence[Group], payloads: Sequence[Sequence[Packed]]) -> list[torch.Tensor]:
    """fp32 [peers] for each piece."""
    return [
        torch.stack([dequantise(payload[number].codes, payload[number].centres).norm() for payload in payloads])
        for number in range(len(pieces))
    ]


def _clips(norms: torch.Tensor) -> torch.Tensor:
    sending = norms[norms > 0]
    return (sending.quantile(0.5) / norms).clamp_(max=1.0) if len(sending) else torch.ones_like(norms)


def decode(k: int, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions int64 and values fp32, both [n, k]."""
    return unpack12(packed.positions, k), dequantise(packed.codes, packed.centres)


def pack12(positions: torch.Tensor) -> torch.Tensor:
    """Two positions below 4096 in three bytes: uint8 [n, 3·ceil(k/2)] of int64 [n, k]."""
    pairs = F.pad(positions.to(torch.int16), (0, positions.shape[1] % 2)).unflatten(1, (-1, 2))
    first, second = pairs.unbind(-1)
    packed = torch.stack((first & 0xFF, (first >> 8) | ((second & 0xF) << 4), second >> 4), dim=-1)
    return packed.to(torch.uint8).flatten(1)


def unpack12(packed: torch.Tensor, k: int) -> torch.Tensor:
    """What `pack12` packed: int64 [n, k]."""
    low, middle, high = packed.to(torch.int16).unflatten(1, (-1, 3)).unbind(-1)
    pairs = torch.stack((low | ((middle & 0xF) << 8), (middle >> 4) | (high << 4)), dim=-1)
    return pairs.flatten(1)[:, :k].long()


def quantise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bin of each value, uint8 of the same shape, and the mean of each bin, fp32 [4]."""
    centred = values - values.mean()
    width = (centred.std(correction=0) * (_RANGE_SIGMAS / BINS)).clamp_min(torch.finfo(values.dtype).tiny)
    codes = centred.div_(width).add_(BINS // 2).round_().clamp_(0, BINS - 1).to(torch.uint8)
    flat = codes.flatten().int()
    sums = torch.zeros(BINS).index_add_(0, flat, values.flatten())
    return codes, sums / torch.bincount(flat, minlength=BINS).clamp_min(1)


def dequantise(codes: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """fp32 values of uint8 codes."""
    return centres.index_select(0, codes.flatten().int()).view(codes.shape)


def deep_copy(pieces: Sequence[Group], theta: torch.Tensor) -> list[torch.Tensor]:
    """A copy of every tensor, as for evaluating a step and going back. What it costs to apply the step and to put
    the copy back comes on top."""
    return [piece.chunks(theta).clone() for piece in pieces]


def overlap(positions: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """How many positions each two of the peers share, int64 [n, n]: every position of one compared with every one of
    the other, chunk by chunk. `positions` are int16 [chunks, k] for each piece of each peer."""
    shared = np.diag([sum(piece.numel() for piece in each) for each in positions])
    for one, other in combinations(range(len(positions)), 2):
        pairs = zip(positions[one], positions[other], strict=True)
        common = sum(int((a.unsqueeze(-1) == b.unsqueeze(-2)).any(-1).sum()) for a, b in pairs)
        shared[one, other] = shared[other, one] = common
    return shared


def overlap_of_sorted(lists: Sequence[np.ndarray], threads: int) -> np.ndarray:
    """How many indices each two of sorted int64 lists share, int64 [n, n], pair by pair, some pairs at a time.
    `np.intersect1d` was the fastest of itself, `np.isin` and `torch.isin`."""
    shared = np.diag([len(each) for each in lists])
    pairs = list(combinations(range(len(lists)), 2))

    def count(pair: tuple[int, int]) -> int:
        return len(np.intersect1d(lists[pair[0]], lists[pair[1]], assume_unique=True))

    with ThreadPoolExecutor(threads) as pool:
        for (one, other), common in zip(pairs, pool.map(count, pairs), strict=True):
            shared[one, other] = shared[other, one] = common
    return shared
