"""Steps side by side that stand or fall together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
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
