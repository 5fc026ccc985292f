"""The peers of `benchmarks.gains`: honest ones, one of each cheat, and copies of every kind, without a network.

All of them use the library's own parts: pages from `Assignment`, `InnerTrainer`, the codec. The cheats do what the
classes in `neurons/adversaries/` do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from blake3 import blake3

from neurons.training.inner import InnerTrainer
from neurons.training.model import model_layout
from protocol.assignment import Assignment
from protocol.run import Run
from protocol.sparseloco.compress import SparseUpdate, compress, decompress

MOVED = (0.15, 0.3, 0.5)
"""Shares of its positions that a copy leaves out, or moves."""
NOISE = (0.1, 0.5, 1.0)
"""What hotkeys that share one computation add to it, in standard deviations of the pseudo-gradient."""

Batches = list[np.ndarray]


@dataclass(frozen=True)
class Pages:
    """The pages of one window; `text` is int64 [pages, page sequences, L]. Slots 0 … are the honest peers'."""

    run: Run
    text: np.ndarray
    window: int

    @cached_property
    def assignment(self) -> Assignment:
        """The dealing of this window."""
        return Assignment(self.run, self._hash("window"), len(self.text))

    def own(self, slot: int) -> np.ndarray:
        """What `slot` trains on, int64 [pages a window, page sequences, L]."""
        return self.text[list(self.assignment.own(slot))]

    def scored(self, slot: int) -> np.ndarray:
        """The pages of `slot` on which it is scored."""
        return self.text[list(self.assignment.scored_own(slot, self._hash("judge")))]

    def random(self) -> np.ndarray:
        """The random pages of the judges, which no slot has."""
        return self.text[list(self.assignment.scored_random(self._hash("judge")))]

    def pool(self) -> np.ndarray:
        """As many pages as a slot has, drawn as the judges draw, with other hashes."""
        numbers: list[int] = []
        while len(numbers) < self.run.pages_per_window:
            numbers += self.assignment.scored_random(self._hash(f"pool {len(numbers)}"))
        return self.text[numbers[: self.run.pages_per_window]]

    def batches(self, pages: np.ndarray) -> Batches:
        """The batches of the inner steps, int64 [sequences, L] each."""
        together = self.run.inner.pages_per_step
        steps = [pages[start : start + together] for start in range(0, len(pages), together)]
        return [step.reshape(-1, step.shape[-1]) for step in steps]

    def _hash(self, purpose: str) -> bytes:
        return blake3(f"{purpose} {self.window}".encode()).digest()


class Codec:
    """The run's codec, with the layout that it needs."""

    def __init__(self, run: Run) -> None:
        self.run, self.layout = run, model_layout(run.model)

    def errors(self) -> np.ndarray:
        """An empty error buffer, fp32 [P]."""
        return np.zeros(self.layout.size, np.float32)

    def send(self, delta: np.ndarray, errors: np.ndarray | None = None) -> SparseUpdate:
        """The payload for a pseudo-gradient, fp32 [P]; what it leaves out waits in `errors`."""
        scheme = self.run.sparseloco
        body = compress(self.layout, scheme, self.errors() if errors is None else errors, delta)
        return decompress(self.layout, scheme, body)

    def altered(self, update: SparseUpdate, share: float, draw: np.random.Generator, moved: bool) -> SparseUpdate:
        """`update` with `share` of its values left out, or moved to positions drawn at random."""
        indices, values = update.entries()
        chosen = draw.random(len(indices)) < share
        delta = self.errors()
        delta[indices[~chosen]] = values[~chosen]
        if moved:
            delta[draw.integers(self.layout.size, size=int(chosen.sum()))] = values[chosen]
        return self.send(delta)


class Worker:
    """A peer that trains, with moments and an error buffer that last from window to window."""

    def __init__(self, codec: Codec, dtype: torch.dtype, rate: float = 1.0) -> None:
        """`rate` is a multiple of the run's learning rate."""
        inner = codec.run.inner
        inner = inner.model_copy(update={"learning_rate": inner.learning_rate * rate})
        self._codec, self._trainer = codec, InnerTrainer(codec.run.model, inner, dtype)
        self._errors = codec.errors()

    def work(self, theta: np.ndarray, batches: Batches, window: int) -> tuple[np.ndarray, SparseUpdate]:
        """The pseudo-gradient of a window from θ, fp32 [P], and its payload."""
        delta = theta - self._trainer.train(theta, batches, window, lambda: False).end
        return delta, self._codec.send(delta, self._errors)


class Honest:
    """Peers in the slots 0 … n − 1."""

    def __init__(self, codec: Codec, count: int, dtype: torch.dtype) -> None:
        self._workers = [Worker(codec, dtype) for _ in range(count)]

    def work(self, pages: Pages, theta: np.ndarray) -> tuple[list[np.ndarray], list[SparseUpdate]]:
        """Pseudo-gradients and payloads of a window."""
        done = [
            worker.work(theta, pages.batches(pages.own(slot)), pages.window)
            for slot, worker in enumerate(self._workers)
        ]
        return [delta for delta, _ in done], [update for _, update in done]


