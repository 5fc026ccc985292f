"""Miners that cheat, each a small subclass of the honest one. They exist so that anyone can see cheats fail."""

from __future__ import annotations

import asyncio

import numpy as np

from neurons.clock import tick, until
from neurons.errors import ConfigError
from neurons.miner import Miner
from neurons.rounds import Peer, Sealed
from protocol.errors import Rejected
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal
from protocol.sparseloco.compress import compress
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.window import Window, deadlines
from storage.errors import NotFound, StorageError


class Copycat(Miner):
    """Trains nothing. In one window it posts another's sealed shards, and its key, as its own; in the next it posts
    the payload that it could read by then, under a header of its own."""

    loot: bytes = b""

    async def window(self, number: int) -> None:
        """Steal, then sell what was stolen."""
        window = deadlines(number, self.run.time)
        if self.loot:
            payload = await self.header(window, self.run.inner.steps, self.run.inner.steps) + self.loot
            self.loot = b""
            await self.reveal(window, await self.seal(window, payload))
            return
        self.report("looking for a victim")
        found = await self._victim(window)
        if found is None:
            await self.sit_out(window)
            return
        victim, theirs = found
        try:
            await self._post_as_own(window, victim, theirs)
            await self._loot(window, victim, theirs)
        except (StorageError, Rejected) as error:
            self.complain(f"uid {victim.uid} was no good victim: {error}")
            await self.sit_out(window)

    async def _victim(self, window: Window) -> tuple[Peer, Seal] | None:
        """Someone who has sealed already."""
        while (await self.chain.head()).number < window.seal_block:
            for peer in await self.peers():
                if peer.hotkey == self.hotkey:
                    continue
                try:
                    return peer, await self.exchange.read_seal(peer, window.number)
                except (StorageError, Rejected):
                    continue
            await tick(self.chain)
        return None

    async def _post_as_own(self, window: Window, victim: Peer, theirs: Seal) -> None:
        shards = await self.exchange.read_shards(victim.bucket, window.number, victim.hotkey, theirs.shards)
        for index, shard in enumerate(shards):
            await self.parts.bucket.put(self.keys.shard(window.number, self.hotkey, index), shard.read_bytes())
        mine = theirs.model_copy(update={"signer": self.hotkey, "signature": ""}).signed(self.parts.hotkey)
        await self.parts.bucket.put(self.keys.seal(window.number, self.hotkey), mine.canonical())
        self.report(f"posted the sealed shards of uid {victim.uid}")

    async def _loot(self, window: Window, victim: Peer, theirs: Seal) -> None:
        await until(self.chain, window.key_block)
        name = self.keys.key(window.number, victim.hotkey)
        while (await self.chain.head()).number < window.reveal_block:
            try:
                reveal = Reveal.parse(await victim.bucket.get(name, limit_bytes=SEAL_LIMIT_BYTES))
            except NotFound:
                await tick(self.chain)
                continue
            key = bytes.fromhex(reveal.key)
            await self.exchange.publish_key(Sealed(theirs, key))
            shards = await self.exchange.read_shards(victim.bucket, window.number, victim.hotkey, theirs.shards)
            self.loot = self.exchange.decrypt(window.number, victim.hotkey, key, shards)[HEADER_BYTES:]
            return


class FreeRider(Miner):
    """Trains nothing and sends noise that looks like an update in even windows, zeros in odd ones."""

    async def contribute(self, window: Window) -> bytes | None:
        """Something that costs nothing."""
        self.report("making noise")
        delta = np.zeros(self.layout.size, np.float32)
        if window.number % 2 == 0:
            draw = np.random.default_rng(window.number)
            scale = self.run.inner.learning_rate * self.run.inner.steps / 3
            delta = (draw.standard_normal(self.layout.size) * scale).astype(np.float32)
        self.error[:] = 0
        body = await asyncio.to_thread(compress, self.layout, self.run.sparseloco, self.error, delta)
        tokens = self.run.pages_per_window * self.run.dataset.page_sequences * self.run.dataset.sequence_tokens
        return await self.header(window, self.run.inner.steps, tokens) + body


ADVERSARIES: dict[str, type[Miner]] = {"copycat": Copycat, "freerider": FreeRider}


def adversary(kind: str) -> type[Miner]:
    """The class of a cheat; `ConfigError` names those there are."""
    if kind not in ADVERSARIES:
        raise ConfigError(f"there is no cheat {kind!r}; choose from {', '.join(ADVERSARIES)}")
    return ADVERSARIES[kind]
