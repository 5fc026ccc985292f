"""A miner: trains the shared model for a window, compresses what it learned, seals it, and reveals the key."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from neurons import training_state
from neurons.clock import stop_at, tick, until
from neurons.durable import rename
from neurons.errors import ModelError
from neurons.leaderboard.words import plain
from neurons.node import Node, Parts
from neurons.rounds import Sealed
from neurons.training.inner import InnerResult, InnerTrainer
from protocol.errors import ChainUnreachable, DocumentError, NotFinite
from protocol.ledger.manifest import Manifest
from protocol.sealing import SEAL_LIMIT_BYTES, Seal
from protocol.sparseloco.compress import compress
from protocol.sparseloco.payload import Header, sync_proof
from protocol.window import Window, deadlines
from storage.errors import NotFound, StorageError
from storage.together import in_thread, together

log = logging.getLogger(__name__)

_SENT_FILE = "training.safetensors"
"""Optimizer moments and error feedback after the last window whose payload was sent: sealed, and its key published."""

_SEALED_FILE = "sealed.safetensors"
"""The same after a window that is sealed and not yet revealed, with the key. It is on the disk before the seal is
published, and takes the place of the other one when the key is out: a miner that ends in between loses neither."""


class Miner(Node):
    """One miner. `window` is the protocol; each step is one call."""

    role: ClassVar[str] = "miner"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.trainer = InnerTrainer(self.run.model, self.run.inner, parts.dtype)
        self.error = np.zeros(self.layout.size, np.float32)
        self.last_sent = -1
        """The window of the last payload; error feedback only carries over to the next one."""
        self.publish_seconds = 0.0
        self.resume()

    async def window(self, number: int) -> None:
        """Take part in window `number`, from θ_W to the revealed key."""
        window = deadlines(number, self.run.time)
        if (await self.chain.head()).number >= self.training_end(window):
            await self.sit_out(window)
            return
        payload = await self.contribute(window)
        if payload is None:
            await self.sit_out(window)
            return
        sealed = await self.seal(window, payload)
        await asyncio.gather(self.prefetch(window), self.reveal(window, sealed))
        self.sent(number)
        await self.tidy(number)

    async def join(self) -> None:
        """As for every node; but before it looks around, it reveals what a process before this one has sealed."""
        await self.reveal_late()
        await super().join()

    async def contribute(self, window: Window) -> bytes | None:
        """Train and compress; the payload, or None when there is nothing to send."""
        result = await self.train(window)
        delta = self.state.theta - result.end
        if self.last_sent != window.number - 1:
            self.error[:] = 0
        self.report("compressing", loss=result.losses[-1])
        try:
            body = await asyncio.to_thread(compress, self.layout, self.run.sparseloco, self.error, delta)
        except NotFinite as error:
            log.error("window %d: nothing sent: %s", window.number, error)
            self.trainer.reset()
            return None
        return await self.header(window, result.steps, result.tokens) + body

    async def train(self, window: Window) -> InnerResult:
        """H inner steps on the own pages, fewer if the window closes before."""
        pages = await self.training_pages(window)
        per_step = self.run.inner.pages_per_step
        batches = [np.concatenate(pages[i : i + per_step]) for i in range(0, len(pages), per_step)]
        self.report(f"training {len(batches)} steps")
        age = window.number - self.run.time.first_window
        async with stop_at(self.chain, self.training_end(window)) as stop:
            return await asyncio.to_thread(self.trainer.train, self.state.theta, batches, age, stop)

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The own pages, in training order."""
        return await self.read_pages((await self.assignment(window)).own(self.uid))

    async def header(self, window: Window, steps: int, tokens: int) -> bytes:
        """The header of a payload of this miner for `window`."""
        start = await self.chain.block(window.start_block)
        return Header(
            run_digest=self.run.digest(),
            window=window.number,
            hotkey=self.hotkey,
            layout_digest=self.layout.digest,
            base_root=self.root(),
            sync_proof=sync_proof(self.state.theta, self.hotkey, start.hash),
            inner_steps=steps,
            tokens=tokens,
        ).pack()

    async def seal(self, window: Window, payload: bytes) -> Sealed:
        """Upload the encrypted shards and the signed seal, which follows when the key is safe from a crash."""
        self.report("sealing")
        loop = asyncio.get_running_loop()
        began = loop.time()
        key = os.urandom(32)
        saving = partial(self.save, self.parts.folder / _SEALED_FILE, window.number, key)
        shards, _ = await together((self.exchange.publish_shards(window.number, payload, key), in_thread(saving)))
        sealed = await self.exchange.publish_seal(window.number, self.root(), payload, shards, key)
        self.publish_seconds = loop.time() - began
        return sealed

    async def prefetch(self, window: Window) -> None:
        """Read the sealed shards of those who are on the list, while their keys are still secret."""
        self.report("waiting for the seals")
        await until(self.chain, window.seal_block)
        gather, reserve = self.listed(window.number)
        listed = {seat.hotkey for seat in (*gather, *reserve)} or None
        with suppress(TimeoutError, ChainUnreachable):  # what is missing is fetched when a manifest names it
            async with asyncio.timeout((window.reveal_block - window.seal_block) * self.chain.block_seconds):
                peers = [p for p in await self.peers() if p.hotkey != self.hotkey]
                listed_peers = [peer for peer in peers if listed is None or peer.hotkey in listed]
                await self.exchange.prefetch(window.number, listed_peers)

    async def reveal(self, window: Window, sealed: Sealed) -> None:
        """Publish the key, not one block too early, and while it counts not only once: a whole window of work hangs on
        32 bytes."""
        await until(self.chain, window.key_block)
        self.report("revealing")
        while True:
            try:
                await self.exchange.publish_key(sealed)
                return
            except StorageError as error:
                if (await self.chain.head()).number >= window.reveal_block:
                    raise
                self.complain(f"the key is not published yet: {error}")
            await tick(self.chain)

    async def reveal_late(self) -> None:
        """Reveal what a process before this one has sealed, while its key counts; and go on from the state after it.
        What can be revealed no more was never sent: the next window begins without its error feedback."""
        state = training_state.read(self.parts.folder / _SEALED_FILE, self.run.digest())
        if state is None or state.window <= self.last_sent:
            return
        seal = await self._own_seal(state.window)
        if seal is None or not seal.is_opened_by(state.key):
            return  # it ended before the seal was out
        window = deadlines(state.window, self.run.time)
        if not await self._is_revealed(state.window):
            if (await self.chain.head()).number >= window.reveal_block:
                log.warning("window %d: what was sealed cannot be revealed any more", state.window)
                return
            self.report(f"waiting to reveal what was sealed in window {state.window}")
            await self.reveal(window, Sealed(seal, state.key))
        self.sent(state.window)
        self.resume()

    async def _own_seal(self, window: int) -> Seal | None:
        key = self.keys.seal(window, self.hotkey)
        try:
            return Seal.parse(await self.parts.bucket.get(key, limit_bytes=SEAL_LIMIT_BYTES))
        except NotFound:
            return None
        except DocumentError as error:
            log.warning("%s in the own bucket is no seal: %s", key, error)
            return None

    async def _is_revealed(self, window: int) -> bool:
        try:
            await self.parts.bucket.head(self.keys.key(window, self.hotkey))
        except NotFound:
            return False
        return True

    async def sit_out(self, window: Window) -> None:
        """Let the rest of the window pass."""
        self.report(f"sitting out window {window.number}")
        await until(self.chain, window.close_block)

    async def apply(self, manifest: Manifest) -> None:
        """As for every node; and says what became of the own contribution."""
        await super().apply(manifest)
        if any(contribution.hotkey == self.hotkey for contribution in manifest.contributions):
            log.info("window %d: credited, the own contribution was applied by everybody", manifest.window)
        for refusal in manifest.rejected:
            if refusal.hotkey == self.hotkey:
                detail = plain(refusal.detail)
                log.warning(
                    "window %d: the own contribution was rejected: %s: %s", manifest.window, refusal.reason, detail
                )

    def training_end(self, window: Window) -> int:
        """The block at which training stops: the close, or earlier by what uploading takes beyond the g blocks
        that remain for it."""
        blocks = math.ceil(self.publish_seconds / self.chain.block_seconds)
        return window.close_block - max(0, blocks - self.run.time.seal_blocks)

    # --- local state --------------------------------------------------------------------------------------

    def save(self, path: Path, window: int, key: bytes) -> None:
        """Write what must survive a restart after `window`. Raises `DiskUnusable`."""
        state = training_state.TrainingState(window, key, self.trainer.state(), self.error)
        training_state.write(path, self.run.digest(), state)

    def sent(self, window: int) -> None:
        """The payload of `window` is out, and so the state after it is the one to go on from."""
        rename(self.parts.folder / _SEALED_FILE, self.parts.folder / _SENT_FILE)
        self.last_sent = window

    def resume(self) -> None:
        """Take over what a previous process of this miner saved for this run."""
        state = training_state.read(self.parts.folder / _SENT_FILE, self.run.digest())
        if state is None:
            return
        try:
            self.trainer.load_state(state.moments)
        except ModelError as error:
            log.warning("starting with fresh moments: %s", error)
            return
        self.error, self.last_sent = state.error, state.window


if __name__ == "__main__":
    import sys

    from neurons.cli import main

    sys.exit(main(["miner", *sys.argv[1:]]))
