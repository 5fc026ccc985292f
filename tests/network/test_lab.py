"""The laboratory in small: attacks that are caught for certain earn nothing, and would without what catches them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neurons.collecting import Round
from neurons.errors import ConfigError
from neurons.lab import report, results
from neurons.lab.attacks import ROLES, SLOW
from neurons.lab.report import QUICK, lab, mixture, plan, shares_of
from neurons.lab.rows import Row, row_of
from neurons.lab.scenario import NO_RECEIPT, Cast, Member, Played, Setting, play
from neurons.lab.virtual import Corpus, small_corpus
from protocol.gauntlet.evaluation import UniqueWork
from protocol.gauntlet.scorebook import PeerRecord

MOST_PAY = 0.05
QUICK_SETTING = Setting(miners=4, windows=8, quick=True)


@pytest.fixture(scope="module")
def text() -> Corpus:
    return small_corpus()


# --- what is caught ---------------------------------------------------------------------------------------

CAUGHT = {
    "zeros": ("duplicate", 1),
    "scale": ("norm", 0),
    "sign-flip": (None, None),
    "copy-last": ("duplicate", 1),
    "random-pool": (None, None),
    "unsynced": ("bad_sync_proof", 1),
    "stale-1": ("stale_base", 1),
    "late-seal": ("late_seal", 0),
    "no-reveal": ("no_reveal", 0),
    "not-canonical": ("not_canonical", 0),
}
"""Reason of each attack of `--quick`, all of which earn nothing, and the window of its first rejection. Harm, and work
that is not one's own, pass the checks."""


def test_what_is_surely_caught_earns_nothing(tmp_path: Path) -> None:
    rows = lab(plan((), (), QUICK_SETTING, 1), QUICK_SETTING, 1, tmp_path / "results", Console(quiet=True))
    assert {row.attack: (row.reason, row.first_rejected) for row in rows} == CAUGHT
    for row in rows:
        assert row.pay is not None, row
        assert row.pay <= MOST_PAY, row
        assert row.damage < 0.02, row
        assert row.honest_rejected == 0, row


# --- what catches it --------------------------------------------------------------------------------------


def _late_seals_count(patch: pytest.MonkeyPatch) -> None:
    strict = Round.snapshot

    async def lenient(self: Round, end: Coroutine[Any, Any, object]) -> None:
        await end
        await asyncio.sleep(0.9)
        await strict(self, asyncio.sleep(1))

    patch.setattr(Round, "snapshot", lenient)


def _any_base(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.collecting.check_base", lambda *rest: None)


def _no_proof(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.collecting.check_sync_proof", lambda *rest: None)


def _any_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.validator.find_outsized", lambda *rest: {})


def _copies_pass(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.validator.find_copies", lambda *rest: {})


def _repeated_work_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("protocol.gauntlet.verdict.find_pairs", lambda rows: ())


def _all_draw(patch: pytest.MonkeyPatch) -> None:
    def draws(gains: Iterable[int], pages: int, errors: float) -> dict[int, tuple[int, ...]]:
        return {uid: (0,) * pages for uid in gains}

    patch.setattr("protocol.gauntlet.verdict.places_by_page", draws)


def _all_work_is_unique(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.judge.unique_work_of_all", lambda own, shared: {uid: UniqueWork(1.0, 0.1) for uid in own})
    patch.setattr(PeerRecord, "works_alone", lambda self, run: True)


def _ciphertexts_open_anywhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("neurons.rounds.associated_data", lambda *rest: b"")


def _weights_count_unclipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("protocol.chain.yuma._consensus", lambda stake, weights, kappa: weights.max(axis=0))


PAID_WITHOUT: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], ...]] = {
    "late-seal": (_late_seals_count,),
    "unsynced": (_no_proof, _all_draw),
    "scale": (_any_norm,),
    "random-pool": (_all_work_is_unique,),
    "collude": (_weights_count_unclipped,),
    # Each of these is enough: to be ranked by gain, and that work must be one's own.
    "sign-flip": (_all_draw, _all_work_is_unique),
    # In a network of four, old work is also the least gain of all.
    "stale-1": (_any_base, _all_draw),
    # What was sent in the last window gains little now, and it is nobody's own work.
    "copy-last": (_copies_pass, _all_draw, _all_work_is_unique),
}
"""Each attack with the defence without which it pays, or with all those of which each is enough."""

LONGER = {"random-pool": 16}
"""Windows, where the quick number is too few: the least of four peers is rated below zero for as long as that."""


@pytest.mark.parametrize("name", PAID_WITHOUT)
def test_an_attack_pays_without_what_catches_it(
    name: str, text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for disable in PAID_WITHOUT[name]:
        disable(monkeypatch)
    setting = replace(QUICK_SETTING, windows=LONGER.get(name, QUICK_SETTING.windows))
    row = _play(name, setting, text, tmp_path)
    assert row.pay is not None
    assert row.pay > 4 * MOST_PAY


LEFT_TO_OTHERS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str | None]] = {
    "copy-ciphertext": (_ciphertexts_open_anywhere, "bad_signature"),
    "copy-last": (_copies_pass, None),
    "stale-1": (_any_base, None),
    "unsynced": (_no_proof, None),
}
"""Attacks that still earn nothing without the defence that names them, and the reason that others give then."""


