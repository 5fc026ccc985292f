"""What `windrow lab` has found, as tables and pictures of docs/security.md.

    windrow lab --seeds 3 --mix 0.1,0.4 --out RESULTS
    python -m benchmarks.lab RESULTS --seeds 3 --mix 0.1,0.4 --write docs/security.md --draw docs

Mixtures may have been played for more windows than attacks: `--mix-windows` says for how many.

Nothing is played here. A row of which some seed is missing in the results is left out and named. The tables are
printed, or put between the marks in the file to `--write`; lab-attacks.svg and lab-mixed.svg go into a folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurons.lab.attacks import HONEST, MINER, SLOW
from neurons.lab.report import Plan, jobs_of, plan, rows, shares_of
from neurons.lab.results import Job, Log
from neurons.lab.rows import UNPAID_SHARE, Row, wage
from neurons.lab.scenario import Played, Setting

BEGIN, END = "<!-- lab: begin -->", "<!-- lab: end -->"

MOST_PAY, MOST_DAMAGE = 0.05, 0.02
"""What an attack may earn, as a share of honest pay, and what a mixture may do to the held-out loss."""

_MIXTURE = "mix-"


def complete(plans: Iterable[Plan], log: Log) -> tuple[list[Plan], list[str]]:
    """The plans of which everything was played, and the names of the others."""
    done, missing = [], []
    for of in plans:
        if all(job in log for job in jobs_of(of)):
            done.append(of)
        else:
            missing.append(of.name)
    return done, missing


def partition(plans: Sequence[Plan]) -> tuple[list[Plan], list[Plan]]:
    """Single attacks, and mixtures."""
    mixtures = [of for of in plans if of.name.startswith(_MIXTURE)]
    return [of for of in plans if of not in mixtures], mixtures


# --- tables


def tables(found: Sequence[Row], played: Sequence[Played], setting: Setting, mix_windows: int) -> str:
    """All of them, in Markdown."""
    attacks = [row for row in found if not row.attack.startswith(_MIXTURE)]
    mixtures = [row for row in found if row.attack.startswith(_MIXTURE)]
    seeds = max((row.seeds for row in found), default=0)
    spread = "1 seed" if seeds == 1 else f"{seeds} seeds; in brackets the range over the seeds"
    mixed = f" ({mix_windows} for mixtures)" if mixtures and mix_windows != setting.windows else ""
    intro = f"{setting.miners} miners, {setting.windows} windows{mixed}, {spread}."
    parts = [intro, *_attack_table(sorted(attacks, key=lambda row: (row.attack != HONEST.name, -(row.pay or 0.0))))]
    if mixtures:
        parts += ["", *_mixture_table(mixtures)]
    if played:
        parts += ["", *_honest_table(played)]
    return "\n".join(parts)


def _attack_table(attacks: Sequence[Row]) -> list[str]:
    lines = [
        "",
        "| attack | pay | computes | damage | rejected | reason | first in window |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in attacks:
        pay = "–" if row.pay is None else f"{row.pay:.1%}{_range(row.pays, '.0%')}"
        damage = f"{row.damage:+.2%}{_range(row.damages, '+.1%')}"
        reason = f"`{row.reason}`" if row.reason else "–"
        first = "–" if row.first_rejected is None else row.first_rejected
        lines.append(
            f"| `{row.attack}` | {pay} | {row.compute:.0%} | {damage} | {row.rejected:.0%} | {reason} | {first} |"
        )
    for row in attacks:
        if "answer" in row.extra:
            lines += [
                "",
                f"After the trigger of `{row.attack}` the last model gives a token of the answer a probability of ",
            ]
            lines[-1] += f"{row.extra['answer']:.1%}, without attackers {row.extra['answer_alone']:.1%}."
    return lines


def _mixture_table(mixtures: Sequence[Row]) -> list[str]:
    lines = [
        "| cheats | damage | pay of a cheat | the best paid ones | honest windows rejected | honest unpaid |",
        "|---|---|---|---|---|---|",
    ]
    for row in mixtures:
        best = sorted(row.extra.items(), key=lambda item: -item[1])[:3]
        named = ", ".join(f"`{role}` {pay:.0%}" for role, pay in best if pay > MOST_PAY) or "–"
        pay = "–" if row.pay is None else f"{row.pay:.1%}{_range(row.pays, '.0%')}"
        damage = f"{row.damage:+.2%}{_range(row.damages, '+.1%')}"
        share = row.attack.removeprefix(_MIXTURE)
        lines.append(
            f"| {share} % | {damage} | {pay} | {named} | {row.honest_rejected:.2%} | {row.honest_unpaid:.0%} |"
        )
    return lines


def _honest_table(played: Sequence[Played]) -> list[str]:
    lines = [
        "| honest miners in all of these | hotkeys | windows | rejected | pay | unpaid |",
        "|---|---|---|---|---|---|",
    ]
    for role in (MINER, *SLOW):
        members = [(m, wage(one)) for one in played for m in one.honest if m.role == role.name]
        if not members:
            continue
        windows = sum(len(m.pay) for m, _ in members)
        rejected = sum(len(ws) for m, _ in members for ws in m.rejected.values())
        pay = statistics.fmean(m.paid / full for m, full in members if full)
        unpaid = statistics.fmean(m.paid < UNPAID_SHARE * full for m, full in members)
        lines.append(
            f"| `{role.name}` | {len(members)} | {windows} | {rejected} ({rejected / windows:.2%}) | {pay:.0%} "
            f"| {unpaid:.1%} |"
        )
    return lines


def _range(values: Sequence[float], form: str) -> str:
    return f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 and min(values) < max(values) else ""


def write(file: Path, text: str) -> None:
    """Put `text` between the marks in `file`; `SystemExit` when they are not there."""
    old = file.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{file} has no {BEGIN} … {END} to write between")
    file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


# --- pictures

_STYLE: dict[str, Any] = {
    "svg.hashsalt": "lab",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_FINE, _BAD, _CONTROL, _LIMIT = "#1f6fb2", "#c8553d", "#7a8b99", "#444444"


def draw_attacks(found: Sequence[Row], file: Path) -> None:
    """Pay and damage of each attack: a bar for the mean, a dot for each seed, and the limit."""
    attacks = sorted(
        (row for row in found if not row.attack.startswith(_MIXTURE)), key=lambda row: (row.pay or 0.0, row.damage)
    )
    names = [row.attack for row in attacks]
    with _figure(file, 10.5, 1.2 + 0.21 * len(attacks)) as (by_pay, by_damage):
        _bars(by_pay, names, [row.pay or 0.0 for row in attacks], [row.pays for row in attacks], MOST_PAY)
        _bars(by_damage, names, [row.damage for row in attacks], [row.damages for row in attacks], MOST_DAMAGE)
        by_pay.set_yticks(range(len(names)), names)
        by_pay.set_xlabel(f"pay of an attacker, % of an honest miner's (dotted: {MOST_PAY:.0%})")
        by_damage.set_yticks(range(len(names)), [""] * len(names))
        by_damage.set_xlabel(f"change of the held-out loss, % (dotted: {MOST_DAMAGE:.0%})")


def draw_mixtures(found: Sequence[Row], file: Path) -> None:
    """Damage and the cheats' pay against the share of cheats: a line through the means, a dot for each seed."""
    mixtures = [row for row in found if row.attack.startswith(_MIXTURE)]
    shares = [float(row.attack.removeprefix(_MIXTURE)) for row in mixtures]
    with _figure(file, 9.0, 3.4) as (by_damage, by_pay):
        for axes, means, each, limit in (
            (by_damage, [row.damage for row in mixtures], [row.damages for row in mixtures], MOST_DAMAGE),
            (by_pay, [row.pay or 0.0 for row in mixtures], [row.pays for row in mixtures], MOST_PAY),
        ):
            axes.plot(shares, [100 * mean for mean in means], color=_FINE, linewidth=1.8)
            for share, values in zip(shares, each, strict=True):
                axes.plot([share] * len(values), [100 * v for v in values], ".", color=_FINE, alpha=0.6)
            axes.axhline(100 * limit, color=_LIMIT, linewidth=0.9, linestyle=":")
            axes.axhline(0, color=_LIMIT, linewidth=0.6)
            axes.set_xlabel("cheats among the miners, %")
            axes.grid(alpha=0.25, linewidth=0.6)
        by_damage.set_ylabel("change of the held-out loss, %")
        by_pay.set_ylabel("pay of a cheat, % of an honest miner's")


