"""Cheats that train nothing and post what others have trained."""

from __future__ import annotations

import numpy as np

from neurons.clock import tick, until
from neurons.miner import Miner
from neurons.rounds import Peer, Sealed
from protocol.errors import Rejected
from protocol.sealing import SEAL_LIMIT_BYTES, Reveal, Seal
from protocol.sparseloco.compress import compress, decompress
from protocol.sparseloco.payload import HEADER_BYTES
from protocol.window import Window, deadlines
from storage.errors import NotFound, StorageError


class Thief(Miner):
    """What all thieves can do: find a victim, post its sealed shards, and read its payload once its key is out."""

    async def window(self, number: int) -> None:
        """Steal; whatever goes wrong with a victim costs the thief this window."""
        window = deadlines(number, self.run.time)
        self.report("looking for a victim")
        found = await self._victim(window)
        if found is None:
            await self.sit_out(window)
            return
        try:
            await self.steal(window, *found)
        except (StorageError, Rejected) as error:
            self.complain(f"uid {found[0].uid} was no good victim: {error}")
            await self.sit_out(window)

    async def steal(self, window: Window, victim: Peer, theirs: Seal) -> None:
        """What is done to a victim that has sealed `theirs`."""
        raise NotImplementedError

    async def sell(self, window: Window, body: bytes) -> None:
        """Seal records as the own work of a whole window, under an own header, and reveal them in time."""
        await self.reveal(window, await self.seal(window, await self.disguised(window, body)))

    async def disguised(self, window: Window, body: bytes) -> bytes:
        """The payload that is sold."""
        return await self.header(window, self.run.inner.steps, self.run.inner.steps) + body

    async def _victim(self, window: Window) -> tuple[Peer, Seal] | None:
        """Anyone who has sealed already, so that not all thieves rob the same."""
        draw = np.random.default_rng((window.number, self.uid))
        while (await self.chain.head()).number < window.seal_block:
            peers = await self.peers()
            for peer in (peers[i] for i in draw.permutation(len(peers))):
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

    async def _loot(self, window: Window, victim: Peer, theirs: Seal, posted: bool = False) -> bytes:
        """The victim's records, as soon as its key is out; empty when it does not come. Whoever has posted its shards
        reveals its key at once."""
        await until(self.chain, window.key_block)
        name = self.keys.key(window.number, victim.hotkey)
        while (await self.chain.head()).number < window.reveal_block:
            try:
                reveal = Reveal.parse(await victim.bucket.get(name, limit_bytes=SEAL_LIMIT_BYTES))
            except NotFound:
                await tick(self.chain)
                continue
            key = bytes.fromhex(reveal.key)
            if posted:
                await self.exchange.publish_key(Sealed(theirs, key))
            shards = await self.exchange.read_shards(victim.bucket, window.number, victim.hotkey, theirs.shards)
            return self.exchange.decrypt(window.number, victim.hotkey, key, shards)[HEADER_BYTES:]
        return b""


class CiphertextCopy(Thief):
    """Posts another's sealed shards, and later its key, as its own, hoping that nobody asks whose they are."""

    async def steal(self, window: Window, victim: Peer, theirs: Seal) -> None:
        """Post first, so that the copy is there at the snapshot."""
        await self._post_as_own(window, victim, theirs)
        await self._loot(window, victim, theirs, posted=True)


class LateCopy(Thief):
    """Seals another's payload in the same window, once its key is out, hoping that the snapshot comes later."""

    async def steal(self, window: Window, victim: Peer, theirs: Seal) -> None:
        """Wait for the key."""
        if body := await self._loot(window, victim, theirs):
            await self.sell(window, body)


class LastWindowCopy(Thief):
    """Sends in each window what another sent in the one before, hoping that old work still helps."""

    loot: bytes = b""

    async def steal(self, window: Window, victim: Peer, theirs: Seal) -> None:
        """Sell what was stolen the last time, and steal the next."""
        if self.loot:
            await self.sell(window, self.loot)
        self.loot = await self._loot(window, victim, theirs)


class JitteredCopy(LastWindowCopy):
    """Sends what another sent in the window before with most positions moved, hoping not to be recognised."""

    async def disguised(self, window: Window, body: bytes) -> bytes:
        """Under another's positions no more than there may be."""
        return await super().disguised(window, jittered(self, window, body))


class Copycat(CiphertextCopy):
    """Posts another's sealed shards in one window and what it could read of them by then in the next, hoping that one
    of the two is overlooked."""

    loot: bytes = b""

    async def window(self, number: int) -> None:
        """Steal, then sell what was stolen."""
        if not self.loot:
            await super().window(number)
            return
        body, self.loot = self.loot, b""
        await self.sell(deadlines(number, self.run.time), body)

    async def steal(self, window: Window, victim: Peer, theirs: Seal) -> None:
        """Post as one's own, and keep what the key opens."""
        await self._post_as_own(window, victim, theirs)
        self.loot = await self._loot(window, victim, theirs, posted=True)


def jittered(owner: Miner, window: Window, body: bytes) -> bytes:
    """The records of `body` with so many values at other positions, drawn for this owner and window, that what stays is
    within the run's limit of overlap."""
    layout, scheme = owner.layout, owner.run.sparseloco
    indices, values = decompress(layout, scheme, body).entries()
    draw = np.random.default_rng((window.number, owner.uid))
    moved = draw.random(len(indices)) >= 0.9 * owner.run.gauntlet.overlap_limit
    delta = np.zeros(layout.size, np.float32)
    delta[indices[~moved]] = values[~moved]
    delta[draw.integers(layout.size, size=int(moved.sum()))] = values[moved]
    return compress(layout, scheme, np.zeros_like(delta), delta)
