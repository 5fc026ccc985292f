"""How far the first-order gain of a payload agrees with the measured one, which cheats fool it, and how well copies are
told from honest work by what they gain on everybody's pages.

    python -m benchmarks.gains [--json] [--results FILE] [--model NAME] [--no-run] [--quick]

Honest peers train together in one process on one thread; their payloads alone are applied. In the first windows
and in late ones, payloads of every cheat stand beside theirs and all are judged both ways, as a validator would:
first-order gains on the random pages, and measured gains for each share of the step (c), with and without the clip to
the median norm. In the same windows copies of every kind, one at a time, stand among the honest payloads.

A judged window is one line of JSON in the results file. A model whose windows are all there is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gains_copies import WAYS, Likeness, Tally, look_for
from benchmarks.gains_peers import Cheats, Codec, Copies, Copy, Honest, Pages, Traits
from neurons.corpus import standard_library_texts, tokenize, train_tokenizer
from neurons.judge import Judge
from neurons.training.model import bind, build_model, initial_parameters, page_gradient
from protocol.gauntlet.evaluation import measured_gain
from protocol.run import Run, preset_table, run_from_table
from protocol.sparseloco.aggregate import Trial, clip_factors, descents, outer_step
from protocol.sparseloco.compress import SparseUpdate

DTYPE = torch.bfloat16
HELD_OUT_PAGES = 8
FOOLED_PLACES = 2
"""A cheat fools the first-order gain when it stands this many places better by it than by the measured one."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A model and what is judged of it. `changes` go over the tables of the demo preset. Windows 0 … `early` − 1 and
    those from `late` to the end are judged. `shares` are the c of the trial steps; `page_sets` are pairs of own pages
    for each peer and random pages, on which copies are looked for. Gains are taken on the random pages of the first."""

    name: str
    changes: dict[str, dict[str, Any]]
    early: int
    late: int
    windows: int
    shares: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0)
    page_sets: tuple[tuple[int, int], ...] = ((8, 8), (12, 24))
    peers: int = 8

    def run(self) -> Run:
        """The run of this model, with stand-ins for what only a founded network has."""
        table = preset_table("demo")
        table["genesis_root"] = table["dataset"]["index_digest"] = "0" * 64
        for name, changes in self.changes.items():
            table[name] |= changes
        # The draw of a page depends on the run, so all sets are the beginnings of one draw.
        own, random = (max(counts) for counts in zip(*self.page_sets, strict=True))
        table["gauntlet"] |= {"own_pages": own, "random_pages": random, "random_pages_most": random}
        return run_from_table(table)

    def stretch(self, window: int) -> str | None:
        """ "early" or "late" for a window that is judged."""
        return "early" if window < self.early else "late" if window >= self.late else None


def scales() -> tuple[Scale, ...]:
    """The demo preset, and a model of 5 M parameters with a third of the tokens in a window."""
    larger = {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    }
    inner = {"steps": 10, "pages_per_step": 1, "learning_rate": 2e-3}
    return (
        Scale("demo", {}, early=4, late=26, windows=30),
        Scale("5m", {"model": larger, "inner": inner}, 3, 17, 20, shares=(0.2, 1.0), page_sets=((8, 8),), peers=6),
    )


def quick(scale: Scale) -> Scale:
    """The same with a budget of seconds, to see that everything runs; the figures say nothing."""
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 512}
    changes = {
        "model": small,
        "inner": {"steps": 3, "pages_per_step": 1, "warmup_steps": 1},
        "dataset": {"sequence_tokens": 32, "page_sequences": 2},
    }
    return Scale(scale.name, changes, early=1, late=2, windows=3, shares=(0.2,), page_sets=((2, 3), (3, 4)), peers=4)


def read_pages(run: Run) -> np.ndarray:
    """The standard library as pages, int64 [pages, page sequences, L]."""
    files = standard_library_texts()
    stream = tokenize(files, train_tokenizer(files, int(run.model["vocab_size"])))  # type: ignore[arg-type]
    shape = (run.dataset.page_sequences, run.dataset.sequence_tokens)
    count = len(stream) // (shape[0] * shape[1])
    return stream[: count * shape[0] * shape[1]].astype(np.int64).reshape(count, *shape)


# --- a window


class Bench:
    """A model in training and the judging of its windows."""

    def __init__(self, scale: Scale, text: np.ndarray) -> None:
        """`text` is int64 [pages, page sequences, L]; its last pages are held out."""
        self.scale, self.run = scale, scale.run()
        self.text, self.held_out = text[:-HELD_OUT_PAGES], text[-HELD_OUT_PAGES:]
        self.theta = initial_parameters(self.run.model, seed=0)
        model = build_model(self.run.model).eval()
        bind(model, self.theta)
        self.judge = Judge(model, self.theta, self.run, DTYPE)
        self.codec = Codec(self.run)
        self.honest, self.copies = Honest(self.codec, scale.peers, DTYPE), Copies(self.codec, scale.peers)
        self._last: list[SparseUpdate] = []

    def windows(self) -> Iterator[dict[str, Any]]:
        """Train all windows; a record of each that is judged."""
        cheats = None
        for number in range(self.scale.windows):
            pages = Pages(self.run, self.text, number)
            deltas, updates = self.honest.work(pages, self.theta)
            shared = self.copies.share(deltas)
            stretch = self.scale.stretch(number)
            if stretch is None:
                cheats = None
            else:
                cheats = cheats or Cheats(self.codec, self.scale.peers, DTYPE)
                sent = {f"honest {slot}": update for slot, update in enumerate(updates)}
                sent |= cheats.work(pages, self.theta, deltas, updates, self._last)
                copies = [*shared, *self.copies.alter(updates, False), *self.copies.alter(self._last, True)]
                yield {"model": self.scale.name, "window": number, "stretch": stretch} | self._judged(
                    pages, sent, updates, copies
                )
            outer_step(self.theta, updates, self.run.sparseloco, number)
            self._last = updates

    def _judged(
        self, pages: Pages, sent: dict[str, SparseUpdate], honest: Sequence[SparseUpdate], copies: Sequence[Copy]
    ) -> dict[str, Any]:
        held_out = float(self.judge.losses(self.held_out.reshape(-1, self.held_out.shape[-1])).mean())
        gains, seconds = self._gains(pages, sent)
        record = {"held_out_loss": held_out, "gains": gains, "seconds": seconds}
        if self._last:
            record["seen"] = self._rows_of_all(pages, honest, copies)
        return record

    def _gains(self, pages: Pages, sent: dict[str, SparseUpdate]) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Both gains of every payload for each clip and c, and the CPU seconds of what they take: a gradient of a page,
        a sparse product with it, and a page's losses after a trial step."""
        random = pages.random()[: self.scale.page_sets[0][1]]
        clips = {True: clip_factors(list(sent.values()))}
        clips[False] = [np.ones_like(factors) for factors in clips[True]]
        first: dict[bool, list[np.ndarray]] = {True: [], False: []}
        before = []
        seconds = dict.fromkeys(("gradient", "product", "measured"), 0.0)
        for page in random:
            began = time.thread_time()
            losses, gradient = page_gradient(self.judge.model, page, dtype=DTYPE)
            seconds["gradient"] += (time.thread_time() - began) / len(random)
            before.append(losses)
            for clip, factors in clips.items():
                trials = [self._trial(pages, u, f, 1.0) for u, f in zip(sent.values(), factors, strict=True)]
                began = time.thread_time()
                products = descents(gradient, trials)
                seconds["product"] += (time.thread_time() - began) / len(random) / len(products) / 2
                first[clip].append(products / losses.mean())
        cells = []
        for clip, factors in clips.items():
            for share in self.scale.shares:
                began = time.thread_time()
                after = [
                    self._after(self._trial(pages, u, f, share), random)
                    for u, f in zip(sent.values(), factors, strict=True)
                ]
                took = (time.thread_time() - began) / len(after) / len(random)
                seconds["measured"] += took / len(self.scale.shares) / 2
                measured = [measured_gain(np.concatenate(before), losses).value for losses in after]
                both = zip((share * np.mean(first[clip], axis=0)).tolist(), measured, strict=True)
                cells.append({"clip": clip, "c": share, "of": dict(zip(sent, both, strict=True))})
        return cells, seconds

    def _trial(self, pages: Pages, update: SparseUpdate, factors: np.ndarray, share: float) -> Trial:
        return Trial(update, factors, np.float32(share * self.run.sparseloco.alpha(pages.window)))

    def _after(self, trial: Trial, pages: np.ndarray) -> np.ndarray:
        saved = trial.apply(self.theta)
        try:
            return np.concatenate([self.judge.losses(page) for page in pages])
        finally:
            trial.revert(self.theta, saved)

    def _rows_of_all(self, pages: Pages, honest: Sequence[SparseUpdate], copies: Sequence[Copy]) -> dict[str, Any]:
        """Rows of gains and likeness of all payloads, rounded, as `look_for` takes them."""
        # The copies' own pages are of one slot that nobody has trained on.
        slots = [*range(self.scale.peers), self.run.dataset.slots - 1]
        columns = [page for slot in slots for page in pages.scored(slot)] + list(pages.random())
        halves = [copy.other_half for copy in copies if copy.other_half]
        updates = [*honest, *self._last, *(copy.update for copy in copies), *halves]
        likeness = Likeness.of(updates)
        return {
            "copies": [asdict(copy.traits) for copy in copies],
            "rows": [[float(f"{gain:.5g}") for gain in row] for row in self._rows(pages, updates, columns)],
            "cosine": likeness.cosine.round(4).tolist(),
            "overlap": likeness.overlap.round(4).tolist(),
        }

    def _rows(self, pages: Pages, updates: Sequence[SparseUpdate], columns: Sequence[np.ndarray]) -> np.ndarray:
        """First-order gains, float64 [payloads, pages], at c = 1; all are clipped to one median norm."""
        trials = [self._trial(pages, u, f, 1.0) for u, f in zip(updates, clip_factors(updates), strict=True)]
        rows = np.empty((len(trials), len(columns)))
        for column, page in enumerate(columns):
            losses, gradient = page_gradient(self.judge.model, page, dtype=DTYPE)
            rows[:, column] = descents(gradient, trials) / losses.mean()
        return rows


