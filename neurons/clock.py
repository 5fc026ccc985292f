"""Waiting on the chain, the only shared clock. Every pause is an `asyncio.sleep`, so tests own time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from protocol.chain.port import Block, Chain

_POLLS_PER_BLOCK = 4
_LONGEST_POLL_SECONDS = 2.0


async def tick(chain: Chain) -> None:
    """One polling interval: a quarter of a block, at most two seconds."""
    await asyncio.sleep(tick_seconds(chain))


def tick_seconds(chain: Chain) -> float:
    """How long a polling interval is."""
    return min(chain.block_seconds / _POLLS_PER_BLOCK, _LONGEST_POLL_SECONDS)


async def until(chain: Chain, number: int) -> Block:
    """Return the head once block `number` is there. Sleeps through the blocks in between, then polls."""
    while True:
        head = await chain.head()
        missing = number - head.number
        if missing <= 0:
            return head
        if missing > 1:
            await asyncio.sleep((missing - 1) * chain.block_seconds)
        else:
            await tick(chain)


@asynccontextmanager
async def stop_at(chain: Chain, number: int) -> AsyncIterator[Callable[[], bool]]:
    """A flag for work in another thread: false until block `number` is there or the caller leaves, then true."""
    stop = threading.Event()

    async def watch() -> None:
        await until(chain, number)
        stop.set()

    watcher = asyncio.create_task(watch())
    try:
        yield stop.is_set
    finally:
        stop.set()  # whoever leaves early, a cancelled task say, must not leave the thread at work
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
