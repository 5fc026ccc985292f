"""How often, and after which pause, a request is sent again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """At most `attempts` attempts. The pause before attempt n + 1 is drawn evenly from 0 to `first_seconds` · 2ⁿ⁻¹,
    but not beyond `longest_seconds`: full jitter, so that many nodes that met one outage do not return as one.

    `sleep` and `draw` (a number in [0, 1)) are arguments for tests.
    """

    attempts: int = 6
    first_seconds: float = 0.25
    longest_seconds: float = 8.0
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    draw: Callable[[], float] = random.random

    async def pause(self, attempt: int) -> None:
        """Wait after attempt number `attempt` (from 1) has failed."""
        await self.sleep(self.draw() * min(self.longest_seconds, self.first_seconds * 2.0 ** (attempt - 1)))
