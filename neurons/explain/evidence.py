"""All that is known of one peer in one window, from public objects alone. Values only; `gathering` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.chain.port import Neuron
from protocol.gauntlet.receipts import Receipt, Receipts
from protocol.ledger.manifest import Contribution, Manifest, Refusal
from protocol.run import Run
from protocol.window import Window, deadlines


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as its bucket tells of it now. `stored_at` is in Unix seconds, by the bucket's own clock: evidence,
    and no proof. Both are None when the object is not there."""

    name: str
    size_bytes: int | None = None
    stored_at: float | None = None


@dataclass(frozen=True, slots=True)
class Bucketful:
    """What lies in a peer's bucket of one window, now. `payload_digest` and `shards` are what its seal names;
    `seal_holds` says whether the seal is signed by this peer and of this window, `key_opens` whether the key is the one
    that it commits to, None where there is nothing to check. `trouble` is why nothing could be read."""

    seal: Stored = Stored("seal")
    key: Stored = Stored("key")
    shards: tuple[Stored, ...] = ()
    shards_named: int = 0
    payload_digest: str | None = None
    seal_holds: bool | None = None
    key_opens: bool | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """One slot in one window. `hotkey` held it then, as far as anything says; `neuron` holds it now. `block_times` are
    in Unix seconds, for the blocks that are there. `past` are receipts of windows before by the same validator, without
    a gap, ascending. `manifest_stored` and `receipts_stored` are what the validator's bucket says of them."""

    run: Run
    uid: int
    window: int
    head_block: int
    block_seconds: float
    hotkey: str | None
    block_times: Mapping[int, float]
    neuron: Neuron | None = None
    manifest: Manifest | None = None
    receipts: Receipts | None = None
    past: tuple[Receipts, ...] = ()
    bucketful: Bucketful | None = None
    manifest_stored: Stored = Stored("manifest")
    receipts_stored: Stored = Stored("receipts")

    @property
    def deadlines(self) -> Window:
        """The blocks of the window."""
        return deadlines(self.window, self.run.time)

    @property
    def receipt(self) -> Receipt | None:
        """How the slot was judged."""
        return self.receipts.of(self.uid) if self.receipts else None

    @property
    def refusal(self) -> Refusal | None:
        """Why the manifest does not count it, if it says so."""
        return next((r for r in self.manifest.rejected if r.uid == self.uid), None) if self.manifest else None

    @property
    def contribution(self) -> Contribution | None:
        """What the manifest applies of it."""
        return next((c for c in self.manifest.contributions if c.uid == self.uid), None) if self.manifest else None

    @property
    def incentive(self) -> float | None:
        """What the chain pays this hotkey now, a share in [0, 1]; None if it no longer holds the slot."""
        return self.neuron.incentive if self.neuron and self.neuron.hotkey == self.hotkey else None

    def blocks_after(self, block: int, at: float) -> float | None:
        """By how many blocks the time `at` lies after `block` (negative: before it); None while that is not there."""
        then = self.block_times.get(block)
        return None if then is None else (at - then) / self.block_seconds
