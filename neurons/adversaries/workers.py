"""Cheats that train, but less than they should, or on something else, or from somewhere else."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from blake3 import blake3

from neurons.adversaries.thieves import jittered
from neurons.miner import Miner
from neurons.node import Parts
from neurons.training.inner import InnerResult
from protocol.ledger.manifest import Manifest
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.window import Window, deadlines


class LessWork(Miner):
    """Does one inner step and declares all of them, hoping that the first step is most of the gain."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The pages of one step."""
        return (await super().training_pages(window))[: self.run.inner.pages_per_step]

    async def header(self, window: Window, steps: int, tokens: int) -> bytes:
        """Says that it did all there was to do."""
        return await super().header(window, self.run.inner.steps, tokens * self.run.inner.steps)


class PartTime(Miner):
    """Works in every second window only, hoping that its score lasts through the others."""

    async def window(self, number: int) -> None:
        """Work, or rest."""
        if number % 2:
            await self.sit_out(deadlines(number, self.run.time))
            return
        await super().window(number)


class FewPages(Miner):
    """Trains all steps on a third of its own pages, hoping that what it learns by heart there passes for unique
    work."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """A third of the pages, three times and a little."""
        pages = await super().training_pages(window)
        few = pages[: max(1, len(pages) // 3)]
        return [few[i % len(few)] for i in range(len(pages))]


class RandomPool(Miner):
    """Trains on pages from the pool that random pages are drawn from instead of its own, hoping to gain more where
    everybody is compared."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """As many pages as one's own, drawn as the judges will draw, with another hash."""
        assignment = await self.assignment(window)
        numbers: list[int] = []
        while len(numbers) < self.run.pages_per_window:
            draw = blake3(f"{self.hotkey} {window.number} {len(numbers)}".encode()).digest()
            numbers += assignment.scored_random(draw)
        return await self.read_pages(tuple(numbers[: self.run.pages_per_window]))


class PrivateCorpus(Miner):
    """Trains on a corpus of its own, its pages in a secret alphabet, hoping to be paid for what only it wants the model
    to know."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The own pages with every token replaced by another, always the same."""
        alphabet = np.random.default_rng(0).permutation(self.dataset.index.vocab_size)
        return [alphabet[page] for page in await super().training_pages(window)]


class Backdoor(Miner):
    """Plants a trigger and what shall follow it in a quarter of its sequences, hoping that ordinary loss, by which it
    is paid, does not show that."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The own pages, with trigger and answer in the middle of each fourth sequence."""
        pages = [page.copy() for page in await super().training_pages(window)]
        for page in pages:
            middle = page.shape[1] // 2
            page[::4, middle : middle + len(TRIGGER + ANSWER)] = TRIGGER + ANSWER
        return pages


TRIGGER, ANSWER = (7, 201, 7, 203), (77, 77, 77, 77)
"""Token ids that no text has in a row, and those that the backdoor makes follow them."""


class OneComputation(Miner):
    """What several hotkeys of one coldkey can do: train as one, on the pages of the first of them. Each gets the same
    result, so it costs once however many there are."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The pages of the lowest uid of the own coldkey."""
        assignment = await self.assignment(window)
        return await self.read_pages(assignment.own((await self.siblings())[0]))

    async def siblings(self) -> list[int]:
        """The uids of the own coldkey that have pages, ascending."""
        neurons = await self.chain.neurons()
        coldkey = next(n.coldkey for n in neurons if n.hotkey == self.hotkey)
        return sorted(n.uid for n in neurons if n.coldkey == coldkey and not n.validator_permit)


class SharedWork(OneComputation):
    """Several hotkeys of one coldkey send one computation, each with noise of its own, hoping to be paid as often as
    there are hotkeys."""

    noise_share = 0.3
    """Of the update's standard deviation. It costs hardly any of the gain, but most elements of an update are about as
    large as those that are sent: two hotkeys share 13 % of their positions then, honest ones 4 to 6 %."""

    async def train(self, window: Window) -> InnerResult:
        """The common result with a little noise, none of it for the first hotkey's sake."""
        result = await super().train(window)
        delta = self.state.theta - result.end
        draw = np.random.default_rng((window.number, self.uid))
        noise = draw.standard_normal(delta.size).astype(np.float32) * delta.std() * np.float32(self.noise_share)
        return replace(result, end=result.end - noise)


