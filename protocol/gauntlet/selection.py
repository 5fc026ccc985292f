"""Who may contribute, and who is judged closely (protocol §14)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from protocol.gauntlet.scorebook import Scorebook
from protocol.run import Run


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


def contributors(gather: Sequence[int], reserve: Sequence[int], valid: Collection[int], run: Run) -> tuple[int, ...]:
    """Uids whose payloads are applied, ascending: the valid ones of the gather list, then reserves in their order
    for each gather peer that is not valid. With no list yet every valid peer counts, lowest uid first."""
    if not gather:
        return tuple(sorted(valid)[: run.gauntlet.gather_size])
    chosen = [uid for uid in gather if uid in valid]
    chosen += [uid for uid in reserve if uid in valid][: len(gather) - len(chosen)]
    return tuple(sorted(chosen))


def sample(
    valid: Collection[int], gather: Collection[int], last_measured: Mapping[int, int], run: Run
) -> tuple[int, ...]:
    """Up to `gauntlet.sample` uids to measure this window, in the order in which to do it: those waiting longest
    first, so that whoever is left when time runs out comes first the next time; among equals gather peers first."""
    order = sorted(valid, key=lambda uid: (last_measured.get(uid, -1), uid not in gather, uid))
    return tuple(order[: run.gauntlet.sample])
