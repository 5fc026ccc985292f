"""Who votes with what stake in each window, as the chain says; kept, because a chain's node forgets."""

from __future__ import annotations

from collections.abc import Callable

from protocol.chain.port import Chain
from protocol.errors import Pruned
from protocol.ledger.electorate import Electorate, electorate_of
from protocol.run import Run
from protocol.window import deadlines


class Electorates:
    """The electorates of the windows that still matter, by window. `complain` is told what had to be guessed."""

    def __init__(self, run: Run, chain: Chain, complain: Callable[[str], None]) -> None:
        self.run, self.chain, self.complain = run, chain, complain
        self.known: dict[int, Electorate] = {}

    async def of(self, window: int) -> Electorate:
        """The validators of `window`: those of its first block. If there was none yet, those of the first window after
        it that has any. Raises `ChainError` before that block."""
        head = (await self.chain.head()).number
        while True:
            found = self.known.get(window)
            if found is None:
                found = await self._read(window)
                # In its very first block it may still change.
                if deadlines(window, self.run.time).start_block < head:
                    self.known[window] = found
            if found.members or deadlines(window + 1, self.run.time).start_block > head:
                return found
            window += 1

    async def _read(self, window: int) -> Electorate:
        try:
            return electorate_of(await self.chain.neurons_at(deadlines(window, self.run.time).start_block))
        except Pruned as error:
            # What is known of the time closest to it; stake moves slowly, and who is final is not asked again.
            near = min(self.known, key=lambda known: (abs(known - window), -known), default=None)
            source = "now" if near is None else f"of window {near}"
            self.complain(f"the validators of window {window} are taken to be those {source}: {error}")
            return electorate_of(await self.chain.neurons()) if near is None else self.known[near]

    def forget(self, before_window: int) -> None:
        """Drop what is older."""
        self.known = {window: found for window, found in self.known.items() if window >= before_window}
