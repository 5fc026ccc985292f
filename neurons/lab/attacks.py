"""Who can be in a scenario: honest miners, fast and slow, and the attacks, with what each needs besides a miner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from neurons.adversaries import ADVERSARIES
from neurons.adversaries.timing import DrippingBucket, KeylessBucket
from neurons.adversaries.validators import Colluder
from neurons.adversaries.workers import OneComputation
from neurons.clock import until
from neurons.errors import ConfigError
from neurons.miner import Miner
from neurons.training.inner import InnerResult
from neurons.validator import Validator
from protocol.window import Window
from storage.directory import DirectoryBucket

VALIDATORS = ("validator", "validator-2")
"""Names of the validators. The first one has the majority of the stake alone; the second one runs only where an attack
needs it, and then belongs to the attackers."""

_SHARING_HOTKEYS = 5
_DRIP_BYTES_PER_SECOND = 10.0
"""At 1 kB/s a payload of 10⁹ parameters, 20 MB, takes 17 windows of 20 minutes. One of the laboratory has 1.7 kB and
its windows 9 s, so this is as slow there."""

_SLOW_BYTES_PER_SECOND = 5000.0
"""Seal and shard, 3 kB, take two thirds of the one block that there is for them."""


class SlowMiner(Miner):
    """An honest miner on a slow machine: the window closes when it has done half of its steps."""

    async def training_pages(self, window: Window) -> list[np.ndarray]:
        """The pages that it gets to."""
        pages = await super().training_pages(window)
        return pages[: len(pages) // 2]

    async def train(self, window: Window) -> InnerResult:
        """As every miner, until the close."""
        result = await super().train(window)
        await until(self.chain, self.training_end(window))
        return result


@dataclass(frozen=True, slots=True)
class Role:
    """A way to take part. One owner runs `kind` under each of `hotkeys` hotkeys; several of them do the same
    computation, which costs once. `seen_as` is their bucket as everyone but the `spared` (members by name) sees it,
    where that is another one. `second` is what the second validator runs, if it takes part; it and all of this role
    have one owner then."""

    name: str
    kind: type[Miner]
    hotkeys: int = 1
    seen_as: Callable[[Path], DirectoryBucket] | None = None
    spared: frozenset[str] = field(default_factory=frozenset)
    second: type[Validator] | None = None

    def view(self, reader: str, root: Path) -> DirectoryBucket:
        """The bucket of one who plays this role, in `root`, as `reader` sees it."""
        if self.seen_as is None or reader in self.spared:
            return DirectoryBucket(root)
        return self.seen_as(root)


def _dripping(bytes_per_second: float) -> Callable[[Path], DirectoryBucket]:
    return partial(DrippingBucket, bytes_per_second=bytes_per_second)


MINER = Role("miner", Miner)
SLOW = (
    Role("slow-miner", SlowMiner),
    Role("slow-bucket", Miner, seen_as=_dripping(_SLOW_BYTES_PER_SECOND)),
)
HONEST = Role("honest", Miner)
"""The attack that is none: honest miners in the attackers' place. What they are paid is what chance does."""

_SPECIAL = (
    Role("slow-drip", Miner, seen_as=_dripping(_DRIP_BYTES_PER_SECOND)),
    Role("reveal-to-minority", Miner, seen_as=KeylessBucket, spared=frozenset(VALIDATORS[1:]), second=Validator),
    Role("reveal-to-leader", Miner, seen_as=KeylessBucket, spared=frozenset(VALIDATORS[:1]), second=Validator),
    Role("collude", ADVERSARIES["zeros"], second=Colluder),
)

ATTACKS = {
    HONEST.name: HONEST,
    **{
        name: Role(name, kind, _SHARING_HOTKEYS if issubclass(kind, OneComputation) else 1)
        for name, kind in ADVERSARIES.items()
    },
    **{role.name: role for role in _SPECIAL},
}

ROLES = ATTACKS | {role.name: role for role in (MINER, *SLOW)}


def attack(name: str) -> Role:
    """The attack of this name; `ConfigError` names those there are."""
    if name not in ATTACKS:
        raise ConfigError(f"there is no attack {name!r}; choose from {', '.join(ATTACKS)}")
    return ATTACKS[name]
