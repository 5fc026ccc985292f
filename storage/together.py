"""Steps side by side that stand or fall together, and steps in threads that nobody forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

_T = TypeVar("_T")


async def together(steps: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """The results of `steps`, in order. The first error is raised once all others have been cancelled and have
    ended; so it is when this is cancelled: nothing goes on behind the caller's back."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_one_ends(steps: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Let `steps`, which go on for ever, run until one of them ends, and end the others; raises what it failed of."""
    tasks = [asyncio.ensure_future(step) for step in steps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(work: Callable[[], _T]) -> _T:
    """What `work` returns, from a thread. A thread cannot be cancelled: if the caller is, it waits until `work` has
    ended all the same, because it would go on with files that the caller closes."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    finally:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it is the caller's by now, or that of whoever cancelled it
