"""A miner: trains the shared model for a window, compresses what it learned, seals it, and reveals the key."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from contextlib import suppress
from typing import ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from neurons.clock import stop_at, until
from neurons.leaderboard.words import plain
from neurons.node import Node, Parts
from neurons.rounds import Sealed
from neurons.training.inner import InnerResult, InnerTrainer
from protocol.errors import NotFinite
from protocol.ledger.manifest import Manifest
from protocol.sparseloco.compress import compress
from protocol.sparseloco.payload import Header, sync_proof
from protocol.window import Window, deadlines

log = logging.getLogger(__name__)

_STATE_FILE = "training.safetensors"
_ERROR_FEEDBACK = "error_feedback"


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
        self.save(number)
        await self.tidy(number)

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
        """Upload the encrypted shards and the signed seal."""
        self.report("sealing")
        loop = asyncio.get_running_loop()
        began = loop.time()
        sealed = await self.exchange.publish_seal(window.number, self.root(), payload)
        self.publish_seconds = loop.time() - began
        self.last_sent = window.number
        return sealed

    async def prefetch(self, window: Window) -> None:
        """Read the sealed shards of those who are on the list, while their keys are still secret."""
        self.report("waiting for the seals")
        await until(self.chain, window.seal_block)
        gather, reserve = self.listed(window.number)
        listed = {seat.hotkey for seat in (*gather, *reserve)} or None
        peers = [p for p in await self.peers() if p.hotkey != self.hotkey and (listed is None or p.hotkey in listed)]
        with suppress(TimeoutError):
            async with asyncio.timeout((window.reveal_block - window.seal_block) * self.chain.block_seconds):
                await self.exchange.prefetch(window.number, peers)

    async def reveal(self, window: Window, sealed: Sealed) -> None:
        """Publish the key, not one block too early."""
        await until(self.chain, window.key_block)
        self.report("revealing")
        await self.exchange.publish_key(sealed)

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

    def save(self, window: int) -> None:
        """Write optimizer moments and error feedback, replacing the last ones whole."""
        tensors = {**self.trainer.state(), _ERROR_FEEDBACK: self.error}
        path = self.parts.folder / _STATE_FILE
        partial = path.with_name(f".{_STATE_FILE}.{os.getpid()}")
        save_file(tensors, partial, metadata={"run": self.run.digest(), "window": str(window)})
        partial.replace(path)

    def resume(self) -> None:
        """Take over what a previous process of this miner saved for this run."""
        path = self.parts.folder / _STATE_FILE
        if not path.exists():
            return
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except SafetensorError as error:
            log.warning("%s cannot be read, starting with fresh moments: %s", path, error)
            return
        if metadata.get("run") != self.run.digest():
            return
        self.error = tensors.pop(_ERROR_FEEDBACK)
        self.trainer.load_state(tensors)
        self.last_sent = int(metadata["window"])


if __name__ == "__main__":
    import sys

    from neurons.cli import main

    sys.exit(main(["miner", *sys.argv[1:]]))
