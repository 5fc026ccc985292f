"""Miners and validators that cheat, each a small subclass of the honest one. They exist so that anyone can see what
becomes of cheats: alone (`windrow cheat`), in a network (`windrow up --cheats`), and measured (`windrow lab`)."""

from __future__ import annotations

from neurons.adversaries.idle import FreeRider, Noise, Zeros
from neurons.adversaries.thieves import CiphertextCopy, Copycat, JitteredCopy, LastWindowCopy, LateCopy
from neurons.adversaries.timing import Equivocator, LateSeal, NoReveal, Oversized
from neurons.adversaries.twisted import NotCanonical, Overflow, Scaled, SignFlip
from neurons.adversaries.workers import (
    Backdoor,
    FewPages,
    JitterOwn,
    LessWork,
    Outdated,
    PartTime,
    PrivateCorpus,
    RandomPool,
    SharedWork,
    SpreadWork,
    Stale,
    Stale3,
    Stale10,
    Unsynced,
)
from neurons.errors import ConfigError
from neurons.miner import Miner

ADVERSARIES: dict[str, type[Miner]] = {
    "copycat": Copycat,
    "freerider": FreeRider,
    "zeros": Zeros,
    "noise": Noise,
    "sign-flip": SignFlip,
    "scale": Scaled,
    "overflow": Overflow,
    "not-canonical": NotCanonical,
    "oversized": Oversized,
    "copy-last": LastWindowCopy,
    "copy-ciphertext": CiphertextCopy,
    "copy-late": LateCopy,
    "copy-jittered": JitteredCopy,
    "shared-work": SharedWork,
    "jitter-own": JitterOwn,
    "spread-work": SpreadWork,
    "less-work": LessWork,
    "part-time": PartTime,
    "few-pages": FewPages,
    "random-pool": RandomPool,
    "private-corpus": PrivateCorpus,
    "backdoor": Backdoor,
    "outdated": Outdated,
    "unsynced": Unsynced,
    "stale-1": Stale,
    "stale-3": Stale3,
    "stale-10": Stale10,
    "late-seal": LateSeal,
    "no-reveal": NoReveal,
    "equivocate": Equivocator,
}


def adversary(kind: str) -> type[Miner]:
    """The class of a cheat; `ConfigError` names those there are."""
    if kind not in ADVERSARIES:
        raise ConfigError(f"there is no cheat {kind!r}; choose from {', '.join(ADVERSARIES)}")
    return ADVERSARIES[kind]
