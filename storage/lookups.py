"""Looking up names of hosts, of which some are a stranger's, whose name server may be silent for minutes.

A lookup cannot be ended before the system gives up. So each has a thread of its own, which nobody waits for at the end,
and one name is looked up once at a time, however many ask for it: a stranger can tie up one thread, and nobody else.
(The thread pools of event loops are small, and shared with all else that a process does.)
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from functools import partial
from typing import Any

from aiohttp import ThreadedResolver

_Found = list[tuple[Any, ...]]


class Lookups(ThreadedResolver):
    """aiohttp's resolver by the system's own lookups, in threads as above."""

    def __init__(self) -> None:
        super().__init__(loop=_Loop())  # type: ignore[arg-type]  # of a loop it uses just what `_Loop` has


class _Loop:
    """What the resolver asks an event loop for."""

    def __init__(self) -> None:
        self._running: dict[tuple[Any, ...], asyncio.Future[Any]] = {}

    async def getaddrinfo(self, host: str, port: int, **options: Any) -> _Found:
        """As `socket.getaddrinfo`."""
        found: _Found = await self._once(
            partial(socket.getaddrinfo, host, port, **options), host, port, *options.items()
        )
        return found

    async def getnameinfo(self, address: Any, flags: int) -> tuple[str, str]:
        """As `socket.getnameinfo`."""
        found: tuple[str, str] = await self._once(partial(socket.getnameinfo, address, flags), address, flags)
        return found

    async def _once(self, call: Any, *what: Any) -> Any:
        future = self._running.get(what)
        if future is None:
            future = self._running[what] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda done: self._ended(what, done))
            threading.Thread(target=_run, args=(call, future), daemon=True, name="lookup").start()
        return await asyncio.shield(future)  # who gives up must not take the answer from the others

    def _ended(self, what: tuple[Any, ...], done: asyncio.Future[Any]) -> None:
        del self._running[what]
        done.exception()  # perhaps nobody waits for it any more


def _run(call: Any, future: asyncio.Future[Any]) -> None:
    try:
        result, error = call(), None
    except OSError as failure:
        result, error = None, failure
    with contextlib.suppress(RuntimeError):  # the loop may have ended meanwhile
        future.get_loop().call_soon_threadsafe(_tell, future, result, error)


def _tell(future: asyncio.Future[Any], result: Any, error: OSError | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
