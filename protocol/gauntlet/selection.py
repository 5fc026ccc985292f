"""Who may contribute, and who is judged closely (protocol §14)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

from blake3 import blake3

from protocol.gauntlet.scorebook import PeerRecord, Scorebook
from protocol.ledger.manifest import Seat
from protocol.run import Run

BANDS = 4
"""Rating bands of which one is drawn in each window."""

UNLISTED_WINDOWS = 3
"""Windows at the beginning of a run in which there is no list: that of window W is in manifest W − 2, whose signer has
judged windows up to W − 3."""


def select(book: Scorebook, run: Run) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Gather and reserve list, best first: active peers whose unique work is not in doubt and that help, by final
    score, then rating, then lowest uid. To help is to lower the loss in more than half of the latest windows, net of
    those in which one raises it, or to be rated above zero: in a small network the least of those who help is rated
    below zero for long, and noise lowers the loss now and then."""
    helps = [r for r in book.peers if 2 * sum(r.signs) > len(r.signs) or r.rating > 0]
    fit = [r for r in helps if r.is_active(run) and not r.is_doubted(run)]
    fit.sort(key=lambda r: (-r.final(run), -r.rating, r.uid))
    uids = [r.uid for r in fit]
    size = run.gauntlet.gather_size
    return tuple(uids[:size]), tuple(uids[size : size + run.gauntlet.reserve_size])


def contributors(gather: Sequence[Seat], reserve: Sequence[Seat], valid: Collection[Seat], run: Run) -> tuple[int, ...]:
    """Uids whose payloads are applied, ascending: the valid ones of the gather list, then reserves in their order
    for each gather peer that is not valid. With no list yet every valid peer counts, lowest uid first."""
    if not gather:
        return tuple(sorted(seat.uid for seat in valid)[: run.gauntlet.gather_size])
    chosen = [seat.uid for seat in gather if seat in valid]
    chosen += [seat.uid for seat in reserve if seat in valid][: len(gather) - len(chosen)]
    return tuple(sorted(chosen))


def sample(valid: Sequence[PeerRecord], gather: Collection[int], judge_hash: bytes, run: Run) -> tuple[int, ...]:
    """Up to `gauntlet.sample` uids of `valid` to measure in this window, in the order in which to do it.

    Every second turn is the gather list's. The others go in turn to newcomers, who were never measured, and after them
    to those whose first-order gain promised too much when they were; and to a rating band. Peers that are not on the
    list are sorted by rating and cut into `BANDS` equal bands, of which `judge_hash` draws one: nobody can know before
    the seals are in whom it will be, and everybody can check it afterwards. In each queue those who have waited longest
    come first; behind newcomers and behind the band come all the rest. Who has waited longer of the first two begins,
    so that a machine that measures one peer a window reaches everybody.

    If m ≥ 2 peers are measured in each window, each of n gather peers is measured within ⌈n / ⌊m/2⌋⌉ windows, and each
    of n newcomers within ⌈n / ⌈⌊m/2⌋/2⌉⌉ if no others come after them.
    """
    waiting = sorted(valid, key=lambda r: (r.last_measured, r.uid))
    listed = [r for r in waiting if r.uid in gather]
    others = [r for r in waiting if r.uid not in gather]
    band = _band(others, judge_hash, run)
    rest = [*(r for r in others if r.uid in band), *(r for r in others if r.uid not in band)]
    new = [r for r in others if r.last_measured < 0]
    new_first = [*new, *(r for r in others if r.overstates), *rest]
    turns = [listed, new_first, listed, rest]
    if listed and others and new_first[0].last_measured < listed[0].last_measured:
        turns = [new_first, listed, rest, listed]
    order: list[int] = []
    for queue in itertools.cycle(turns):
        if len(order) == min(run.gauntlet.sample, len(valid)):
            break
        order += [r.uid for r in queue if r.uid not in order][:1]
    return tuple(order)


def _band(records: Sequence[PeerRecord], judge_hash: bytes, run: Run) -> set[int]:
    """Uids of the rating band that `judge_hash` draws."""
    ordered = [r.uid for r in sorted(records, key=lambda r: (-r.rating, r.uid))]
    drawn = int.from_bytes(blake3(run.digest_bytes + judge_hash + b"band").digest(8), "little") % BANDS
    return set(ordered[drawn * len(ordered) // BANDS : (drawn + 1) * len(ordered) // BANDS])
