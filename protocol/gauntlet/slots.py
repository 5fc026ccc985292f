"""Slots that change hands: what a hotkey has earned goes with it (protocol §14)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocol.chain.port import Neuron
from protocol.gauntlet.scorebook import Scorebook
from protocol.ledger.manifest import Seat
from protocol.run import Run
from protocol.window import deadlines


def departed(book: Scorebook, neurons: Sequence[Neuron], run: Run) -> tuple[int, ...]:
    """Slots in the book whose hotkey has left them: another one holds the slot now, or none does, or the same one
    registered anew since the snapshot of the last window in the book."""
    since = deadlines(book.window - 1, run.time).seal_block
    holders = {(n.uid, n.hotkey) for n in neurons if n.registered_at <= since}
    return tuple(record.uid for record in book.peers if (record.uid, record.hotkey) not in holders)


def remaining(book: Scorebook, gone: Collection[int]) -> Scorebook:
    """The book without the records of these slots."""
    return book.model_copy(update={"peers": tuple(record for record in book.peers if record.uid not in gone)})


def seats(book: Scorebook, uids: Sequence[int]) -> tuple[Seat, ...]:
    """What a list of these uids is in a manifest: each with the hotkey that earned its place."""
    hotkeys = {record.uid: record.hotkey for record in book.peers}
    return tuple(Seat(uid=uid, hotkey=hotkeys[uid]) for uid in uids)
