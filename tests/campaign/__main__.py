"""Kill and hamper whole networks at random, ten minutes: `make campaign`. Each seed is a network."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from neurons import founding, nursery
from tests.campaign.plan import Plan, draw
from tests.campaign.stage import Outcome, Stage, found

_NETWORKS = 32
_WORDS = ("window", "peers", "lay", "their", "updates", "in", "a", "row", "and", "good", "ones", "are", "raked")
_MOST_SENTENCES = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the seeds, print a line a network and a summary; 1 if anything does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--seeds", default=f"0-{_NETWORKS - 1}", help="which: 3, or 0-31, or 3,5,9 (%(default)s)")
    parser.add_argument("--seconds", type=float, default=44.0, help="how long each is hampered (%(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="networks at a time (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where the folders of networks that fail stay (a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the others too")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    given = parser.parse_args(arguments)
    folder = given.dir or Path(tempfile.mkdtemp(prefix="windrow-campaign-"))
    began = time.monotonic()
    outcomes = play(seeds_of(given.seeds), given.seconds, given.jobs, folder, given.keep)
    summary = summarised(outcomes, time.monotonic() - began)
    print(json.dumps(summary) if given.json else told(summary), flush=True)
    return 1 if summary["failed"] else 0


def seeds_of(words: str) -> list[int]:
    """`3,5-7` → 3, 5, 6, 7."""
    seeds: list[int] = []
    for part in words.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def play(seeds: Sequence[int], seconds: float, jobs: int, folder: Path, keep: bool) -> list[Outcome]:
    """The networks of these seeds, hampered for so many seconds, `jobs` at a time, each in a folder of its own in
    `folder`."""
    with nursery.preloaded() as context:
        dataset = _dataset(folder / "text")
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(lambda seed: _one(context, draw(seed, seconds), folder, dataset, keep), seeds))


def _one(context: ForkServerContext, plan: Plan, folder: Path, dataset: Path, keep: bool) -> Outcome:
    home = folder / f"network-{plan.seed}"
    found(context, plan, home, dataset)
    outcome = Stage(context, plan, home).play()
    print(_line(outcome), file=sys.stderr, flush=True)
    if not outcome.failures and not keep:
        shutil.rmtree(home)
    return outcome


def _dataset(folder: Path) -> Path:
    """The dataset of all networks: a few words in many orders."""
    text = folder / "files"
    text.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for number in range(8):
        (text / f"{number}.txt").write_text(" ".join(chance.choice(_WORDS) for _ in range(2000)))
    order = founding.Plan((), draw(0, 0.0).table, 1.0, text, "directory")
    spawn = multiprocessing.get_context("spawn")
    with contextlib.closing(nursery.Call(spawn, founding.write_text, folder, order)) as call:
        (folder / "digest").write_text(call.result(lambda _: None))
    return folder / "dataset"


def _line(outcome: Outcome) -> str:
    kills, faults = outcome.kills.total(), outcome.faults.total()
    counts = f"{outcome.windows:3} windows {kills:3} kills {faults:4} faults {outcome.seconds:5.0f} s"
    said = f"seed {outcome.plan.seed:3}: {counts}"
    if not outcome.failures:
        return f"{said}  holds"
    flags = f"--seeds {outcome.plan.seed} --seconds {outcome.plan.seconds:g}"
    again = f"repeat it with: python -m tests.campaign {flags}; its folder is {outcome.folder}"
    wrong = outcome.failures[:_MOST_SENTENCES]
    if len(outcome.failures) > len(wrong):
        wrong.append(f"and {len(outcome.failures) - len(wrong)} more")
    return "\n".join((f"{said}  FAILS", *(f"  {sentence}" for sentence in wrong), f"  {again}"))


def summarised(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """Counts over all networks."""
    kills = sum((outcome.kills for outcome in outcomes), Counter[str]())
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    return {
        "networks": len(outcomes),
        "failed": {outcome.plan.seed: outcome.failures for outcome in outcomes if outcome.failures},
        "windows": sum(outcome.windows for outcome in outcomes),
        "payloads_replayed": sum(outcome.payloads for outcome in outcomes),
        "scores_recomputed": sum(outcome.scores for outcome in outcomes),
        "kills": {"all": kills.total(), **dict(sorted(kills.items()))},
        "faults": {"all": faults.total(), **dict(sorted(faults.items()))},
        "seconds": round(seconds),
    }


def told(summary: dict[str, Any]) -> str:
    """The same for people."""
    counts = {name: ", ".join(f"{kind} {n}" for kind, n in summary[name].items()) for name in ("kills", "faults")}
    failed = list(summary["failed"])
    return "\n".join(
        (
            f"{summary['networks']} networks, {summary['windows']} windows, {summary['seconds']} s: "
            + (f"{len(failed)} FAILED, seeds {failed}" if failed else "all hold"),
            f"  kills: {counts['kills']}",
            f"  faults: {counts['faults']}",
            f"  replayed: {summary['payloads_replayed']} payloads, {summary['scores_recomputed']} scores recomputed",
        )
    )


if __name__ == "__main__":
    sys.exit(main())
