"""Which attacks the laboratory knows, and what each needs besides a miner that cheats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from neurons.adversaries import ADVERSARIES
from neurons.adversaries.timing import DrippingBucket, KeylessBucket
from neurons.adversaries.validators import Colluder
from neurons.errors import ConfigError
from neurons.miner import Miner
from neurons.validator import Validator
from storage.directory import DirectoryBucket

HONEST = "honest"
"""The attack that is none: an honest miner in the attackers' place. What it is paid is what chance does."""

_SHARING_HOTKEYS = 5
_DRIP_BYTES_PER_SECOND = 32.0
"""A payload of the laboratory has about as many bytes as one of 10⁹ parameters has kB, and its windows are a tenth as
long: this takes longer than a window, as 1 kB/s does there."""


@dataclass(frozen=True, slots=True)
class Attack:
    """`kind` is run by `hotkeys` hotkeys of one owner. `seen_as` is their bucket as others see it, for the attacks that
    need a bucket that behaves so, `by` whom (validator or miner, by name; everybody when empty). `second` is what the
    second validator runs, which belongs to the attackers."""

    name: str
    kind: type[Miner]
    hotkeys: int = 1
    seen_as: Callable[[Path], DirectoryBucket] | None = None
    by: frozenset[str] = field(default_factory=frozenset)
    second: type[Validator] | None = None

    def view(self, reader: str, root: Path) -> DirectoryBucket:
        """The bucket of an attacker in `root`, as `reader` sees it."""
        if self.seen_as is None or (self.by and reader not in self.by):
            return DirectoryBucket(root)
        return self.seen_as(root)


def _drip(root: Path) -> DirectoryBucket:
    return DrippingBucket(root, _DRIP_BYTES_PER_SECOND)


_SPECIAL = (
    Attack("shared-work", ADVERSARIES["shared-work"], hotkeys=_SHARING_HOTKEYS),
    Attack("slow-drip", Miner, seen_as=_drip),
    Attack("reveal-to-some", Miner, seen_as=KeylessBucket, by=frozenset({"validator-2"}), second=Validator),
    Attack("collude", ADVERSARIES["zeros"], second=Colluder),
    Attack(HONEST, Miner),
)

ATTACKS = {name: Attack(name, kind) for name, kind in ADVERSARIES.items()} | {a.name: a for a in _SPECIAL}


def attack(name: str) -> Attack:
    """The attack of this name; `ConfigError` names those there are."""
    if name not in ATTACKS:
        raise ConfigError(f"there is no attack {name!r}; choose from {', '.join(ATTACKS)}")
    return ATTACKS[name]
