"""Validators that cheat."""

from __future__ import annotations

import logging

from neurons.validator import Validator
from protocol.errors import ChainError
from protocol.gauntlet.scorebook import Scorebook

log = logging.getLogger(__name__)


class Colluder(Validator):
    """Gives all its weight to the hotkeys of its own coldkey, whatever they sent, hoping that its stake pays them."""

    async def pay(self, number: int, book: Scorebook) -> None:
        """Favour the own ones."""
        neurons = await self.chain.neurons()
        coldkey = next(n.coldkey for n in neurons if n.hotkey == self.hotkey)
        favourites = {n.uid: 1.0 for n in neurons if n.coldkey == coldkey and n.hotkey != self.hotkey}
        try:
            await self.chain.set_weights(self.parts.hotkey, favourites)
        except ChainError as error:
            log.warning("weights of window %d were not set: %s", number, error)