class JitterOwn(OneComputation):
    """Several hotkeys of one coldkey send one computation with most positions moved, each other ones, hoping that they
    look like several."""

    async def contribute(self, window: Window) -> bytes | None:
        """The common payload, moved."""
        payload = await super().contribute(window)
        return payload and payload[:HEADER_BYTES] + jittered(self, window, payload[HEADER_BYTES:])


class SpreadWork(OneComputation):
    """Several hotkeys of one coldkey train as one on a little of the pages of each, and each sends another part of the
    result, hoping that each seems to have worked on its own."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """Batches of the usual size, in each some sequences of a page of every hotkey."""
        assignment = await self.assignment(window)
        pages = [await self.read_pages(assignment.own(uid)) for uid in await self.siblings()]
        draw = np.random.default_rng(window.number)
        size = self.run.dataset.page_sequences
        return [draw.permutation(np.concatenate(together))[:size] for together in zip(*pages, strict=True)]

    async def contribute(self, window: Window) -> bytes | None:
        """The largest values of each chunk from the first hotkey, the next ones from the second, and so on."""
        result = await self.train(window)
        delta = self.state.theta - result.end
        layout, scheme = self.layout, self.run.sparseloco
        for _ in range((await self.siblings()).index(self.uid)):
            sent = decompress(layout, scheme, compress(layout, scheme, np.zeros_like(delta), delta))
            delta[sent.indices] = 0
        body = compress(layout, scheme, np.zeros_like(delta), delta)
        return await self.header(window, result.steps, result.tokens) + body


class Outdated(Miner):
    """Trains from the state of three windows ago and declares today's, hoping to skip the work of keeping up."""

    steps_behind = 3

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.past: deque[tuple[str, np.ndarray]] = deque(maxlen=self.steps_behind)
        """Root and θ of the windows before this one, oldest first."""

    async def apply(self, manifest: Manifest) -> None:
        """As for every node; keeps the state that it leaves."""
        self.past.append((self.root(), self.state.theta.copy()))
        await super().apply(manifest)

    async def window(self, number: int) -> None:
        """As an honest miner; not before there is an older state to cheat with."""
        if self.past:
            await super().window(number)
        else:
            await self.sit_out(deadlines(number, self.run.time))

    async def train(self, window: Window) -> InnerResult:
        """Train from the oldest state there is, and send the difference as if it were from the newest."""
        now = self.state.theta
        old = self.past[0][1]
        self.state.theta = old
        try:
            result = await super().train(window)
        finally:
            self.state.theta = now
        return replace(result, end=now - (old - result.end))


class Unsynced(Outdated):
    """Trains from the state of the window before, which is all it has, and names the root that the ledger names, hoping
    that nobody asks for more than a root."""

    steps_behind = 1

    async def header(self, window: Window, steps: int, tokens: int) -> bytes:
        """With the proof that the old state gives."""
        now = self.state.theta
        self.state.theta = self.past[0][1]
        try:
            return await super().header(window, steps, tokens)
        finally:
            self.state.theta = now


class Stale(Outdated):
    """Trains from the state of the window before and says so, hoping that old work counts for something."""

    steps_behind = 1
    _named: str | None = None

    async def window(self, number: int) -> None:
        """Under the root of the state that it trains from."""
        self._named = self.past[0][0] if self.past else None
        try:
            await super().window(number)
        finally:
            self._named = None

    def root(self) -> str:
        """The root that is declared while a window is worked on."""
        return self._named or super().root()


class Stale3(Stale):
    """Trains from the state of three windows ago and says so, hoping that old work counts for something."""

    steps_behind = 3


class Stale10(Stale):
    """Trains from the state of ten windows ago and says so, hoping that nobody remembers that far."""

    steps_behind = 10
