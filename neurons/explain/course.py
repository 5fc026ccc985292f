"""How the scores of recent windows came about, and what they would be had one thing been otherwise.

Everything goes through the functions that decide money: `update`, `select`, `weights_of` (protocol §14).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.gauntlet.history import book_before, events_of
from protocol.gauntlet.receipts import Receipts
from protocol.gauntlet.scorebook import Event, PeerRecord, Scorebook, update
from protocol.gauntlet.selection import select
from protocol.gauntlet.weights import weights_of
from protocol.run import Run

_TOLERANCE = 1e-6
"""What a score made again may differ by, relatively: another machine's exponential function."""


@dataclass(frozen=True, slots=True)
class Pay:
    """What a peer has after a window: its record, its final score, the list it is on, and its weight."""

    record: PeerRecord
    final: float
    on_list: str
    weight: float


class Course:
    """The windows of `receipts` (of one validator, ascending, without a gap), made again for the peer `hotkey` in slot
    `uid`."""

    def __init__(self, receipts: Sequence[Receipts], run: Run, uid: int, hotkey: str) -> None:
        self.run, self.uid, self.hotkey = run, uid, hotkey
        self.events = {each.window: events_of(each) for each in receipts}
        self._start = book_before(receipts[0], run)
        self._last = receipts[-1]
        self.book = self._played({})
        """The scorebook after the last window."""

    @property
    def real(self) -> Pay:
        """What is."""
        return self._pay(self.book)

    @property
    def is_faithful(self) -> bool:
        """Whether the same comes out here as the receipts say: else nothing else that comes out here means anything."""
        gather, reserve = select(self.book, self.run)
        weights = weights_of(self.book, gather, reserve, self.run)
        return all(
            math.isclose(made, said, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
            for receipt in self._last.receipts
            for record in (self.book.of(receipt.uid, receipt.hotkey),)
            for made, said in (
                (record.rating, receipt.after.rating),
                (record.final(self.run), receipt.after.final),
                (weights.get(receipt.uid, 0.0), receipt.weight),
            )
        )

    def event(self, window: int) -> Event | None:
        """What happened to this peer in `window`."""
        events = self.events.get(window, ())
        return next((e for e in events if (e.uid, e.hotkey) == (self.uid, self.hotkey)), None)

    def had(self, changes: Mapping[int, Event]) -> Pay:
        """What this peer would have, had these events happened to it instead, by window."""
        return self._pay(self._played(changes))

    def were(self, record: PeerRecord) -> Pay:
        """What this peer would have, were this its record."""
        others = [r for r in self.book.peers if (r.uid, r.hotkey) != (self.uid, self.hotkey)]
        peers = tuple(sorted([*others, record], key=lambda each: each.uid))
        return self._pay(self.book.model_copy(update={"peers": peers}))

    def last_of(self, on_list: str) -> PeerRecord | None:
        """The last one on the gather or reserve list, None when that has room."""
        gather, reserve = select(self.book, self.run)
        uids, size = (
            (gather, self.run.gauntlet.gather_size)
            if on_list == "gather"
            else (reserve, self.run.gauntlet.reserve_size)
        )
        if not size or len(uids) < size:
            return None
        return next(record for record in self.book.peers if record.uid == uids[-1])

    def _played(self, changes: Mapping[int, Event]) -> Scorebook:
        book = self._start
        for window, events in self.events.items():
            changed = changes.get(window)
            told = [changed if changed and e.uid == self.uid else e for e in events]
            book = update(book, window, told, self.run)
        return book

    def _pay(self, book: Scorebook) -> Pay:
        gather, reserve = select(book, self.run)
        weights = weights_of(book, gather, reserve, self.run)
        record = book.of(self.uid, self.hotkey)
        on_list = "gather" if self.uid in gather else "reserve" if self.uid in reserve else "none"
        return Pay(record, record.final(self.run), on_list, weights.get(self.uid, 0.0))