# --- the results file


class Results:
    """Records of judged windows, one line of JSON each, under a line with the settings of their model."""

    def __init__(self, path: Path | None, scales: Sequence[Scale]) -> None:
        """Read `path` if it is there. A model with other settings, or of which a window is missing, is left out."""
        self._path, self._settings = path, {scale.name: json.loads(json.dumps(asdict(scale))) for scale in scales}
        self.records: list[dict[str, Any]] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        saved = [json.loads(line) for line in lines]
        for scale in scales:
            of_scale = [record for record in saved if record["model"] == scale.name]
            judged = [window for window in range(scale.windows) if scale.stretch(window)]
            settings = [record["settings"] for record in of_scale if "settings" in record]
            windows = [record for record in of_scale if "window" in record]
            if settings == [self._settings[scale.name]] and [r["window"] for r in windows] == judged:
                self.records += windows

    def has(self, scale: Scale) -> bool:
        """Whether all windows of a model are there."""
        return any(record["model"] == scale.name for record in self.records)

    def add(self, scale: Scale, records: Sequence[dict[str, Any]]) -> None:
        """Keep all windows of a model."""
        self.records += records
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                for record in ({"model": scale.name, "settings": self._settings[scale.name]}, *records):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def of(self, model: str, stretch: str) -> list[dict[str, Any]]:
        """The records of one stretch."""
        return [r for r in self.records if (r["model"], r["stretch"]) == (model, stretch)]


