"""Play a run with cheats and write down what its validator told its scorebook: python tests/vectors/record_run.py

The record, `recorded_run.json`, holds documents as they are, whatever their fields: write it anew after a change of
what an event or a record says. It comes from training, so its numbers differ from machine to machine; what the
scorebook makes of them does not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from neurons.adversaries.idle import Noise  # noqa: E402
from neurons.adversaries.thieves import LastWindowCopy  # noqa: E402
from neurons.adversaries.timing import NoReveal  # noqa: E402
from neurons.adversaries.workers import Outdated  # noqa: E402
from neurons.lab.virtual import Simulation, run_virtually, small_corpus, tiny_table  # noqa: E402
from neurons.miner import Miner  # noqa: E402
from neurons.validator import Validator  # noqa: E402
from protocol.gauntlet import verdict  # noqa: E402
from protocol.gauntlet.scorebook import Event, Scorebook, update  # noqa: E402
from protocol.run import Run  # noqa: E402

RECORD = HERE / "recorded_run.json"
WINDOWS = 8
MEMBERS = {
    "a": Miner,
    "b": Miner,
    "c": Miner,
    "noise": Noise,
    "copy": LastWindowCopy,
    "silent": NoReveal,
    "outdated": Outdated,
}


def table() -> dict[str, Any]:
    """The constants of the run that is recorded."""
    made = tiny_table()
    made["name"] = "recorded"
    made["dataset"] |= {"slots": len(MEMBERS) + 1}
    made["gauntlet"] |= {"random_pages": 4, "random_pages_most": 4, "own_pages": 4, "held_out_pages": 1}
    return made


async def play(folder: Path, windows: int) -> dict[str, Any]:
    """The record of a run of so many windows."""
    told: dict[int, list[dict[str, Any]]] = {}

    def recording(book: Scorebook, window: int, events: Sequence[Event], run: Run) -> Scorebook:
        told[window] = [event.model_dump(mode="json") for event in events]
        return update(book, window, events, run)

    with patch.object(verdict, "update", recording):
        async with Simulation(folder, small_corpus(), table()) as net:
            await net.create(["v", *MEMBERS])
            net.start("v", Validator)
            for name, kind in MEMBERS.items():
                net.start(name, kind)
            await net.windows(windows)
            await net.stop("v")
            receipts = [await net.receipts(window) for window in range(windows)]
            last = net.nodes["v"].memory.book
    return {
        "about": "What the validator of a run with cheats told its scorebook in each window: slots whose hotkey has "
        "left, then events; and the digest that its receipts name. Replay: an empty scorebook, in each window first "
        "drop the records of the departed. peers is what comes out; ratings go through exp and log, so another machine "
        "may differ in the last digits, and then in digests.",
        "run": net.run.model_dump(mode="json"),
        "windows": [
            {"window": r.window, "departed": r.departed, "events": told[r.window], "digest": r.scorebook_digest}
            for r in receipts
        ],
        "peers": [record.model_dump(mode="json") for record in last.peers],
    }


def record(windows: int) -> dict[str, Any]:
    """Play the run in virtual time."""
    with tempfile.TemporaryDirectory(prefix="windrow-record-") as folder:
        recorded: dict[str, Any] = run_virtually(play(Path(folder), windows))
    return recorded


def main() -> None:
    text = json.dumps(record(WINDOWS), indent=1, sort_keys=True)
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
