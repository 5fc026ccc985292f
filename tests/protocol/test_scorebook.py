"""The scorebook: same events in, same scores out, and nobody is paid for a negative rating."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from bittensor_core import Keypair
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import LedgerError, Reason
from protocol.gauntlet.scorebook import HEAT, MU, SIGMA, Event, PeerRecord, Scorebook, _heats, update
from protocol.run import Run

HOTKEYS = [Keypair.create_from_uri(f"//peer-{i}").ss58_address for i in range(8)]


def event(uid: int, hotkey: str | None = None, **fields: Any) -> Event:
    return Event(**({"uid": uid, "hotkey": hotkey or HOTKEYS[uid], "reason": None} | fields))


def good(uid: int, rank: int, gain: float = 0.1, **fields: Any) -> Event:
    return event(uid, places=(rank,), gain=gain, **fields)


@pytest.fixture
def empty(run: Run) -> Scorebook:
    return Scorebook(run_digest=run.digest(), window=0)


def play(book: Scorebook, run: Run, *windows: Sequence[Event]) -> Scorebook:
    for events in windows:
        book = update(book, book.window, events, run)
    return book


@st.composite
def histories(draw: st.DrawFn) -> list[list[Event]]:
    windows = []
    for _ in range(draw(st.integers(1, 5))):
        events = []
        pages = draw(st.integers(1, 3))
        for uid in draw(st.sets(st.integers(0, 7), max_size=8)):
            reason = draw(st.sampled_from([None, None, None, *Reason]))
            judged = reason is None and draw(st.booleans())
            events.append(
                Event(
                    uid=uid,
                    hotkey=HOTKEYS[(uid + draw(st.integers(0, 1))) % 8],
                    reason=reason,
                    steps_behind=draw(st.integers(0, 4)) if reason is Reason.STALE_BASE else 0,
                    gain=draw(st.floats(-1, 1)) if judged else None,
                    gain_error=draw(st.floats(0, 1)) if judged else 0.0,
                    places=tuple(draw(st.integers(0, 7)) for _ in range(pages)) if judged else (),
                    overstates=draw(st.booleans()),
                    measured=judged and draw(st.booleans()),
                    unique_work=draw(st.floats(-1, 1)) if judged and draw(st.booleans()) else None,
                )
            )
        windows.append(events)
    return windows


@settings(max_examples=60, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_the_same_events_give_the_same_book_in_any_order_and_after_any_restart(
    run: Run, windows: list[list[Event]], random: Any
) -> None:
    straight = restarted = Scorebook(run_digest=run.digest(), window=0)
    for number, events in enumerate(windows):
        straight = update(straight, number, events, run)
        shuffled = list(events)
        random.shuffle(shuffled)
        arrived = [Event.parse(e.canonical()) for e in shuffled]
        restarted = update(Scorebook.parse(restarted.canonical()), number, arrived, run)
    assert restarted == straight
    assert restarted.digest() == straight.digest()


@settings(max_examples=60, deadline=None)
@given(histories())
def test_every_number_of_a_book_stays_in_its_bounds(run: Run, windows: list[list[Event]]) -> None:
    book = play(Scorebook(run_digest=run.digest(), window=0), run, *windows)
    assert [r.uid for r in book.peers] == sorted({e.uid for events in windows for e in events})
    for record in book.peers:
        assert 0 <= record.standing <= 1
        assert -1 <= record.unique_work <= 1
        assert 0 <= record.sync(run) <= 1
        assert record.sigma > 0
        assert record.final(run) >= 0
        assert len(record.signs) <= run.penalties.negative_span


def test_a_window_is_entered_once(run: Run, empty: Scorebook) -> None:
    book = update(empty, 4, [good(0, 0), good(1, 1)], run)
    assert book.window == 5
    for window in (0, 4):
        with pytest.raises(LedgerError, match="already holds"):
            update(book, window, [], run)


def test_places_on_different_numbers_of_pages_are_refused(run: Run, empty: Scorebook) -> None:
    with pytest.raises(LedgerError, match="different numbers of random pages"):
        update(empty, 0, [event(0, places=(0, 1)), event(1, places=(0,))], run)


# --- ratings ----------------------------------------------------------------------------------------------


def test_a_match_raises_the_winner_and_lowers_the_loser_by_as_much(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, [good(0, 0), good(1, 1)])
    winner, loser = book.peers
    assert winner.mu - MU == pytest.approx(MU - loser.mu)
    assert winner.mu > MU
    assert winner.sigma == pytest.approx(loser.sigma)
    assert winner.sigma < SIGMA


def plackett_luce(players: list[tuple[float, float]], ranks: list[int], run: Run) -> list[tuple[float, float]]:
    """Weng and Lin, 2011, algorithm 4 with ties, as docs/protocol.md states it. Players are (μ, σ)."""
    beta, tau = run.gauntlet.rating_beta, run.gauntlet.rating_tau
    variances = [sigma**2 + tau**2 for _, sigma in players]
    c = math.sqrt(sum(variance + beta**2 for variance in variances))
    strengths = [math.exp(mu / c) for mu, _ in players]
    results = []
    for i, (mu, _) in enumerate(players):
        omega = delta = 0.0
        for q, rank in enumerate(ranks):
            if rank <= ranks[i]:
                p = strengths[i] / sum(s for s, r in zip(strengths, ranks, strict=True) if r >= rank)
                omega += ((q == i) - p) / ranks.count(rank)
                delta += p * (1 - p) / ranks.count(rank)
        variance = variances[i]
        shrink = max(1 - math.sqrt(variance) / c * variance / c**2 * delta, 1e-4)
        results.append((mu + variance / c * omega, math.sqrt(variance * shrink)))
    return results


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-10, 50), st.floats(0.5, 9), st.integers(0, 3)), min_size=2, max_size=2 * HEAT - 1))
def test_a_match_is_the_published_plackett_luce_update(run: Run, field: list[tuple[float, float, int]]) -> None:
    peers = tuple(PeerRecord(uid=u, hotkey=HOTKEYS[u], mu=m, sigma=s) for u, (m, s, _) in enumerate(field))
    book = Scorebook(run_digest=run.digest(), window=0, peers=peers)
    after = update(book, 0, [good(uid, rank) for uid, (_, _, rank) in enumerate(field)], run)
    expected = plackett_luce([(m, s) for m, s, _ in field], [rank for _, _, rank in field], run)
    assert [record.mu for record in after.peers] == pytest.approx([mu for mu, _ in expected])
    assert [record.sigma for record in after.peers] == pytest.approx([sigma for _, sigma in expected])


def test_a_draw_moves_two_equals_alike(run: Run, empty: Scorebook) -> None:
    first, second = play(empty, run, [good(0, 0), good(1, 0)]).peers
    assert first.mu == pytest.approx(second.mu)
    assert first.sigma == pytest.approx(second.sigma)


def test_rejected_and_missing_peers_share_the_last_place(run: Run, empty: Scorebook) -> None:
    events = [good(0, 0), good(1, 1), event(2, reason=Reason.BAD_LEVEL), event(3, reason=Reason.NO_REVEAL)]
    mus = [record.mu for record in play(empty, run, events).peers]
    assert mus[0] > mus[1] > mus[2]
    assert mus[2] == pytest.approx(mus[3])


def test_every_random_page_is_a_match(run: Run, empty: Scorebook) -> None:
    pages = [(0, 1), (1, 0), (0, 1)]
    events = [event(uid, places=tuple(page[uid] for page in pages), gain=0.1) for uid in (0, 1)]
    field = [(MU, SIGMA), (MU, SIGMA)]
    for page in pages:
        field = plackett_luce(field, list(page), run)
    assert [(r.mu, r.sigma) for r in play(empty, run, events).peers] == [pytest.approx(pair) for pair in field]


def test_ratings_settle_as_fast_among_many_as_among_few(run: Run) -> None:
    def sigma(count: int) -> float:
        keys = [Keypair.create_from_uri(f"//many-{i}").ss58_address for i in range(count)]
        rng, book = np.random.default_rng(0), Scorebook(run_digest=run.digest(), window=0)
        for _ in range(5):
            order = np.argsort(rng.random((8, count)), axis=1).argsort(axis=1)
            events = [event(u, keys[u], gain=0.1, places=tuple(int(p) for p in order[:, u])) for u in range(count)]
            book = play(book, run, events)
        return statistics.fmean(r.sigma for r in book.peers)

    few, many = sigma(4), sigma(32)
    assert few < 0.8 * SIGMA
    assert many == pytest.approx(few, rel=0.05)


def test_everyone_plays_once_a_page_and_meets_others_on_the_next() -> None:
    uids = [3, 5, 8, 13, 21, 34, 55, 89, 144]
    heats = _heats(uids, 7, 0)
    assert sorted(uid for heat in heats for uid in heat) == uids
    assert all(HEAT <= len(heat) < 2 * HEAT for heat in heats)
    assert _heats(uids, 7, 0) == _heats(uids[::-1], 7, 0)
    assert len({tuple(map(tuple, _heats(uids, 7, page))) for page in range(8)}) > 4
    assert (_heats([1], 0, 0), _heats([1, 2], 0, 0)) == ([], [[1, 2]])


def test_who_is_doubted_to_work_alone_comes_last_whatever_it_gains(run: Run) -> None:
    """Else one would rise by training on what all are compared on, over those who work."""
    doubted = record(uid=0, mu=MU, sigma=SIGMA, unique_work=0.0, unique_work_error=0.1, judged=99)
    fine = record(uid=1, hotkey=HOTKEYS[1], mu=MU, sigma=SIGMA)
    book = Scorebook(run_digest=run.digest(), window=0, peers=(doubted, fine))
    after = play(book, run, [good(0, 0), good(1, 1)])
    assert after.peers[0].mu < MU < after.peers[1].mu


def test_who_passed_but_was_not_judged_sits_the_match_out(run: Run, empty: Scorebook) -> None:
    with_, without = ([good(0, 0), good(1, 1), *more] for more in ([event(2)], []))
    assert play(empty, run, with_).peers[:2] == play(empty, run, without).peers
    assert play(empty, run, with_).peers[2].mu == MU


def test_an_inactive_peer_is_no_longer_an_opponent(run: Run, empty: Scorebook) -> None:
    """Nobody rises by beating those who left."""
    gone = [good(0, 0), event(1, reason=Reason.NO_SEAL)]
    book = play(empty, run, *[gone] * run.penalties.inactive_windows)
    assert not book.peers[1].is_active(run)
    assert play(book, run, gone).peers[0].mu == book.peers[0].mu


def test_a_lone_peer_plays_no_match(run: Run, empty: Scorebook) -> None:
    assert play(empty, run, [good(0, 0)]).peers[0].mu == MU


def test_constant_winners_end_above_constant_losers(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(uid, uid) for uid in range(4)]] * 20)
    assert all(a.rating > b.rating for a, b in itertools.pairwise(book.peers))
    assert book.peers[0].rating > 0 > book.peers[3].rating


# --- who ---------------------------------------------------------------------------------------------------


def test_a_slot_that_changed_hands_starts_fresh(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(0, 0, unique_work=1.0), good(1, 1)]] * 5)
    assert book.peers[0].judged == 5
    newcomer = play(book, run, [event(0, HOTKEYS[5]), event(1)]).peers[0]
    assert newcomer == PeerRecord(uid=0, hotkey=HOTKEYS[5])
    assert not book.knows(0, HOTKEYS[5])


def test_a_hotkey_that_moved_to_another_slot_starts_fresh(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(0, 0), good(1, 1)]] * 5)
    assert play(book, run, [event(2, HOTKEYS[0])]).peers[2] == PeerRecord(uid=2, hotkey=HOTKEYS[0])


def test_a_window_of_which_nothing_was_seen_costs_nobody_anything(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(0, 0), good(1, 1)]] * 5)
    blind = play(book, run, *[[]] * (run.penalties.inactive_windows + 1))
    assert blind.peers == book.peers
    assert blind.window == book.window + run.penalties.inactive_windows + 1


def test_nobody_sheds_a_bad_record_by_hiding_for_a_window(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(0, 0), event(1, reason=Reason.BAD_LEVEL)]] * 3)
    assert play(book, run, [good(0, 0)]).peers[1] == book.peers[1]
    hidden = play(book, run, [good(0, 0), event(1, reason=Reason.UNREACHABLE)]).peers[1]
    assert hidden.absent == 1
    assert hidden.standing == 0.125 * run.penalties.missing


def test_who_hides_for_long_is_inactive_and_unpaid(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, *[[good(0, 0, unique_work=1.0), good(1, 1)]] * 5)
    assert book.peers[0].final(run) > 0
    away = [good(1, 0), event(0, reason=Reason.UNREACHABLE)]
    book = play(book, run, *[away] * run.penalties.inactive_windows)
    assert book.peers[0].final(run) == 0.0


# --- the paid score ---------------------------------------------------------------------------------------


def record(**fields: Any) -> PeerRecord:
    return PeerRecord(**({"uid": 0, "hotkey": HOTKEYS[0], "mu": 40.0, "sigma": 1.0, "unique_work": 0.5} | fields))


def test_the_paid_score_is_the_product_of_its_parts(run: Run) -> None:
    assert record().final(run) == 37.0 * 0.5
    assert record(standing=0.5).final(run) == 37.0 * 0.5 * 0.5
    assert record(steps_behind=1).final(run) == pytest.approx(37.0 * 0.5 * (2 / 3) ** 2.5)
    assert record(steps_behind=3).final(run) == 0.0


@pytest.mark.parametrize("fields", [{"mu": 1.0}, {"unique_work": -0.5}, {"mu": 1.0, "unique_work": -0.5}])
def test_a_negative_part_never_pays_not_even_two_of_them(run: Run, fields: dict[str, Any]) -> None:
    assert record(**fields).final(run) == 0.0


def test_unique_work_that_is_not_evident_is_not_paid(run: Run) -> None:
    errors = run.gauntlet.unique_work_errors
    assert record(unique_work=0.5, unique_work_error=0.5 / errors).final(run) > 0
    assert record(unique_work=0.5, unique_work_error=0.51 / errors).final(run) == 0.0


def test_only_who_can_hardly_do_its_own_work_is_doubted(run: Run) -> None:
    """Not yet evident is unpaid; a few more windows will tell."""
    errors = run.gauntlet.unique_work_errors
    for work, error, doubted in ((0.1, 0.41, False), (0.1, 0.39, True), (0.4, 0.39, False), (-1.0, 0.1, True)):
        peer = record(unique_work=work, unique_work_error=error / errors)
        assert (peer.final(run) > 0, peer.is_doubted(run)) == (work >= error, doubted)
    assert not PeerRecord(uid=0, hotkey=HOTKEYS[0]).is_doubted(run)


def test_an_inactive_peer_is_not_paid(run: Run) -> None:
    last = run.penalties.inactive_windows
    assert record(absent=last - 1).final(run) > 0
    assert record(absent=last).final(run) == 0.0


def test_unique_work_is_a_mean_that_forgets_and_its_error_that_of_chance(make_run: Callable[..., Run]) -> None:
    run = make_run(gauntlet__unique_work_rate=0.25)
    book = Scorebook(run_digest=run.digest(), window=0)
    values = [1.0, -1.0, 0.5]
    windows = [[good(0, 0, unique_work=value, unique_work_error=0.4)] for value in values]
    after = play(book, run, windows[0], windows[1], [good(0, 0)], windows[2]).peers[0]
    weights = [0.75**2, 0.75, 1.0]
    assert after.judged == 3
    assert after.unique_work == pytest.approx(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
    assert after.unique_work_error == pytest.approx(0.4 * math.sqrt(sum(w * w for w in weights)) / sum(weights))


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])
def test_chance_makes_nobody_work_alone(make_run: Callable[..., Run], rate: float) -> None:
    """Of those without an advantage few are paid, at any time; of those with one of one error a window all are, but
    for a run that remembers one window only."""
    run = make_run(gauntlet__unique_work_rate=rate)
    rng, error = np.random.default_rng(5), 0.4
    paid = {0.0: 0, error: 0}
    for mean in paid:
        for _ in range(100):
            book = Scorebook(run_digest=run.digest(), window=0)
            for value in np.clip(rng.normal(mean, error, 12), -1, 1):
                book = play(book, run, [event(0, unique_work=float(value), unique_work_error=error)])
            paid[mean] += book.peers[0].works_alone(run)
    assert paid[0.0] <= 5
    assert paid[error] >= (60 if rate < 1 else 0)


# --- standing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(Reason))
def test_a_wrong_contribution_costs_more_than_a_missing_one(run: Run, empty: Scorebook, reason: Reason) -> None:
    slow = {Reason.NO_SEAL, Reason.LATE_SEAL, Reason.NO_REVEAL, Reason.NO_SHARD, Reason.UNREACHABLE}
    standing = play(empty, run, [event(0, reason=reason)]).peers[0].standing
    assert standing == (run.penalties.missing if reason in slow else run.penalties.rejected)


def test_clean_windows_give_standing_back_up_to_one(run: Run, empty: Scorebook) -> None:
    bad, clean = [event(0, reason=Reason.BAD_LEVEL)], [event(0)]
    assert play(empty, run, bad, bad).peers[0].standing == 0.25
    assert play(empty, run, bad, clean).peers[0].standing == pytest.approx(0.6)
    assert play(empty, run, bad, *[clean] * 10).peers[0].standing == 1.0


def test_mostly_negative_gains_cost_standing_and_a_single_one_does_not(run: Run, empty: Scorebook) -> None:
    others = [good(uid, 0, 0.1) for uid in range(1, 7)]
    up, down = [good(0, 1, 0.1), *others], [good(0, 6, -0.1), *others]
    assert play(empty, run, up, down).peers[0].standing == 1.0
    assert play(empty, run, up, down, down).peers[0].standing == run.penalties.negative
    assert play(empty, run, up, down, down, up).peers[0].standing == pytest.approx(0.85)


def test_a_gain_within_two_standard_errors_has_no_sign(run: Run, empty: Scorebook) -> None:
    gains = [(0.1, 0.04), (0.1, 0.05), (0.1, 0.06), (-0.1, 0.04), (-0.1, 0.05), (0.0, 0.0), (1e-9, 0.0)]
    windows = [[good(0, 0, gain, gain_error=error), good(1, 0)] for gain, error in gains]
    assert play(empty, run, *windows).peers[0].signs == (1, 0, 0, -1, 0, 0, 1)


def test_a_negative_gain_within_the_noise_costs_no_standing(run: Run, empty: Scorebook) -> None:
    others = [good(uid, 0, 0.1) for uid in range(1, 7)]
    noisy = [good(0, 6, -0.1, gain_error=0.06), *others]
    assert play(empty, run, *[noisy] * 5).peers[0].standing == 1.0


def test_only_the_latest_signs_count(run: Run, empty: Scorebook) -> None:
    others = [good(uid, 0, 0.1) for uid in range(1, 7)]
    up, down = [good(0, 1, 0.1), *others], [good(0, 6, -0.1), *others]
    span = run.penalties.negative_span
    book = play(empty, run, *[down] * 50, *[up] * span)
    assert book.peers[0].signs == (1,) * span


def test_in_a_window_that_was_bad_for_all_nobody_is_penalised_for_a_negative_gain(run: Run, empty: Scorebook) -> None:
    all_bad = [good(uid, uid, -0.1) for uid in range(7)]
    book = play(empty, run, all_bad, all_bad)
    assert [r.standing for r in book.peers] == [1.0] * 7
    four_good = [good(uid, uid, 0.1 if uid < 4 else -0.1) for uid in range(7)]
    assert [r.standing for r in play(book, run, four_good).peers] == [1.0] * 7
    five_good = [good(uid, uid, 0.1 if uid < 5 else -0.1) for uid in range(7)]
    assert [r.standing for r in play(book, run, five_good).peers] == [1.0] * 5 + [run.penalties.negative] * 2


def test_amnesty_does_not_cover_rejected_or_missing_peers(run: Run, empty: Scorebook) -> None:
    events = [good(0, 0, -0.1), event(1, reason=Reason.WRONG_KEY), event(2, reason=Reason.NO_SEAL)]
    assert [r.standing for r in play(empty, run, events).peers] == [1.0, 0.5, 0.75]


def test_absence_is_counted_in_a_row(run: Run, empty: Scorebook) -> None:
    away, unreachable = [event(0, reason=Reason.NO_SEAL)], [event(0, reason=Reason.UNREACHABLE)]
    assert play(empty, run, away, unreachable, away).peers[0].absent == 3
    assert play(empty, run, away, away, [event(0)]).peers[0].absent == 0
    assert play(empty, run, away, [event(0, reason=Reason.NO_REVEAL)]).peers[0].absent == 0


def test_steps_behind_and_measured_windows_are_remembered(run: Run, empty: Scorebook) -> None:
    book = play(empty, run, [event(0, reason=Reason.STALE_BASE, steps_behind=2)])
    assert (book.peers[0].steps_behind, book.peers[0].last_measured) == (2, -1)
    book = play(book, run, [good(0, 0, measured=True, overstates=True)], [good(0, 0)])
    assert (book.peers[0].steps_behind, book.peers[0].last_measured, book.peers[0].overstates) == (0, 1, True)
    assert not play(book, run, [good(0, 0, measured=True)]).peers[0].overstates


@pytest.mark.parametrize("field", ["gain", "unique_work"])
def test_an_event_carries_only_finite_numbers(field: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        event(0, **{field: float("nan")})
