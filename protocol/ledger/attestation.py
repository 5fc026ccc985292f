"""Attestations: a validator's signed word for a manifest and all before it (protocol §12)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from protocol.errors import LedgerError
from protocol.identity import Digest, Document, SignedDocument
from protocol.ledger.ballot import Ballot, is_ballot
from protocol.run import Run
from protocol.window import WindowNumber

BALLOTS_LIMIT_BYTES = 2**20
"""Largest ballots.json: two thousand votes, and some more."""


class Step(StrEnum):
    """How far a validator goes in a ballot. A nomination is the attestation of the ballot's leader."""

    ATTEST = "attest"
    """I have verified it, and it is no rival of anything I am bound to."""
    CONFIRM = "confirm"
    """More than half of the stake attested it in this ballot, and I saw no other nomination."""


@dataclass(frozen=True, slots=True, order=True)
class Vote:
    """What counts of an attestation whose signature holds. `signer` is a hotkey, `head` the digest of the newest
    manifest that it stands for."""

    ballot: Ballot
    step: Step
    signer: str
    head: str


class Attestation(SignedDocument):
    """One vote of the ballot (`window`, `round`). `head` names, by its hash chain, all manifests before it too;
    `head_window` says where to look for it and counts for nothing else."""

    run_digest: Digest
    window: WindowNumber
    round: Annotated[int, Field(ge=0, lt=2**16)]
    step: Annotated[Step, Field(strict=False)]
    head: Digest
    head_window: WindowNumber

    def vote(self) -> Vote:
        """The vote, which counts if `check_attestation` finds nothing."""
        return Vote(Ballot(self.window, self.round), self.step, self.signer, self.head)


class Ballots(Document):
    """What a validator publishes of the ballots that still matter: its own votes, and those of others that it has seen
    (`relay`). Nobody signs the collection: each vote is signed."""

    run_digest: Digest
    votes: tuple[Attestation, ...]


def check_attestation(attestation: Attestation, run: Run) -> None:
    """Raise `DocumentError` or `LedgerError` unless this is a vote of this run in a ballot that exists."""
    attestation.verify()
    if attestation.run_digest != run.digest():
        raise LedgerError(f"an attestation of {attestation.signer} is for run {attestation.run_digest}")
    ballot = attestation.vote().ballot
    if not is_ballot(ballot, run.time):
        raise LedgerError(f"{attestation.signer} attests in a ballot that is none: {ballot.window}.{ballot.round}")


def contradict(one: Attestation, other: Attestation) -> bool:
    """Whether two attestations that hold prove that their signer broke the rule: one key, one ballot, one step, two
    heads. Such a pair is evidence, whoever shows it."""
    a, b = one.vote(), other.vote()
    return (a.ballot, a.step, a.signer) == (b.ballot, b.step, b.signer) and a.head != b.head
