"""What the doctor examines: the settings, and what they name, each opened once and by the check that is about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from bittensor_core import Keypair

from neurons.doctor.finding import Finding, Missing
from neurons.doctor.stores import OwnStore
from neurons.errors import EXPECTED_ERRORS
from neurons.onlooker import open_chain
from neurons.process import Ways, open_hotkey, own_store
from neurons.publication import Publication, Published, read_published
from neurons.settings import NodeSettings, Reading
from protocol.chain.port import Chain

Opened = TypeVar("Opened")


class Thing(Generic[Opened]):
    """Something that is opened when it is first asked for. `open` is for the check that is about it and raises what
    is wrong; `need` is for every other check."""

    def __init__(self, what: str, opening: Callable[[], Awaitable[Opened]]) -> None:
        self._what, self._opening = what, opening
        self._value: Opened | None = None
        self._tried = False

    async def open(self) -> Opened:
        """The thing; raises why it cannot be had."""
        self._tried = True
        if self._value is None:
            self._value = await self._opening()
        return self._value

    async def need(self) -> Opened:
        """The thing; raises `Missing` when the check that is about it did not get it."""
        if self._value is None and self._tried:
            raise Missing(self._what)
        try:
            return await self.open()
        except EXPECTED_ERRORS as error:
            raise Missing(self._what) from error

    @property
    def value(self) -> Opened | None:
        """The thing, if it was opened."""
        return self._value


class Patient:
    """One node. `findings` are what the checks have found until now, for those after them."""

    def __init__(self, reading: Reading, ways: Ways) -> None:
        self.reading, self.ways = reading, ways
        self.findings: dict[str, Finding] = {}
        self.hotkey = Thing("the hotkey", self._hotkey)
        self.published = Thing("the run", self._published)
        self.chain = Thing("the chain", self._chain)
        self.store = Thing("the own bucket", self._store)

    @property
    def settings(self) -> NodeSettings:
        """The settings; raises `Missing` when nothing could be made of them."""
        if self.reading.settings is None:
            raise Missing("settings that name a run")
        return self.reading.settings

    def measured(self, check: str, figure: str) -> float:
        """What `check` has measured; raises `Missing` when it did not come to it."""
        found = self.findings.get(check)
        if found is None or figure not in found.figures:
            raise Missing(f"what {check!r} measures")
        return float(found.figures[figure])

    async def close(self) -> None:
        """Close what was opened."""
        if self.chain.value is not None:
            await self.chain.value.close()

    async def _hotkey(self) -> Keypair:
        return open_hotkey(self.settings)

    async def _published(self) -> Published:
        return await read_published(self.settings.run, self.ways.own)

    async def _chain(self) -> Chain:
        try:
            publication = (await self.published.need()).publication
        except Missing:
            publication = Publication()  # the settings may name the subnet all the same
        return await open_chain(self.settings.chain, publication)

    async def _store(self) -> OwnStore:
        if self.settings.own is None and self.settings.buckets is None:
            raise Missing("settings of the own bucket")
        return own_store(self.settings, (await self.hotkey.need()).ss58_address, self.ways)
