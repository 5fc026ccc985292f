"""What a seed makes of a network: who is in it, who is killed when, and what else goes wrong.

A plan is drawn before anything runs, so the same seed asks the same of a network again. When in its work a process is
hit is the machine's affair: these are real processes on the real clock.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

TICKER = "chain"
"""What the process is called that makes the blocks."""

BLOCK_SECONDS = 0.5
QUIET_SECONDS = 4.0
"""Before anything goes wrong: everybody starts at the same time, and joining is not what is looked at."""

_SECONDS_PER_KILL = 3.5
_SECONDS_PER_FULL_DISK = 20.0

_WINDOW_BLOCKS = 8

Kind = Literal["kill", "stall", "jump", "full"]


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """Something that happens `at` seconds after the beginning. `kill`: `target` is killed and stays down for `seconds`;
    `stall`: the chain makes no block for `seconds`; `jump`: it makes `blocks` at once; `full`: no process of `target`
    can write a byte to any file for `seconds`."""

    at: float
    kind: Kind
    target: str
    seconds: float = 0.0
    blocks: int = 0


@dataclass(frozen=True, slots=True)
class Weather:
    """How often one neuron's requests go wrong, as shares of all requests: those to buckets it reads, those that write
    its own, and those to the chain; and the share of its own writes in the middle of which its process is killed."""

    reads: float
    writes: float
    chain: float
    killed: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One network. `table` are its constants without digests; it is hampered for `seconds`, and then left alone."""

    seed: int
    seconds: float
    validators: int
    miners: int
    table: dict[str, Any]
    events: tuple[Event, ...]
    weather: Weather

    @property
    def members(self) -> tuple[tuple[str, str], ...]:
        """Name and role of each neuron, validators first."""
        return (
            *((f"validator-{number}", "validator") for number in range(1, self.validators + 1)),
            *((f"miner-{number}", "miner") for number in range(1, self.miners + 1)),
        )


def draw(seed: int, seconds: float) -> Plan:
    """The plan of this seed for so many seconds."""
    chance = random.Random(seed)
    validators, miners = chance.choice((2, 3, 3)), chance.choice((3, 4))
    names = [f"validator-{n}" for n in range(1, validators + 1)] + [f"miner-{n}" for n in range(1, miners + 1)]
    events = []

    def moment() -> float:
        return QUIET_SECONDS + chance.uniform(0.0, seconds)

    for _ in range(round(chance.uniform(0.8, 1.2) * seconds / _SECONDS_PER_KILL)):
        # Most come back at once, some only when a window or two have passed without them.
        down = chance.choice((0.0, 0.0, 0.5, 1.0, 2.0, _WINDOW_BLOCKS * BLOCK_SECONDS, 10.0))
        events.append(Event(moment(), "kill", chance.choice([*names, TICKER]), down))
    for _ in range(chance.randint(0, 1)):
        events.append(Event(moment(), "stall", TICKER, chance.uniform(1.0, 6.0)))
    for _ in range(chance.randint(0, 1)):
        blocks = chance.choice((2, 5, _WINDOW_BLOCKS, 3 * _WINDOW_BLOCKS))
        events.append(Event(moment(), "jump", TICKER, blocks=blocks))
    for _ in range(round(seconds / _SECONDS_PER_FULL_DISK)):
        events.append(Event(moment(), "full", chance.choice(names), chance.uniform(0.5, 4.0)))
    weather = Weather(
        reads=chance.choice((0.002, 0.005, 0.01, 0.02)),
        writes=chance.choice((0.005, 0.02)),
        chain=chance.choice((0.0, 0.001)),
        killed=chance.choice((0.0, 0.01, 0.02)),
    )
    return Plan(seed, seconds, validators, miners, _constants(chance), tuple(sorted(events)), weather)


def _constants(chance: random.Random) -> dict[str, Any]:
    """Constants of a network whose windows cost next to nothing. In one of four networks so little is kept that windows
    are swept while it runs."""
    return {
        "version": 1,
        "name": "campaign",
        "time": {
            "window_blocks": _WINDOW_BLOCKS,
            "seal_blocks": 1,
            "reveal_blocks": 3,
            "manifest_blocks": 4,
            "failover_blocks": 1,
        },
        "model": {
            "model_type": "llama",
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
        "dataset": {"sequence_tokens": 64, "page_sequences": 2, "slots": 8},
        "inner": {"steps": 2, "pages_per_step": 1, "learning_rate": 6e-3},
        "gauntlet": {
            "random_pages": 2,
            "own_pages": 2,
            "held_out_pages": 1,
            "unique_work_rate": 0.2,
            "gather_size": 3,
            "reserve_size": 2,
        },
        "penalties": {"amnesty_rank": 2},
        "checkpoints": {"every_windows": chance.choice((2, 3)), "keep": chance.choice((2, 100, 100, 100))},
    }