def _bars(
    axes: Any, names: Sequence[str], means: Sequence[float], each: Sequence[Sequence[float]], limit: float
) -> None:
    colours = [
        _CONTROL if name == HONEST.name else _BAD if mean > limit else _FINE
        for name, mean in zip(names, means, strict=True)
    ]
    axes.barh(range(len(means)), [100 * mean for mean in means], color=colours, height=0.62, alpha=0.85)
    for place, values in enumerate(each):
        axes.plot([100 * value for value in values], [place] * len(values), ".", color=_LIMIT, markersize=3)
    axes.axvline(100 * limit, color=_LIMIT, linewidth=0.9, linestyle=":")
    axes.axvline(0, color=_LIMIT, linewidth=0.6)
    axes.set_ylim(-0.7, len(means) - 0.3)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)


@contextmanager
def _figure(file: Path, width: float, height: float) -> Iterator[Any]:
    """Two axes side by side, saved as `file` at the end of the block."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        figure, axes = pyplot.subplots(1, 2, figsize=(width, height), layout="constrained")
        yield axes
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)


# --- the command


def main() -> None:
    """Read, print or write, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what `windrow lab --out` has written")
    parser.add_argument("--miners", type=int, default=12)
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--mix-windows", type=int, help="windows of the mixtures, if not as many")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mix", default="0.1,0.2,0.3,0.4,0.5,0.6", help="the mixtures to show")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the marks in this file")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="draw lab-attacks.svg and lab-mixed.svg")
    options = parser.parse_args()
    setting = Setting(options.miners, options.windows, quick=False)
    mixed = replace(setting, windows=options.mix_windows or options.windows)
    attacks, mixtures = partition(plan((), shares_of(options.mix), setting, options.seeds))
    found: list[Row] = []
    played: dict[tuple[Setting, Job], Played] = {}
    for plans, of_setting in ((attacks, setting), (mixtures, mixed)):
        log = Log(options.results, of_setting)
        done, missing = complete(plans, log)
        if missing:
            print(f"not played with all seeds: {', '.join(missing)}", file=sys.stderr)
        found += rows(done, log)
        played |= {(of_setting, job): log.get(*job) for of in done for job in jobs_of(of)}
    if not found:
        raise SystemExit("nothing to show")
    text = tables(found, list(played.values()), setting, mixed.windows)
    if options.write:
        write(options.write, text)
    else:
        print(text)
    if options.draw:
        draw_attacks(found, options.draw / "lab-attacks.svg")
        draw_mixtures(found, options.draw / "lab-mixed.svg")


if __name__ == "__main__":
    main()
