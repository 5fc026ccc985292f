"""Proof that a validator broke the rule: two documents of one key of which it may sign one (protocol §12).

Nothing is taken from the signer for it: others may not have seen the second one. It is kept, published and shown.
"""

from __future__ import annotations

from protocol.errors import DocumentError, LedgerError
from protocol.identity import Document
from protocol.ledger.attestation import Attestation, contradict
from protocol.ledger.manifest import MANIFEST_LIMIT_BYTES, Manifest, signed_twice
from protocol.run import Run

EVIDENCE_LIMIT_BYTES = 2 * MANIFEST_LIMIT_BYTES + 2**10


class Evidence(Document):
    """A pair of `manifests` or a pair of `votes`, the other one empty."""

    manifests: tuple[Manifest, ...] = ()
    votes: tuple[Attestation, ...] = ()

    @property
    def signer(self) -> str:
        """Who signed both."""
        return self.manifests[0].signer if self.manifests else self.votes[0].signer

    @property
    def window(self) -> int:
        """The window of the manifests, or of the ballot."""
        return self.manifests[0].window if self.manifests else self.votes[0].window

    @property
    def kind(self) -> str:
        """What was signed twice, in one word."""
        return "manifests" if self.manifests else "votes"

    def sentence(self) -> str:
        """What it proves."""
        if self.manifests:
            one, other = (manifest.digest()[:16] for manifest in self.manifests)
            return f"{self.signer} signed two manifests of window {self.window}: {one}… and {other}…"
        vote = self.votes[0]
        one, other = (each.head[:16] for each in self.votes)
        return (
            f"{self.signer} signed {vote.step} twice in ballot {vote.window}.{vote.round}: for {one}… and for {other}…"
        )


def check_evidence(evidence: Evidence, run: Run) -> None:
    """Raise `DocumentError` or `LedgerError` unless it proves what it says, of this run."""
    pairs = (len(evidence.manifests), len(evidence.votes))
    if pairs not in ((2, 0), (0, 2)):
        raise DocumentError(f"evidence is two manifests or two votes, not {pairs[0]} and {pairs[1]}")
    documents: tuple[Manifest | Attestation, ...] = (*evidence.manifests, *evidence.votes)
    for document in documents:
        document.verify()
        if document.run_digest != run.digest():
            raise LedgerError(f"evidence against {document.signer} is of run {document.run_digest}")
    if not (signed_twice(*evidence.manifests) if evidence.manifests else contradict(*evidence.votes)):
        raise LedgerError(f"evidence against {evidence.signer} proves nothing: the two do not contradict each other")
