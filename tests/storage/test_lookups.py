"""Names of hosts: a silent name server keeps nobody but those who ask it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from storage.lookups import Lookups

RUNNERS = (asyncio.run, uvloop.run)
FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]


class Names:
    """Stands in for the system's lookups: names that begin with `silent` are answered when `speak` is set."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.speak = threading.Event()

    def getaddrinfo(self, host: str, port: int, **options: Any) -> Any:
        self.asked[host] += 1
        if host.startswith("silent"):
            self.speak.wait(60)
        if host.endswith("nowhere"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return FOUND


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.speak.set()
    for thread in threading.enumerate():
        if thread.name == "lookup":
            thread.join(10)


@pytest.mark.parametrize("run", RUNNERS)
def test_many_silent_names_keep_nobody_else_waiting(names: Names, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        resolver = Lookups()
        silent = [asyncio.ensure_future(resolver.resolve(f"silent-{n}.example")) for n in range(64)]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            assert [found["host"] for found in await resolver.resolve("honest.example", 443)] == ["192.0.2.1"]
            await asyncio.to_thread(lambda: None)  # nor is the loop's own pool tied up
        assert not any(task.done() for task in silent)
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)

    run(scenario())


@pytest.mark.parametrize("run", RUNNERS)
def test_a_name_is_looked_up_once_at_a_time_however_many_ask_and_give_up(names: Names, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        resolver = Lookups()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await resolver.resolve("silent.example")
        patient = asyncio.ensure_future(resolver.resolve("silent.example"))
        await asyncio.sleep(0)
        assert names.asked == {"silent.example": 1}
        names.speak.set()
        assert len(await patient) == 1
        assert len(await resolver.resolve("silent.example")) == 1
        assert names.asked == {"silent.example": 2}

    run(scenario())


def test_a_name_that_is_not_there_is_an_error_for_each_who_asks(names: Names) -> None:
    async def scenario() -> None:
        resolver = Lookups()
        found = await asyncio.gather(*(resolver.resolve("nowhere") for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in found] == [socket.gaierror] * 3

    asyncio.run(scenario())


def test_who_ends_does_not_wait_for_a_silent_name(names: Names) -> None:
    async def scenario() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Lookups().resolve("silent.example")

    asyncio.run(scenario())
    assert not names.speak.is_set()  # its answer comes when the loop is gone