class Cheats:
    """One of each cheat, in the slots from `first` on. They begin without moments and errors, as who joins does."""

    def __init__(self, codec: Codec, first: int, dtype: torch.dtype) -> None:
        self._codec, self._first = codec, first
        self._draw = np.random.default_rng(first)
        self._alphabet = self._draw.permutation(int(codec.run.model["vocab_size"]))  # type: ignore[arg-type]
        self._workers = {name: Worker(codec, dtype, rate) for name, (rate, _) in _TRAINED.items()}
        self._errors = {name: codec.errors() for name in ("noise", "sign flip", "scaled ×100", "shared work")}

    def work(
        self,
        pages: Pages,
        theta: np.ndarray,
        deltas: Sequence[np.ndarray],
        honest: Sequence[SparseUpdate],
        last: Sequence[SparseUpdate],
    ) -> dict[str, SparseUpdate]:
        """The payload of each by name. `deltas` and `honest` are of this window, `last` of the one before, empty in the
        first. Those who twist honest work twist the first peer's, those who copy copy the second's."""
        send, draw, mine = self._codec.send, self._draw, deltas[0]
        noise = draw.standard_normal(mine.size, dtype=np.float32) * mine.std()
        twisted = {
            "noise": noise,
            "sign flip": -mine,
            "scaled ×100": 100 * mine,
            "shared work": mine + np.float32(NOISE[0]) * noise,
        }
        sent = {name: send(delta, self._errors[name]) for name, delta in twisted.items()}
        sent["zeros"] = send(np.zeros_like(mine))
        sent["copy, 15 % left out"] = self._codec.altered(honest[1], 0.15, draw, moved=False)
        if last:
            sent["copy of the last window"] = last[1]
            sent["the same, 30 % moved"] = self._codec.altered(last[1], 0.3, draw, moved=True)
        for slot, (name, worker) in enumerate(self._workers.items(), self._first):
            batches = _TRAINED[name][1](self, pages, pages.batches(pages.own(slot)))
            sent[name] = worker.work(theta, batches, pages.window)[1]
        return sent

    def _one_step(self, pages: Pages, batches: Batches) -> Batches:
        return batches[:1]

    def _few(self, pages: Pages, batches: Batches) -> Batches:
        few = batches[: max(1, len(batches) // 3)]
        return [few[step % len(few)] for step in range(len(batches))]

    def _pool(self, pages: Pages, batches: Batches) -> Batches:
        return pages.batches(pages.pool())

    def _private(self, pages: Pages, batches: Batches) -> Batches:
        return [self._alphabet[batch] for batch in batches]

    def _all(self, pages: Pages, batches: Batches) -> Batches:
        return batches


_TRAINED: dict[str, tuple[float, Callable[[Cheats, Pages, Batches], Batches]]] = {
    "one step of H": (1.0, Cheats._one_step),
    "few pages": (1.0, Cheats._few),
    "random pool": (1.0, Cheats._pool),
    "private corpus": (1.0, Cheats._private),
    "overshoots ×3": (3.0, Cheats._all),
    "overshoots ×10": (10.0, Cheats._all),
}
"""Cheats that train: the multiple of the learning rate, and which batches."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a copy is: made from the work of honest peer `original`, of this window or the `last`. `shared` says that
    the two have one computation in common, `split` that each sends half of its positions."""

    kind: str
    original: int
    last: bool = False
    shared: bool = False
    split: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A copy's payload; when the two have split their work, `other_half` is what the original sends itself."""

    traits: Traits
    update: SparseUpdate
    other_half: SparseUpdate | None = None


class Copies:
    """Copies of every kind of every honest peer."""

    def __init__(self, codec: Codec, peers: int) -> None:
        self._codec = codec
        self._draw = np.random.default_rng(peers)
        self._shared = [[codec.errors() for _ in NOISE] for _ in range(peers)]
        self._halves = [[codec.errors() for _ in range(2)] for _ in range(peers)]

    def share(self, deltas: Sequence[np.ndarray]) -> list[Copy]:
        """What those who share a computation send, each with an error buffer of its own; to be called in every window,
        for the errors' sake."""
        copies = []
        for peer, delta in enumerate(deltas):
            for share, errors in zip(NOISE, self._shared[peer], strict=True):
                noise = self._draw.standard_normal(delta.size, dtype=np.float32)
                noise *= np.float32(share) * delta.std()
                traits = Traits(f"shared, noise {share}", peer, shared=True)
                copies.append(Copy(traits, self._codec.send(delta + noise, errors)))
            even, odd = delta.copy(), delta.copy()
            even[1::2] = odd[::2] = 0
            halves = [self._codec.send(half, e) for half, e in zip((even, odd), self._halves[peer], strict=True)]
            traits = Traits("shared, split in halves", peer, shared=True, split=True)
            copies.append(Copy(traits, halves[1], other_half=halves[0]))
        return copies

    def alter(self, updates: Sequence[SparseUpdate], last: bool) -> list[Copy]:
        """Copies of the payloads of this window, or of the last, with positions left out or moved."""
        return [
            Copy(
                Traits(f"{'last window, ' if last else ''}{share:.0%} {'moved' if moved else 'left out'}", peer, last),
                self._codec.altered(update, share, self._draw, moved),
            )
            for share in MOVED
            for moved in (False, True)
            for peer, update in enumerate(updates)
        ]
