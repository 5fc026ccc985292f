"""Replay the record of a run: python tests/protocol/replay.py FILE [SEED]

Prints the digest of the scorebook after each window, as JSON. With a seed, events come in another order.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from protocol.gauntlet.scorebook import Event, Scorebook, update
from protocol.gauntlet.slots import remaining
from protocol.run import run_from_table


def replay(recorded: dict[str, Any], seed: int | None = None) -> list[Scorebook]:
    """The scorebook after each window of a record."""
    run = run_from_table(recorded["run"])
    book, books = Scorebook(run_digest=run.digest(), window=run.time.first_window), []
    for window in recorded["windows"]:
        events = [Event.parse(json.dumps(event).encode()) for event in window["events"]]
        if seed is not None:
            Random(f"{seed} {window['window']}").shuffle(events)
        # Through bytes, as a process that starts again reads it.
        book = Scorebook.parse(remaining(book, window["departed"]).canonical())
        book = update(book, window["window"], events, run)
        books.append(book)
    return books


def main(path: str, seed: str | None = None) -> None:
    books = replay(json.loads(Path(path).read_text(encoding="utf-8")), None if seed is None else int(seed))
    print(json.dumps([book.digest() for book in books]))


if __name__ == "__main__":
    main(*sys.argv[1:])
