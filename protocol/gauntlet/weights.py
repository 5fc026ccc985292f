"""From final scores to weights on chain (protocol §14)."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.gauntlet.scorebook import Scorebook
from protocol.run import Run


def weights_of(book: Scorebook, gather: Sequence[int], reserve: Sequence[int], run: Run) -> dict[int, float]:
    """Shares by uid that sum to 1, or nothing at all when nobody has earned anything.

    `tiers`: gather peers with a positive final score share `gather_share` on a linear ramp, the best getting
    `best_to_worst` times the worst; reserves share the rest, each half of the one before. Without reserves the
    gather peers share everything. `power`: score², normalised. The burn share goes to `burn_uid` first.
    """
    finals = {record.uid: record.final(run) for record in book.peers if record.final(run) > 0}
    if run.weights.rule == "power":
        raw = {uid: score**2 for uid, score in finals.items()}
    else:
        raw = _tiers([u for u in gather if u in finals], [u for u in reserve if u in finals], run)
    total = sum(raw.values())
    if total <= 0:
        return {}
    paid = 1.0 - run.weights.burn_share
    shares = {uid: paid * value / total for uid, value in sorted(raw.items())}
    if run.weights.burn_share:
        shares[run.weights.burn_uid] = shares.get(run.weights.burn_uid, 0.0) + run.weights.burn_share
    return shares


def _tiers(gather: Sequence[int], reserve: Sequence[int], run: Run) -> dict[int, float]:
    best, last = run.weights.best_to_worst, len(gather) - 1
    ramp = [best - (best - 1) * i / last if last > 0 else 1.0 for i in range(len(gather))]
    halves = [0.5**i for i in range(len(reserve))]
    share = run.weights.gather_share if reserve else 1.0
    tiers = {uid: share * value / sum(ramp) for uid, value in zip(gather, ramp, strict=True)}
    rest = 1.0 - share if gather else 1.0
    return tiers | {uid: rest * value / sum(halves) for uid, value in zip(reserve, halves, strict=True)}
