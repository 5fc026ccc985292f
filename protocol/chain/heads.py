"""The newest block of a subtensor chain and the blocks before it.

A task follows the node's stream of new heads, so that asking for the head, as every neuron does several times a
block, costs no request. The stream comes back after a lost connection, with growing pauses; while it is silent for
longer than blocks take, the head is asked for directly, which says what is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

from protocol.chain.link import Link
from protocol.chain.port import Block
from protocol.errors import ChainError, ChainUnreachable, Pruned

_SILENT_BLOCKS = 2.5
"""The stream may be quiet for this many blocks: one may be late or missing."""
_KEPT_BLOCKS = 256
_HASH_BYTES = 32


class Heads:
    """Blocks of the chain behind `link`; `block_seconds` is how far apart they are."""

    def __init__(self, link: Link, block_seconds: float) -> None:
        self.block_seconds = block_seconds
        self._link = link
        self._newest: Block | None = None
        self._heard = -math.inf
        self._follower: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._kept: dict[int, Block] = {}
        self._final = -1

    async def newest(self) -> Block:
        """The head of the node's best chain. From the first call on the stream is followed."""
        self._link.raise_if_closed()
        async with self._asking:
            silent = asyncio.get_running_loop().time() - self._heard > _SILENT_BLOCKS * self.block_seconds
            following = self._follower is not None and not self._follower.done()
            if self._newest is None or silent or not following:
                self._take(await self._read(await self._link.read(lambda node: node.block_number())))
            if not following:
                self._follower = asyncio.create_task(self._follow(), name="new heads")
            assert self._newest is not None
            return self._newest

    def doubt(self) -> None:
        """Let the next question for the head go to the node, as after a write, which that must see."""
        self._heard = -math.inf

    async def block(self, number: int) -> Block:
        """The block with this number; `ChainError` while it is not there, `Pruned` when the node has dropped it."""
        head = await self.newest()
        if number == head.number:
            return head
        if not 0 <= number < head.number:
            raise ChainError(f"block {number} is not there yet; wait until the head has passed it")
        if number in self._kept:
            return self._kept[number]
        block = await self._read(number)
        # A block that is not final may still be replaced by another of the same number.
        if number > self._final:
            self._final = await self._link.read(lambda node: node.finalized_block_number())
        if number <= self._final:
            self._kept[number] = block
            while len(self._kept) > _KEPT_BLOCKS:
                del self._kept[next(iter(self._kept))]
        return block

    async def close(self) -> None:
        """Stop following."""
        if self._follower is not None and not self._follower.done():
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)

    async def _follow(self) -> None:
        failures = 0
        while True:
            try:
                async with contextlib.aclosing(self._link.new_blocks()) as numbers:
                    async for number in numbers:
                        self._take(await self._read(number))
                        failures = 0
            except ChainError:
                pass  # whoever asks for the head hears of it, from `newest`
            failures += 1
            await asyncio.sleep(self._link.patience.pause(failures))

    def _take(self, block: Block) -> None:
        self._heard = asyncio.get_running_loop().time()
        # Nodes behind one address are not equally far, and forks end: numbers never run backwards for a reader.
        if self._newest is None or block.number >= self._newest.number:
            self._newest = block

    async def _read(self, number: int) -> Block:
        try:
            told: Any = await self._link.read(lambda node: node.block_hash(number))
            millis: Any = await self._link.read(lambda node: node.query("Timestamp", "Now", [], block_hash=told))
        except Pruned as error:
            raise Pruned(f"block {number} is too old for this node: {error}") from error
        try:
            block = Block(number, bytes.fromhex(told.removeprefix("0x")), int(millis) / 1000)
        except (AttributeError, TypeError, ValueError) as error:
            raise ChainUnreachable(f"{self._link.name} tells nonsense about block {number}; name another") from error
        if len(block.hash) != _HASH_BYTES:
            raise ChainUnreachable(f"{self._link.name} tells nonsense about block {number}; name another")
        return block
