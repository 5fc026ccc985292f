"""One scenario: honest miners and one kind of attacker, played to the end in virtual time, and what came of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from neurons.lab.attacks import Attack
from neurons.lab.virtual import Corpus, Simulation, run_virtually, tiny_table
from neurons.validator import Validator
from protocol.gauntlet.receipts import Receipts
from storage.bucket import Bucket
from storage.location import LocalLocation, decode

VALIDATORS = ("validator", "validator-2")
_STAKES = (1000.0, 600.0)
"""The first validator has the majority alone; the second one runs only where an attack needs it."""

_ATTACKERS_COLDKEY = "//attackers"

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """How large a scenario is: miners, the attackers among them, and windows. `quick` has fewer steps and pages."""

    miners: int
    windows: int
    quick: bool

    def table(self) -> dict[str, Any]:
        """The constants of the run: a slot for each neuron, so that no page is dealt to nobody."""
        table = tiny_table()
        table["name"] = "lab"
        table["dataset"] |= {"slots": self.miners + len(VALIDATORS)}
        table["gauntlet"] |= {"sample": self.miners}
        if self.quick:
            table["model"] |= {"num_hidden_layers": 1}
        return table


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scenario. `pay` is the emission of all attackers together as a share of an honest miner's mean,
    None where there was no attacker or nobody was paid; `held_out_loss` is that of the last state, in nats; `reason` is
    the most frequent reason of the attackers' rejections and `first_rejected` the window of the first."""

    pay: float | None
    held_out_loss: float
    reason: str | None
    first_rejected: int | None


def play(attack: Attack | None, honest: int, setting: Setting, seed: int, corpus: Corpus, step: Progress) -> Played:
    """Play `setting` with `honest` honest miners and, unless it is None, `attack`. `step` is told of each window."""
    with tempfile.TemporaryDirectory(prefix="windrow-lab-") as folder:
        return run_virtually(_play(attack, honest, setting, seed, corpus, step, Path(folder)))


async def _play(
    attack: Attack | None, honest: int, setting: Setting, seed: int, corpus: Corpus, step: Progress, folder: Path
) -> Played:
    miners = [f"miner-{number}" for number in range(1, honest + 1)]
    attackers = [f"attacker-{number}" for number in range(1, setting.miners - honest + 1)] if attack else []
    owned = [*attackers, *(VALIDATORS[1:] if attack and attack.second else ())]
    net = Simulation(
        folder, corpus, setting.table(), _STAKES, seed, dict.fromkeys(owned, _ATTACKERS_COLDKEY) | _own_coldkeys(miners)
    )
    await net.create([*VALIDATORS, *miners, *attackers])
    async with net:

        def start(name: str, kind: Any) -> None:
            net.start(name, kind, open_bucket=partial(_open_bucket, net, attack, attackers, name))

        start(VALIDATORS[0], Validator)
        if attack and attack.second:
            start(VALIDATORS[1], attack.second)
        for name in miners:
            net.start(name, open_bucket=partial(_open_bucket, net, attack, attackers, name))
        if attack:
            for name in attackers:
                start(name, attack.kind)
        earned = dict.fromkeys([*miners, *attackers], 0.0)
        for window in range(setting.windows):
            await net.windows(1)
            by_hotkey = {n.hotkey: n.incentive for n in await net.chain.neurons()}
            for name in earned:
                earned[name] += by_hotkey[net.keypairs[name].ss58_address]
            step(window)
        judged = [await net.receipts(window) for window in range(setting.windows)]
    uids = range(len(VALIDATORS) + honest, len(VALIDATORS) + honest + len(attackers))
    mean = sum(earned[name] for name in miners) / honest
    pay = sum(earned[name] for name in attackers) / mean if attackers and mean else None
    return Played(pay, judged[-1].held_out_loss_after, *_rejection(judged, uids))


def _own_coldkeys(names: list[str]) -> dict[str, str]:
    return {name: f"//owner-{name}" for name in names}


def _open_bucket(
    net: Simulation, attack: Attack | None, attackers: list[str], reader: str, commitment: bytes
) -> Bucket:
    """A member's bucket; an attacker's as this attack lets `reader` see it."""
    location = decode(commitment)
    if attack and isinstance(location, LocalLocation) and location.name in attackers:
        return attack.view(reader, net.bucket(location.name).root)
    return net.open_bucket(commitment)


def _rejection(judged: list[Receipts], uids: range) -> tuple[str | None, int | None]:
    """The most frequent reason of these uids and the window of the first; None twice when there is none."""
    found = [(r.window, e.reason) for r in judged for e in r.receipts if e.uid in uids and e.reason is not None]
    if not found:
        return None, None
    return Counter(reason.value for _, reason in found).most_common(1)[0][0], min(window for window, _ in found)
