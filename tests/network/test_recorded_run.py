"""The same events give the same scorebook: in this process and in another, in any order, now and in later versions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.replay import replay

VECTORS = Path(__file__).parents[1] / "vectors"
REPLAY = Path(__file__).parents[1] / "protocol" / "replay.py"


def replayed_elsewhere(path: Path, seed: int) -> list[str]:
    """Digests as another process finds them, with events in another order and another seed for hashes."""
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, str(REPLAY), str(path), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    digests: list[str] = json.loads(done.stdout)
    return digests


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((VECTORS / "recorded_run.json").read_text(encoding="utf-8"))
    return loaded


def test_a_recorded_run_with_cheats_comes_out_as_it_did(recorded: dict[str, Any]) -> None:
    last = replay(recorded)[-1]
    assert len(last.peers) == len(recorded["peers"])
    for record, expected in zip(last.peers, recorded["peers"], strict=True):
        found = record.model_dump(mode="json")
        assert found.keys() == expected.keys()
        assert {k: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for k, v in expected.items()} == found


def test_a_recorded_run_holds_what_scores_are_made_of(recorded: dict[str, Any]) -> None:
    events = [event for window in recorded["windows"] for event in window["events"]]
    assert {event["reason"] for event in events} >= {None, "no_reveal", "duplicate"}
    assert any(event["unique_work"] is not None for event in events)
    assert any(event["places"] for event in events)


@pytest.mark.parametrize("seed", [1, 2])
def test_another_process_finds_the_same_digests_in_any_order_of_events(recorded: dict[str, Any], seed: int) -> None:
    found = replayed_elsewhere(VECTORS / "recorded_run.json", seed)
    assert found == [book.digest() for book in replay(recorded)]


def test_the_events_of_a_run_give_the_digests_that_its_receipts_name(tmp_path: Path) -> None:
    played = runpy.run_path(str(VECTORS / "record_run.py"))["record"](3)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(played), encoding="utf-8")
    assert replayed_elsewhere(path, 3) == [window["digest"] for window in played["windows"]]