# --- summing up


def ranks(values: Sequence[float]) -> np.ndarray:
    """Rank of each value, float64 [n], 0 the lowest; equal values share the mean of their ranks."""
    array = np.asarray(values)
    return ((array[:, None] > array).sum(axis=1) + (array[:, None] >= array).sum(axis=1) - 1) / 2


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation."""
    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def agreement(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each clip and c: Spearman of the two gains in each window, of all payloads and of the honest ones, and the
    quotient of measured and first-order gain of honest payloads; first quartile, median and third each."""
    entries = []
    for number, cell in enumerate(records[0]["gains"]):
        of_windows = [record["gains"][number]["of"] for record in records]
        honest = [{name: both for name, both in of.items() if _is_honest(name)} for of in of_windows]
        entries.append(
            {
                "clip": cell["clip"],
                "c": cell["c"],
                "all": _quartiles([spearman(*zip(*of.values(), strict=True)) for of in of_windows]),
                "honest": _quartiles([spearman(*zip(*of.values(), strict=True)) for of in honest]),
                "bias": _quartiles([measured / first for of in honest for first, measured in of.values()]),
            }
        )
    return entries


def cheats(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each clip, c and cheat: medians over windows of both gains and of its place among the honest payloads and
    itself by each, 0 the best; `fools` says that first-order gains put it `FOOLED_PLACES` higher."""
    entries = []
    for number, cell in enumerate(records[0]["gains"]):
        of_windows = [record["gains"][number]["of"] for record in records]
        for name in dict.fromkeys(name for of in of_windows for name in of if not _is_honest(name)):
            there = [of for of in of_windows if name in of]
            first, measured = (statistics.median(of[name][way] for of in there) for way in (0, 1))
            places = [statistics.median(_place(of, name, way) for of in there) for way in (0, 1)]
            entries.append(
                {
                    "clip": cell["clip"],
                    "c": cell["c"],
                    "cheat": name,
                    "first_order": first,
                    "measured": measured,
                    "places": places,
                    "fools": places[1] - places[0] >= FOOLED_PLACES,
                }
            )
    return entries


def resemblance(scale: Scale, records: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Share named of each kind of copy, or of honest pairs accused, for each set of pages and way."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for own, random in scale.page_sets:
        tally = Tally()
        for record in records:
            if seen := record.get("seen"):
                gains, owners = _on_pages(scale, np.array(seen["rows"]), own, random)
                likeness = Likeness(np.array(seen["cosine"]), np.array(seen["overlap"]))
                look_for(tally, gains, owners, [Traits(**copy) for copy in seen["copies"]], likeness, scale.peers)
        shares[f"{own} own pages, {random} random"] = tally.shares()
    return shares


def _on_pages(scale: Scale, rows: np.ndarray, own: int, random: int) -> tuple[np.ndarray, np.ndarray]:
    """The columns of the first `own` pages of each slot and the first `random` ones, and the slots that own them."""
    slots, all_own = scale.peers + 1, scale.run().gauntlet.own_pages
    kept = [slot * all_own + page for slot in range(slots) for page in range(own)]
    kept += range(slots * all_own, slots * all_own + random)
    return rows[:, kept], np.array([*np.repeat(np.arange(slots), own), *[-1] * random])


def cost(records: Sequence[dict[str, Any]], pages: int) -> dict[str, float]:
    """Medians of CPU seconds: to score a payload by its first-order gain, beyond the gradients that all share; these
    gradients; to measure a payload; and what ranking 64 takes in units of measuring 20."""
    gradient, product, measured = (
        pages * statistics.median(record["seconds"][name] for record in records)
        for name in ("gradient", "product", "measured")
    )
    return {
        "gradients": gradient,
        "first_order": product,
        "measured": measured,
        "64_over_20": (gradient + 64 * product) / (20 * measured),
    }


def _is_honest(name: str) -> bool:
    return name.startswith("honest ")


def _place(of: dict[str, list[float]], name: str, way: int) -> int:
    return sum(both[way] > of[name][way] for other, both in of.items() if _is_honest(other))


def _quartiles(values: Sequence[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


def summary(scale: Scale, results: Results) -> list[dict[str, Any]]:
    """One entry for each stretch."""
    entries = []
    for stretch in ("early", "late"):
        if records := results.of(scale.name, stretch):
            entries.append(
                {
                    "model": scale.name,
                    "stretch": stretch,
                    "windows": [record["window"] for record in records],
                    "held_out_loss": [records[0]["held_out_loss"], records[-1]["held_out_loss"]],
                    "agreement": agreement(records),
                    "cheats": cheats(records),
                    "resemblance": resemblance(scale, records),
                    "cost": cost(records, scale.page_sets[0][1]),
                }
            )
    return entries


def print_table(entry: dict[str, Any]) -> None:
    """A summary as text."""
    windows, loss, took = entry["windows"], entry["held_out_loss"], entry["cost"]
    print(f"\n{entry['model']}, {entry['stretch']}: windows {windows[0]} to {windows[-1]}, held-out loss", end=" ")
    print(f"{loss[0]:.3f} to {loss[1]:.3f}; CPU seconds: gradients {took['gradients']:.3f}", end=", ")
    print(f"a payload first-order {took['first_order']:.5f}, measured {took['measured']:.3f}", end="; ")
    print(f"ranking 64 over measuring 20: {took['64_over_20']:.2f}")
    print(f"{'clip':<6}{'c':>4}{'Spearman of all':>24}{'of the honest':>24}{'measured / first-order':>26}")
    for cell in entry["agreement"]:
        columns = "".join(
            f"{_range(cell[name]):>{width}}" for name, width in (("all", 24), ("honest", 24), ("bias", 26))
        )
        print(f"{cell['clip']!s:<6}{cell['c']:>4}{columns}")
    _print_cheats(entry["cheats"])
    for pages, kinds in entry["resemblance"].items():
        print(f"\n{pages + ': share named, %':<40}" + "".join(f"{way:>20}" for way in WAYS))
        for kind, ways in kinds.items():
            print(f"{kind:<40}" + "".join(f"{100 * ways[way]:>20.2f}" if way in ways else " " * 20 for way in WAYS))


def _print_cheats(cells: Sequence[dict[str, Any]]) -> None:
    """A line for each cheat; a column for each clip and c, with both places and a star where it fools."""
    columns = list(dict.fromkeys((cell["clip"], cell["c"]) for cell in cells))
    found = {(cell["cheat"], cell["clip"], cell["c"]): cell for cell in cells}
    titles = "".join(f"{f'c {c}' + ('' if clip else ', no clip'):>16}" for clip, c in columns)
    print(f"\n{'place by first-order/measured, * fooled':<40}{titles}")
    for cheat in dict.fromkeys(cell["cheat"] for cell in cells):
        line = ""
        for clip, c in columns:
            cell = found[cheat, clip, c]
            first, measured = cell["places"]
            line += f"{f'{first:g}/{measured:g}' + ('*' if cell['fools'] else ' '):>16}"
        print(f"{cheat:<40}{line}")


def _range(quartiles: Sequence[float]) -> str:
    low, median, high = quartiles
    return f"{median:.3f} ({low:.3f} to {high:.3f})"


# --- the command


def run_all(scales: Sequence[Scale], results: Results, say: Callable[[str], None]) -> None:
    """Run the models that are missing."""
    torch.set_num_threads(1)
    for scale in scales:
        if results.has(scale):
            continue
        records = []
        for record in Bench(scale, read_pages(scale.run())).windows():
            records.append(record)
            say(f"{scale.name}, window {record['window']}: held-out loss {record['held_out_loss']:.4f}")
        results.add(scale, records)


def main() -> None:
    """Run what is missing, sum up and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object a stretch")
    parser.add_argument("--results", type=Path, help="file that keeps the records, one line of JSON a window")
    parser.add_argument("--model", choices=("demo", "5m"), help="only this model")
    parser.add_argument("--no-run", action="store_true", help="only show what the results file holds")
    parser.add_argument("--quick", action="store_true", help="a budget of seconds, to see that everything runs")
    options = parser.parse_args()
    chosen = [scale for scale in scales() if options.model in (None, scale.name)]
    if options.quick:
        chosen = [quick(scale) for scale in chosen]
    results = Results(options.results, chosen)
    if not options.no_run:
        run_all(chosen, results, lambda line: print(line, file=sys.stderr, flush=True))
    for scale in chosen:
        for entry in summary(scale, results):
            if options.json:
                print(json.dumps(entry, ensure_ascii=False))
            else:
                print_table(entry)


if __name__ == "__main__":
    main()
