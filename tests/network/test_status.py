"""`windrow status`: the same facts in words and in JSON, from public objects and from what nodes said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neurons.cli import main
from neurons.folder import held
from neurons.overview import Overview, RunStatus, look, nodes_in
from neurons.status import NodeStatus, write_status
from protocol.window import deadlines
from tests.network.conftest import Played

NOW = 1_700_000_100.0


def write(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    fields: dict[str, Any] = {
        "name": folder.name,
        "role": "miner",
        "uid": 3,
        "hotkey": "5" + "F" * 47,
        "pid": 1,
        "window": 7,
        "activity": "waiting for manifest 7",
        "since": NOW - 12,
        "roots": {6: "ab" * 32, 7: "cd" * 32},
    }
    write_status(folder, NodeStatus(**{**fields, **changes}))
    return folder


def test_where_a_run_stands_is_read_from_public_objects(played: Played) -> None:
    status: RunStatus = played.look(look)
    assert (status.newest, status.lag, status.problems) == (status.window - 1, 0, ())
    assert status.leader is not None
    assert status.leader[0] == 0
    assert status.signer == status.leader[1]
    assert status.root is not None
    lines = list(Overview(status, ()).lines(status.block_at + 3, None))
    assert lines[0].startswith(f"run demo: block {status.block}, window {status.window}; the leader is uid 0 ")
    assert lines[1].startswith(f"the newest manifest is that of window {status.newest}: root {status.root[:8]}")
    assert lines[1].endswith(f"the next is due by block {deadlines(status.window, played.run.time).manifest_block}")


def test_a_ledger_that_is_behind_says_by_how_much_and_why(played: Played, tmp_path: Path) -> None:
    copy = played.copy(tmp_path / "copy")
    newest = played.look(look).newest
    (copy.bucket("v") / copy.keys.ledger_head()).write_text(copy.keys.manifest(newest - 3))
    behind = copy.look(look)
    assert (behind.newest, behind.lag) == (newest - 3, 3)
    assert "the ledger is 3 windows behind the chain" in list(Overview(behind, ()).lines(NOW, None))
    (copy.bucket("v") / copy.keys.manifest(newest - 3)).write_bytes(b"{")
    broken = copy.look(look)
    assert broken.newest is None
    assert broken.problems[0].startswith("the newest manifest of validator 0 cannot be had: ")


def test_a_chain_that_stands_still_and_a_clock_that_is_wrong_are_told(played: Played) -> None:
    status = played.look(look)
    for seconds, words in (
        (300, "the newest block is 5 min old: the chain stands still, or this machine's clock is ahead of it"),
        (-240, "the newest block is 4 min in the future: this machine's clock is behind the chain's"),
    ):
        assert words in list(Overview(status, ()).lines(status.block_at + seconds, None))
    assert not any("newest block" in line for line in Overview(status, ()).lines(status.block_at + 5, None))


def test_a_node_says_what_it_waits_for_and_how_far_behind_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "bob", head_window=6, attesting=0.75, final=4)
    with held(folder, "busy"):
        (node,) = nodes_in(tmp_path, 9)
        lines = list(Overview(None, (node,)).lines(NOW, tmp_path))
    assert lines == [
        "bob (miner, uid 3): window 7, root cdcdcdcd, 2 windows behind the chain; waiting for manifest 7, for 12 s",
        "  follows manifest 6, for which 75 % of the stake stands; final up to window 4",
    ]


def test_a_node_that_does_not_run_and_a_folder_without_any_are_said_so(tmp_path: Path) -> None:
    assert list(Overview(None, nodes_in(tmp_path)).lines(NOW, tmp_path)) == [
        f"no node runs here, {tmp_path} holds none: start one with windrow up, miner or validator"
    ]
    folder = write(tmp_path / "bob")
    lines = list(Overview(None, nodes_in(folder)).lines(NOW, folder))
    assert "does not run; its last words: waiting for manifest 7" in lines[0]
    assert lines[-1].startswith("no node runs here now")


def test_the_command_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "bob")
    assert main(["status", "--state", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] is None
    assert printed["nodes"][0] | {"root": "cd" * 32, "running": False} == printed["nodes"][0]
    assert main(["status", "--dir", str(tmp_path / "none")]) == 4
    assert "there is no network in" in capsys.readouterr().err