@pytest.mark.parametrize("name", LEFT_TO_OTHERS)
def test_without_one_defence_another_one_holds(
    name: str, text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disable, reason = LEFT_TO_OTHERS[name]
    disable(monkeypatch)
    row = _play(name, QUICK_SETTING, text, tmp_path)
    assert row.pay == 0
    assert row.reason == reason


def test_two_hotkeys_of_one_computation_are_paid_twice_only_without_what_names_them(
    text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROLES, "shared-work", replace(ROLES["shared-work"], hotkeys=2))
    setting = Setting(miners=7, windows=5, quick=True)
    paid = [m.paid > 0 for m in _scenario("shared-work", setting, text, tmp_path).cheats]
    assert paid == [True, False]
    _repeated_work_counts(monkeypatch)
    _all_work_is_unique(monkeypatch)
    paid = [m.paid > 0 for m in _scenario("shared-work", setting, text, tmp_path).cheats]
    assert paid == [True, True]


def _scenario(name: str, setting: Setting, text: Corpus, folder: Path) -> Played:
    return play(Cast(setting.miners - ROLES[name].hotkeys, (name,)), setting, 0, text, folder)


def _play(name: str, setting: Setting, text: Corpus, folder: Path) -> Row:
    played = _scenario(name, setting, text, folder)
    return row_of(name, [(played, played)])


# --- honest miners that are slow --------------------------------------------------------------------------


def test_slow_honest_miners_are_never_rejected(text: Corpus, tmp_path: Path) -> None:
    setting = Setting(miners=5, windows=4, quick=True)
    played = play(Cast(5), setting, 0, text, tmp_path)
    assert [member.role for member in played.honest[-2:]] == [role.name for role in SLOW]
    assert [member.rejected for member in played.honest] == [{}] * 5
    full, slow = played.honest[0], played.honest[3]
    assert 0 < slow.steps <= full.steps / 2


# --- rows -------------------------------------------------------------------------------------------------


def _member(role: str, owner: int, pay: float, rejected: dict[str, tuple[int, ...]] | None = None) -> Member:
    return Member(role, owner, (pay, 0.0), rejected or {}, steps=6 if role == "miner" else 3)


def _played(cheats: tuple[Member, ...], loss: float) -> Played:
    honest = (_member("miner", 0, 3.0), _member("miner", 1, 1.0, {"late_seal": (1,)}), _member("slow-miner", 2, 0.05))
    return Played(honest, cheats, (9.0, loss), answer=loss / 10)


def test_a_row_weighs_owners_against_honest_miners_at_full_speed() -> None:
    first = _played((_member("zeros", 3, 1.0, {"duplicate": (1,)}), _member("zeros", 3, 2.0)), 5.0)
    second = _played((_member("zeros", 3, 1.0, {"overlap": (0, 1), NO_RECEIPT: (0,)}),), 5.0)
    row = row_of("zeros", [(first, _played((), 4.0)), (second, _played((), 5.0))])
    assert row.pays == (1.5, 0.5)  # an owner with two hotkeys, one with one; an honest miner earns 2
    assert (row.pay, row.damage, row.seeds) == (1.0, 0.125, 2)
    assert (row.reason, row.first_rejected, row.rejected) == ("overlap", 0, 0.5)
    assert row.compute == 0.5
    assert row.honest_rejected == pytest.approx(1 / 6)
    assert row.honest_unpaid == pytest.approx(1 / 3)
    assert row.extra == {}


def test_a_row_says_what_only_some_attacks_have() -> None:
    alone = _played((), 4.0)
    assert row_of("x", [(_played((_member("backdoor", 3, 0.0),), 5.0), alone)]).extra == {
        "answer": 0.5,
        "answer_alone": 0.4,
    }
    mixed = _played((_member("zeros", 3, 0.0), _member("noise", 4, 2.0)), 5.0)
    assert row_of("x", [(mixed, alone)]).extra == {"noise": 1.0, "zeros": 0.0}


def test_nobody_is_weighed_against_miners_that_earned_nothing() -> None:
    honest = (_member("miner", 0, 0.0),)
    played = Played(honest, (_member("zeros", 1, 1.0),), (5.0,), 0.0)
    assert row_of("x", [(played, played)]).pay is None


# --- plans and results ------------------------------------------------------------------------------------


def test_a_larger_mixture_has_the_cheats_of_a_smaller_one() -> None:
    setting = Setting(miners=12, windows=1, quick=False)
    small, large = (mixture(share, setting, seed=1) for share in (0.1, 0.4))
    assert (small.honest, large.honest) == (11, 7)
    assert large.attackers[:1] == small.attackers
    assert len(set(large.attackers)) == 5
    assert mixture(0.4, setting, seed=2) != large


@pytest.mark.parametrize(
    ("names", "shares", "said"),
    [
        (("burglar",), (), "no attack 'burglar'"),
        (("shared-work",), (), "raise --miners"),
        (("zeros",), (0.9,), "raise --miners"),
        (("zeros",), (0.01,), "are 0"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(names: tuple[str, ...], shares: tuple[float, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(names, shares, QUICK_SETTING, 1)


def test_a_list_of_shares_is_read_or_refused() -> None:
    assert shares_of("0.1, 0.4,") == [0.1, 0.4]
    with pytest.raises(ConfigError, match="no list of shares"):
        shares_of("many")


def test_a_stopped_laboratory_goes_on_and_refuses_a_file_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []

    def fake(cast: Cast, *rest: Any) -> Played:
        calls.append(cast.attackers)
        if len(calls) == 2:
            raise KeyboardInterrupt
        cheats = tuple(_member(role, 3, 1.0, {"duplicate": (1,)}) for role in cast.attackers)
        return _played(cheats, 5.0 if cheats else 4.0)

    monkeypatch.setattr(results, "play", fake)
    out = tmp_path / "results"
    arguments = (plan(("zeros",), (), QUICK_SETTING, 2), QUICK_SETTING, 1, out, Console(quiet=True))
    with pytest.raises(KeyboardInterrupt):
        lab(*arguments)
    assert len(out.read_text().splitlines()) == 1
    [row] = lab(*arguments)
    assert (row.pay, row.damage, row.seeds) == (0.5, 0.25, 2)
    assert calls == [(), ("zeros",), ("zeros",), (), ("zeros",)]
    assert lab(*arguments) == [row]
    assert [json.loads(line)["attackers"] for line in out.read_text().splitlines()] == [[], ["zeros"], [], ["zeros"]]
    out.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1, is no result of the laboratory"):
        lab(*arguments)


def test_the_quick_laboratory_plays_what_is_surely_caught() -> None:
    assert set(QUICK) == set(CAUGHT)
    assert {name for name in report.MIXED if name not in ROLES} == set()
