"""What the scenarios of an attack say about it: one row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from neurons.adversaries.workers import Backdoor
from neurons.lab.attacks import MINER, ROLES
from neurons.lab.scenario import NO_RECEIPT, Member, Played

UNPAID_SHARE = 0.05
"""An honest hotkey that earns less than this share of a miner's pay counts as kept off it."""


@dataclass(frozen=True, slots=True)
class Row:
    """An attack, or a mixture of them, over its seeds. Whatever is a mean over seeds weighs them alike.

    `pay` is what an attacking owner earns in all windows, with all of its hotkeys together, as a share of the mean of
    the honest miners at full speed in the same scenario. None where no such miner was paid. `compute` is what that
    owner computes, as a share of what such a miner does. `damage` is the relative change of the held-out loss after
    the last window against the same honest miners alone (above 0: worse). `pays` and `damages` have it for each seed.

    `reason` is the cheats' most frequent one, `rejected` the share of their windows that were rejected, and
    `first_rejected` the first of these. Of the honest miners, the slow ones included, `honest_rejected` is the share of
    windows that were rejected, and `honest_unpaid` that of hotkeys which are as good as unpaid. `extra` holds what only
    some rows have: of a backdoor the probability of a token of its answer, with cheats and without, of a mixture the
    pay of each role in it."""

    attack: str
    pay: float | None
    damage: float
    reason: str | None
    first_rejected: int | None
    seeds: int
    pays: tuple[float, ...]
    damages: tuple[float, ...]
    compute: float
    rejected: float
    honest_rejected: float
    honest_unpaid: float
    extra: dict[str, float]


def row_of(name: str, pairs: Sequence[tuple[Played, Played]]) -> Row:
    """The row of what was played with cheats and, beside it, without, once a seed."""
    played = [with_cheats for with_cheats, _ in pairs]
    cheats = [member for one in played for member in one.cheats]
    honest = [member for one in played for member in one.honest]
    pays = [pay for one in played if (pay := _pay(one, one.cheats)) is not None]
    damages = [with_cheats.held_out[-1] / alone.held_out[-1] - 1 for with_cheats, alone in pairs]
    reasons = Counter({r: sum(len(m.rejected.get(r, ())) for m in cheats) for m in cheats for r in m.rejected})
    del reasons[NO_RECEIPT]  # no judgement, only nothing that could have been judged
    windows = [window for m in cheats for reason in m.rejected if reason in reasons for window in m.rejected[reason]]
    return Row(
        attack=name,
        pay=statistics.fmean(pays) if pays else None,
        damage=statistics.fmean(damages),
        reason=reasons.most_common(1)[0][0] if reasons else None,
        first_rejected=min(windows, default=None),
        seeds=len(pairs),
        pays=tuple(pays),
        damages=tuple(damages),
        compute=_steps(cheats) / _steps([m for m in honest if m.role == MINER.name]),
        rejected=len(windows) / sum(len(m.pay) for m in cheats),
        honest_rejected=sum(len(ws) for m in honest for ws in m.rejected.values()) / sum(len(m.pay) for m in honest),
        honest_unpaid=statistics.fmean(m.paid < UNPAID_SHARE * wage(one) for one in played for m in one.honest),
        extra=_trigger(pairs) | _by_role(played),
    )


def wage(played: Played) -> float:
    """The mean pay of an honest miner at full speed."""
    return statistics.fmean(m.paid for m in played.honest if m.role == MINER.name)


def _pay(played: Played, cheats: Sequence[Member]) -> float | None:
    """What an owner of these hotkeys is paid, as a share of the wage; None where nobody was paid that."""
    full = wage(played)
    owners = len({member.owner for member in cheats})
    return sum(member.paid for member in cheats) / owners / full if full else None


def _steps(members: Sequence[Member]) -> float:
    # The hotkeys of one owner do the same computation, so that of each is the owner's.
    return statistics.fmean(member.steps for member in members)


def _trigger(pairs: Sequence[tuple[Played, Played]]) -> dict[str, float]:
    if not all(issubclass(ROLES[member.role].kind, Backdoor) for played, _ in pairs for member in played.cheats):
        return {}
    return {
        "answer": statistics.fmean(played.answer for played, _ in pairs),
        "answer_alone": statistics.fmean(alone.answer for _, alone in pairs),
    }


def _by_role(played: Sequence[Played]) -> dict[str, float]:
    """Pay of each role where there are several, each weighed alike in all its scenarios."""
    pays: dict[str, list[float]] = {}
    for one in played:
        for role in sorted({member.role for member in one.cheats}):
            pay = _pay(one, [member for member in one.cheats if member.role == role])
            if pay is not None:
                pays.setdefault(role, []).append(pay)
    return {role: statistics.fmean(found) for role, found in sorted(pays.items())} if len(pays) > 1 else {}
