"""One scenario: honest miners and attackers, played to the end in virtual time, and what became of each."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurons.adversaries.workers import ANSWER, TRIGGER
from neurons.lab.attacks import MINER, ROLES, SLOW, VALIDATORS, Role
from neurons.lab.virtual import Corpus, Simulation, run_virtually, tiny_table
from neurons.miner import Miner
from neurons.node import Node
from neurons.training.model import as_tokens, token_losses
from neurons.validator import Validator
from protocol.gauntlet.receipts import Receipts
from storage.bucket import Bucket
from storage.location import LocalLocation, decode

_STAKES = (1000.0, 600.0)
_LEAST_WITH_SLOW = 5


@dataclass(frozen=True, slots=True)
class Setting:
    """How large a scenario is: miners at most, all roles together, and windows. `quick` has a smaller model."""

    miners: int
    windows: int
    quick: bool

    def table(self) -> dict[str, Any]:
        """The constants of the run: a slot for each neuron, so that no page is dealt to nobody."""
        table = tiny_table()
        table["name"] = "lab"
        table["model"] |= {"num_hidden_layers": 1}
        table["dataset"] |= {"slots": self.miners + len(VALIDATORS)}
        table["gauntlet"] |= {"sample": self.miners, "random_pages_most": table["gauntlet"]["random_pages"]}
        if not self.quick:
            table["model"] |= {"hidden_size": 64, "intermediate_size": 128}
        return table


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part, one owner after the other: so many honest miners, and an attacker for each of these roles. Two of
    five or more honest miners are slow, one by its machine, the other one by its bucket."""

    honest: int
    attackers: tuple[str, ...] = ()

    @property
    def alone(self) -> Cast:
        """The same honest miners without attackers."""
        return Cast(self.honest)

    def roles(self) -> list[Role]:
        """One for each owner, in the order of their uids."""
        slow = SLOW if self.honest >= _LEAST_WITH_SLOW else ()
        return [*[MINER] * (self.honest - len(slow)), *slow, *(ROLES[name] for name in self.attackers)]

    def hotkeys(self) -> int:
        """How many slots they take."""
        return sum(role.hotkeys for role in self.roles())


@dataclass(frozen=True, slots=True)
class Member:
    """What became of one hotkey: its share of the incentive after each window, why its work was rejected in which
    windows (`NO_RECEIPT` where it had none), and how many inner steps it did."""

    role: str
    owner: int
    pay: tuple[float, ...]
    rejected: dict[str, tuple[int, ...]]
    steps: int

    @property
    def paid(self) -> float:
        """All of its pay."""
        return sum(self.pay)


NO_RECEIPT = "no_receipt"
"""In place of a reason: the validator has never seen a seal of this hotkey, so it knows of no miner."""


@dataclass(frozen=True, slots=True)
class Played:
    """What came of a scenario: of its honest members and of its cheats, each by uid; the held-out loss after each
    window, in nats; and the probability that the last state gives to each token of the backdoor's answer after its
    trigger."""

    honest: tuple[Member, ...]
    cheats: tuple[Member, ...]
    held_out: tuple[float, ...]
    answer: float


def play(cast: Cast, setting: Setting, seed: int, corpus: Corpus, folder: Path) -> Played:
    """Play `setting` with this cast, in a folder of its own in `folder` that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        return run_virtually(_Stage(cast, setting, seed, corpus, Path(own)).play())


@dataclass(frozen=True, slots=True)
class _Hotkey:
    name: str
    role: Role
    owner: int


class _Stage:
    """A network with its cast."""

    def __init__(self, cast: Cast, setting: Setting, seed: int, corpus: Corpus, folder: Path) -> None:
        self.cast, self.setting = cast, setting
        roles = cast.roles()
        self.hotkeys = [_Hotkey(f"miner-{o}-{n}", r, o) for o, r in enumerate(roles) for n in range(r.hotkeys)]
        self.roles = {hotkey.name: hotkey.role for hotkey in self.hotkeys}
        seconds = {role.second: hotkey.owner for hotkey in self.hotkeys if (role := hotkey.role).second is not None}
        self.second, owner = next(iter(seconds.items()), (None, -1))
        owners = {h.name: owner if h.role.second else h.owner for h in self.hotkeys} | {VALIDATORS[1]: owner}
        coldkeys = {name: f"//owner-{number}" for name, number in owners.items()}
        self.net = Simulation(folder, corpus, setting.table(), _STAKES, seed, coldkeys)

    async def play(self) -> Played:
        """Every window, and what came of it."""
        net, windows = self.net, range(self.setting.windows)
        await net.create([*VALIDATORS, *self.roles])
        async with net:
            self._start(VALIDATORS[0], Validator)
            if self.second:
                self._start(VALIDATORS[1], self.second)
            for name, role in self.roles.items():
                self._start(name, role.kind)
            paid = []
            for _ in windows:
                await net.windows(1)
                paid.append({n.hotkey: n.incentive for n in await net.chain.neurons()})
            judged = [await net.receipts(window) for window in windows]
            answer = await self._answer()
        members = [self._member(hotkey, paid, judged) for hotkey in self.hotkeys]
        return Played(
            honest=tuple(member for member in members if member.owner < self.cast.honest),
            cheats=tuple(member for member in members if member.owner >= self.cast.honest),
            held_out=tuple(round(receipts.held_out_loss_after, 6) for receipts in judged),
            answer=answer,
        )

    def _start(self, name: str, kind: type[Node]) -> None:
        self.net.start(name, kind, open_bucket=partial(self._open_bucket, name))

    def _open_bucket(self, reader: str, commitment: bytes) -> Bucket:
        """A member's bucket as its role lets `reader` see it."""
        location = decode(commitment)
        if isinstance(location, LocalLocation) and location.name in self.roles:
            return self.roles[location.name].view(reader, self.net.bucket(location.name).root)
        return self.net.open_bucket(commitment)

    def _member(self, hotkey: _Hotkey, paid: list[dict[str, float]], judged: list[Receipts]) -> Member:
        node = self.net.nodes[hotkey.name]
        rejected: dict[str, list[int]] = {}
        for receipts in judged:
            receipt = receipts.of(node.uid)
            if receipt is None:
                rejected.setdefault(NO_RECEIPT, []).append(receipts.window)
            elif receipt.reason is not None:
                rejected.setdefault(receipt.reason.value, []).append(receipts.window)
        return Member(
            role=hotkey.role.name,
            owner=hotkey.owner,
            pay=tuple(round(incentives[node.hotkey], 6) for incentives in paid),
            rejected={reason: tuple(windows) for reason, windows in rejected.items()},
            steps=int(node.trainer.state()["step"]) if isinstance(node, Miner) else 0,
        )

    async def _answer(self) -> float:
        """Put the backdoor's trigger in the middle of held-out sequences, and see how probable the answer is."""
        pages = [await self.net.dataset.read_held_out(i) for i in range(self.net.dataset.index.held_out_pages)]
        sequences = np.concatenate(pages)
        middle = sequences.shape[1] // 2
        end = middle + len(TRIGGER + ANSWER)
        sequences[:, middle:end] = TRIGGER + ANSWER
        with torch.no_grad():
            losses = token_losses(self.net.nodes[VALIDATORS[0]].model, as_tokens(sequences[:, :end]))
        return float(losses[:, -len(ANSWER) :].mean().neg().exp())
