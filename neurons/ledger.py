"""What one node knows of the ledger, and what it follows: manifests, votes, what is final, the head (protocol §12).

Everything is read from the validators' buckets and checked here. What follows from it is the business of the pure
functions of `protocol/ledger/`: `choose` names the head, `newest_final` what can no longer change. A node applies the
best manifest it has at once; when the head turns out to lie on another branch, `after` says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurons.documents import Source
from neurons.durable import read_document, write_document
from neurons.electorates import Electorates
from neurons.errors import ContradictionError, Overtaken
from neurons.rounds import Peer
from protocol.chain.port import Chain
from protocol.errors import ChainError, DocumentError, LedgerError
from protocol.identity import Address, Digest, Document
from protocol.ledger.attestation import BALLOTS_LIMIT_BYTES, Attestation, Ballots, Step, Vote, check_attestation
from protocol.ledger.ballot import NO_BALLOT, Ballot, Phase, due_block
from protocol.ledger.electorate import Electorate
from protocol.ledger.evidence import Evidence, check_evidence
from protocol.ledger.forkchoice import (
    NOTHING_FINAL,
    Link,
    Quorum,
    View,
    choose,
    contradictions,
    newest_final,
    quorums,
    remembered,
    support,
)
from protocol.ledger.manifest import (
    MANIFEST_LIMIT_BYTES,
    Manifest,
    Seat,
    check_contributions,
    check_manifest,
    signed_twice,
)
from protocol.run import Run
from protocol.window import deadlines, failover_block, window_of
from storage.errors import NotFound, StorageError
from storage.keys import Keys

log = logging.getLogger(__name__)

_FILE = "ledger.json"
_KEPT_WINDOWS = 16
"""How far behind the final manifest, and behind this node, manifests stay known: to tell rivals from ancestors."""
_WALKED_AT_ONCE = 16
"""How many manifests are read at a time by who walks back through the past."""
_MANIFESTS_PER_SIGNER = 4
"""How many manifests of one signer and window a bucket may bring up without a vote for them."""


class Placed(Document):
    """A quorum, and the window of its head."""

    window: int
    round: int
    head: Digest
    head_window: int


class Members(Document):
    """The electorate of a window."""

    window: int
    members: tuple[tuple[Address, int], ...]


class Remembered(Document):
    """What a node keeps of the ledger over a restart. All else it reads again."""

    run_digest: Digest
    final: Placed | None
    electorates: tuple[Members, ...]


class Ledger:
    """The ledger as one node sees it.

    `sources` gives the validators' buckets, `sealed_sizes` the sizes of a payload's shards, `complain` is told what is
    wrong with a peer. `folder` keeps what is final, and evidence.
    """

    def __init__(
        self,
        run: Run,
        chain: Chain,
        folder: Path,
        sealed_sizes: Sequence[int],
        sources: Callable[[], Awaitable[Sequence[Peer | Source]]],
        complain: Callable[[str], None],
    ) -> None:
        self.run, self.chain, self.folder = run, chain, folder
        self.keys = Keys(run.digest()[:16])
        self.electorates = Electorates(run, chain, complain)
        self.manifests: dict[str, Manifest] = {}
        """Those that were checked, by digest."""
        self.votes: dict[Vote, Attestation] = {}
        self.roots: dict[str, str] = {}
        """Root of θ after a manifest, by its digest, where this node has been there."""
        self.final: Quorum = NOTHING_FINAL
        self.final_window: int = run.time.first_window - 1
        self.head: str = NOTHING_FINAL.head
        self.leader: str | None = None
        self.evidence: dict[tuple[int, str, str], Evidence] = {}
        self._sealed_sizes, self._sources, self._complain = sealed_sizes, sources, complain
        self._ranks: dict[str, int] = {}
        self._refused: set[str] = set()
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._read_at: dict[str, int] = {}
        self._searching: dict[str, asyncio.Task[None]] = {}
        self._searched_at: dict[str, int] = {}
        self._ahead: dict[str, Manifest] = {}
        self._answered = False
        self._block = -1
        self._begun = False
        self._saved: tuple[Quorum, int] | None = None
        self._recall()

    # --- what is known ------------------------------------------------------------------------------------

    def view(self, only: Collection[str] | None = None) -> View:
        """What is known, for the rules; of what is not final the manifests in `only` alone, if it is given."""
        known = {
            digest: Link(manifest.window, manifest.previous, self._ranks[digest])
            for digest, manifest in self.manifests.items()
            if only is None or digest in only or manifest.window <= self.final_window
        }
        return View(self.final, known, frozenset(self.votes), self.electorates.known)

    @property
    def head_window(self) -> int:
        """The window of the head, or the one before the run's first."""
        return self.manifests[self.head].window if self.head in self.manifests else self.final_window

    @property
    def support(self) -> float:
        """Share of all stake that stands for the head."""
        return support(self.view(), self.head)

    def open_path(self) -> Iterator[Manifest]:
        """The manifests from the head down to the final one, that one not included."""
        digest = self.head
        while digest != self.final.head and digest in self.manifests:
            yield self.manifests[digest]
            digest = self.manifests[digest].previous

    def voted(self) -> set[str]:
        """Digests of the known manifests that somebody voted for."""
        return {vote.head for vote in self.votes} & self.manifests.keys()

    def is_behind(self) -> bool:
        """Whether a quorum knows a manifest that this node does not: it must not lead."""
        view = self.view()
        return any(quorum.head not in self.manifests for step in Step for quorum in quorums(view, step))

    def after(self, window: int, previous: str) -> Manifest | None:
        """The manifest that follows `previous`, the digest of manifest `window` − 1, on the way to the head; None if
        there is none yet. Raises `Overtaken` if the head is on another branch."""
        if self.view().extends(previous, self.head):
            return None
        digest, lowest = self.head, None
        while (manifest := self.manifests.get(digest)) is not None and manifest.window >= window:
            if manifest.previous == previous:
                return manifest
            digest, lowest = manifest.previous, manifest.window
        if manifest is None and lowest != window:
            return None  # what lies in between is still being looked for
        raise Overtaken(f"manifest {window - 1} of this state is not on the way to the head, {self.head[:16]}…")

    async def at(self, window: int) -> Manifest | None:
        """The manifest of a past window on the way to the head, fetched if it must be; None if it is not to be had.
        Those before the final one are believed by their digests."""
        digest, number = self.head, self.head_window
        while number >= max(window, self.run.time.first_window):
            manifest = self.manifests.get(digest) or await self._fetch_past(number, digest, window)
            if manifest is None:
                return None
            self._ranks.setdefault(digest, 0)
            self.manifests[digest] = manifest
            if number == window:
                return manifest
            digest, number = manifest.previous, number - 1
        return None

    def refuse(self, manifest: Manifest) -> None:
        """Take a manifest, and what comes after it, for one that cannot be."""
        self._refused.add(manifest.digest())
        self._drop({manifest.digest()})
        self._decide()

    def forget(self, window: int) -> None:
        """Drop what a node at `window` does not need any more."""
        oldest = min(window, self.final_window) - _KEPT_WINDOWS
        for digest in [digest for digest, manifest in self.manifests.items() if manifest.window < oldest]:
            del self.manifests[digest], self._ranks[digest]
        self.roots = {digest: root for digest, root in self.roots.items() if digest in self.manifests}
        self.electorates.forget(min([oldest, *(vote.ballot.window for vote in self.votes)]))

    # --- reading ------------------------------------------------------------------------------------------

    async def begin(self, seconds: float) -> bool:
        """Start from the newest certificate that anybody shows; False while no validator answers, for then nothing can
        be told of how far the ledger has come."""
        await self.refresh(seconds)
        if not self._answered and await self._sources():
            return False
        shown = max(quorums(self.view(), Step.CONFIRM), default=self.final)
        if not self._begun and shown > self.final:
            number = max(a.head_window for v, a in self.votes.items() if Quorum(v.ballot, v.head) == shown)
            manifest = await self._fetch(number, shown.head)
            if manifest is not None:
                self.manifests[shown.head], self._ranks[shown.head] = manifest, 0
                self.final, self.final_window = shown, number
                self.head = shown.head
                # What was confirmed before lies before it; but the way there is not known here, and must not be taken
                # for a rival's.
                self.votes = {vote: known for vote, known in self.votes.items() if vote.ballot >= shown.ballot}
                log.info("window %d is final: more than half of all stake confirms it", number)
        await self.at(self.final_window - 1)  # its lists are those of the first manifest that is not final
        self._begun = True
        before = None
        while before != self.head:
            before = self.head
            await self.refresh(seconds)
        return True

    def is_read(self, block: int) -> bool:
        """Whether what may be published until the end of this block has been looked for in it: votes are looked for
        once a block, a manifest that is due all the time."""
        return self._begun and self._block == block < deadlines(self.head_window + 1, self.run.time).key_block

    async def refresh(self, seconds: float) -> None:
        """Read what the validators show now; whoever takes longer than `seconds` goes on being read meanwhile. Raises
        `ContradictionError`, and `ChainError` when the chain does not answer."""
        self._block = (await self.chain.head()).number
        window = window_of(self._block, self.run.time)
        members = (await self.electorates.of(window)).members
        self.leader = members[0][0] if members else None
        started = []
        for source in await self._sources():
            if source.hotkey not in self._reading:
                self._reading[source.hotkey] = asyncio.create_task(self._read(source))
                started.append(self._reading[source.hotkey])
        started += self._search()
        if started:
            await asyncio.wait(started, timeout=seconds)
        for tasks in (self._reading, self._searching):
            for name in [name for name, task in tasks.items() if task.done()]:
                tasks.pop(name).result()
        self._decide()

    async def close(self) -> None:
        """Leave off reading."""
        tasks = [*self._reading.values(), *self._searching.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, source: Peer | Source) -> None:
        """The ballots of one validator, once a block, and its manifest of the window that is due next."""
        try:
            if self._read_at.get(source.hotkey) != self._block:
                self._read_at[source.hotkey] = self._block
                data = await source.bucket.get(self.keys.ballots(), limit_bytes=BALLOTS_LIMIT_BYTES)
                self._answered = True
                await self._count_all(Ballots.parse(data))
        except NotFound:
            self._answered = True
        except (StorageError, DocumentError, LedgerError, ChainError) as error:
            self._complain(f"ballots from uid {source.uid}: {error}")
        number = self.head_window + 1
        if not self._begun or self._block < deadlines(number, self.run.time).key_block:
            return
        try:
            data = await source.bucket.get(self.keys.manifest(number), limit_bytes=MANIFEST_LIMIT_BYTES)
            manifest = Manifest.parse(data)
            same = [m for m in self.manifests.values() if (m.window, m.signer) == (manifest.window, manifest.signer)]
            if len(same) < _MANIFESTS_PER_SIGNER and manifest.window == number:
                await self.admit(manifest)
        except NotFound:
            pass
        except (StorageError, DocumentError, LedgerError, ChainError) as error:
            self._complain(f"manifest {number} from uid {source.uid}: {error}")

    async def _count_all(self, ballots: Ballots) -> None:
        # Twice, because a vote beside others of its signer counts only when somebody else's like it is known.
        for attestation in (*ballots.votes, *ballots.votes):
            vote = attestation.vote()
            if vote in self.votes or vote.ballot < self.final.ballot or self._is_early(vote):
                continue
            check_attestation(attestation, self.run)
            if (await self.electorates.of(vote.ballot.window)).stake_of({vote.signer}):
                self.count(attestation)

    def count(self, attestation: Attestation) -> None:
        """Take in a checked vote of a member, unless what is final has left it behind meanwhile."""
        vote = attestation.vote()
        if vote.ballot < self.final.ballot:
            return
        for other, known in self.votes.items():
            if (other.ballot, other.step, other.signer) == (vote.ballot, vote.step, vote.signer):
                self._convict(Evidence(votes=(known, attestation)))
        others = any(v.head == vote.head and v.signer != vote.signer and v.ballot == vote.ballot for v in self.votes)
        if self._signed(vote) < 2 or others:
            self.votes[vote] = attestation

    def _signed(self, vote: Vote) -> int:
        """How many votes of this signer in this step of this ballot are known."""
        return sum((v.ballot, v.step, v.signer) == (vote.ballot, vote.step, vote.signer) for v in self.votes)

    def _is_early(self, vote: Vote) -> bool:
        phase = Phase.NOMINATE if vote.step is Step.ATTEST else Phase.CONFIRM
        return due_block(vote.ballot, phase, self.run.time) > self._block

    async def admit(self, manifest: Manifest) -> None:
        """Take in a manifest after checking all that can be checked without θ. One whose predecessor is not known is
        looked for together with that. Raises `LedgerError` and `DocumentError`."""
        digest = manifest.digest()
        if digest in self.manifests or digest in self._refused:
            return
        if manifest.previous in self._refused:
            raise LedgerError(f"manifest {manifest.window} comes after one that was refused")
        if manifest.window > self.final_window + 1 and manifest.previous not in self.manifests:
            manifest.verify()
            self._look_for(manifest.window - 1, manifest.previous, manifest)
            return
        rank = await self._check(manifest)
        for other in list(self.manifests.values()):
            if signed_twice(manifest, other):
                self._convict(Evidence(manifests=(other, manifest)))
        self.manifests[digest], self._ranks[digest] = manifest, rank

    async def _check(self, manifest: Manifest) -> int:
        number = manifest.window
        electorate: Electorate = await self.electorates.of(number)
        rank = electorate.rank_of(manifest.signer)
        if rank is None or self._block < failover_block(number, rank, self.run.time):
            raise LedgerError(f"manifest {number}: the turn of its signer {manifest.signer} has not come")
        lists = self._listed(manifest)
        if lists is not None:
            check_contributions(manifest, self.run, *lists, self._sealed_sizes)
        elif number > self.final_window:
            raise LedgerError(f"manifest {number}: the lists in effect are not known yet")
        check_manifest(manifest, self.run, number, manifest.previous, manifest.root, manifest.signer)
        return rank

    def _listed(self, manifest: Manifest) -> tuple[tuple[Seat, ...], tuple[Seat, ...]] | None:
        """The lists in effect for a manifest; None if those are not known that come before it."""
        if manifest.window < self.run.time.first_window + 2:
            return (), ()
        before = self.manifests.get(manifest.previous)
        made = before and self.manifests.get(before.previous)
        return (made.gather, made.reserve) if made else None

    # --- what somebody votes for and this node does not have ----------------------------------------------

    def _search(self) -> list[asyncio.Task[None]]:
        """Begin to look for manifests that votes name, once a block each."""
        if not self._begun:
            return []
        before = set(self._searching)
        for vote, attestation in self.votes.items():
            if vote.head not in self.manifests:
                self._look_for(attestation.head_window, vote.head)
        return [task for name, task in self._searching.items() if name not in before]

    def _look_for(self, window: int, digest: str, child: Manifest | None = None) -> None:
        done = digest in self.manifests or digest in self._refused or digest in self._searching
        if not done and self._begun and self._searched_at.get(digest) != self._block:
            self._searched_at = {d: block for d, block in self._searched_at.items() if block == self._block}
            self._searched_at[digest] = self._block
            self._searching[digest] = asyncio.create_task(self._connect(window, digest, child))

    async def _connect(self, window: int, digest: str, child: Manifest | None) -> None:
        """Fetch a manifest, and those before it as far as they are not known, and take them in."""
        branch = [] if child is None else [child]
        while digest not in self.manifests and window > max(self.final_window - _KEPT_WINDOWS, -1):
            if digest == self.final.head or (manifest := await self._fetch(window, digest)) is None:
                break
            branch.append(manifest)
            digest, window = manifest.previous, window - 1
        try:
            for manifest in reversed(branch):
                await self.admit(manifest)
        except (DocumentError, LedgerError, ChainError) as error:
            self._complain(f"a branch of the ledger: {error}")

    async def _fetch_past(self, window: int, digest: str, oldest: int) -> Manifest | None:
        """As `_fetch`, for somebody who walks back to window `oldest`: what the windows before this one have is read at
        the same time, and taken if the walk comes to its digest."""
        if digest not in self._ahead:
            first = max(oldest, self.run.time.first_window, window - _WALKED_AT_ONCE + 1)
            found = await asyncio.gather(*(self._glance(number) for number in range(first, window + 1)))
            self._ahead = {manifest.digest(): manifest for manifest in found if manifest is not None}
        return self._ahead.get(digest) or await self._fetch(window, digest)

    async def _fetch(self, window: int, digest: str) -> Manifest | None:
        """The manifest of `window` with this digest, from whoever has it."""

        async def read(source: Peer | Source) -> Manifest | None:
            for key in (self.keys.manifest_of(window, digest), self.keys.manifest(window)):
                try:
                    found = Manifest.parse(await source.bucket.get(key, limit_bytes=MANIFEST_LIMIT_BYTES))
                except NotFound:
                    continue
                except (StorageError, DocumentError) as error:
                    self._complain(f"manifest {window} from uid {source.uid}, {key}: {error}")
                    continue
                if found.window == window and found.digest() == digest:
                    return found
                if key == self.keys.manifest_of(window, digest):
                    self._complain(f"manifest {window} from uid {source.uid}: {key} is not what it is named after")
            return None

        return await self._from_anybody(read)

    async def _glance(self, window: int) -> Manifest | None:
        """What somebody holds as the manifest of `window`; what is wrong with it is told by who needs it."""

        async def read(source: Peer | Source) -> Manifest | None:
            try:
                data = await source.bucket.get(self.keys.manifest(window), limit_bytes=MANIFEST_LIMIT_BYTES)
                return Manifest.parse(data)
            except (StorageError, DocumentError):
                return None

        return await self._from_anybody(read)

    async def _from_anybody(
        self, read: Callable[[Peer | Source], Coroutine[Any, Any, Manifest | None]]
    ) -> Manifest | None:
        """The first that one of the validators gives; all are asked at once."""
        reading = [asyncio.create_task(read(source)) for source in await self._sources()]
        try:
            for task in asyncio.as_completed(reading):
                if (found := await task) is not None:
                    return found
            return None
        finally:
            for each in reading:
                each.cancel()
            await asyncio.gather(*reading, return_exceptions=True)

    # --- what follows from it -----------------------------------------------------------------------------

    def _decide(self) -> None:
        view = self.view()
        if pairs := contradictions(view):
            raise ContradictionError(self._both(*pairs[0]))
        final = newest_final(view)
        if final != self.final:
            self.final, self.final_window = final, self.manifests[final.head].window
            log.info("window %d is final: more than half of all stake confirms it", self.final_window)
        kept = remembered(replace(view, final=self.final))
        self.votes = {vote: attestation for vote, attestation in self.votes.items() if vote in kept}
        self.head = choose(self.view())
        self._save()

    def _both(self, one: Quorum, other: Quorum) -> str:
        named = " and ".join(
            f"manifest {self.manifests[q.head].window if q.head in self.manifests else self.final_window}, {q.head}, "
            f"in ballot {q.ballot.window}.{q.ballot.round}"
            for q in (one, other)
        )
        return (
            f"more than half of all stake confirms two manifests that exclude each other: {named}. No rule says which "
            "of them counts: ask the validators, and remove ledger.json from this node's folder to go on with theirs"
        )

    def _drop(self, gone: set[str]) -> None:
        while gone:
            for digest in gone:
                self.manifests.pop(digest, None)
                self._ranks.pop(digest, None)
            gone = {digest for digest, manifest in self.manifests.items() if manifest.previous in gone}

    # --- on disk ------------------------------------------------------------------------------------------

    def _convict(self, evidence: Evidence) -> None:
        name = (evidence.window, evidence.signer, evidence.kind)
        if name in self.evidence:
            return
        log.warning("%s", evidence.sentence())
        self.evidence[name] = evidence
        folder = self.folder / "evidence"
        folder.mkdir(exist_ok=True)
        write_document(folder / f"{evidence.window:08d}-{evidence.signer}-{evidence.kind}.json", evidence)

    def _save(self) -> None:
        # Once a window, and when something becomes final: not for each window that a walk through the past comes by.
        now = self.final, window_of(self._block, self.run.time)
        if self._saved == now:
            return
        known = self.electorates.known
        final = Placed(
            window=self.final.ballot.window,
            round=self.final.ballot.round,
            head=self.final.head,
            head_window=self.final_window,
        )
        kept = Remembered(
            run_digest=self.run.digest(),
            final=None if self.final.ballot == NO_BALLOT else final,
            electorates=tuple(Members(window=window, members=known[window].members) for window in sorted(known)),
        )
        write_document(self.folder / _FILE, kept)
        self._saved = now

    def _recall(self) -> None:
        """What a process before this one knew for certain."""
        self._recall_evidence()
        try:
            kept = read_document(self.folder / _FILE, Remembered)
        except DocumentError as error:
            log.warning("%s; what is final is learnt anew", error)
            return
        if kept is None or kept.run_digest != self.run.digest():
            return
        self.electorates.known = {each.window: Electorate(each.members) for each in kept.electorates}
        if kept.final is not None:
            ballot = Ballot(kept.final.window, kept.final.round)
            self.final, self.final_window = Quorum(ballot, kept.final.head), kept.final.head_window
        self.head = self.final.head

    def _recall_evidence(self) -> None:
        for file in sorted((self.folder / "evidence").glob("*.json")):
            try:
                evidence = read_document(file, Evidence)
                if evidence is None:
                    continue
                check_evidence(evidence, self.run)
            except (DocumentError, LedgerError) as error:
                log.warning("%s is no evidence: %s", file, error)
                continue
            self.evidence[evidence.window, evidence.signer, evidence.kind] = evidence
