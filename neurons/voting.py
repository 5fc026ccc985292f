"""What a validator signs for its part in the ledger, each thing on disk before anybody can see it (protocol §12)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path

from bittensor_core import Keypair

from neurons.durable import read_document, write_document
from neurons.ledger import Ledger
from protocol.errors import DocumentError
from protocol.identity import Digest, Document
from protocol.ledger.attestation import Attestation, Ballots
from protocol.ledger.ballot import Ballot, due_at
from protocol.ledger.electorate import ballot_leader
from protocol.ledger.finality import Stance, act
from protocol.ledger.forkchoice import Quorum, relay
from protocol.ledger.manifest import Manifest
from protocol.window import deadlines
from storage.bucket import Bucket
from storage.errors import StorageError

log = logging.getLogger(__name__)

_FILE = "pledge.json"
_KEPT_MANIFESTS = 8


class Bound(Document):
    """A ballot, and the head that something was signed for in it."""

    window: int
    round: int
    head: Digest


class Pledge(Document):
    """What a validator has bound itself to: its stance, and the manifests that it signed last. Whoever has lost it sits
    out the ballot under way, and takes its lock from what it reads (protocol/ledger/finality.py)."""

    run_digest: Digest
    lock: Bound | None = None
    awake: tuple[int, int] | None = None
    attested: Bound | None = None
    confirmed: Bound | None = None
    manifests: tuple[Manifest, ...] = ()

    def stance(self) -> Stance:
        """The stance as the rule takes it."""
        awake = None if self.awake is None else Ballot(*self.awake)
        return Stance(_quorum(self.lock), awake, _quorum(self.attested), _quorum(self.confirmed))

    def with_stance(self, stance: Stance) -> Pledge:
        """This, with another stance."""
        awake = None if stance.awake is None else (stance.awake.window, stance.awake.round)
        bound = {name: _bound(getattr(stance, name)) for name in ("lock", "attested", "confirmed")}
        return self.model_copy(update={"awake": awake, **bound})


class Voter:
    """The votes of one validator. `bucket` is its own; `folder` keeps its pledge."""

    def __init__(
        self, ledger: Ledger, hotkey: Keypair, bucket: Bucket, folder: Path, complain: Callable[[str], None]
    ) -> None:
        self.ledger, self.run, self.chain = ledger, ledger.run, ledger.chain
        self.hotkey = hotkey
        self.bucket = bucket
        self._folder, self._complain = folder, complain
        self._pledge = self._read()
        self._done = -1
        self._shown: set[tuple[int, str, str]] = set()

    # --- manifests ----------------------------------------------------------------------------------------

    def signed(self, window: int, previous: str) -> Manifest | None:
        """The manifest that this validator has signed for `window` after `previous`, also in a process before this
        one. It must never sign another."""
        manifests = self._pledge.manifests
        return next((m for m in manifests if (m.window, m.previous) == (window, previous)), None)

    def pledge(self, manifest: Manifest) -> None:
        """Keep a manifest that is about to be published. Raises `DiskUnusable`."""
        if self.signed(manifest.window, manifest.previous) is None:
            manifests = (*self._pledge.manifests, manifest)[-_KEPT_MANIFESTS:]
            self._write(self._pledge.model_copy(update={"manifests": manifests}))

    # --- votes --------------------------------------------------------------------------------------------

    async def step(self, verified: Collection[str]) -> None:
        """Do what is due in the block that the chain is in, once, and in this block or not at all. `verified` are the
        digests of the manifests that may be voted for. Raises `ChainError` and `DiskUnusable`."""
        block = (await self.chain.head()).number
        due = due_at(block, self.run.time)
        if due is None or block == self._done or due[0].window < self.run.time.first_window:
            return
        ballot, _ = due
        electorate = await self.ledger.electorates.of(ballot.window)
        if not electorate.stake_of({self.hotkey.ss58_address}):
            return
        judge_hash = (await self.chain.block(deadlines(ballot.window, self.run.time).key_block)).hash
        leader = ballot_leader(electorate, self.run, judge_hash, ballot)
        if (await self.chain.head()).number != block:
            return
        self._done = block
        view, stance = self.ledger.view(verified), self._pledge.stance()
        kept, vote = act(self.hotkey.ss58_address, leader, block, self.run.time, view, stance)
        if kept != stance:
            self._write(self._pledge.with_stance(kept))
        if vote is not None:
            attestation = Attestation(
                signer=vote.signer,
                run_digest=self.run.digest(),
                window=ballot.window,
                round=ballot.round,
                step=vote.step,
                head=vote.head,
                head_window=self.ledger.manifests[vote.head].window,
            ).signed(self.hotkey)
            self.ledger.count(attestation)
            log.info("ballot %d.%d: %s manifest %d", *(ballot.window, ballot.round, vote.step), attestation.head_window)
        await self._publish()

    async def _publish(self) -> None:
        """Show what this validator has signed and seen, and the evidence that it has come upon."""
        votes = (self.ledger.votes[vote] for vote in sorted(relay(self.ledger.view())))
        ballots = Ballots(run_digest=self.run.digest(), votes=tuple(votes))
        keys = self.ledger.keys
        try:
            async with asyncio.timeout(self.chain.block_seconds):
                await self.bucket.put(keys.ballots(), ballots.canonical())
                for name, evidence in self.ledger.evidence.items():
                    if name not in self._shown:
                        await self.bucket.put(keys.evidence(*name), evidence.canonical())
                        self._shown.add(name)
        except (StorageError, TimeoutError) as error:
            self._complain(f"what this validator voted could not be published: {error or 'its bucket does not answer'}")

    # --- on disk ------------------------------------------------------------------------------------------

    def _read(self) -> Pledge:
        try:
            pledge = read_document(self._folder / _FILE, Pledge)
        except DocumentError as error:
            log.warning("%s; this validator sits out the ballot under way", error)
            pledge = None
        if pledge is None or pledge.run_digest != self.run.digest():
            return Pledge(run_digest=self.run.digest())
        return pledge

    def _write(self, pledge: Pledge) -> None:
        write_document(self._folder / _FILE, pledge)
        self._pledge = pledge


def _quorum(bound: Bound | None) -> Quorum | None:
    return None if bound is None else Quorum(Ballot(bound.window, bound.round), bound.head)


def _bound(quorum: Quorum | None) -> Bound | None:
    if quorum is None:
        return None
    return Bound(window=quorum.ballot.window, round=quorum.ballot.round, head=quorum.head)
