"""Who trains on which pages (protocol §7).

A keyed permutation of the page numbers is dealt out in order: the miner in slot uid gets positions
[uid·n, (uid+1)·n), the positions after the last slot serve as random pages. The permutation is a 4-round
balanced Feistel network over the smallest even number of bits that holds the domain, with cycle walking:
constant memory and time, so it scales to any corpus.
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from protocol.run import Run

_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Permutation:
    """A keyed permutation of 0 … size − 1. `key` has 32 bytes."""

    key: bytes
    size: int

    def __call__(self, position: int) -> int:
        """Where `position` goes. Raises `ValueError` outside the domain."""
        if not 0 <= position < self.size:
            raise ValueError(f"position {position} is outside 0..{self.size - 1}")
        value = self._feistel(position)
        while value >= self.size:  # at most 4 walks on average: the Feistel domain is < 4 x size
            value = self._feistel(value)
        return value

    def _feistel(self, value: int) -> int:
        half_bits = max(1, ((self.size - 1).bit_length() + 1) // 2)
        mask = (1 << half_bits) - 1
        left, right = value >> half_bits, value & mask
        for number in range(_ROUNDS):
            message = bytes([number]) + right.to_bytes(8, "little")
            word = int.from_bytes(blake3(message, key=self.key).digest(8), "little")
            left, right = right, left ^ (word & mask)
        return left << half_bits | right


def drawing_key(run: Run, block_hash: bytes, purpose: str) -> bytes:
    """K(hash, purpose): 32 bytes that key what is drawn from a block's hash, different for each run and purpose."""
    return blake3(run.digest_bytes + block_hash + purpose.encode()).digest()


@dataclass(frozen=True, slots=True)
class Assignment:
    """The pages of one window. `pages` is the number of assignable pages of the dataset,
    `window_hash` the hash of the window's first block."""

    run: Run
    window_hash: bytes
    pages: int

    def _page(self, position: int) -> int:
        return Permutation(drawing_key(self.run, self.window_hash, "data"), self.pages)(position)

    def own(self, uid: int) -> tuple[int, ...]:
        """The pages of the miner in slot `uid`, in training order. `ValueError` for a uid beyond the run's slots."""
        if not 0 <= uid < self.run.dataset.slots:
            raise ValueError(f"uid {uid} has no slot: this run has {self.run.dataset.slots}")
        count = self.run.pages_per_window
        return tuple(self._page(uid * count + i) for i in range(count))

    def scored_own(self, uid: int, judge_hash: bytes) -> tuple[int, ...]:
        """The part of a miner's pages on which it is scored, drawn with the hash of block C + g + 1."""
        own = self.own(uid)
        draw = Permutation(drawing_key(self.run, judge_hash, f"own {uid}"), len(own))
        return tuple(own[draw(i)] for i in range(self.run.gauntlet.own_pages))

    def scored_random(self, judge_hash: bytes) -> tuple[int, ...]:
        """The shared random pages, which no slot was assigned in this window, drawn with the same hash: as many as may
        be needed. Judging begins with the first of them."""
        first = self.run.dataset.slots * self.run.pages_per_window
        draw = Permutation(drawing_key(self.run, judge_hash, "random"), self.pages - first)
        return tuple(self._page(first + draw(i)) for i in range(self.run.gauntlet.random_pages_most))
